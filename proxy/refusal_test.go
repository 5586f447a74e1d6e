package proxy

import (
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// secret stands in the query of every request here, and must not come out anywhere.
const secret = "Xyzzy-secret"

func good(target string, lines ...string) string {
	return handshake(target+"?token=good&private="+secret, lines...)
}

// TestRefusals has each reason come about once, and looks at all that a refusal is.
func TestRefusals(t *testing.T) {
	unreachable, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unreachable.Close()
	serving := func(limits ratelimit.Config) func(*Config) { return func(c *Config) { c.Limits = limits } }
	hour := func(n int) ratelimit.Rate { return ratelimit.Rate{N: n, Per: time.Hour} }
	const bearer = `Bearer realm="portcullis"`

	for _, tt := range []struct {
		reason refusal.Reason
		edit   func(*Config)
		script func(net.Conn, *http.Request) // of the upstream
		before string                        // a request that goes first; its answer does not matter
		raw    string
		status int
		header map[string]string // "…": any value
		body   string            // how it begins, if not the reason's text
	}{
		{reason: refusal.PathSuspicious, raw: good("/a/%2e%2e/b"), status: 400, body: "suspicious path: a dot segment\n"},
		{reason: refusal.Path, edit: func(c *Config) { c.Gate.Paths = []string{"/chat"} }, raw: good("/chats"), status: 404},
		{reason: refusal.Method, raw: strings.Replace(good("/"), "GET", "PUT", 1), status: 405, header: map[string]string{"Allow": "GET"}},
		{reason: refusal.NotWebSocket, raw: request("GET /?private="+secret+" HTTP/1.1", "Host: a"), status: 426,
			header: map[string]string{"Upgrade": "websocket"}},
		{reason: refusal.Version, raw: strings.Replace(good("/"), "Version: 13", "Version: 8", 1), status: 426,
			header: map[string]string{"Sec-Websocket-Version": "13"}},
		{reason: refusal.Handshake, raw: without(good("/"), "Connection: Upgrade"), status: 400,
			body: "malformed WebSocket handshake: Connection does not contain upgrade\n"},
		{reason: refusal.Origin, edit: func(c *Config) { c.Origin.Origins = []string{"https://a.example"} },
			raw: good("/", "Origin: https://b.example"), status: 403},
		{reason: refusal.RateAddress, edit: serving(ratelimit.Config{UpgradesPerIP: hour(1)}), before: good("/"), raw: good("/"), status: 429,
			header: map[string]string{"Retry-After": "…", "RateLimit-Policy": `"upgrades";q=1;w=3600`, "RateLimit": `"upgrades";r=0;t=3600`}},
		{reason: refusal.AuthFailures, edit: serving(ratelimit.Config{AuthFailuresPerIP: hour(1)}),
			before: handshake("/?token=bad"), raw: good("/"), status: 429, header: map[string]string{"Retry-After": "…"}},
		{reason: refusal.RateGlobal, edit: serving(ratelimit.Config{Upgrades: hour(1)}), before: good("/"), raw: good("/"), status: 503,
			header: map[string]string{"Retry-After": "…"}},
		{reason: refusal.RateSubject, edit: serving(ratelimit.Config{UpgradesPerSubject: hour(1)}), before: good("/"), raw: good("/"), status: 429,
			header: map[string]string{"Retry-After": "…"}},
		{reason: refusal.SessionsAddress, edit: serving(ratelimit.Config{SessionsPerIP: 1}), before: good("/"), raw: good("/"), status: 429,
			header: map[string]string{"Retry-After": "…"}},
		{reason: refusal.SessionsSubject, edit: serving(ratelimit.Config{SessionsPerSubject: 1}), before: good("/"), raw: good("/"), status: 429,
			header: map[string]string{"Retry-After": "…"}},
		{reason: refusal.SessionsTotal, edit: serving(ratelimit.Config{Sessions: 1}), before: good("/"), raw: good("/"), status: 503,
			header: map[string]string{"Retry-After": "…"}},
		{reason: refusal.TokenMissing, raw: handshake("/?private=" + secret), status: 401, header: map[string]string{"Www-Authenticate": bearer}},
		{reason: refusal.TokenMalformed, raw: handshake("/?token=%01" + secret), status: 401, body: "the token is malformed: ",
			header: map[string]string{"Www-Authenticate": bearer + `, error="invalid_token"`}},
		{reason: refusal.TokenConflict, raw: good("/", "Authorization: Bearer "+secret), status: 400,
			header: map[string]string{"Www-Authenticate": bearer + `, error="invalid_request"`}},
		{reason: refusal.TokenRefused, raw: handshake("/?token=" + secret), status: 401,
			header: map[string]string{"Www-Authenticate": bearer + `, error="invalid_token"`}},
		{reason: refusal.AuthUnavailable, raw: handshake("/?token=down&private=" + secret), status: 503, header: map[string]string{"Retry-After": "…"}},
		{reason: refusal.UpstreamDial, edit: func(c *Config) { c.Upstream.URL = "ws://" + unreachable.Addr().String() }, raw: good("/"), status: 502},
		{reason: refusal.UpstreamTimeout, edit: func(c *Config) { c.Upstream.HandshakeTimeout = 50 * time.Millisecond },
			script: func(conn net.Conn, _ *http.Request) { conn.Read(make([]byte, 1)) }, raw: good("/"), status: 504},
		{reason: refusal.UpstreamHandshake, script: func(conn net.Conn, r *http.Request) { io.WriteString(conn, "220 smtp "+r.RequestURI+"\r\n\r\n") },
			raw: good("/"), status: 502},
		{reason: refusal.UpstreamRefused, script: func(conn net.Conn, _ *http.Request) {
			io.WriteString(conn, "HTTP/1.1 418 Teapot\r\nSet-Cookie: a=1\r\nKeep-Alive: 5\r\nContent-Length: 6\r\n\r\nshort\n")
		}, raw: good("/"), status: 418, body: "short\n", header: map[string]string{"Set-Cookie": "a=1", "Keep-Alive": "", "Content-Type": ""}},
	} {
		t.Run(string(tt.reason), func(t *testing.T) {
			b := newBackend(t, tt.script)
			g := newGate(t, b.url, tt.edit)
			if tt.before != "" {
				g.send(t, tt.before)
			}
			counted, logged := g.refused(t, tt.reason), g.journal.count("refused")

			a := g.send(t, tt.raw)
			if a.StatusCode != tt.status {
				t.Fatalf("status: got %d (%s), want %d", a.StatusCode, a.body, tt.status)
			}
			want := map[string]string{
				"Content-Type": "text/plain; charset=utf-8", "Content-Length": strconv.Itoa(len(a.body)),
			}
			maps.Copy(want, tt.header)
			for name, value := range want {
				switch got := strings.Join(a.Header.Values(name), ", "); {
				case value == "…" && got != "", got == value:
				default:
					t.Errorf("%s: got %q, want %q", name, got, value)
				}
			}
			// net/http's client would hide it.
			if want := "\r\nConnection: close\r\n"; !strings.Contains(a.wire.String(), want) {
				t.Errorf("no Connection: close in %q", a.wire.String())
			}
			if upgrades := strings.Contains(a.wire.String(), "\r\nConnection: Upgrade\r\n"); upgrades != (tt.reason == refusal.NotWebSocket) {
				t.Errorf("Connection: Upgrade: got %v", upgrades)
			}
			switch body := tt.body; {
			case body == "" && a.body != tt.reason.Text()+"\n", !strings.HasPrefix(a.body, body):
				t.Errorf("body: got %q, want %q", a.body, body)
			case strings.Count(a.body, "\n") != 1 || !strings.HasSuffix(a.body, "\n"):
				t.Errorf("body: got %q, want one line", a.body)
			}
			a.closed(t)

			if got := g.refused(t, tt.reason) - counted; got != 1 {
				t.Errorf("counted %v times, want once", got)
			}
			if got := g.journal.count("refused") - logged; got != 1 {
				t.Errorf("logged %d times, want once", got)
			}
			for line := g.journal.next(t, "refused"); ; line = g.journal.next(t, "refused") {
				if line["reason"] == string(tt.reason) {
					if line["status"] != float64(tt.status) || line["client"] != "127.0.0.1" {
						t.Errorf("line: got %v, want status %d and the client", line, tt.status)
					}
					break
				}
			}
			if g.journal.contains(secret) || g.journal.contains("token=") || strings.Contains(a.body, secret) {
				t.Error("the secret came out")
			}
		})
	}
}

func TestInternalError(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, func(c *Config) {
		c.Gate.Paths = []string{"/"}
		c.API.TokenEndpoint = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })
	})
	a := g.send(t, request("GET /token HTTP/1.1", "Host: a"))
	if a.StatusCode != 500 || a.body != "internal error\n" {
		t.Errorf("got %d %q, want 500", a.StatusCode, a.body)
	}
	if line := g.journal.next(t, "panic"); line["level"] != "ERROR" {
		t.Errorf("level of the panic: got %v, want ERROR", line["level"])
	}
}

// TestStormIsToldInOneLine has more refusals come than the log has room for.
func TestStormIsToldInOneLine(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, nil)
	const storm = 250
	for range storm {
		g.report.Report(&refusal.Refusal{Reason: refusal.Path})
	}
	line := g.journal.next(t, "refusals not logged")
	if got := float64(g.journal.count("refused")) + line["count"].(float64); got != storm {
		t.Errorf("lines and the count of those dropped: got %v together, want %d", got, storm)
	}
	if got := g.refused(t, refusal.Path); got != storm {
		t.Errorf("counted: got %v, want %d", got, storm)
	}
}
