package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/refusal"
)

func TestMalformedRequestsAreCounted(t *testing.T) {
	for _, tt := range []struct{ name, raw string }{
		{"garbage", "\x16\x03\x01 what is this\r\n\r\n"},
		{"half a request", "GET / HTTP/1.1\r\nHost:"},
		{"no Host", "GET / HTTP/1.1\r\n\r\n"},
		{"two Hosts", request("GET / HTTP/1.1", "Host: a", "Host: b")},
		{"another version", request("GET / HTTP/3.0", "Host: a")},
		{"header without a colon", request("GET / HTTP/1.1", "Host: a", "what")},
		{"control character in the target", request("GET /\x01 HTTP/1.1", "Host: a")},
		{"unknown transfer coding", request("GET / HTTP/1.1", "Host: a", "Transfer-Encoding: what")},
		{"1 MiB of headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X-Fill: "+strings.Repeat("x", 1000)+"\r\n", 1<<10)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := bundled(t, nil)
			conn := g.dial(t)
			io.WriteString(conn, tt.raw) // a reset on the way is an answer too
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn)
			line := g.journal.next(t, "refused")
			if line["reason"] != "malformed" || line["client"] != "127.0.0.1" {
				t.Errorf("line: got %v, want malformed and the client", line)
			}
			if got := g.refused(t, refusal.Malformed); got != 1 {
				t.Errorf("counted %v times, want once", got)
			}
		})
	}
}

func (g *testGate) drain(ctx context.Context) <-chan error {
	drained := make(chan error, 1)
	go func() { drained <- g.Drain(ctx) }()
	return drained
}

// waitClosing waits for Drain to have stopped accepting.
func (g *testGate) waitClosing() {
	for !g.requests.isClosed() {
		runtime.Gosched()
	}
}

func result(t *testing.T, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(2 * patience):
		t.Fatal("it does not end")
		return nil
	}
}

func TestDrainTellsEverySession(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) { c.DrainTimeout = 2 * time.Second })
	clients := make([]*websocket.Conn, 3)
	for i := range clients {
		clients[i] = g.connect(t, "/?token=good", nil)
		echoes(t, clients[i], "here")
	}
	drained := g.drain(t.Context())
	for _, client := range clients {
		if _, _, err := client.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
			t.Errorf("got %v, want Close 1001", err)
		}
		client.Close()
	}
	if err := result(t, drained); err != nil {
		t.Errorf("Drain: %v", err)
	}
	for range clients {
		if line := g.journal.next(t, "session ended"); line["reason"] != "drain" {
			t.Errorf("reason: got %v, want drain", line["reason"])
		}
	}
	if conn, err := net.Dial("tcp", g.addr); err == nil {
		conn.Close()
		t.Error("the listener is still open")
	}
}

func TestDrainDelayGoesOnAccepting(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) { c.DrainDelay = time.Second })
	drained := g.drain(t.Context())
	conn := g.connect(t, "/?token=good", nil)
	echoes(t, conn, "still here")
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("got %v, want Close 1001", err)
	}
	conn.Close()
	if err := result(t, drained); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

func TestUpgradeThatEndsWhileDrainingGets503(t *testing.T) {
	asked, closing := make(chan struct{}), make(chan struct{})
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		close(asked)
		<-closing
		io.WriteString(conn, accepted(r)+"\r\n")
		io.Copy(io.Discard, conn)
	})
	g := newGate(t, b.url, nil)
	conn := g.dial(t)
	io.WriteString(conn, handshake("/?token=good"))
	<-asked
	drained := g.drain(t.Context())
	g.waitClosing()
	close(closing)
	if a := readAnswer(t, conn); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.body != refusal.Draining.Text()+"\n" {
		t.Errorf("got %d %q, want 503", a.StatusCode, a.body)
	}
	if err := result(t, drained); err != nil {
		t.Errorf("Drain: %v", err)
	}
	if got := g.refused(t, refusal.Draining); got != 1 {
		t.Errorf("counted %v times, want once", got)
	}
}

// A request that is read on a connection that was open already.
func TestNewRequestWhileDrainingGets503(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, nil)
	held := make(chan struct{})
	if !g.requests.begin() { // holds Drain back
		t.Fatal("closed")
	}
	conn := g.dial(t)
	io.WriteString(conn, "GET / HTTP/1.1\r\n")
	// Connections are accepted in order: once a later one is answered, this one is no longer the listener's to reset.
	later := g.dial(t)
	io.WriteString(later, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	readAnswer(t, later)
	drained := g.drain(t.Context())
	g.waitClosing()
	io.WriteString(conn, "Host: a\r\n\r\n")
	go func() {
		<-held
		g.requests.end()
	}()
	a := readAnswer(t, conn)
	if a.StatusCode != 503 {
		t.Errorf("got %d, want 503", a.StatusCode)
	}
	close(held)
	if err := result(t, drained); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

func TestDrainTimeoutCutsWhatIsLeft(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) {
		c.DrainTimeout = 200 * time.Millisecond
		c.Relay.CloseTimeout = time.Minute
	})
	conn := g.connect(t, "/?token=good", nil)
	conn.SetCloseHandler(func(int, string) error { return nil }) // never answers
	if err := result(t, g.drain(t.Context())); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 sessions left") {
		t.Errorf("Drain: got %v, want that its time has run out", err)
	}
	if line := g.journal.next(t, "session ended"); line["session"] == "" {
		t.Error("the session has no line")
	}
}

// What has not asked for anything must not keep anybody waiting.
func TestSilentConnectionsDoNotHoldDrainBack(t *testing.T) {
	g := bundled(t, func(c *Config) { c.DrainTimeout = time.Minute })
	silent, half := g.dial(t), g.dial(t)
	io.WriteString(half, "GET / HTTP/1.1\r\nHos")
	if err := result(t, g.drain(t.Context())); err != nil {
		t.Errorf("Drain: %v", err)
	}
	for _, conn := range []net.Conn{silent, half} {
		if n, err := io.Copy(io.Discard, conn); n > 0 || isTimeout(err) {
			t.Errorf("got %d bytes, %v; want the end of the connection", n, err)
		}
	}
}

func TestCutEndsDrain(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) { c.DrainDelay = time.Minute })
	conn := g.connect(t, "/?token=good", nil)
	drained := g.drain(t.Context())
	g.Cut()
	if err := result(t, drained); !errors.Is(err, context.Canceled) {
		t.Errorf("Drain: got %v, want that it was cut", err)
	}
	if _, _, err := conn.ReadMessage(); err == nil || isTimeout(err) {
		t.Errorf("the session: got %v, want its end", err)
	}
	g.Cut() // again
}

func TestCutEndsRequestsInProgress(t *testing.T) {
	asked := make(chan struct{})
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		close(asked)
		io.Copy(io.Discard, conn)
	})
	g := newGate(t, b.url, nil)
	conn := g.dial(t)
	io.WriteString(conn, handshake("/?token=good"))
	<-asked
	g.Cut()
	if line := g.journal.next(t, "refused"); line["reason"] != "draining" {
		t.Errorf("reason: got %v, want draining", line["reason"])
	}
}

func TestServeAfterDrain(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, nil)
	if err := g.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(l); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener: got %v, want it closed", err)
	}
}

// selfSigned writes a certificate for 127.0.0.1 and its key, and returns their files and whom to trust for it.
func selfSigned(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, content := range map[string][]byte{
		certFile: certPEM, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, roots
}

func TestTLS(t *testing.T) {
	b := newBackend(t, nil)
	certFile, keyFile, roots := selfSigned(t)
	g := newGate(t, b.url, func(c *Config) { c.Front.CertFile, c.Front.KeyFile = certFile, keyFile })

	for _, tt := range []struct {
		name   string
		client *tls.Config
		want   string // how the error ends; "": none
	}{
		{"plain", &tls.Config{}, ""},
		{"HTTP/2 first, then HTTP/1.1", &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, ""},
		{"HTTP/2 alone", &tls.Config{NextProtos: []string{"h2"}}, "no application protocol"},
		{"TLS 1.1", &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, "protocol version not supported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.client.RootCAs = roots
			conn, err := tls.Dial("tcp", g.addr, tt.client)
			if tt.want != "" {
				if err == nil || !strings.HasSuffix(err.Error(), tt.want) {
					t.Errorf("got %v, want %s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			// A frame comes early, inside TLS.
			io.WriteString(conn, handshake("/?token=good")+"\x82\x81\x00\x00\x00\x00!")
			a := readAnswer(t, conn)
			if a.StatusCode != 101 {
				t.Fatalf("status: got %d, want 101", a.StatusCode)
			}
			echoed := make([]byte, 7)
			if _, err := io.ReadFull(a.rest, echoed); err == nil && echoed[6] != '!' {
				t.Errorf("echo: got %q", echoed)
			}
			if got := b.next(t).Header.Get("X-Forwarded-Proto"); got != "https" {
				t.Errorf("X-Forwarded-Proto: got %q, want https", got)
			}
		})
	}
	t.Run("malformed", func(t *testing.T) {
		conn, err := tls.Dial("tcp", g.addr, &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "what\r\n\r\n")
		bufio.NewReader(conn).ReadString(0)
		if line := g.journal.next(t, "refused"); line["reason"] != "malformed" {
			t.Errorf("line: got %v, want malformed", line)
		}
	})
}

// The request's context must not end before the steps that it times have.
func TestRequestTimeoutIsThatOfTheSteps(t *testing.T) {
	c := defaults(t)
	c.Auth.Timeout, c.Upstream.DialTimeout, c.Upstream.HandshakeTimeout = time.Minute, time.Hour, 24*time.Hour
	if got, want := c.requestTimeout(), 3*time.Minute+25*time.Hour; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func (r *requests) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// overTLS shakes hands as a client that trusts the gate whatever its certificate, and shows it one; nil: none.
func overTLS(t *testing.T, conn net.Conn, own *tls.Certificate) *tls.Conn {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true}
	if own != nil {
		c.Certificates = []tls.Certificate{*own}
	}
	secured := tls.Client(conn, c)
	if err := secured.Handshake(); err != nil {
		t.Fatal(err)
	}
	return secured
}
