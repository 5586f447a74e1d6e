package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// held waits for the gate to give a connection up, for as long as the gate may need to find out that its client is gone, and
// reports whether it did.
func held(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(3 * glance))
	_, err := conn.Read(make([]byte, 1))
	conn.SetDeadline(time.Now().Add(patience))
	return isTimeout(err)
}

// secured is a gate with TLS, where that is wanted, and how its clients connect.
func secured(t *testing.T, target string, secure bool, edit func(*Config)) (*gate, func() (conn net.Conn, tcp *net.TCPConn)) {
	t.Helper()
	certFile, keyFile, roots := selfSigned(t)
	g := newGate(t, target, func(c *Config) {
		if secure {
			c.TLSCertFile, c.TLSKeyFile = certFile, keyFile
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

// A client that is gone while it waits lets go of the verifier, of the dial and of its slot, whatever it has sent before.
func TestGoneClientHoldsNothing(t *testing.T) {
	reset := func(_ net.Conn, tcp *net.TCPConn) {
		tcp.SetLinger(0)
		tcp.Close()
	}
	closed := func(conn net.Conn, _ *net.TCPConn) { conn.Close() }
	// Waits that begin when the request is there, and say when they are given up.
	type wait = func(*Config, chan<- struct{}, chan<- bool)
	verifier := func(c *Config, asked chan<- struct{}, gone chan<- bool) {
		c.Auth.Timeout = time.Minute
		c.Auth.URL = newTeller(t, func(_ http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			select {
			case <-r.Context().Done():
				gone <- true
			case <-time.After(patience):
				gone <- false
			}
		}).url
	}
	upstream := func(c *Config, asked chan<- struct{}, gone chan<- bool) {
		c.Upstream.HandshakeTimeout = time.Minute
		c.Upstream.URL = newBackend(t, func(conn net.Conn, _ *http.Request) {
			asked <- struct{}{}
			conn.SetReadDeadline(time.Now().Add(patience))
			_, err := conn.Read(make([]byte, 1))
			gone <- !isTimeout(err)
		}).url
	}
	first := func(c *Config, asked chan<- struct{}, gone chan<- bool) {
		firstMessages()(c)
		verifier(c, asked, gone)
	}
	for _, tt := range []struct {
		name   string
		wait   wait
		secure bool
		early  string
		leave  func(net.Conn, *net.TCPConn)
		linux  bool // elsewhere it is not noticed before the wait is over
	}{
		{name: "verifier, reset", wait: verifier, leave: reset},
		{name: "verifier, closed", wait: verifier, leave: closed},
		{name: "verifier, a byte, reset", wait: verifier, early: "\x81", leave: reset, linux: true},
		{name: "verifier, a byte, closed", wait: verifier, early: "\x81", leave: closed, linux: true},
		{name: "upstream, reset", wait: upstream, leave: reset},
		{name: "upstream, closed", wait: upstream, leave: closed},
		{name: "upstream, a byte, reset", wait: upstream, early: "\x81", leave: reset, linux: true},
		{name: "upstream, many bytes, closed", wait: upstream, early: text(string(make([]byte, 8<<10))), leave: closed, linux: true},
		{name: "upstream, TLS, reset", wait: upstream, secure: true, leave: reset},
		{name: "upstream, TLS, closed", wait: upstream, secure: true, leave: closed},
		{name: "upstream, TLS, a byte, reset", wait: upstream, secure: true, early: "\x81", leave: reset, linux: true},
		{name: "verifier of a first message, reset", wait: first, leave: reset, linux: true},
		{name: "verifier of a first message, closed", wait: first, leave: closed, linux: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.linux && runtime.GOOS != "linux" {
				t.Skip("its socket can't be asked here")
			}
			asked, gone := make(chan struct{}, 1), make(chan bool, 1)
			g, connect := secured(t, newBackend(t, nil).url, tt.secure, func(c *Config) { tt.wait(c, asked, gone) })
			conn, tcp := connect()
			if g.first != nil {
				io.WriteString(conn, handshake("/"))
				readAnswer(t, conn)
				io.WriteString(conn, text("wonder"))
			} else {
				io.WriteString(conn, handshake("/?token=wonder"))
			}
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
