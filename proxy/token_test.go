package proxy

import (
	"io"
	"net/http"
	"testing"
	"time"

	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// bundled is a gate as with the bundled backend: / for upgrades, /token for tokens.
func bundled(t *testing.T, edit func(*Config)) *testGate {
	t.Helper()
	return newGate(t, newBackend(t, nil).url, func(c *Config) {
		c.Gate.Paths = []string{"/"}
		c.API.TokenEndpoint = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			if r.URL.Query().Get("token") != "good" {
				w.WriteHeader(http.StatusBadRequest)
				io.WriteString(w, "0")
				return
			}
			io.WriteString(w, "1")
		})
		if edit != nil {
			edit(c)
		}
	})
}

func tokenRequest(token string) string {
	return request("GET /token?token="+token+" HTTP/1.1", "Host: a")
}

func TestTokenEndpoint(t *testing.T) {
	hour := func(n int) ratelimit.Rate { return ratelimit.Rate{N: n, Per: time.Hour} }
	for _, tt := range []struct {
		name   string
		edit   func(*Config)
		before []string
		raw    string
		status int
		body   string
		reason refusal.Reason // counted once; "": none
	}{
		{"good", nil, nil, tokenRequest("good"), 200, "1", ""},
		{"bad", nil, nil, tokenRequest("bad"), 400, "0", refusal.TokenRefused},
		{"good ones cost nothing", func(c *Config) { c.Limits = ratelimit.Config{AuthFailuresPerIP: hour(1)} },
			[]string{tokenRequest("good"), tokenRequest("good")}, tokenRequest("good"), 200, "1", ""},
		{"guessing", func(c *Config) { c.Limits = ratelimit.Config{AuthFailuresPerIP: hour(2)} },
			[]string{tokenRequest("bad"), tokenRequest("bad")}, tokenRequest("good"), 429, refusal.AuthFailures.Text() + "\n", refusal.AuthFailures},
		{"guessing there shuts the gate too", func(c *Config) { c.Limits = ratelimit.Config{AuthFailuresPerIP: hour(1)} },
			[]string{tokenRequest("bad")}, handshake("/?token=good"), 429, refusal.AuthFailures.Text() + "\n", refusal.AuthFailures},
		{"guessing at the gate shuts it too", func(c *Config) { c.Limits = ratelimit.Config{AuthFailuresPerIP: hour(1)} },
			[]string{handshake("/?token=bad")}, tokenRequest("good"), 429, refusal.AuthFailures.Text() + "\n", refusal.AuthFailures},
		{"address's rate", func(c *Config) { c.Limits = ratelimit.Config{UpgradesPerIP: hour(1)} },
			[]string{tokenRequest("good")}, tokenRequest("good"), 429, refusal.RateAddress.Text() + "\n", refusal.RateAddress},
		{"global rate", func(c *Config) { c.Limits = ratelimit.Config{Upgrades: hour(1)} },
			[]string{tokenRequest("good")}, tokenRequest("good"), 503, refusal.RateGlobal.Text() + "\n", refusal.RateGlobal},
		{"claimed by PATHS", func(c *Config) { c.Gate.Paths = []string{"/token"} }, nil, tokenRequest("good"), 426,
			refusal.NotWebSocket.Text() + "\n", refusal.NotWebSocket},
		{"none", func(c *Config) { c.API.TokenEndpoint = nil }, nil, tokenRequest("good"), 404, refusal.Path.Text() + "\n", refusal.Path},
		{"elsewhere", nil, nil, request("GET /token/ HTTP/1.1", "Host: a"), 404, refusal.Path.Text() + "\n", refusal.Path},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := bundled(t, tt.edit)
			for _, raw := range tt.before {
				g.send(t, raw)
			}
			a := g.send(t, tt.raw)
			if a.StatusCode != tt.status || a.body != tt.body {
				t.Errorf("got %d %q, want %d %q", a.StatusCode, a.body, tt.status, tt.body)
			}
			if tt.reason != "" && g.refused(t, tt.reason) != 1 {
				t.Errorf("%s: counted %v times, want once", tt.reason, g.refused(t, tt.reason))
			}
			if isToken := tt.reason == "" || tt.status == 400 || tt.status == 503 || tt.reason == refusal.RateAddress; isToken {
				if got := a.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != "*" {
					t.Errorf("Access-Control-Allow-Origin: got %q, want *, once", got)
				}
			}
			if g.journal.contains("token=") {
				t.Error("the log has the query")
			}
		})
	}
}

// Requests behind the first are whatever a client has put there.
func TestOneRequestAConnection(t *testing.T) {
	g := bundled(t, nil)
	good := request("GET /token?token=good HTTP/1.1", "Host: a")
	a := g.send(t, good+good)
	if a.StatusCode != 200 || a.body != "1" {
		t.Errorf("got %d %q, want 200", a.StatusCode, a.body)
	}
	a.closed(t)
}
