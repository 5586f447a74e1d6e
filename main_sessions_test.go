package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func TestMainJob(t *testing.T) {
	p := startProgram(t)
	p.mainJob()

	for _, test := range []struct {
		name, target string
		status       int
	}{
		{"wrong token", "/?token=rogers", 401},
		{"no token", "/", 401},
		{"another path", "/chat?token=token", 404},
		{"two tokens", "/?token=token&token=rogers", 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, resp, err := p.dial("ws://" + p.front + test.target)
			if err == nil {
				conn.Close()
				t.Fatal("got a socket")
			}
			if resp == nil || resp.StatusCode != test.status {
				t.Fatalf("got %+v (%v), want %d", resp, err, test.status)
			}
			body, _ := io.ReadAll(resp.Body)
			if strings.Count(string(body), "\n") != 1 {
				t.Errorf("body %q, want one line", body)
			}
			if got := resp.Header.Get("WWW-Authenticate"); test.status == 401 && !strings.HasPrefix(got, "Bearer ") {
				t.Errorf("WWW-Authenticate: %q, want a Bearer challenge", got)
			}
		})
	}

	for _, test := range []struct {
		name, method, target string
		status               int
		body                 string
	}{
		{"token accepted", "GET", "/token?token=token", 200, "1"},
		{"token refused", "GET", "/token?token=x", 400, "0"},
		{"preflight", "OPTIONS", "/token?token=token", 204, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := ask(t, test.method, "http://"+p.front+test.target)
			if resp.StatusCode != test.status || body != test.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, test.status, test.body)
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("Access-Control-Allow-Origin: %q, want *", got)
			}
		})
	}

	p.signal(syscall.SIGTERM)
	p.exit(exitDrained)
}

// The bundled backend takes a token as a pair of subprotocols, too, unless AUTH_TOKEN_FROM says where tokens are.
func TestBundledTokenAsSubprotocol(t *testing.T) {
	for _, test := range []struct {
		environ []string
		status  int
	}{
		{nil, 101},
		{[]string{"AUTH_TOKEN_FROM=query:token"}, 401},
		{[]string{"AUTH_TOKEN_FROM=query:token,header:Authorization,protocol:bearer"}, 101},
	} {
		p := startProgram(t, test.environ...)
		d := websocket.Dialer{HandshakeTimeout: patience, Subprotocols: []string{"bearer", "token"}}
		conn, resp, err := d.Dial("ws://"+p.front+"/", nil)
		if resp == nil || resp.StatusCode != test.status {
			t.Errorf("%q: got %+v (%v), want %d", test.environ, resp, err, test.status)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func TestGuessingAtTokenEndpointIsLimited(t *testing.T) {
	p := startProgram(t, "RATE_AUTH_FAILURES_PER_IP=2/h")
	for i, want := range []int{400, 400, 429} {
		resp, _ := ask(t, "GET", "http://"+p.front+"/token?token=guess")
		if resp.StatusCode != want {
			t.Errorf("guess %d: %d, want %d", i, resp.StatusCode, want)
		}
		if (want == 429) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("guess %d: Retry-After: %q", i, resp.Header.Get("Retry-After"))
		}
	}
}

// backend is an application behind the program. It reports the requests and closes that it sees.
type backend struct {
	*httptest.Server
	requests chan *http.Request
	closes   chan error
}

func newBackend(t *testing.T) *backend {
	b := &backend{requests: make(chan *http.Request, 16), closes: make(chan error, 16)}
	upgrader := websocket.Upgrader{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.requests <- r
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, message, err := conn.ReadMessage()
			if err != nil {
				b.closes <- err
				return
			}
			conn.WriteMessage(kind, message)
		}
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) wsURL() string { return "ws" + strings.TrimPrefix(b.URL, "http") }

// newTokenEndpoint serves AUTH_URL.
func newTokenEndpoint(t *testing.T, handler http.HandlerFunc) string {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL + "/check?app=1"
}

// acceptOpenSesame accepts a token that arrives whole only if it was escaped.
func acceptOpenSesame(w http.ResponseWriter, r *http.Request) {
	if q := r.URL.Query(); q.Get("app") != "1" || q.Get("token") != "open+sesame" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	w.Header().Set("X-Auth-Subject", "ali")
	io.WriteString(w, "1\n")
}

func TestOwnUpstreamSeesTheClientsCloseAndNoToken(t *testing.T) {
	b := newBackend(t)
	for _, mode := range []string{"passthrough", "terminate"} {
		t.Run(mode, func(t *testing.T) {
			p := startProgram(t, "UPSTREAM_URL="+b.wsURL()+"/app?v=2", "AUTH_URL="+newTokenEndpoint(t, acceptOpenSesame), "RELAY_MODE="+mode)
			conn := p.open("/chat?room=a%2Fb&token=open%2Bsesame")
			r := <-b.requests
			if want := "/app/chat?v=2&room=a%2Fb"; r.RequestURI != want {
				t.Errorf("the upstream was asked for %s, want %s", r.RequestURI, want)
			}
			if got := r.Header.Get("X-Auth-Subject"); got != "ali" {
				t.Errorf("X-Auth-Subject: %q, want ali", got)
			}
			if got := r.Header.Get("X-Forwarded-For"); got != "127.0.0.1" {
				t.Errorf("X-Forwarded-For: %q, want 127.0.0.1", got)
			}
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4321, "bye"))
			want := &websocket.CloseError{Code: 4321, Text: "bye"}
			if got := <-b.closes; !reflect.DeepEqual(got, want) {
				t.Errorf("the upstream saw %v, want %v", got, want)
			}
			conn.Close()
			p.signal(syscall.SIGINT)
			p.exit(exitDrained)
		})
	}
}

func TestMessageRate(t *testing.T) {
	p := startProgram(t, "MESSAGE_RATE=2/h")
	conn := p.open("/?token=token")
	for range 2 {
		conn.WriteMessage(websocket.TextMessage, []byte("Olá"))
		if _, _, err := conn.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	conn.WriteMessage(websocket.TextMessage, []byte("Olá"))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) {
		t.Errorf("after the third message: %v, want Close 1008", err)
	}
}

func TestBadInputGetsABoundedAnswer(t *testing.T) {
	p := startProgram(t, "RATE_AUTH_FAILURES_PER_IP=0")
	const upgrade = "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, test := range []struct {
		name, sent string
		end        bool   // the client closes its direction
		want       string // the beginning of the answer; empty: there is none
	}{
		{"garbage", "\x16\x03\x01\x00\xff\x00garbage\r\n\r\n", false, "HTTP/1.1 400 "},
		{"half a request", "GET /?token=token HTTP/1.1\r\nHost: loc", true, ""},
		{"a client that sends nothing", "", false, ""},
		{"1 MiB of header", "GET /?token=token HTTP/1.1\r\n" + upgrade + "X-Pad: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", false, "HTTP/1.1 431 "},
		{"a token of 1 MiB", "GET /?token=" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\n" + upgrade + "\r\n", false, "HTTP/1.1 431 "},
		{"a token of 9,000 bytes", "GET /?token=" + strings.Repeat("a", 9000) + " HTTP/1.1\r\n" + upgrade + "\r\n", false, "HTTP/1.1 401 "},
		{"a token with a control character", "GET /?token=tok%00en HTTP/1.1\r\n" + upgrade + "\r\n", false, "HTTP/1.1 401 "},
		{"a body", "GET /?token=token HTTP/1.1\r\n" + upgrade + "Content-Length: 5\r\n\r\nhello", false, "HTTP/1.1 400 "},
		{"another version", "GET /?token=token HTTP/1.1\r\n" + strings.Replace(upgrade, "13", "8", 1) + "\r\n", false, "HTTP/1.1 426 "},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", p.front)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			_, target, _ := strings.Cut(test.sent, " ")
			target, _, _ = strings.Cut(target, " ")
			shown.Request(target, nil)
			go func() {
				io.WriteString(conn, test.sent) // the answer may come before all is written
				if test.end {
					conn.(*net.TCPConn).CloseWrite()
				}
			}()
			answer, err := io.ReadAll(io.LimitReader(conn, 1<<16))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection stays open")
			}
			if test.want == "" && len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) || !bytes.HasPrefix(answer, []byte(test.want)) {
				t.Errorf("got %q (%v), want %q", answer, err, test.want)
			}
		})
	}
	p.mainJob()
}

func TestBrokenTokenEndpointIsNotTheClientsFault(t *testing.T) {
	b := newBackend(t)
	for name, endpoint := range map[string]http.HandlerFunc{
		"hangs":     func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"fails":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"streams for ever": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write(make([]byte, 4096))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProgram(t, "UPSTREAM_URL="+b.wsURL(), "AUTH_URL="+newTokenEndpoint(t, endpoint), "AUTH_TIMEOUT=300ms")
			_, resp, err := p.dial("ws://" + p.front + "/?token=open%2Bsesame")
			if resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
				t.Errorf("got %+v (%v), want 503 with Retry-After", resp, err)
			}
			if line := p.await("auth_unavailable"); !strings.Contains(line, `"level":"WARN"`) || strings.Contains(line, "sesame") {
				t.Errorf("the log says %s", line)
			}
		})
	}
}
