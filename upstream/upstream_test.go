package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestNewReportsEveryMistake(t *testing.T) {
	noCertificate := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(noCertificate, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	valid := Config{URL: "wss://h", DialTimeout: time.Second, HandshakeTimeout: time.Second}
	tests := []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"nothing set", func(c *Config) { *c = Config{} }, []string{
			`UPSTREAM_URL: "" is empty; want`, `UPSTREAM_DIAL_TIMEOUT: "0s" `, `UPSTREAM_HANDSHAKE_TIMEOUT: "0s" `}},
		{"negative", func(c *Config) { c.DialTimeout = -time.Second }, []string{`UPSTREAM_DIAL_TIMEOUT: "-1s" `}},
		{"host with a space", func(c *Config) { c.Host = "a b" }, []string{`UPSTREAM_HOST: "a b" `}},
		{"host with a line break", func(c *Config) { c.Host = "a\r\nX: y" }, []string{`UPSTREAM_HOST: "a\r\nX: y" `}},
		{"hosts in a list", func(c *Config) { c.Host = "a,b" }, []string{`UPSTREAM_HOST: "a,b" `}},
		{"host with a scheme", func(c *Config) { c.Host = "http://a" }, []string{`UPSTREAM_HOST: "http://a" `}},
		{"CA file missing", func(c *Config) { c.CAFile = "/nowhere/ca.pem" }, []string{
			`UPSTREAM_CA_FILE: "/nowhere/ca.pem" cannot be read (no such file or directory); want`}},
		{"CA file empty of certificates", func(c *Config) { c.CAFile = noCertificate }, []string{`holds no certificate; want`}},
		{"both URL and CA file", func(c *Config) { c.URL, c.CAFile = "", noCertificate }, []string{`UPSTREAM_URL: `, `UPSTREAM_CA_FILE: `}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := valid
			tt.change(&c)
			u, err := New(c)
			if err == nil || u != nil {
				t.Fatalf("got %v and error %v, want only an error", u, err)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("got %d mistakes, want %d: %v", len(lines), len(tt.want), err)
			}
			for i, line := range lines {
				if !strings.Contains(line, tt.want[i]) || !strings.Contains(line, "; want ") {
					t.Errorf("got %s, want it to hold %s", line, tt.want[i])
				}
			}
		})
	}
	if u, err := New(valid); err == nil {
		u.Close()
	} else {
		t.Errorf("valid configuration: %v", err)
	}
}

// writes counts the Write calls of a connection and keeps what they wrote.
type writes struct {
	net.Conn
	n    atomic.Int32
	sent bytes.Buffer
}

func (w *writes) Write(p []byte) (int, error) {
	w.n.Add(1)
	w.sent.Write(p)
	return w.Conn.Write(p)
}

func TestRequest(t *testing.T) {
	tests := []struct {
		name   string
		config Config // its URL lacks scheme and host
		req    Request
		start  string   // how the request starts
		lines  []string // all that comes after Sec-WebSocket-Key, sorted
	}{
		{"least", Config{}, Request{Host: "front.example"},
			"GET / HTTP/1.1\r\nHost: front.example\r\n", nil},
		{"joined", Config{URL: "/app?x=1"}, Request{Path: "/a%2Fb", Query: "y=2", Host: "front.example:3000"},
			"GET /app/a%2Fb?x=1&y=2 HTTP/1.1\r\nHost: front.example:3000\r\n", nil},
		{"host of the settings", Config{Host: "back.example"}, Request{Host: "front.example"},
			"GET / HTTP/1.1\r\nHost: back.example\r\n", nil},
		{"header", Config{}, Request{Host: "h", Header: http.Header{
			"Cookie":        {"a=1", "b=2"},
			"X-Empty":       {""},
			"X-None":        nil,
			"X-Bytes":       {"\u00e9\t\xff"},
			"x-lower":       {"1"},
			protocolField:   {"chat"},
			extensionsField: {"permessage-deflate"},
		}}, "GET / HTTP/1.1\r\nHost: h\r\n", []string{
			"Cookie: a=1", "Cookie: b=2", "Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: chat",
			"X-Bytes: \u00e9\t\xff", "X-Empty: ", "X-Lower: 1"}},
		{"ours, and none of a handshake's", Config{}, Request{Host: "h", Header: http.Header{
			"Host": {"evil"}, "Upgrade": {"h2c"}, "Connection": {"X-Auth"}, "Sec-Websocket-Key": {rfcKey}, "sec-websocket-key": {rfcKey},
			"Sec-Websocket-Version": {"8"}, "Sec-Websocket-Accept": {rfcAccept}, "Content-Length": {"10"}, "Transfer-Encoding": {"chunked"},
			"Te": {"trailers"}, "Trailer": {"X"}, "Expect": {"100-continue"}, "Http2-Settings": {"AAM"}, "Keep-Alive": {"1"},
			"Proxy-Connection": {"close"}, "content-length": {"10"}, "Origin": {"https://front.example"},
		}}, "GET / HTTP/1.1\r\nHost: h\r\n", []string{"Origin: https://front.example"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.URL = "ws://" + startBackend(t, answering(t, switching(""))) + tt.config.URL
			u := newUpstream(t, tt.config)
			var w *writes
			dial := u.dialTCP
			u.dialTCP = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				w = &writes{Conn: conn}
				return w, err
			}
			connect(t, u, &tt.req)
			if n := w.n.Load(); n != 1 {
				t.Errorf("the request took %d writes, want 1", n)
			}
			rest, ok := strings.CutPrefix(w.sent.String(),
				tt.start+"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ")
			if !ok {
				t.Fatalf("got request %q", w.sent.String())
			}
			rest, ok = strings.CutSuffix(rest, "\r\n\r\n")
			key, rest, _ := strings.Cut(rest, "\r\n")
			if raw, err := base64.StdEncoding.DecodeString(key); !ok || err != nil || len(raw) != 16 || key == rfcKey {
				t.Errorf("got key %q", key)
			}
			var lines []string
			if rest != "" {
				lines = strings.Split(rest, "\r\n")
			}
			slices.Sort(lines)
			if !slices.Equal(lines, tt.lines) {
				t.Errorf("got  %q\nwant %q", lines, tt.lines)
			}
		})
	}
}

func TestEachHandshakeHasItsOwnKey(t *testing.T) {
	seen := make(map[string]bool)
	u := newUpstream(t, Config{URL: "ws://h"})
	for range 100 {
		x := handshakes.Get().(*handshake)
		if err := x.compose(u, u.targets[0], &Request{}); err != nil {
			t.Fatal(err)
		}
		if seen[x.key] {
			t.Fatalf("key %s came twice", x.key)
		}
		seen[x.key] = true
		x.release()
	}
}

func TestSmugglingRequestIsNotEvenDialled(t *testing.T) {
	tests := []struct {
		name string
		req  Request
	}{
		{"line break in the path", Request{Path: "/a\r\nX: y"}},
		{"line feed in the path", Request{Path: "/a\nX: y"}},
		{"space in the path", Request{Path: "/a HTTP/1.1"}},
		{"fragment in the path", Request{Path: "/a#b"}},
		{"query in the path", Request{Path: "/a?b"}},
		{"NUL in the path", Request{Path: "/\x00"}},
		{"absolute form", Request{Path: "http://evil/"}},
		{"line break in the query", Request{Query: "a\r\nX: y"}},
		{"space in the query", Request{Query: "a HTTP/1.1"}},
		{"fragment in the query", Request{Query: "a#b"}},
		{"line break in the host", Request{Host: "h\r\nX: y"}},
		{"space in the host", Request{Host: "h h"}},
		{"path in the host", Request{Host: "h/a"}},
		{"two hosts", Request{Host: "h,a"}},
		{"line break in a name", Request{Header: http.Header{"X: y\r\nZ": {"z"}}}},
		{"space in a name", Request{Header: http.Header{"Content-Length ": {"5"}}}},
		{"colon in a name", Request{Header: http.Header{"X:": {"5"}}}},
		{"empty name", Request{Header: http.Header{"": {"5"}}}},
		{"line break in a value", Request{Header: http.Header{"X": {"y\r\nZ: z"}}}},
		{"line feed in a value", Request{Header: http.Header{"X": {"y\nZ: z"}}}},
		{"NUL in a value", Request{Header: http.Header{"X": {"\x00"}}}},
		{"line break in the offer", Request{Header: http.Header{protocolField: {"chat\r\nZ: z"}}}},
	}
	u := newUpstream(t, Config{URL: "ws://h"})
	u.dialTCP = func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialled")
		return nil, io.EOF
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := u.Connect(t.Context(), &tt.req); err == nil {
				t.Error("got no error")
			} else if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("the error quotes the request: %q", err)
			}
		})
	}
}

func TestConnDeadlinesAreCleared(t *testing.T) {
	proceed := make(chan struct{})
	u := newUpstream(t, Config{HandshakeTimeout: 100 * time.Millisecond, URL: "ws://" + startBackend(t, func(c net.Conn) {
		r := make([]byte, 4096)
		n, _ := c.Read(r)
		_, rest, _ := strings.Cut(string(r[:n]), "Sec-WebSocket-Key: ")
		io.WriteString(c, switching("")(rest[:24]))
		<-proceed
		io.WriteString(c, "late")
	})})
	c := connect(t, u, &Request{Path: "/"})
	timer := time.AfterFunc(2*u.handshakeTimeout, func() { close(proceed) })
	defer timer.Stop()
	if got, err := io.ReadAll(c); string(got) != "late" || err != nil {
		t.Errorf("got %q, error %v", got, err)
	}
	if _, ok := c.Conn.(*net.TCPConn); !ok {
		t.Errorf("got a %T, want a *net.TCPConn", c.Conn)
	}
	if c.DialTime <= 0 || c.DialTime > time.Minute {
		t.Errorf("got DialTime %v", c.DialTime)
	}
}

func TestIPv6Target(t *testing.T) {
	listener, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here")
	}
	listener.Close()
	u := newUpstream(t, Config{URL: "ws://" + listener.Addr().String()})
	_, err = u.Connect(t.Context(), &Request{})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got error %v, want connection refused by %v", err, listener.Addr())
	}
}

func TestDialErrors(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close() // so nobody listens there
	refusing := "ws://" + listener.Addr().String()

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	tests := []struct {
		name    string
		ctx     context.Context
		want    error
		timeout bool
	}{
		{"refused", t.Context(), syscall.ECONNREFUSED, false},
		{"cancelled before", cancelled, context.Canceled, false},
		{"deadline passed before", late, context.DeadlineExceeded, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newUpstream(t, Config{URL: refusing}).Connect(tt.ctx, &Request{})
			e, ok := errors.AsType[*DialError](err)
			if !ok || !errors.Is(err, tt.want) || e.Timeout() != tt.timeout {
				t.Errorf("got error %v, want a DialError of %v with Timeout %v", err, tt.want, tt.timeout)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "dial upstream: ") {
				t.Errorf("got error text %q", err)
			}
		})
	}
}

// startTLS serves right 101s with httptest's certificate, which is for example.com and 127.0.0.1.
func startTLS(t *testing.T) (server *httptest.Server, caFile string) {
	t.Helper()
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.NegotiatedProtocol != "http/1.1" || r.TLS.DidResume != (r.URL.Path == "/resumed") {
			t.Errorf("got protocol %q, resumed %v", r.TLS.NegotiatedProtocol, r.TLS.DidResume)
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, switching("")(r.Header.Get("Sec-WebSocket-Key"))+"early")
	}))
	server.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}} // of which we must not choose the first
	server.Config.ErrorLog = log.New(io.Discard, "", 0)              // of the handshakes that are meant to fail
	server.StartTLS()
	t.Cleanup(server.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(caFile, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return server, caFile
}

func TestTLS(t *testing.T) {
	server, caFile := startTLS(t)
	u := newUpstream(t, Config{URL: "wss://" + server.Listener.Addr().String(), CAFile: caFile})
	for _, path := range []string{"/", "/resumed"} {
		c := connect(t, u, &Request{Path: path})
		if _, ok := c.Conn.(*tls.Conn); !ok {
			t.Errorf("got a %T, want a *tls.Conn", c.Conn)
		}
		rest, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		if got := string(c.Early) + string(rest); got != "early" {
			t.Errorf("got %q, want %q", got, "early")
		}
	}
}

func TestTLSCertificateIsVerified(t *testing.T) {
	server, caFile := startTLS(t)
	address := server.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	tests := []struct{ name, url, caFile, want string }{
		{"authority not trusted", "wss://" + address, "", "unknown authority"},
		{"name mismatch", "wss://localhost:" + port, caFile, "not localhost"},
		{"name mismatch with UPSTREAM_HOST right", "https://localhost:" + port, caFile, "not localhost"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, Config{URL: tt.url, CAFile: tt.caFile, Host: "example.com"})
			_, err := u.Connect(t.Context(), &Request{})
			e, ok := errors.AsType[*DialError](err)
			if !ok || e.Timeout() || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want a DialError that says %q", err, tt.want)
			}
		})
	}
}

func TestTLSAgainstOthers(t *testing.T) {
	_, caFile := startTLS(t)
	tests := []struct {
		name    string
		serve   func(net.Conn)
		timeout bool
	}{
		{"plain HTTP", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); io.Copy(io.Discard, c) }, false},
		{"closes at once", func(net.Conn) {}, false},
		{"stalls", func(c net.Conn) { io.Copy(io.Discard, c) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, Config{URL: "wss://" + startBackend(t, tt.serve), CAFile: caFile})
			if tt.timeout {
				u.dialTimeout = 30 * time.Millisecond
			}
			_, err := u.Connect(t.Context(), &Request{})
			e, ok := errors.AsType[*DialError](err)
			if !ok || e.Timeout() != tt.timeout {
				t.Errorf("got error %v, want a DialError with Timeout %v", err, tt.timeout)
			}
		})
	}
}

func TestCancelDuringTLSHandshake(t *testing.T) {
	_, caFile := startTLS(t)
	ctx, cancel := context.WithCancel(t.Context())
	u := newUpstream(t, Config{CAFile: caFile, URL: "wss://" + startBackend(t, func(c net.Conn) {
		c.Read(make([]byte, 1)) // the ClientHello
		cancel()
		io.Copy(io.Discard, c) // ends only if Connect closes
	})})
	_, err := u.Connect(ctx, &Request{})
	if _, ok := errors.AsType[*DialError](err); !ok || !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want a DialError of the cancellation", err)
	}
}
