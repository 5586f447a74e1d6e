package proxy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
)

// renewing has a gate verify JWTs and renew sessions.
func renewing(c *Config) {
	byJWT(c)
	c.Session.Renewal = true
	c.Limits = ratelimit.Config{}
}

// post is a raw request to one of the gate's own endpoints.
func post(path, token string, lines ...string) string {
	return request(append([]string{"POST " + path + " HTTP/1.1", "Host: gate.example", "Content-Length: 0", "Authorization: Bearer " + token}, lines...)...)
}

func renewal(token, id string) string {
	return post("/.portcullis/session", token, session.Header+": "+id)
}

// open opens a session and returns its id.
func (g *testGate) open(t testing.TB, target string) (*websocket.Conn, string) {
	t.Helper()
	conn, resp, err := g.tryConnect(target, nil)
	if err != nil {
		t.Fatalf("dial: %v (%v)", err, resp)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(patience))
	return conn, resp.Header.Get(session.Header)
}

func hour() time.Time { return time.Now().Add(time.Hour) }

func TestSessionLivesOnByAFreshToken(t *testing.T) {
	w := newWitness(t)
	g := newGate(t, w.url, renewing)
	exp := soon()
	renewed, id := g.open(t, "/?token="+g.tokenUntil(t, "Alice", exp))
	other, _ := g.open(t, "/?token="+g.tokenUntil(t, "Alice", exp))

	next := exp.Add(time.Hour)
	a := g.send(t, renewal(g.tokenUntil(t, "Alice", next), id))
	if want := fmt.Sprintf(`{"expires":"%s"}`, next.UTC().Format(time.RFC3339)); a.StatusCode != 200 || a.body != want {
		t.Fatalf("got %d %s, want 200 %s", a.StatusCode, a.body, want)
	}
	for name, want := range map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store", "Vary": "Origin"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	both(t, other, w, 3000, "token expired")
	echoes(t, renewed, "still here")
}

// From a renewal on the session goes by the fresh token, whatever becomes of the old one.
func TestFreshTokenTakesThePlaceOfTheOld(t *testing.T) {
	w, e := newWitness(t), newTeller(t, accepts("Alice", 0))
	g := newGate(t, w.url, func(c *Config) {
		c.Auth.URL, c.Auth.Recheck, c.Session.Renewal = e.url, 20*time.Millisecond, true
		c.Limits = ratelimit.Config{}
	})
	conn, id := g.open(t, "/?token=first-token")
	if a := g.send(t, renewal("fresh-token", id)); a.StatusCode != 200 || a.body != `{"expires":null}` {
		t.Fatalf("got %d %s, want 200", a.StatusCode, a.body)
	}
	refuse := func(token string) {
		e.now(func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("token") == token {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			accepts("Alice", 0)(w, r)
		})
	}
	refuse("first-token")
	for asked := 0; asked < 3; {
		if <-e.asked == "fresh-token" {
			asked++
		}
	}
	echoes(t, conn, "still here")
	refuse("fresh-token")
	both(t, conn, w, 3000, "token revoked")
}

func TestRenewalsAreRefusedAlike(t *testing.T) {
	w := newWitness(t)
	const failures = 100
	g := newGate(t, w.url, func(c *Config) {
		renewing(c)
		c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: failures, Per: time.Hour}
	})
	alices := g.tokenUntil(t, "Alice", hour())
	_, id := g.open(t, "/?token="+alices)
	_, nobodys := g.open(t, "/?token="+g.tokenUntil(t, "", hour()))
	gone, goneID := g.open(t, "/?token="+alices)
	gone.Close()
	g.journal.next(t, "session ended")

	charged := 0
	var want string
	for _, tt := range []struct{ name, raw string }{
		{"another user's token", renewal(g.tokenUntil(t, "Mallory", hour()), id)},
		{"nobody's token", renewal(g.tokenUntil(t, "", hour()), id)},
		{"a token of no user for a session of no user", renewal(g.tokenUntil(t, "", hour()), nobodys)},
		{"unknown id", renewal(alices, strings.Repeat("A", 26))},
		{"no id", post("/.portcullis/session", alices)},
		{"empty id", renewal(alices, "")},
		{"two ids", post("/.portcullis/session", alices, session.Header+": "+id, session.Header+": "+id)},
		{"a long id", renewal(alices, strings.Repeat("A", 10_000))},
		{"a session that is over", renewal(alices, goneID)},
		{"a token that is over", renewal(g.tokenUntil(t, "Alice", time.Now().Add(-time.Hour)), id)},
		{"a token of another key", renewal(alices[:len(alices)-4]+"AAAA", id)},
		{"no token by its looks", renewal("\xff", id)},
		{"two tokens", post("/.portcullis/session", alices, session.Header+": "+id, "Authorization: Bearer other")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := g.send(t, tt.raw)
			date := "Date: " + a.Header.Get("Date")
			got := strings.Replace(a.wire.String(), date, "", 1)
			if want == "" {
				want = got
			}
			if a.StatusCode != 401 || got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			charged++
			if got := g.refused(t, refusal.TokenRefused); got != float64(charged) {
				t.Errorf("counted %v times, want %d", got, charged)
			}
		})
	}
	// Each has cost the address as much as any.
	for range failures - charged {
		if a := g.send(t, renewal("bad", id)); a.StatusCode != 401 {
			t.Fatalf("the budget is gone already: got %d", a.StatusCode)
		}
	}
	if a := g.send(t, renewal(alices, id)); a.StatusCode != 429 {
		t.Errorf("the budget is not gone: got %d, want 429", a.StatusCode)
	}
}

// Whatever wins, the answer is true: who gets 200 has a session, and who does not has none.
func TestRenewalRacingWithExpiry(t *testing.T) {
	const sessions = 40
	w := newWitness(t)
	g := newGate(t, w.url, renewing)
	exp := soon()
	first, fresh := g.tokenUntil(t, "Alice", exp), g.tokenUntil(t, "Alice", hour())
	var running sync.WaitGroup
	for i := range sessions {
		conn, id := g.open(t, "/?token="+first)
		running.Go(func() {
			<-time.After(time.Until(exp) + time.Duration(i-sessions/2)*time.Millisecond)
			a := g.send(t, renewal(fresh, id))
			conn.WriteMessage(websocket.TextMessage, []byte("x"))
			_, _, err := conn.ReadMessage()
			for a.StatusCode == 401 && err == nil { // the echo may come before the Close does
				_, _, err = conn.ReadMessage()
			}
			switch lives := err == nil; {
			case a.StatusCode != 200 && a.StatusCode != 401:
				t.Errorf("renewal: got %d", a.StatusCode)
			case lives != (a.StatusCode == 200):
				t.Errorf("renewal: got %d, and then %v", a.StatusCode, err)
			case !lives:
				wantClose(t, "the client", err, 3000, "token expired")
			}
			conn.Close()
		})
	}
	running.Wait()
	g.nothingHeld(t)
}

// An upstream that names sessions of its own must not be taken for the gate, which names those that can be renewed: not one
// whose subject is a hash of its token.
func TestSessionHeaderIsTheGates(t *testing.T) {
	w := newWitness(t)
	for _, tt := range []struct {
		renewal bool
		token   string
		want    bool
	}{{false, "wonder", false}, {true, "wonder", true}, {true, "good", false}} {
		g := newGate(t, w.url, func(c *Config) { c.Session.Renewal = tt.renewal })
		a := g.send(t, handshake("/?token="+tt.token))
		ids := a.Header.Values(session.Header)
		if tt.want && (len(ids) != 1 || len(ids[0]) != 26) || !tt.want && len(ids) != 0 {
			t.Errorf("RENEWAL=%t, token %s: got %q", tt.renewal, tt.token, ids)
		}
	}
}

func TestGreeting(t *testing.T) {
	w := newWitness(t)
	for _, tt := range []struct {
		name string
		edit func(*Config)
		open func(t *testing.T, g *testGate, token string) *websocket.Conn
	}{
		{"passthrough", nil, nil},
		{"stream", func(c *Config) { c.Relay.Engine = "stream" }, nil},
		{"terminate", func(c *Config) { c.Relay.Mode = "terminate" }, nil},
		{"behind a first message", func(c *Config) { c.Gate.FirstMessage = true }, func(t *testing.T, g *testGate, token string) *websocket.Conn {
			conn := g.connect(t, "/", nil)
			conn.WriteMessage(websocket.TextMessage, []byte(token))
			return conn
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t, w.url, func(c *Config) {
				renewing(c)
				c.Session.Hello = true
				if tt.edit != nil {
					tt.edit(c)
				}
			})
			exp := hour()
			token := g.tokenUntil(t, "Alice", exp)
			var conn *websocket.Conn
			if tt.open != nil {
				conn = tt.open(t, g, token)
			} else {
				d := websocket.Dialer{EnableCompression: true, HandshakeTimeout: patience}
				var err error
				if conn, _, err = d.Dial("ws://"+g.addr+"/?token="+token, nil); err != nil {
					t.Fatal(err)
				}
			}
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(patience))
			kind, message, err := conn.ReadMessage()
			if err != nil || kind != websocket.TextMessage {
				t.Fatalf("got a message of kind %d, %v", kind, err)
			}
			var hello struct {
				Portcullis struct {
					Session string
					Expires time.Time
				}
			}
			if err := json.Unmarshal(message, &hello); err != nil || !hello.Portcullis.Expires.Equal(exp.Truncate(time.Second)) {
				t.Errorf("got %s, %v", message, err)
			}
			echoes(t, conn, "Olá")
			if a := g.send(t, renewal(token, hello.Portcullis.Session)); a.StatusCode != 200 {
				t.Errorf("renewal by the id of the greeting: got %d %s", a.StatusCode, a.body)
			}
		})
	}
}

// A renewal replaces the groups that a verifier gave and leaves those of the query. Groups that cannot be used leave all as it was.
func TestRenewalReplacesGroups(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) {
		renewing(c)
		withAPI(c)
		c.Session.Groups = []string{"claim:groups", "query:room"}
	})
	token := func(groups any) string {
		return g.sign(t, jwt.MapClaims{"sub": "Alice", "exp": hour().Unix(), "groups": groups})
	}
	_, id := g.open(t, "/?room=lobby&token="+token([]string{"old"}))
	want := func(groups ...string) {
		t.Helper()
		page, _ := g.sessions.List(session.Filter{Session: id}, 1, 0)
		if len(page) != 1 || !slices.Equal(page[0].Groups, groups) {
			t.Errorf("got %+v, want the groups %q", page, groups)
		}
	}
	want("claim:groups:old", "query:room:lobby")
	if a := g.send(t, renewal(token("new"), id)); a.StatusCode != 200 {
		t.Errorf("renewal: %d %s", a.StatusCode, a.body)
	}
	want("claim:groups:new", "query:room:lobby")
	many := make([]int, 17)
	for i := range many {
		many[i] = i
	}
	for _, unusable := range []any{many, []string{strings.Repeat("x", 129)}, []string{"a\nb"}} {
		if a := g.send(t, renewal(token(unusable), id)); a.StatusCode != http.StatusBadRequest {
			t.Errorf("renewal with %.40v: %d %s", unusable, a.StatusCode, a.body)
		}
	}
	if got := g.refused(t, refusal.Groups); got != 3 {
		t.Errorf("%v refusals, want 3", got)
	}
	want("claim:groups:new", "query:room:lobby")
	// What is no string or list gives no group.
	if a := g.send(t, renewal(token(map[string]string{"a": "b"}), id)); a.StatusCode != 200 {
		t.Errorf("renewal: %d %s", a.StatusCode, a.body)
	}
	want("query:room:lobby")
}

// At a recheck a session keeps the groups that it had if the new ones cannot be used, and lives on.
func TestRecheckWithGroupsThatCannotBeUsed(t *testing.T) {
	e := newTeller(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Groups", "staff")
		accepts("Alice", 0)(w, r)
	})
	g := newGate(t, newEcho(t), func(c *Config) {
		withAPI(c)
		c.Auth.URL, c.Auth.Recheck = e.url, 20*time.Millisecond
		c.Session.Groups = []string{"auth:X-Groups"}
	})
	conn := g.connect(t, "/?token=a-token", nil)
	groups := func() string {
		page, _ := g.sessions.List(session.Filter{}, 1, 0)
		return strings.Join(page[0].Groups, ",")
	}
	e.now(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Groups", strings.Repeat("x", 129))
		accepts("Alice", 0)(w, r)
	})
	g.journal.next(t, "a session keeps its groups: those of its recheck cannot be used")
	echoes(t, conn, "still here")
	if got := groups(); got != "auth:X-Groups:staff" {
		t.Errorf("groups: %q", got)
	}
	e.now(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Groups", "admins")
		accepts("Alice", 0)(w, r)
	})
	for began := time.Now(); groups() != "auth:X-Groups:admins"; <-e.asked {
		if time.Since(began) > patience {
			t.Fatalf("groups: %q", groups())
		}
	}
}
