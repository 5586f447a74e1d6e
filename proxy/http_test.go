package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/gate"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
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

// What goes upstream is what an upgrade's request would be, and nothing that a client may not say.
func TestHeadersOfPlainRequests(t *testing.T) {
	seen := make(chan *http.Request, 1)
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) { seen <- r })
	g := newGate(t, url, plainHTTP(gate.HTTPAuth))
	resp, body := g.keep(t).ask(t, request("GET /a?x=1&token=wonder&y=2 HTTP/1.1", "Host: a.example", "X-Custom: kept",
		"Connection: keep-alive, X-Auth-Subject, X-Forwarded-For, X-Listed", "X-Listed: 1", "X-Auth-Subject: Mallory", "X_Auth_Subject: Mallory",
		"X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Forwarded-Host: evil.example", "X-Original-URL: /admin", "Proxy-Authorization: x",
		"Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Extensions: permessage-deflate", "HTTP2-Settings: AAMAAABkAAQAAP__", "Cookie: a=1"))
	if resp.StatusCode != 200 {
		t.Fatalf("got %d %s", resp.StatusCode, body)
	}
	r := <-seen
	for name, want := range map[string]string{
		"X-Custom": "kept", "X-Auth-Subject": "Alice", "X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Host": "a.example",
		"X-Forwarded-Proto": "http", "Cookie": "a=1", "Portcullis-Via": r.Header.Get("Portcullis-Via"),
	} {
		if got := strings.Join(r.Header[name], ","); got != want || got == "" {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		delete(r.Header, name)
	}
	if len(r.Header) > 0 {
		t.Errorf("these came too: %v", r.Header)
	}
	if r.RequestURI != "/a?x=1&y=2" || r.Host != "a.example" {
		t.Errorf("got %s for %s", r.RequestURI, r.Host)
	}
}

// A path reaches the application as it was written.
func TestPathsOfPlainRequests(t *testing.T) {
	seen := make(chan string, 1)
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.RequestURI })
	for base, targets := range map[string]map[string]string{
		"": {
			"/": "/", "/a%2Fb": "/a%2Fb", "/%61/b": "/%61/b", "//a//b": "//a//b", "//a%2fb": "//a%2fb", "/a//b/": "/a//b/", `/a\b`: `/a\b`,
			"/ä": "/ä", `/"<>^|{}`: `/"<>^|{}`, "/a;b=1": "/a;b=1", "/*": "/*", "/a?b=%61;c&d=%zz&e": "/a?b=%61;c&d=%zz&e", "/a?": "/a",
			"http://a.example/a%2Fb?c": "/a%2Fb?c",
		},
		"/base/?k=1": {"/": "/base/?k=1", "/a%2Fb?x": "/base/a%2Fb?k=1&x", "//a": "/base//a?k=1"},
	} {
		g := newGate(t, url+base, plainHTTP(gate.HTTPOpen, func(c *Config) { c.Gate.Paths = []string{"*"} }))
		c := g.keep(t)
		for target, want := range targets {
			if resp, body := c.ask(t, request("GET "+target+" HTTP/1.1", "Host: a.example")); resp.StatusCode != 200 {
				t.Errorf("%s: %d %s", target, resp.StatusCode, body)
			} else if got := <-seen; got != want {
				t.Errorf("%s: got %s, want %s", target, got, want)
			}
		}
		resp, _ := c.ask(t, request(`GET //a"b HTTP/1.1`, "Host: a.example"))
		if want := map[bool]int{true: 400, false: 200}[base == ""]; resp.StatusCode != want {
			t.Fatalf("%q: got %d for what cannot be sent, want %d", base, resp.StatusCode, want)
		}
		if base != "" {
			<-seen
		}
	}
}

// Whatever asks for an upgrade is for the steps of upgrades, and CONNECT and TRACE for none. Nothing of it goes upstream.
func TestWhatIsNoPlainRequest(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, plainHTTP(gate.HTTPOpen))
	for _, tt := range []struct {
		name, raw string
		status    int
		reason    string
	}{
		{"h2c", request("GET / HTTP/1.1", "Host: a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"), 426, "not_websocket"},
		{"Upgrade alone", request("GET / HTTP/1.1", "Host: a", "Upgrade: h2c"), 426, "not_websocket"},
		{"empty Upgrade", request("GET / HTTP/1.1", "Host: a", "Upgrade:"), 426, "not_websocket"},
		{"Connection alone", request("GET / HTTP/1.1", "Host: a", "Connection: x", "Connection: keep-alive,uPgrade"), 426, "not_websocket"},
		{"POST", request("POST / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade", "Content-Length: 0"), 405, "method"},
		{"wrong version", strings.Replace(handshake("/"), "Version: 13", "Version: 12", 1), 426, "version"},
		{"WebSocket without Connection", without(handshake("/"), "Connection: Upgrade"), 400, "handshake"},
		{"TRACE", request("TRACE / HTTP/1.1", "Host: a"), 405, "method"},
		{"CONNECT with a path", request("CONNECT / HTTP/1.1", "Host: a"), 405, "method"},
		{"CONNECT", request("CONNECT a:80 HTTP/1.1", "Host: a"), 400, "path_suspicious"},
		{"OPTIONS *", request("OPTIONS * HTTP/1.1", "Host: a"), 400, "path_suspicious"},
		{"HTTP/1.0", request("GET / HTTP/1.0", "Host: a"), 505, "request"},
		{"no host", request("GET / HTTP/1.1", "Host: a b"), 400, "malformed"},
		{"a host that is none", request("GET / HTTP/1.1", "Host: a,b"), 400, "request"},
		{"the authority is none", request("GET http://u:p@a/ HTTP/1.1", "Host: a"), 400, "request"},
		{"two lengths", request("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 2") + "xx", 400, "malformed"},
		{"below a dot", request("GET /a/../b HTTP/1.1", "Host: a"), 400, "path_suspicious"},
	} {
		a := g.send(t, tt.raw)
		line := g.journal.next(t, "refused")
		if a.StatusCode != tt.status || line["reason"] != tt.reason {
			t.Errorf("%s: got %d, %v; want %d, %s", tt.name, a.StatusCode, line["reason"], tt.status, tt.reason)
		}
		if upgrades := tt.status == 426 || strings.Contains(tt.raw, "Upgrade: websocket"); upgrades && !a.Close {
			t.Errorf("%s: its connection is kept", tt.name)
		}
	}
	b.untouched(t)
}

// HTTP_MODE=off is 426, as ever.
func TestPlainHTTPIsOff(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, nil)
	if a := g.send(t, request("GET /?token=good HTTP/1.1", "Host: a")); a.StatusCode != 426 || !a.Close {
		t.Errorf("got %d, close %v", a.StatusCode, a.Close)
	}
	b.untouched(t)
}

// Who is refused as an upgrade is refused here, too; and open asks for nothing.
func TestAuthenticationOfPlainRequests(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Auth-Subject")) })
	g := newGate(t, url, plainHTTP(gate.HTTPAuth, func(c *Config) {
		c.Limits.AuthFailuresPerIP = rateOf("3/h")
		c.Limits.UpgradesPerIP, c.Limits.UpgradesPerSubject = rateOf("1/h"), rateOf("1/h")
		withAPI(c) // so that sessions are listed
	}))
	c := g.keep(t)
	for range 3 { // rates of upgrades are not charged
		if resp, body := c.ask(t, request("GET /?token=wonder HTTP/1.1", "Host: a")); resp.StatusCode != 200 || body != "Alice" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	}
	g.sessions.Kick(session.Filter{Subject: "Alice"}, session.Kick{KeepOut: time.Hour})
	if resp, _ := c.ask(t, request("GET /?token=wonder HTTP/1.1", "Host: a")); resp.StatusCode != 403 {
		t.Errorf("kept out: got %d", resp.StatusCode)
	}
	for status, token := range map[int]string{503: "down", 400: "x&token=y"} {
		if resp, _ := c.ask(t, request("GET /?token="+token+" HTTP/1.1", "Host: a")); resp.StatusCode != status {
			t.Errorf("%s: got %d, want %d", token, resp.StatusCode, status)
		}
	}
	for _, want := range []int{401, 401, 429, 429} {
		if resp, _ := c.ask(t, request("GET /?token=bad HTTP/1.1", "Host: a")); resp.StatusCode != want {
			t.Errorf("got %d, want %d", resp.StatusCode, want)
		}
	}
	if got := g.metric(t, "portcullis_http_requests_total", "token_refused"); got != 2 {
		t.Errorf("counted %v refused tokens, want 2", got)
	}
	if got := g.refused(t, "token_refused"); got != 0 {
		t.Errorf("counted %v refused upgrades, want none", got)
	}

	open := newGate(t, url, plainHTTP(gate.HTTPOpen))
	if resp, body := open.keep(t).ask(t, request("GET /?token=bad HTTP/1.1", "Host: a", "X-Auth-Subject: Mallory")); resp.StatusCode != 200 || body != "" {
		t.Errorf("open: got %d %q", resp.StatusCode, body)
	}
	if a := open.send(t, handshake("/?token=bad")); a.StatusCode != 401 {
		t.Errorf("an upgrade beside open: got %d", a.StatusCode)
	}
}

func rateOf(text string) (r ratelimit.Rate) {
	if err := r.UnmarshalText([]byte(text)); err != nil {
		panic(err)
	}
	return r
}
