//go:build unix

package proxy

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis/proxy/frame"
	"portcullis/proxy/front"
	"portcullis/proxy/refusal"
)

// listenAt opens a listener for an entry of LISTEN_ADDR.
func listenAt(t *testing.T, entry string, passed ...*os.File) net.Listener {
	t.Helper()
	all, err := front.Listen(front.Listening{Addrs: []string{entry}, Passed: passed})
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// unixSocket is an entry of LISTEN_ADDR for a socket of this test.
func unixSocket(t *testing.T) string { return "unix:" + filepath.Join(t.TempDir(), "front.sock") }

// passedSocket is a listening socket as systemd passes it.
func passedSocket(t *testing.T, name string) *os.File {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

// proxied has heads of the PROXY protocol come from this machine.
func proxied(c *Config) {
	c.Front.ProxyProtocol, c.ClientIP.TrustedProxies = true, []string{"127.0.0.1"}
}

// The heads of these tests: 203.0.113.9 by version 1, and by version 2, there with a TLV, and LOCAL.
const (
	head1     = "PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\r\n"
	head2     = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x1a\xcb\x00\x71\x09\x0a\x00\x00\x01\x1f\x90\x01\xbb\x02\x00\x0bexample.org"
	headLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
)

// preceded is a connection that sends a head in one segment with what is written first.
type preceded struct {
	net.Conn
	head string
}

func (p *preceded) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(append([]byte(p.head), b...))
	n -= len(p.head)
	p.head = ""
	return max(n, 0), err
}

// Whatever a connection comes through, the event loop relays it, and what its client sent early, in the same segment as head and handshake,
// is there.
func TestEdgeRunsOnTheLoop(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no event loop")
	}
	certFile, keyFile, _ := selfSigned(t)
	for _, tt := range []struct {
		name   string
		listen func(t *testing.T) net.Listener
		edit   func(*Config)
		before string // the handshake
		lines  []string
		client string
		stream bool
	}{
		{name: "TCP", listen: func(t *testing.T) net.Listener { return listenAt(t, "127.0.0.1:0") }, client: "127.0.0.1"},
		{name: "unix", listen: func(t *testing.T) net.Listener { return listenAt(t, unixSocket(t)) }, lines: []string{"X-Forwarded-For: 203.0.113.9"}, client: "203.0.113.9"},
		{name: "TCP, PROXY 1", listen: func(t *testing.T) net.Listener { return listenAt(t, "127.0.0.1:0") }, edit: proxied, before: head1, client: "203.0.113.9"},
		{name: "TCP, PROXY 2", listen: func(t *testing.T) net.Listener { return listenAt(t, "127.0.0.1:0") }, edit: proxied, before: head2, client: "203.0.113.9"},
		{name: "unix, PROXY 1", listen: func(t *testing.T) net.Listener { return listenAt(t, unixSocket(t)) },
			edit: func(c *Config) { c.Front.ProxyProtocol = true }, before: head1, client: "203.0.113.9"},
		{name: "unix, PROXY 2", listen: func(t *testing.T) net.Listener { return listenAt(t, unixSocket(t)) },
			edit: func(c *Config) { c.Front.ProxyProtocol = true }, before: head2, client: "203.0.113.9"},
		{name: "fd", listen: func(t *testing.T) net.Listener { return listenAt(t, "fd:web", passedSocket(t, "web")) }, client: "127.0.0.1"},
		{name: "TLS behind a head", listen: func(t *testing.T) net.Listener { return listenAt(t, "127.0.0.1:0") },
			edit: func(c *Config) { proxied(c); c.Front.CertFile, c.Front.KeyFile = certFile, keyFile }, before: head2, client: "203.0.113.9", stream: true},
		{name: "TLS", listen: func(t *testing.T) net.Listener { return listenAt(t, "127.0.0.1:0") }, // so that the metric is one that can tell
			edit: func(c *Config) { c.Front.CertFile, c.Front.KeyFile = certFile, keyFile }, client: "127.0.0.1", stream: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			told := make(chan string, 1)
			echo := echoHandler()
			g := newGateAt(t, newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				told <- r.Header.Get("X-Forwarded-For")
				echo.ServeHTTP(w, r)
			})), tt.edit, tt.listen(t))
			conn := g.dial(t)
			conn = &preceded{conn, tt.before}
			if tt.stream {
				conn = overTLS(t, conn, nil)
			}
			io.WriteString(conn, handshake("/?token=good", tt.lines...)+text("early"))
			a := readAnswer(t, conn)
			if a.StatusCode != 101 {
				t.Fatalf("got %d %q, want 101", a.StatusCode, a.body)
			}
			want := served(frame.Text, "early")
			got := make([]byte, len(want))
			if _, err := io.ReadFull(a.rest, got); err != nil || string(got) != want {
				t.Errorf("what was sent early came back as %q, %v; want %q", got, err, want)
			}
			loops, streams := g.relay.Engines()
			if tt.stream && (loops != 0 || streams != 1) || !tt.stream && (loops != 1 || streams != 0) {
				t.Errorf("%d sessions run on the loop and %d on streams", loops, streams)
			}
			if said := <-told; said != tt.client {
				t.Errorf("the upstream is told that it comes from %q, want %q", said, tt.client)
			}
			conn.Close()
			if line := g.journal.next(t, "session ended"); line["client"] != tt.client {
				t.Errorf("the log has the client %v, want %s", line["client"], tt.client)
			}
		})
	}
}

func TestWhoTheClientIs(t *testing.T) {
	tcp, unix := "127.0.0.1:0", unixSocket
	both := func(c *Config) {
		proxied(c)
		c.ClientIP.TrustedProxies = append(c.ClientIP.TrustedProxies, "10.0.0.0/8")
	}
	fromTrusted := "PROXY TCP4 10.0.0.7 10.0.0.1 8080 443\r\n"
	for _, tt := range []struct {
		name      string
		unix      bool
		edit      func(*Config)
		before    string
		forwarded string
		want      string // X-Forwarded-For upstream; "": 400
	}{
		{"unix", true, nil, "", "203.0.113.9", "203.0.113.9"},
		{"unix, through another proxy", true, both, headLocal, "203.0.113.9, 10.0.0.7", "203.0.113.9, 10.0.0.7"},
		{"unix, forged", true, nil, "", "6.6.6.6, 203.0.113.9", "203.0.113.9"},
		{"unix, nobody says", true, nil, "", "", ""},
		{"unix, unknown", true, nil, "", "203.0.113.9, unknown", ""},
		{"unix, LOCAL", true, proxied, headLocal, "", ""},
		{"unix, LOCAL, forwarded", true, proxied, headLocal, "203.0.113.9", "203.0.113.9"},
		{"head", false, proxied, head1, "", "203.0.113.9"},
		{"head, the client's own word", false, proxied, head1, "6.6.6.6", "203.0.113.9"},
		{"head of a trusted proxy", false, both, fromTrusted, "6.6.6.6, 203.0.113.9", "203.0.113.9, 10.0.0.7"},
		{"LOCAL", false, proxied, headLocal, "", "127.0.0.1"},
		{"LOCAL, forwarded", false, proxied, headLocal, "203.0.113.9", "203.0.113.9, 127.0.0.1"},
		{"TLV", false, proxied, head2, "", "203.0.113.9"},
		{"a stranger is a client", false, func(c *Config) { both(c); c.ClientIP.TrustedProxies = []string{"10.0.0.0/8"} }, "", "6.6.6.6", "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, nil)
			entry := tcp
			if tt.unix {
				entry = unix(t)
			}
			g := newGateAt(t, b.url, tt.edit, listenAt(t, entry))
			var lines []string
			if tt.forwarded != "" {
				lines = append(lines, "X-Forwarded-For: "+tt.forwarded)
			}
			a := g.send(t, tt.before+handshake("/?token=good", lines...))
			if tt.want == "" {
				if a.StatusCode != 400 || !strings.HasPrefix(a.body, refusal.ClientUnknown.Text()) {
					t.Errorf("got %d %q, want 400", a.StatusCode, a.body)
				}
				b.untouched(t)
				if line := g.journal.next(t, "refused"); line["reason"] != "client_unknown" || line["client"] != "unix" || line["level"] != "WARN" {
					t.Errorf("line: %v", line)
				}
				return
			}
			if a.StatusCode != 101 {
				t.Fatalf("got %d %q, want 101", a.StatusCode, a.body)
			}
			if got := b.next(t).Header.Get("X-Forwarded-For"); got != tt.want {
				t.Errorf("the upstream is told %q, want %q", got, tt.want)
			}
		})
	}
}

// The gate's own paths are for clients whose address is known, too: their limits are by address.
func TestUnknownClientsHaveNoOwnPaths(t *testing.T) {
	g := newGateAt(t, newBackend(t, nil).url, func(c *Config) {
		c.API.Tickets, c.Session.Renewal = true, true
		c.API.TokenEndpoint = http.NotFoundHandler()
		c.Gate.Paths = []string{"/ws"}
	}, listenAt(t, unixSocket(t)))
	for _, path := range []string{"/.portcullis/ticket", "/.portcullis/session", "/token", "/nowhere"} {
		for forwarded, want := range map[string]int{"": 400, "203.0.113.9": 0} {
			lines := []string{"POST " + path + " HTTP/1.1", "Host: a", "Content-Length: 0"}
			if forwarded != "" {
				lines = append(lines, "X-Forwarded-For: "+forwarded)
			}
			if a := g.send(t, request(lines...)); want == 400 && a.StatusCode != 400 || want == 0 && a.StatusCode == 400 {
				t.Errorf("%s for %q: %d %q", path, forwarded, a.StatusCode, a.body)
			}
		}
	}
}

// A trusted peer without a good head is closed without an answer, counted and told of.
func TestHeadIsRequired(t *testing.T) {
	for name, raw := range map[string]string{
		"none":                  handshake("/?token=good"),
		"none but TLS":          "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"cut":                   head1[:20],
		"cut, version 2":        head2[:20],
		"too long":              "PROXY UNKNOWN " + strings.Repeat("f", 200) + "\r\n" + handshake("/?token=good"),
		"too long, version 2":   head2[:14] + "\xff\xff" + strings.Repeat("\x00", 8192),
		"of nothing that we do": "PROXY UDP4 203.0.113.9 10.0.0.1 8080 443\r\n" + handshake("/?token=good"),
	} {
		t.Run(name, func(t *testing.T) {
			for _, entry := range []string{"127.0.0.1:0", unixSocket(t)} {
				b := newBackend(t, nil)
				g := newGateAt(t, b.url, proxied, listenAt(t, entry))
				conn := g.dial(t)
				io.WriteString(conn, raw)
				conn.(interface{ CloseWrite() error }).CloseWrite()
				if got, err := io.ReadAll(conn); len(got) > 0 || isTimeout(err) { // a reset is fine
					t.Errorf("got %q, %v", got, err)
				}
				line := g.journal.next(t, "refused")
				client := "127.0.0.1"
				if strings.HasPrefix(entry, "unix:") {
					client = "unix"
				}
				if line["reason"] != "proxy_head" || line["client"] != client || line["error"] == nil || line["level"] != "WARN" {
					t.Errorf("line: %v", line)
				}
				if got := g.refused(t, refusal.ProxyHead); got != 1 || g.refused(t, refusal.Malformed) != 0 {
					t.Errorf("counted %v times, want once, and never as malformed", got)
				}
				b.untouched(t)
			}
		})
	}
}

// What only looks whether somebody listens is nobody's fault.
func TestSilentPeersAreNotCounted(t *testing.T) {
	g := newGateAt(t, newBackend(t, nil).url, proxied, listenAt(t, "127.0.0.1:0"))
	conn := g.dial(t)
	conn.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, conn)
	if got := g.refused(t, refusal.ProxyHead); got != 0 {
		t.Errorf("counted %v times", got)
	}
}

// A stranger's head is not read: it is no HTTP.
func TestHeadOfAStranger(t *testing.T) {
	for _, head := range []string{head1, head2, headLocal} {
		b := newBackend(t, nil)
		g := newGateAt(t, b.url, func(c *Config) { proxied(c); c.ClientIP.TrustedProxies = []string{"10.0.0.0/8"} }, listenAt(t, "127.0.0.1:0"))
		if a := g.send(t, head+handshake("/?token=good")); a.StatusCode != 400 {
			t.Errorf("%q: got %d %q, want 400", head, a.StatusCode, a.body)
		}
		if line := g.journal.next(t, "refused"); line["reason"] != "malformed" || line["client"] != "127.0.0.1" {
			t.Errorf("line: %v", line)
		}
		b.untouched(t)
	}
}

// A head that does not come holds up nobody else.
func TestSlowHeadDelaysNobody(t *testing.T) {
	g := newGateAt(t, newBackend(t, nil).url, proxied, listenAt(t, "127.0.0.1:0"))
	for range 20 {
		io.WriteString(g.dial(t), head1[:10])
	}
	if a := g.send(t, head1+handshake("/?token=good")); a.StatusCode != 101 {
		t.Errorf("got %d %q, want 101", a.StatusCode, a.body)
	}
}

// What net/http refuses on a unix socket, or behind a head, is counted for the client.
func TestMalformedAtTheEdge(t *testing.T) {
	for _, tt := range []struct{ entry, before, client string }{
		{unixSocket(t), "", "unix"},
		{"127.0.0.1:0", head1, "203.0.113.9"},
	} {
		g := newGateAt(t, newBackend(t, nil).url, func(c *Config) {
			if tt.before != "" {
				proxied(c)
			}
		}, listenAt(t, tt.entry))
		if a := g.send(t, tt.before+"GET / HTTP/1.1\r\n\r\n"); a.StatusCode != 400 {
			t.Errorf("got %d, want 400", a.StatusCode)
		}
		if line := g.journal.next(t, "refused"); line["reason"] != "malformed" || line["client"] != tt.client {
			t.Errorf("line: %v", line)
		}
	}
}

// A client on a unix socket that is gone while it waits for the upstream lets go of it; one that has only shut its direction is answered.
func TestPresenceOnAUnixSocket(t *testing.T) {
	asked, gone := make(chan struct{}, 1), make(chan bool, 1)
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		asked <- struct{}{}
		if strings.HasPrefix(r.RequestURI, "/waits") {
			if held(conn) {
				io.WriteString(conn, accepted(r)+"\r\n")
			}
			return
		}
		_, err := conn.Read(make([]byte, 1))
		gone <- !isTimeout(err)
	})
	g := newGateAt(t, b.url, func(c *Config) {
		c.Upstream.HandshakeTimeout, c.Relay.CloseTimeout = time.Minute, time.Minute
	}, listenAt(t, unixSocket(t)))
	from := "X-Forwarded-For: 203.0.113.9"

	conn := g.dial(t)
	io.WriteString(conn, handshake("/?token=good", from))
	<-asked
	conn.Close()
	if !<-gone {
		t.Error("the upstream of a client that is gone is held")
	}
	if line := g.journal.next(t, "refused"); line["reason"] != "client_gone" {
		t.Errorf("line: %v", line)
	}

	conn = g.dial(t)
	io.WriteString(conn, handshake("/waits?token=good", from))
	<-asked
	conn.(*net.UnixConn).CloseWrite()
	if a := readAnswer(t, conn); a.StatusCode != 101 {
		t.Errorf("got %d %q, want 101", a.StatusCode, a.body)
	}
}

// One gate serves at all of its listeners, until the end of them all.
func TestSeveralListeners(t *testing.T) {
	path := unixSocket(t)
	tcp, unix, other := listenAt(t, "127.0.0.1:0"), listenAt(t, path), listenAt(t, "127.0.0.1:0")
	g := newGateAt(t, newEcho(t), nil, tcp, unix, other)
	for _, l := range []net.Listener{tcp, unix, other} {
		g.network, g.addr = l.Addr().Network(), l.Addr().String()
		if a := g.send(t, handshake("/?token=good", "X-Forwarded-For: 203.0.113.9")); a.StatusCode != 101 {
			t.Errorf("%s: got %d %q, want 101", front.AddrOf(l), a.StatusCode, a.body)
		}
	}
	g.Cut()
	for _, l := range []net.Listener{tcp, unix, other} {
		if conn, err := net.Dial(l.Addr().Network(), l.Addr().String()); err == nil {
			conn.Close()
			t.Errorf("%s is open after the end", front.AddrOf(l))
		}
	}
}

// One listener that fails ends the others, and Serve says why.
func TestOneListenerFails(t *testing.T) {
	c := defaults(t)
	c.Upstream.URL, c.Auth.URL = "ws://127.0.0.1:1", "http://127.0.0.1:1"
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Cut()
	broken, good := listenAt(t, "127.0.0.1:0"), listenAt(t, unixSocket(t))
	broken.Close()
	served := make(chan error, 1)
	go func() { served <- p.Serve(good, broken) }()
	if err := result(t, served); err == nil {
		t.Error("Serve returned nil")
	}
	if conn, err := net.Dial("unix", good.Addr().String()); err == nil {
		conn.Close()
		t.Error("the other listener is open")
	}
}
