package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// exchanging has both of the gate's endpoints on, for the pages of one origin.
func exchanging(c *Config) {
	c.Session.Renewal, c.API.Tickets = true, true
	c.Origin.Origins = []string{"https://app.example"}
}

func TestEndpointsTakeTheStepsOfAnUpgrade(t *testing.T) {
	hour := func(n int) ratelimit.Rate { return ratelimit.Rate{N: n, Per: time.Hour} }
	limited := func(l ratelimit.Config) func(*Config) { return func(c *Config) { c.Limits = l } }
	const ours = "Origin: https://app.example"
	good := func(path string) string { return post(path, "good", ours) }
	for _, path := range []string{"/.portcullis/session", "/.portcullis/ticket"} {
		for _, tt := range []struct {
			name    string
			edit    func(*Config)
			before  string // what is asked first; "" nothing
			raw     string
			reason  refusal.Reason
			foreign bool // the page may not read the answer
		}{
			{"no token", nil, "", request("POST "+path+" HTTP/1.1", "Host: a", ours), refusal.TokenMissing, false},
			{"a token in the query", nil, "", request("POST "+path+"?token=good HTTP/1.1", "Host: a", ours), refusal.TokenMissing, false},
			{"bad token", nil, "", post(path, "bad", ours), refusal.TokenRefused, false},
			{"nobody can tell", nil, "", post(path, "down", ours), refusal.AuthUnavailable, false},
			{"of a foreign page", nil, "", post(path, "good", "Origin: https://evil.example"), refusal.Origin, true},
			{"of two pages", nil, "", post(path, "good", ours, "Origin: https://evil.example"), refusal.Origin, true},
			{"asked for by a foreign page", nil, "", request("OPTIONS "+path+" HTTP/1.1", "Host: a", "Origin: https://evil.example",
				"Access-Control-Request-Method: POST"), refusal.Origin, true},
			{"address's rate", limited(ratelimit.Config{UpgradesPerIP: hour(1)}), good(path), good(path), refusal.RateAddress, false},
			{"global rate", limited(ratelimit.Config{Upgrades: hour(1)}), good(path), good(path), refusal.RateGlobal, false},
			{"guessing", limited(ratelimit.Config{AuthFailuresPerIP: hour(1)}), post(path, "bad", ours), good(path), refusal.AuthFailures, false},
			{"guessing here shuts the gate", limited(ratelimit.Config{AuthFailuresPerIP: hour(1)}), post(path, "bad", ours),
				handshake("/?token=good"), refusal.AuthFailures, true},
			{"guessing at the gate shuts it here", limited(ratelimit.Config{AuthFailuresPerIP: hour(1)}), handshake("/?token=bad"),
				good(path), refusal.AuthFailures, false},
			{"GET", nil, "", strings.Replace(good(path), "POST", "GET", 1), refusal.Method, false},
			{"PUT", nil, "", strings.Replace(good(path), "POST", "PUT", 1), refusal.Method, false},
			{"below it", nil, "", good(path + "/"), refusal.Path, true},
			{"off", func(c *Config) { c.Session.Renewal, c.API.Tickets = false, false }, "", good(path), refusal.Path, true},
			{"off, to upgrade", func(c *Config) { c.Session.Renewal, c.API.Tickets = false, false }, "", handshake(path + "?token=good"), refusal.Path, true},
			{"with every path served", func(c *Config) { c.Gate.Paths = []string{"*"} }, "", handshake(path + "?token=good"), refusal.Method, false},
		} {
			t.Run(path+"/"+tt.name, func(t *testing.T) {
				b := newBackend(t, nil)
				g := newGate(t, b.url, func(c *Config) {
					exchanging(c)
					if tt.edit != nil {
						tt.edit(c)
					}
				})
				if tt.before != "" {
					g.send(t, tt.before)
				}
				counted := g.refused(t, tt.reason)
				a := g.send(t, tt.raw)
				want := struct {
					status int
					text   string
				}{tt.reason.Status(), tt.reason.Text()}
				if tt.reason == refusal.Method {
					want.text = "the method is not allowed; want POST"
				}
				if a.StatusCode != want.status || !strings.HasPrefix(a.body, want.text) {
					t.Errorf("got %d %q, want %d %q", a.StatusCode, a.body, want.status, want.text)
				}
				if got := g.refused(t, tt.reason) - counted; got != 1 {
					t.Errorf("%s: counted %v times, want once", tt.reason, got)
				}
				allowed := a.Header.Get("Access-Control-Allow-Origin")
				if want := map[bool]string{false: "https://app.example"}[tt.foreign]; allowed != want && strings.Contains(tt.raw, "Origin") {
					t.Errorf("Access-Control-Allow-Origin: got %q, want %q", allowed, want)
				}
				if got := a.Header.Get("Cache-Control"); got != "no-store" {
					t.Errorf("Cache-Control: got %q, want no-store", got)
				}
				a.closed(t)
				if tt.before == "" {
					b.untouched(t)
				}
			})
		}
	}
}

func TestPreflight(t *testing.T) {
	for _, path := range []string{"/.portcullis/session", "/.portcullis/ticket"} {
		g := newGate(t, newBackend(t, nil).url, func(c *Config) {
			exchanging(c)
			c.Limits = ratelimit.Config{UpgradesPerIP: ratelimit.Rate{N: 1, Per: time.Hour}} // which a preflight is not held to
		})
		g.send(t, post(path, "good"))
		a := g.send(t, request("OPTIONS "+path+" HTTP/1.1", "Host: a", "Origin: https://app.example",
			"Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,portcullis-session"))
		if a.StatusCode != http.StatusNoContent || a.body != "" {
			t.Errorf("got %d %q, want 204", a.StatusCode, a.body)
		}
		for name, want := range map[string]string{
			"Access-Control-Allow-Origin": "https://app.example", "Vary": "Origin", "Access-Control-Allow-Methods": "POST",
			"Access-Control-Allow-Headers": "Authorization, Content-Type, Portcullis-Session", "Cache-Control": "no-store",
			"Access-Control-Allow-Credentials": "", "Content-Length": "",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s: %s: got %q, want %q", path, name, got, want)
			}
		}
	}
}

// A body of 1 MiB is neither read nor waited for, and does not keep its sender from reading the answer.
func TestLargeBodies(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, exchanging)
	for _, tt := range []struct {
		name, head string
		status     int
	}{
		{"good token", strings.Replace(post("/.portcullis/ticket", "good"), "Content-Length: 0", "Content-Length: 1048576", 1), 200},
		{"bad token", strings.Replace(post("/.portcullis/ticket", "bad"), "Content-Length: 0", "Content-Length: 1048576", 1), 401},
		{"renewal", strings.Replace(renewal("good", "x"), "Content-Length: 0", "Content-Length: 1048576", 1), 401},
		{"chunked", strings.Replace(post("/.portcullis/ticket", "good"), "Content-Length: 0", "Transfer-Encoding: chunked", 1) + "100000\r\n", 200},
		{"never sent", strings.Replace(post("/.portcullis/ticket", "good"), "Content-Length: 0", "Content-Length: 1048576", 1), 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := g.dial(t)
			io.WriteString(conn, tt.head)
			if tt.name != "never sent" {
				go conn.Write(make([]byte, 1<<20)) // ends when the gate or the test closes the connection
			}
			if a := readAnswer(t, conn); a.StatusCode != tt.status {
				t.Errorf("got %d %q, want %d", a.StatusCode, a.body, tt.status)
			}
		})
	}
	g.awaitPending(t, 0) // net/http lingers before it closes
}

func TestExchangesNeedAVerifierOfTokens(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Config)
		want string // how the only line begins; "" for none
	}{
		{"renewal", func(c *Config) { c.Session.Renewal = true }, ""},
		{"renewal with nobody", func(c *Config) { c.Auth.Mode, c.Auth.URL, c.Session.Renewal = "none", "", true }, `RENEWAL: "true"`},
		{"renewal of requests", func(c *Config) {
			c.Auth.Mode, c.Origin.Origins, c.Session.Renewal = "forward", []string{"https://app.example"}, true
		}, `RENEWAL: "true"`},
		{"greeting without renewal", func(c *Config) { c.Session.Hello = true }, `SESSION_HELLO: "true"`},
		{"tickets", func(c *Config) { c.API.Tickets = true }, ""},
		{"tickets for everybody", func(c *Config) { c.Auth.Mode, c.Auth.URL, c.API.Tickets = "none", "", true }, `TICKETS: "true"`},
		// The service allowed a POST to the gate, and would have refused the path that is opened with the ticket.
		{"tickets for requests", func(c *Config) {
			c.Auth.Mode, c.Origin.Origins, c.API.Tickets = "forward", []string{"https://app.example"}, true
		}, `TICKETS: "true"`},
		{"tickets where tokens are", func(c *Config) { c.API.Tickets, c.Auth.TokenFrom = true, []string{"query:ticket"} }, `AUTH_TOKEN_FROM: "query:ticket"`},
		{"tickets for no time", func(c *Config) { c.API.Tickets, c.API.TicketTTL = true, 0 }, `TICKET_TTL: "0s"`},
		{"one of the gate's paths", func(c *Config) { c.Gate.Paths = []string{"/.portcullis/x"} }, `PATHS: "/.portcullis/x"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := defaults(t)
			c.Auth.URL, c.Upstream.URL = "http://127.0.0.1", "ws://127.0.0.1"
			tt.edit(&c)
			_, err := New(c)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("got %v, want one line that begins %s", err, tt.want)
			}
		})
	}
}
