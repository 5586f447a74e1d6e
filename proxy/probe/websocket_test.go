package probe

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// A server that takes every handshake and then does what session says.
func webSocketServer(t *testing.T, session func(*websocket.Conn)) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(upgrade(session))
	t.Cleanup(server.Close)
	return server
}

func upgrade(session func(*websocket.Conn)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return // answered
		}
		defer conn.Close()
		session(conn)
	})
}

// serveFrames answers pings and Close frames, as any server does that reads.
func serveFrames(conn *websocket.Conn) {
	for {
		if _, _, err := conn.NextReader(); err != nil {
			return
		}
	}
}

func TestSession(t *testing.T) {
	tests := []struct {
		name     string
		session  func(*websocket.Conn)
		out, err string // after the GET line
	}{
		{
			name:    "all as it should be",
			session: serveFrames,
			out:     "101 Switching Protocols after T\npong after T\nClose 1000\n",
		},
		{
			name: "messages and an unasked pong come first",
			session: func(conn *websocket.Conn) {
				conn.WriteMessage(websocket.PongMessage, []byte("unasked"))
				conn.WriteMessage(websocket.TextMessage, []byte(strings.Repeat("welcome ", 100_000)))
				serveFrames(conn)
			},
			out: "101 Switching Protocols after T\npong after T\nClose 1000\n",
		},
		{
			name: "closes with another code",
			session: func(conn *websocket.Conn) {
				conn.SetCloseHandler(func(int, string) error {
					return conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4001, "as I like"))
				})
				serveFrames(conn)
			},
			out: "101 Switching Protocols after T\npong after T\nClose 4001: as I like\n",
		},
		{
			name: "closes without a code",
			session: func(conn *websocket.Conn) {
				conn.SetCloseHandler(func(int, string) error { return conn.WriteMessage(websocket.CloseMessage, nil) })
				serveFrames(conn)
			},
			out: "101 Switching Protocols after T\npong after T\nClose without a code\n",
		},
		{
			name: "closes before the pong",
			session: func(conn *websocket.Conn) {
				conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1013, "later\x1b[2J"))
				serveFrames(conn)
			},
			out: "101 Switching Protocols after T\nClose 1013: later[2J\n",
			err: "the server closed before its pong",
		},
		{
			name:    "breaks off before the pong",
			session: func(conn *websocket.Conn) { conn.NetConn().(*net.TCPConn).CloseWrite(); serveFrames(conn) },
			out:     "101 Switching Protocols after T\n",
			err:     "waiting for the pong: the connection ended",
		},
		{
			name: "breaks off instead of the Close answer",
			session: func(conn *websocket.Conn) {
				conn.SetCloseHandler(func(int, string) error { return nil })
				serveFrames(conn)
			},
			out: "101 Switching Protocols after T\npong after T\n",
			err: "waiting for the Close answer: the connection ended",
		},
		{
			name: "sends what is no frame",
			session: func(conn *websocket.Conn) {
				io.WriteString(conn.NetConn(), "\x83\x00")
				serveFrames(conn)
			},
			out: "101 Switching Protocols after T\n",
			err: "waiting for the pong: websocket: bad opcode 3",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := webSocketServer(t, tt.session)
			out, err := probe(t, Config{URL: server.URL + "/chat"})
			want := strings.Replace(server.URL, "http", "GET ws", 1) + "/chat\n" + tt.out
			if out != want || err != tt.err {
				t.Errorf("got  %q, error %q\nwant %q, error %q", out, err, want, tt.err)
			}
		})
	}
}

func TestRefusal(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		line   string
	}{
		{"with a body", 401, "the token is not valid\nsecond line\n", "401 Unauthorized after T: the token is not valid"},
		{"without a body", 403, "", "403 Forbidden after T"},
		{"not followed", 302, "elsewhere", "302 Found after T: elsewhere"},
		{"no upgrade", 200, "<html>\r\n", "200 OK after T: <html>"},
		{"unknown status", 799, "", "799 after T"},
		{"long body", 503, strings.Repeat("x", 1<<20), "503 Service Unavailable after T: " + strings.Repeat("x", maxText) + "…"},
		{"drives no terminal", 502, "\x1b]0;title\a\u202eevil\u200b\x9b\xff", "502 Bad Gateway after T: ]0;titleevil"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			}))
			defer server.Close()
			out, err := probe(t, Config{URL: server.URL + "/?token=rogers"})
			_, line, _ := strings.Cut(out, "\n")
			if line != tt.line+"\n" {
				t.Errorf("got  %q\nwant %q", line, tt.line+"\n")
			}
			if want := "the upgrade is refused: " + status(tt.status); err != want {
				t.Errorf("error %q, want %q", err, want)
			}
		})
	}
}

func TestNonsense(t *testing.T) {
	const notHandshake = "the 101 is not a WebSocket handshake's: "
	tests := []struct {
		name, answer string
		err          string // its beginning
	}{
		{"not HTTP", "SSH-2.0-OpenSSH_9.6\r\n\r\n", "no answer: what came is not HTTP"},
		{"binary", "\x15\x03\x01\x00\x02\x02\x46\r\n", "no answer: what came is not HTTP"},
		{"nothing", "", "no answer: the connection ended"},
		{"half a head", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n", "no answer: the connection ended"},
		{"endless head", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 4*maxHead), "no answer: the head of the answer is over 65536 bytes"},
		{"101 alone", "HTTP/1.1 101 Switching Protocols\r\n\r\n", notHandshake},
		{
			"wrong accept",
			"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
			notHandshake,
		},
		{
			"extension that was not offered",
			"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ACCEPT\r\n" +
				"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
			notHandshake,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, func(conn net.Conn) {
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				io.WriteString(conn, strings.Replace(tt.answer, "ACCEPT", accept(req), 1))
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			})
			out, err := probe(t, Config{URL: "ws://" + addr})
			if !strings.HasPrefix(out, "GET ws://"+addr+"\n") || !strings.HasPrefix(err, tt.err) {
				t.Errorf("got %q, error %q, want error %q", out, err, tt.err)
			}
		})
	}
}

// accept is the Sec-WebSocket-Accept that answers r, RFC 6455 section 4.2.2.
func accept(r *http.Request) string {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func TestHangingServerEndsWithTheContext(t *testing.T) {
	silent := func(t *testing.T) string { // accepts and reads, but never answers
		return "http://" + serve(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	}
	pongless := func(t *testing.T) string { // upgrades and reads, but never answers a ping
		return webSocketServer(t, func(conn *websocket.Conn) {
			conn.SetPingHandler(func(string) error { return nil })
			serveFrames(conn)
		}).URL
	}
	stalled := func(t *testing.T) string { // refuses, but its body never ends
		return "http://" + serve(t, func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 401 x\r\nContent-Length: 100\r\n\r\nwho are you?")
			io.Copy(io.Discard, conn)
		})
	}
	const unauthorized = "the upgrade is refused: 401 Unauthorized"
	tests := []struct {
		name   string
		server func(*testing.T) string
		cancel bool // else a deadline
		want   string
	}{
		{"no answer, deadline", silent, false, "no answer: context deadline exceeded"},
		{"no answer, cancelled", silent, true, "no answer: context canceled"},
		{"no pong, deadline", pongless, false, "waiting for the pong: context deadline exceeded"},
		{"no pong, cancelled", pongless, true, "waiting for the pong: context canceled"},
		{"body without an end, deadline", stalled, false, unauthorized},
		{"body without an end, cancelled", stalled, true, unauthorized},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			cause := context.DeadlineExceeded
			if tt.cancel {
				cancel()
				ctx, cancel = context.WithCancel(t.Context())
				time.AfterFunc(100*time.Millisecond, cancel)
				cause = context.Canceled
			}
			defer cancel()
			err := Run(ctx, Config{URL: tt.server(t), Out: io.Discard})
			if err == nil || err.Error() != tt.want {
				t.Fatalf("got %v, want %s", err, tt.want)
			}
			if tt.want != unauthorized && !errors.Is(err, cause) {
				t.Errorf("%v does not wrap %v", err, cause)
			}
		})
	}
}

func TestNoConnection(t *testing.T) {
	_, err := probe(t, Config{URL: "ws://" + closedPort(t) + "/?token=rogers"})
	if !strings.HasPrefix(err, "no connection: dial tcp 127.0.0.1:") || !strings.HasSuffix(err, "connection refused") {
		t.Errorf("error %q", err)
	}
}

func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(upgrade(serveFrames))
	server.Config.ErrorLog = discardLog
	server.StartTLS()
	defer server.Close()
	trusted := x509.NewCertPool()
	trusted.AddCert(server.Certificate())
	plain := webSocketServer(t, serveFrames)

	tests := []struct {
		name  string
		url   string
		roots *x509.CertPool
		err   string // its beginning
	}{
		{"trusted", server.URL, trusted, ""},
		{"trusted, wss", strings.Replace(server.URL, "https", "wss", 1), trusted, ""},
		{"unknown authority", server.URL, x509.NewCertPool(), "no connection: tls: failed to verify certificate: x509: "},
		{"the server speaks no TLS", strings.Replace(plain.URL, "http", "wss", 1), trusted, "no connection: tls: first record does not look"},
		{"the server speaks TLS", strings.Replace(server.URL, "https", "ws", 1), trusted, "the upgrade is refused: 400 Bad Request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := probe(t, Config{URL: tt.url, roots: tt.roots})
			if !strings.HasPrefix(err, tt.err) || (err == "") != (tt.err == "") {
				t.Errorf("error %q, want %q", err, tt.err)
			}
		})
	}
}

func TestBadURL(t *testing.T) {
	tests := []struct{ name, url, want string }{
		{"does not parse", "ws://rogers%zz/", "the URL does not parse"},
		{"password taken for a port", "ws://user:rogers/secret@host/", "the URL does not parse"},
		{"no scheme", "localhost:3000/?token=rogers", "the URL's scheme is not a WebSocket's"},
		{"user taken for a scheme", "rogers:x@localhost", "the URL's scheme is not a WebSocket's"},
		{"other scheme", "ftp://localhost/?token=rogers", "the URL's scheme is not a WebSocket's"},
		{"no host", "ws:///?token=rogers", "the URL names no host"},
		{"port alone", "ws://:3000/?token=rogers", "the URL names no host"},
		{"opaque", "ws:localhost?token=rogers", "the URL names no host"},
		{"user information", "wss://rogers:rogers@localhost/", "the URL has user information"},
		{"user alone", "wss://rogers@localhost/", "the URL has user information"},
		{"fragment", "wss://localhost/#token=rogers", "the URL has a fragment"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := probe(t, Config{URL: tt.url})
			if out != "" || !strings.HasPrefix(err, tt.want) || !strings.HasSuffix(err, wantURL) {
				t.Errorf("got %q, error %q, want error %q", out, err, tt.want)
			}
			if strings.Contains(err, "rogers") {
				t.Errorf("error %q shows a part of the URL", err)
			}
		})
	}
}

// A server that is told the query may say it again wherever it can put words.
func TestQueryIsNeverShown(t *testing.T) {
	const (
		query  = "token=tok%2Ben+1&bare%21secret&v=%C3%A9t%C3%A9"
		repeat = "tok%2Ben+1 tok+en+1 tok+en 1 bare%21secret bare!secret %C3%A9t%C3%A9 été t\x00o\x1bk+en 1 " + query
	)
	secrets := []string{"tok%2Ben", "tok+en", "bare%21secret", "bare!secret", "%C3%A9t%C3%A9", "été", query}
	refusal := func(body string) func(net.Conn, *http.Request) {
		return func(conn net.Conn, r *http.Request) {
			fmt.Fprintf(conn, "HTTP/1.1 401 %s\r\nX-Query: %[1]s\r\nContent-Length: %d\r\n\r\n%s", r.URL.RawQuery, len(body), body)
		}
	}
	tests := []struct {
		name   string
		answer func(net.Conn, *http.Request)
	}{
		{"in a body", refusal(repeat)},
		{"in a body, again and again", refusal(strings.Repeat(query, 100))},
		{"cut in two by the end of what is read", refusal(strings.Repeat("\x00", maxBody-5) + "tok+en 1")},
		{"cut in two within a character", refusal(strings.Repeat("\x00", maxBody-4) + "été")},
		{"in a line that is not HTTP", func(conn net.Conn, _ *http.Request) { io.WriteString(conn, repeat+"\r\n\r\n") }},
		{"in a status line", func(conn net.Conn, _ *http.Request) { io.WriteString(conn, "HTTP/1.1 "+query+"\r\n\r\n") }},
		{"in a header line", func(conn net.Conn, _ *http.Request) {
			io.WriteString(conn, "HTTP/1.1 101 x\r\n"+query+"\r\n\r\n")
		}},
		{"in a Close frame", func(conn net.Conn, r *http.Request) {
			reason := "tok+en 1 été " + query
			io.WriteString(conn, "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+accept(r)+
				"\r\n\r\n\x88"+string(rune(2+len(reason)))+"\x03\xf0"+reason)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, func(conn net.Conn) {
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				tt.answer(conn, req)
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			})
			out, err := probe(t, Config{URL: "ws://" + addr + "/?" + query})
			if !strings.HasPrefix(out, "GET ws://"+addr+"/?…\n") || err == "" {
				t.Errorf("got %q, error %q", out, err)
			}
			for _, secret := range append(secrets, "tok", "ét", "t\u0301") {
				if strings.Contains(out+err, secret) {
					t.Errorf("%q is shown: %q, error %q", secret, out, err)
				}
			}
		})
	}
}
