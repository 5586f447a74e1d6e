package proxy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// ticketing has a gate issue tickets, also to clients for which this machine speaks.
func ticketing(c *Config) {
	c.API.Tickets = true
	c.Limits = ratelimit.Config{}
	c.ClientIP.TrustedProxies = []string{"127.0.0.1"}
}

// ticket trades a token for a ticket, which no line of the log may have.
func (g *testGate) ticket(t testing.TB, token string, lines ...string) string {
	t.Helper()
	return g.ticketFor(t, "/.portcullis/ticket", token, lines...)
}

func (g *testGate) ticketFor(t testing.TB, target, token string, lines ...string) string {
	t.Helper()
	a := g.send(t, post(target, token, lines...))
	var got struct {
		Ticket  string
		Expires time.Time
	}
	if err := json.Unmarshal([]byte(a.body), &got); a.StatusCode != 200 || err != nil || len(got.Ticket) != 43 {
		t.Fatalf("got %d %s, %v", a.StatusCode, a.body, err)
	}
	if left := time.Until(got.Expires); left <= 0 || left > 30*time.Second {
		t.Errorf("it expires in %v, want up to 30s", left)
	}
	g.secrets.Token(got.Ticket)
	return got.Ticket
}

func TestTicketOpensASessionAsItsToken(t *testing.T) {
	for _, pass := range []bool{false, true} {
		b := newBackend(t, nil)
		g := newGate(t, b.url, func(c *Config) {
			ticketing(c)
			c.Auth.TokenPass = pass
		})
		a := g.send(t, handshake("/room?a=%zz&%74icket="+g.ticket(t, "wonder")+"&b=1"))
		if a.StatusCode != 101 {
			t.Fatalf("got %d %s, want 101", a.StatusCode, a.body)
		}
		r := b.next(t)
		if r.RequestURI != "/room?a=%zz&b=1" {
			t.Errorf("the upstream was asked for %s", r.RequestURI)
		}
		if got := r.Header.Get("X-Auth-Subject"); got != "Alice" {
			t.Errorf("subject: got %q, want the token's", got)
		}
		if r.Header["Authorization"] != nil {
			t.Error("the upstream got a token that the request did not have")
		}
	}
}

func TestTicketsOffAreTheUpstreams(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, nil)
	g.send(t, handshake("/?token=good&ticket=box"))
	if got := b.next(t).RequestURI; got != "/?ticket=box" {
		t.Errorf("the upstream was asked for %s", got)
	}
	if a := g.send(t, handshake("/?ticket=box")); a.StatusCode != 401 {
		t.Errorf("got %d, want 401", a.StatusCode)
	}
}

func TestTicketAttacks(t *testing.T) {
	from := func(addr string) string { return "X-Forwarded-For: " + addr }
	for _, tt := range []struct {
		name   string
		edit   func(*Config)
		owner  string                                            // the address that asks for the ticket
		raw    func(t *testing.T, g *testGate, tk string) string // what is sent with it
		status int
		reason refusal.Reason
	}{
		{"none", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string { return handshake("/?ticket="+tk, from("192.0.2.1")) }, 101, ""},
		{"replayed", nil, "192.0.2.1", func(t *testing.T, g *testGate, tk string) string {
			g.send(t, handshake("/?ticket="+tk, from("192.0.2.1")))
			return handshake("/?ticket="+tk, from("192.0.2.1"))
		}, 401, refusal.TokenRefused},
		{"replayed after an upgrade that failed later", nil, "192.0.2.1", func(t *testing.T, g *testGate, tk string) string {
			g.send(t, handshake("/?token=other&ticket="+tk, from("192.0.2.1")))
			return handshake("/?ticket="+tk, from("192.0.2.1"))
		}, 401, refusal.TokenRefused},
		{"from another address", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string { return handshake("/?ticket="+tk, from("192.0.2.2")) }, 401, refusal.TokenRefused},
		{"from another network", nil, "2001:db8::1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket="+tk, from("2001:db8:0:1::1"))
		}, 401, refusal.TokenRefused},
		{"from the same /64", nil, "2001:db8::1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket="+tk, from("2001:db8::ffff:2"))
		}, 101, ""},
		{"from another address, not bound", func(c *Config) { c.API.TicketBindIP = false }, "192.0.2.1",
			func(_ *testing.T, _ *testGate, tk string) string {
				return handshake("/?ticket="+tk, from("2001:db8::1"))
			}, 101, ""},
		{"made up", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket=" + strings.Repeat("A", 43))
		}, 401, refusal.TokenRefused},
		{"cut short", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket="+tk[:42], from("192.0.2.1"))
		}, 401, refusal.TokenRefused},
		{"as a token", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string { return handshake("/?token="+tk, from("192.0.2.1")) }, 401, refusal.TokenRefused},
		{"in a header", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/", "Authorization: Bearer "+tk, from("192.0.2.1"))
		}, 401, refusal.TokenRefused},
		{"for another ticket", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return post("/.portcullis/ticket", tk, from("192.0.2.1"))
		}, 401, refusal.TokenRefused},
		{"beside its own token", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket="+tk+"&token=wonder", from("192.0.2.1"))
		}, 101, ""},
		{"beside another token", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket="+tk+"&token=good", from("192.0.2.1"))
		}, 400, refusal.TokenConflict},
		{"beside another token in a header", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket="+tk, "Authorization: Bearer good", from("192.0.2.1"))
		}, 400, refusal.TokenConflict},
		{"beside no token by its looks", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket="+tk+"&token=%01", from("192.0.2.1"))
		}, 401, refusal.TokenMalformed},
		{"two", nil, "192.0.2.1", func(t *testing.T, g *testGate, tk string) string {
			return handshake("/?ticket="+tk+"&ticket="+g.ticket(t, "wonder", from("192.0.2.1")), from("192.0.2.1"))
		}, 400, refusal.TokenConflict},
		{"not escaped properly", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string { return handshake("/?ticket=%zz") }, 401, refusal.TokenMalformed},
		{"empty", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string { return handshake("/?ticket=") }, 401, refusal.TokenMissing},
		{"as large as a header may be", nil, "192.0.2.1", func(_ *testing.T, _ *testGate, tk string) string {
			return handshake("/?ticket=" + strings.Repeat("A", 60<<10))
		}, 401, refusal.TokenMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, nil)
			g := newGate(t, b.url, func(c *Config) {
				ticketing(c)
				c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: 100, Per: time.Hour}
				if tt.edit != nil {
					tt.edit(c)
				}
			})
			raw := tt.raw(t, g, g.ticket(t, "wonder", from(tt.owner)))
			counted := 0.0
			if tt.reason != "" {
				counted = g.refused(t, tt.reason)
			}
			a := g.send(t, raw)
			if a.StatusCode != tt.status {
				t.Errorf("got %d %s, want %d", a.StatusCode, a.body, tt.status)
			}
			if tt.reason != "" && g.refused(t, tt.reason)-counted != 1 {
				t.Errorf("%s: counted %v times, want once", tt.reason, g.refused(t, tt.reason)-counted)
			}
		})
	}
}

// Guesses are charged as wrong tokens are.
func TestGuessingTicketsIsLimited(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, func(c *Config) {
		ticketing(c)
		c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: 2, Per: time.Hour}
	})
	for i, want := range []int{401, 401, 429} {
		if a := g.send(t, handshake("/?ticket=guess")); a.StatusCode != want {
			t.Errorf("guess %d: got %d, want %d", i, a.StatusCode, want)
		}
	}
}

func TestTwoRacingUsesOfOneTicket(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, ticketing)
	for range 10 {
		tk := g.ticket(t, "wonder")
		var won atomic.Int32
		var running sync.WaitGroup
		for range 2 {
			conn := g.dial(t)
			running.Go(func() {
				fmt.Fprint(conn, handshake("/?ticket="+tk))
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Error(err)
				} else if resp.StatusCode == 101 {
					won.Add(1)
				}
			})
		}
		running.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d sessions, want one", won.Load())
		}
	}
}

func TestSessionOfATicketEndsWithTheToken(t *testing.T) {
	w := newWitness(t)
	g := newGate(t, w.url, func(c *Config) {
		byJWT(c)
		c.API.Tickets, c.Auth.JWTLeeway = true, 0
	})
	exp := soon()
	token := g.tokenUntil(t, "Alice", exp)
	late := g.ticket(t, token)
	conn := g.connect(t, "/?ticket="+g.ticket(t, token), nil)
	at := both(t, conn, w, 3000, "token expired")
	between(t, at, exp, exp.Add(time.Second))
	// The ticket itself would be good for half a minute.
	if a := g.send(t, handshake("/?ticket="+late)); a.StatusCode != 401 {
		t.Errorf("a ticket of a token that is over: got %d, want 401", a.StatusCode)
	}
}

func TestSessionOfATicketIsVerifiedAgain(t *testing.T) {
	w, e := newWitness(t), newTeller(t, accepts("Alice", 0))
	g := newGate(t, w.url, func(c *Config) {
		c.API.Tickets = true
		c.Auth.URL, c.Auth.Recheck = e.url, 20*time.Millisecond
	})
	conn := g.connect(t, "/?ticket="+g.ticket(t, "wonder"), nil)
	for range 3 {
		if got := <-e.asked; got != "wonder" {
			t.Errorf("the endpoint was asked about %q", got)
		}
	}
	e.now(status(401))
	both(t, conn, w, 3000, "token revoked")
}

func TestUnusedTicketsAreCapped(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, func(c *Config) {
		ticketing(c)
		c.API.MaxTickets, c.API.MaxTicketsEach = 3, 2
	})
	var got []string
	for _, addr := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"} {
		token := "good"
		if addr != "192.0.2.1" {
			token = "wonder"
		}
		a := g.send(t, post("/.portcullis/ticket", token, "X-Forwarded-For: "+addr))
		if got = append(got, fmt.Sprint(a.StatusCode)); a.StatusCode != 200 && a.Header.Get("Retry-After") == "" {
			t.Errorf("%d without Retry-After", a.StatusCode)
		}
	}
	if want := "200 200 429 200 503 503"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, " "), want)
	}
	if g.refused(t, refusal.Tickets) != 1 || g.refused(t, refusal.TicketsTotal) != 2 {
		t.Errorf("counted %v and %v, want 1 and 2", g.refused(t, refusal.Tickets), g.refused(t, refusal.TicketsTotal))
	}
}

// A page that offers its token as a subprotocol beside a ticket gets an answer that a browser takes.
func TestTicketBesideItsTokenInASubprotocol(t *testing.T) {
	g := newGate(t, newWitness(t).url, ticketing)
	d := websocket.Dialer{Subprotocols: []string{"bearer", "wonder"}, HandshakeTimeout: patience}
	conn, _, err := d.Dial("ws://"+g.addr+"/?ticket="+g.ticket(t, "wonder"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.Subprotocol(); got != "bearer" {
		t.Errorf("chosen: got %q, want bearer", got)
	}
}

// BenchmarkTicket is the trade of a token for a ticket and of that for a decision, without the network, the reading of the
// requests, and the session. The token is a JWT, whose verification is most of it.
func BenchmarkTicket(b *testing.B) {
	g := newGate(b, newBackend(b, nil).url, func(c *Config) {
		byJWT(c)
		ticketing(c)
		c.Logger = nil
	})
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(post("/.portcullis/ticket", g.tokenUntil(b, "Alice", hour())))))
	if err != nil {
		b.Fatal(err)
	}
	r.RemoteAddr = "192.0.2.1:1"
	key := ratelimit.AddressKey(netip.MustParseAddr("192.0.2.1"))
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		var a struct{ Ticket string }
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			b.Fatal(err)
		}
		if _, err := g.tickets.Redeem(b.Context(), a.Ticket, key); err != nil {
			b.Fatal("the ticket is not good")
		}
	}
}
