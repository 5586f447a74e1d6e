package proxy

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"portcullis/proxy/frame"
	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// held waits for the gate to give a connection up, for as long as the gate may need to find out that its client is gone, and
// reports whether it did.
func held(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(3 * 200 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	conn.SetDeadline(time.Now().Add(patience))
	return isTimeout(err)
}

// secured is a gate with TLS, where that is wanted, and how its clients connect.
func secured(t *testing.T, target string, secure bool, edit func(*Config)) (*testGate, func() (conn net.Conn, tcp *net.TCPConn)) {
	t.Helper()
	certFile, keyFile, roots := selfSigned(t)
	g := newGate(t, target, func(c *Config) {
		if secure {
			c.Front.CertFile, c.Front.KeyFile = certFile, keyFile
		}
		edit(c)
		c.Limits.Sessions = 1
	})
	return g, func() (net.Conn, *net.TCPConn) {
		t.Helper()
		conn := g.dial(t)
		tcp := conn.(*net.TCPConn)
		if secure {
			secured := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
			if err := secured.Handshake(); err != nil {
				t.Fatal(err)
			}
			conn = secured
		}
		return conn, tcp
	}
}

// A client may shut its direction and wait for the answer: behind its request, and behind frames that it sends in advance.
func TestHalfClosedClientIsAnswered(t *testing.T) {
	for _, tt := range []struct {
		name   string
		secure bool
		early  bool
		refuse bool
		edit   func(*Config)
	}{
		{name: "101"},
		{name: "101, frames behind the request", early: true},
		{name: "101, stream engine", edit: func(c *Config) { c.Relay.Engine = "stream" }},
		{name: "101, TLS", secure: true},
		{name: "101, TLS, frames behind the request", secure: true, early: true},
		{name: "refusal", refuse: true},
		{name: "refusal, frames behind the request", refuse: true, early: true},
		{name: "refusal, TLS", secure: true, refuse: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, func(conn net.Conn, r *http.Request) {
				if !held(conn) {
					return
				}
				if tt.refuse {
					io.WriteString(conn, "HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n")
					return
				}
				io.WriteString(conn, accepted(r)+"\r\n"+served(frame.Text, "to you"))
				io.Copy(io.Discard, conn)
			})
			g, connect := secured(t, b.url, tt.secure, func(c *Config) {
				c.Relay.CloseTimeout = patience
				if tt.edit != nil {
					tt.edit(c)
				}
			})
			conn, _ := connect()
			raw := handshake("/?token=good")
			if tt.early {
				raw += text("Olá")
			}
			io.WriteString(conn, raw)
			conn.(interface{ CloseWrite() error }).CloseWrite()
			a := readAnswer(t, conn)
			if tt.refuse {
				if a.StatusCode != 418 {
					t.Errorf("got %d, want the upstream's 418", a.StatusCode)
				}
				return
			}
			if a.StatusCode != 101 {
				t.Fatalf("got %d %q, want 101", a.StatusCode, a.body)
			}
			want := served(frame.Text, "to you")
			got := make([]byte, len(want))
			if _, err := io.ReadFull(a.rest, got); err != nil || string(got) != want {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
			conn.Close()
			line := g.journal.next(t, "session ended")
			if n := line["client_messages"]; tt.early && n != 1.0 {
				t.Errorf("%v messages of the client, want that behind its request", n)
			}
		})
	}
}

// A client that is gone while it waits for the upstream lets go of it and of its slot, whatever it has sent before.
func TestGoneClientHoldsNothing(t *testing.T) {
	reset := func(_ net.Conn, tcp *net.TCPConn) {
		tcp.SetLinger(0)
		tcp.Close()
	}
	closed := func(conn net.Conn, _ *net.TCPConn) { conn.Close() }
	upstream := func(c *Config, asked chan<- struct{}, gone chan<- bool) {
		c.Upstream.HandshakeTimeout = time.Minute
		c.Upstream.URL = newBackend(t, func(conn net.Conn, _ *http.Request) {
			asked <- struct{}{}
			conn.SetReadDeadline(time.Now().Add(patience))
			_, err := conn.Read(make([]byte, 1))
			gone <- !isTimeout(err)
		}).url
	}
	for _, tt := range []struct {
		name   string
		secure bool
		early  string
		leave  func(net.Conn, *net.TCPConn)
		linux  bool // elsewhere it is not noticed before the wait is over
	}{
		{name: "reset", leave: reset},
		{name: "closed", leave: closed},
		{name: "a byte, reset", early: "\x81", leave: reset, linux: true},
		{name: "many bytes, closed", early: text(string(make([]byte, 8<<10))), leave: closed, linux: true},
		{name: "TLS, reset", secure: true, leave: reset},
		{name: "TLS, closed", secure: true, leave: closed},
		{name: "TLS, a byte, reset", secure: true, early: "\x81", leave: reset, linux: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.linux && runtime.GOOS != "linux" {
				t.Skip("its socket can't be asked here")
			}
			asked, gone := make(chan struct{}, 1), make(chan bool, 1)
			g, connect := secured(t, newBackend(t, nil).url, tt.secure, func(c *Config) { upstream(c, asked, gone) })
			conn, tcp := connect()
			io.WriteString(conn, handshake("/?token=wonder"))
			<-asked
			if tt.early != "" {
				io.WriteString(conn, tt.early)
			}
			tt.leave(conn, tcp)
			if !<-gone {
				t.Error("it is still waited for")
			}
			if line := g.journal.next(t, "refused"); line["reason"] != "client_gone" {
				t.Errorf("reason: got %v, want client_gone", line["reason"])
			}
			if err := g.waitAllReleased(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who could guess and hang up would guess for nothing: the verifier is asked to the end, and what it says is charged. What is no
// refusal is not, and clients that leave before AUTH_TIMEOUT do not hide that the service is the one at fault.
func TestGuessOfAClientThatLeaves(t *testing.T) {
	for _, tt := range []struct {
		name    string
		edit    func(*Config)
		raw     string
		first   string // the first message; "": none
		answer  http.HandlerFunc
		reason  refusal.Reason
		charged bool
	}{
		{"in the query", nil, handshake("/?token=bad"), "", status(401), refusal.TokenRefused, true},
		{"as the first message", firstMessages(), handshake("/"), text("bad"), status(401), refusal.TokenRefused, true},
		{"for a ticket", exchanging, post("/.portcullis/ticket", "bad"), "", status(401), refusal.TokenRefused, true},
		{"for a renewal", exchanging, post("/.portcullis/session", "bad"), "", status(401), refusal.TokenRefused, true},
		{"a token that is good", nil, handshake("/?token=bad"), "", accepts("Alice", 0), refusal.ClientGone, false},
		{"a service that does not work", nil, handshake("/?token=bad"), "", status(500), refusal.AuthUnavailable, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked, left := make(chan struct{}), make(chan struct{}, 1)
			verifier := newTeller(t, func(w http.ResponseWriter, r *http.Request) {
				close(asked)
				<-left
				tt.answer(w, r)
			})
			g := newGate(t, newBackend(t, nil).url, func(c *Config) {
				if tt.edit != nil {
					tt.edit(c)
				}
				c.Auth.URL, c.Auth.Timeout = verifier.url, time.Minute
				c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: 1, Per: time.Hour}
				serve := c.Front.Handler
				c.Front.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if tt.first == "" {
						context.AfterFunc(r.Context(), func() { left <- struct{}{} })
					}
					serve.ServeHTTP(w, r)
				})
			})
			conn := g.dial(t)
			io.WriteString(conn, tt.raw)
			if tt.first != "" {
				readAnswer(t, conn)
				io.WriteString(conn, tt.first)
			}
			<-asked
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
			if tt.first != "" { // nobody watches a socket whose token is being verified
				left <- struct{}{}
			}
			if line := g.journal.next(t, "refused"); line["reason"] != string(tt.reason) {
				t.Errorf("reason: got %v, want %s", line["reason"], tt.reason)
			}
			if err := g.waitAllReleased(); err != nil {
				t.Error(err)
			}
			address := ratelimit.AddressKey(netip.MustParseAddr("127.0.0.1"))
			if _, left := g.limits.FailuresLeft(address, time.Now()); left == tt.charged {
				t.Errorf("charged: got %t, want %t", !left, tt.charged)
			}
		})
	}
}
