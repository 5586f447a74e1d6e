package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"portcullis/proxy/gate"
)

// application is a server of plain requests and WebSocket, as one that stands behind the gate.
func newApplication(t testing.TB, plain http.HandlerFunc) string {
	t.Helper()
	echo := echoHandler()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echo.ServeHTTP(w, r)
			return
		}
		plain(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// plainHTTP sets HTTP_MODE.
func plainHTTP(mode gate.HTTPMode, edits ...func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Gate.HTTP = mode
		for _, edit := range edits {
			edit(c)
		}
	}
}

// keptConn is a client's connection for several requests.
type keptConn struct {
	io.Writer
	in *bufio.Reader
}

func (g *testGate) keep(t *testing.T) *keptConn {
	conn := g.dial(t)
	return &keptConn{conn, bufio.NewReader(conn)}
}

// ask sends a raw request and reads the answer.
func (c *keptConn) ask(t *testing.T, raw string) (*http.Response, string) {
	t.Helper()
	method, _, _ := strings.Cut(raw, " ")
	io.WriteString(c, raw)
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, ""
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the body: %v", err)
	}
	return resp, string(body)
}

// One connection carries plain requests, refused and not, until its upgrade.
func TestPlainRequestsBesideWebSocket(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
	})
	g := newGate(t, url, plainHTTP(gate.HTTPAuth))
	c := g.keep(t)
	for range 2 {
		if resp, body := c.ask(t, request("GET /poll?token=good&x=1 HTTP/1.1", "Host: a.example")); resp.StatusCode != 200 || body != "GET /poll?x=1 " {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
		if resp, body := c.ask(t, request("POST /poll HTTP/1.1", "Host: a.example", "Authorization: Bearer good", "Content-Length: 2")+"hi"); resp.StatusCode != 200 || body != "POST /poll hi" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
		if resp, _ := c.ask(t, request("GET /poll HTTP/1.1", "Host: a.example")); resp.StatusCode != 401 || resp.Close {
			t.Fatalf("got %d, close %v", resp.StatusCode, resp.Close)
		}
	}
	if resp, _ := c.ask(t, handshake("/?token=good")); resp.StatusCode != 101 {
		t.Fatalf("got %d", resp.StatusCode)
	}
}
