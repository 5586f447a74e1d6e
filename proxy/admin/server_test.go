package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// After refusing a head that is too large, net/http lets the connection linger for half a second, longer than goleak
	// waits, and Shutdown does not wait for it.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// start serves on a free loopback port until the test ends.
func start(t *testing.T) *Server {
	t.Helper()
	m := NewMetrics(testKnown)
	s, err := New(Config{Addr: "127.0.0.1:0"}, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(t.Context()); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// dial opens a connection that fails, rather than hangs, when nothing comes.
func dial(t *testing.T, s *Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends one request as raw bytes, which net/http's client would not always let pass.
func ask(t *testing.T, s *Server, method, target string) (*http.Response, string) {
	t.Helper()
	conn := dial(t, s)
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n", method, target)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestPages(t *testing.T) {
	tests := []struct {
		name, method, target string
		status               int
		body                 string // "": no body
		allow                string
	}{
		{name: "health", method: "GET", target: "/healthz", status: 200, body: "ok\n"},
		{name: "health, head", method: "HEAD", target: "/healthz", status: 200},
		{name: "health, query", method: "GET", target: "/healthz?x=1", status: 200, body: "ok\n"},
		{name: "ready", method: "GET", target: "/readyz", status: 200, body: "ready\n"},
		{name: "ready, head", method: "HEAD", target: "/readyz", status: 200},
		{name: "metrics, head", method: "HEAD", target: "/metrics", status: 200},
		{name: "post", method: "POST", target: "/readyz", status: 405, body: "method not allowed\n", allow: "GET, HEAD"},
		{name: "options", method: "OPTIONS", target: "/metrics", status: 405, body: "method not allowed\n", allow: "GET, HEAD"},
		{name: "unknown method", method: "BREW", target: "/healthz", status: 405, body: "method not allowed\n", allow: "GET, HEAD"},
		{name: "options of the server", method: "OPTIONS", target: "*", status: 404, body: notFound},
		{name: "root", method: "GET", target: "/", status: 404, body: notFound},
		{name: "below a page", method: "GET", target: "/healthz/", status: 404, body: notFound},
		{name: "not cleaned, not redirected", method: "GET", target: "//healthz", status: 404, body: notFound},
		{name: "dot segments", method: "GET", target: "/x/../metrics", status: 404, body: notFound},
		{name: "other method on another path", method: "POST", target: "/", status: 404, body: notFound},
	}
	s := start(t)
	s.SetReady(true)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := ask(t, s, tt.method, tt.target)
			if resp.StatusCode != tt.status || body != tt.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
			}
			if got := resp.Header.Get("Allow"); got != tt.allow {
				t.Errorf("Allow %q, want %q", got, tt.allow)
			}
		})
	}
}

const notFound = "not found; see /healthz, /readyz and /metrics\n"

func TestReadyFollowsSetReady(t *testing.T) {
	s := start(t)
	var missing error
	s.check = func() error { return missing }
	steps := []struct {
		name   string
		do     func()
		status int
		body   string
	}{
		{"at first", func() {}, 503, "not ready\n"},
		{"listening", func() { s.SetReady(true) }, 200, "ready\n"},
		{"something is missing", func() { missing = errors.New("no keys") }, 503, "not ready: no keys\n"},
		{"nothing is", func() { missing = nil }, 200, "ready\n"},
		{"draining", func() { s.SetReady(false) }, 503, "not ready\n"},
	}
	for _, step := range steps {
		step.do()
		resp, body := ask(t, s, "GET", "/readyz")
		if resp.StatusCode != step.status || body != step.body {
			t.Errorf("%s: got %d %q, want %d %q", step.name, resp.StatusCode, body, step.status, step.body)
		}
		if got := resp.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: Cache-Control %q, want no-store", step.name, got)
		}
		if resp, _ := ask(t, s, "GET", "/healthz"); resp.StatusCode != 200 {
			t.Errorf("%s: /healthz %d, want 200 whether ready or not", step.name, resp.StatusCode)
		}
	}
}

func TestMetricsPageHoldsOursAndTheRuntimes(t *testing.T) {
	_, body := ask(t, start(t), "GET", "/metrics")
	for _, want := range []string{
		"\nportcullis_sessions_live 0\n",
		"\nportcullis_build_info{go_version=",
		"\ngo_goroutines ",
		"\nprocess_open_fds ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
}

func TestBadAddr(t *testing.T) {
	tests := []struct{ name, addr, want string }{
		{"no port", "127.0.0.1", `ADMIN_ADDR: "127.0.0.1" has missing port in address; want host:port`},
		{"port alone", "9090", `ADMIN_ADDR: "9090" has missing port in address; want host:port`},
		{"URL", "http://127.0.0.1:9090", `ADMIN_ADDR: "http://127.0.0.1:9090" has too many colons in address; want host:port`},
		{"bare IPv6", "::1:9090", `ADMIN_ADDR: "::1:9090" has too many colons in address; want host:port`},
		{"empty port", "127.0.0.1:", `ADMIN_ADDR: "127.0.0.1:" has a port that is not a number from 0 to 65535; want host:port`},
		{"named port", ":http", `ADMIN_ADDR: ":http" has a port that is not a number from 0 to 65535; want host:port`},
		{"port too large", ":65536", `ADMIN_ADDR: ":65536" has a port that is not a number from 0 to 65535; want host:port`},
		{"path in host", "/run/admin:1", `ADMIN_ADDR: "/run/admin:1" has no host name or address before its port; want host:port`},
		{"space", " :1", `ADMIN_ADDR: " :1" has no host name or address before its port; want host:port`},
		{"line break is quoted", "a\nb:1", `ADMIN_ADDR: "a\nb:1" has no host name or address before its port; want host:port`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(Config{Addr: tt.addr}, NewMetrics(Known{}))
			if err == nil {
				t.Fatal("no error")
			}
			if got := err.Error(); !strings.HasPrefix(got, tt.want) || strings.Contains(got, "\n") {
				t.Errorf("got  %s\nwant %s...", got, tt.want)
			}
		})
	}
}

func TestGoodAddr(t *testing.T) {
	for _, addr := range []string{"", ":0", ":9090", "0.0.0.0:9090", "[::]:9090", "[fe80::1%eth0]:9090", "localhost:65535"} {
		if _, err := New(Config{Addr: addr}, NewMetrics(Known{})); err != nil {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestTakenAddrIsNamed(t *testing.T) {
	taken := start(t).Addr().String()
	s, err := New(Config{Addr: taken}, NewMetrics(Known{}))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Start()
	if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("ADMIN_ADDR: %q: ", taken)) {
		t.Errorf("got %v, want an error naming ADMIN_ADDR and %q", err, taken)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("close after a start that did not succeed: %v", err)
	}
}

func TestEmptyAddrIsOff(t *testing.T) {
	s, err := New(Config{}, NewMetrics(Known{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Errorf("start: %v", err)
	}
	if s.Addr() != nil {
		t.Errorf("listens on %v", s.Addr())
	}
	s.SetReady(true)
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestCloseTwice(t *testing.T) {
	s := start(t)
	for range 2 {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		conn.Close()
		t.Error("still listening")
	}
}

// A client that sends half a request must not hold up the exit of the process.
func TestCloseCutsWhatIsUnfinished(t *testing.T) {
	s := start(t)
	conn := dial(t, s)
	// One whole request first: its answer shows that the server has this connection.
	io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: admin\r\n\r\nGET /healthz HTTP/1.1\r\nHo")
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want nothing but the context's error", err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection outlived Close")
	}
}

// A listener that breaks must not go unnoticed: Close tells.
func TestCloseTellsWhyServingEnded(t *testing.T) {
	s, err := New(Config{Addr: "127.0.0.1:0"}, NewMetrics(Known{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	s.listener.Close()
	<-s.served
	if err := s.Close(t.Context()); !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(err.Error(), "serve on ADMIN_ADDR: ") {
		t.Errorf("got %v, want what ended serving", err)
	}
}

func TestHeadersAreBounded(t *testing.T) {
	conn := dial(t, start(t))
	fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: admin\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d, want %d", resp.StatusCode, http.StatusRequestHeaderFieldsTooLarge)
	}
}
