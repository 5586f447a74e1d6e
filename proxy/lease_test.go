package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"portcullis/ratelimit"
)

// signingKey is that of the tokens that these tests sign.
const signingKey = "a secret of thirty-two bytes or more"

// byJWT has a gate verify tokens that are signed with signingKey.
func byJWT(c *Config) {
	c.Auth.Mode, c.Auth.URL, c.Auth.JWTSecret = "jwt", "", signingKey
}

// sign returns a token with those claims, which no line of the log may have.
func (g *testGate) sign(t testing.TB, claims jwt.MapClaims) string {
	t.Helper()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(signingKey))
	if err != nil {
		t.Fatal(err)
	}
	g.secrets.Token(token)
	return token
}

// tokenUntil returns a token, which no line of the log may have.
func (g *testGate) tokenUntil(t testing.TB, subject string, exp time.Time) string {
	t.Helper()
	return g.sign(t, jwt.MapClaims{"sub": subject, "exp": exp.Unix()})
}

// soon is the first whole second that is at least one second away, for exp has no fractions.
func soon() time.Time { return time.Now().Add(2 * time.Second).Truncate(time.Second) }

// witness is an upstream that echoes messages, and tells how each of its connections ended.
type witness struct {
	url   string
	ended chan error
}

func newWitness(t testing.TB) *witness {
	t.Helper()
	w := &witness{ended: make(chan error, 100)}
	upgrader := websocket.Upgrader{EnableCompression: true, CheckOrigin: func(*http.Request) bool { return true }}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(rw, r, http.Header{"Portcullis-Session": {"the upstream's"}})
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, message, err := conn.ReadMessage()
			if err != nil {
				w.ended <- err
				return
			}
			conn.WriteMessage(kind, message)
		}
	}))
	t.Cleanup(s.Close)
	w.url = "ws" + strings.TrimPrefix(s.URL, "http")
	return w
}

// closed waits for the end of the next connection.
func (w *witness) closed(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.ended:
		return err
	case <-time.After(patience):
		t.Fatal("no connection of the upstream has ended")
		return nil
	}
}

// wantClose fails the test unless a connection ended with that Close frame.
func wantClose(t *testing.T, side string, err error, code int, reason string) {
	t.Helper()
	if closed, ok := errors.AsType[*websocket.CloseError](err); !ok || closed.Code != code || closed.Text != reason {
		t.Errorf("%s: got %v, want Close %d %q", side, err, code, reason)
	}
}

// both waits for a session's Close on both sides, and returns when the client's came.
func both(t *testing.T, conn *websocket.Conn, w *witness, code int, reason string) time.Time {
	t.Helper()
	_, _, err := conn.ReadMessage()
	at := time.Now()
	conn.Close()
	wantClose(t, "the client", err, code, reason)
	wantClose(t, "the upstream", w.closed(t), code, reason)
	return at
}

// between fails the test unless at is from one time to another.
func between(t *testing.T, at, from, to time.Time) {
	t.Helper()
	if at.Before(from) || at.After(to) {
		t.Errorf("it came %v too early, or %v too late", from.Sub(at), at.Sub(to))
	}
}

// nothingHeld fails the test if a session has left anything behind.
func (g *testGate) nothingHeld(t *testing.T) {
	t.Helper()
	if err := g.waitAllReleased(); err != nil {
		t.Error(err)
	}
	if leases, renewable := g.sessions.Held(); leases != 0 || renewable != 0 {
		t.Errorf("%d leases are left and %d sessions can be renewed, want none", leases, renewable)
	}
}

func TestSessionEndsWithItsToken(t *testing.T) {
	for _, relays := range []string{"loop", "stream", "terminate"} {
		t.Run(relays, func(t *testing.T) {
			t.Parallel() // it waits most of the time
			w := newWitness(t)
			g := newGate(t, w.url, func(c *Config) {
				byJWT(c)
				if c.Relay.Engine = relays; relays == "terminate" {
					c.Relay.Engine, c.Relay.Mode = "auto", relays
				}
			})
			exp := soon()
			conn := g.connect(t, "/?token="+g.tokenUntil(t, "Alice", exp), nil)
			echoes(t, conn, "before")
			at := both(t, conn, w, 3000, "token expired")
			between(t, at, exp, exp.Add(time.Second))
			if line := g.journal.next(t, "session ended"); line["reason"] != "expired" || line["code"] != 3000.0 {
				t.Errorf("line of the session: got %v", line)
			}
			g.nothingHeld(t)
		})
	}
}

// teller is a token endpoint that answers as it is told.
type teller struct {
	url    string
	answer atomic.Pointer[http.HandlerFunc]
	asked  chan string // the tokens
}

func newTeller(t testing.TB, first http.HandlerFunc) *teller {
	t.Helper()
	e := &teller{asked: make(chan string, 10_000)}
	e.answer.Store(&first)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := *e.answer.Load() // before anybody knows of the question, and may change it
		e.asked <- r.FormValue("token")
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	e.url = s.URL
	return e
}

func (e *teller) now(answer http.HandlerFunc) { e.answer.Store(&answer) }

// accepts is a yes to a subject, which holds for maxAge seconds; 0: open-ended.
func accepts(subject string, maxAge int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Auth-Subject", subject)
		if maxAge > 0 {
			w.Header().Set("Cache-Control", fmt.Sprintf("max-age=%d", maxAge))
		}
		io.WriteString(w, "1")
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
}

func TestSessionEndsWhenItsTokenIsTakenBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		next http.HandlerFunc
	}{
		{"refused", status(401)},
		{"another's", accepts("Bob", 0)},
		{"nobody's", accepts("", 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, e := newWitness(t), newTeller(t, accepts("Alice", 0))
			g := newGate(t, w.url, func(c *Config) {
				c.Auth.URL = e.url
				c.Auth.Recheck = 20 * time.Millisecond
				c.Auth.CacheTTL = time.Hour // for those who come anew
			})
			conn := g.connect(t, "/?token=wonder", nil)
			for range 3 { // with the first yes
				<-e.asked
			}
			echoes(t, conn, "verified again")
			e.now(tt.next)
			changed := time.Now()
			at := both(t, conn, w, 3000, "token revoked")
			between(t, at, changed, changed.Add(time.Second))
			if line := g.journal.next(t, "session ended"); line["reason"] != "revoked" {
				t.Errorf("line of the session: got %v", line)
			}
			g.nothingHeld(t)
		})
	}
}

func TestSessionInAnOutage(t *testing.T) {
	introspected := func(exp time.Time) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"active": true, "sub": "Alice", "exp": %d}`, exp.Unix())
		}
	}
	t.Run("stale, then no more", func(t *testing.T) {
		t.Parallel()
		w, e := newWitness(t), newTeller(t, accepts("Alice", 1))
		g := newGate(t, w.url, func(c *Config) { c.Auth.URL, c.Auth.StaleTTL = e.url, time.Second })
		began := time.Now()
		conn := g.connect(t, "/?token=wonder", nil)
		e.now(status(500))
		at := both(t, conn, w, 1013, "authentication unavailable")
		between(t, at, began.Add(2*time.Second), began.Add(3*time.Second))
		if line := g.journal.next(t, "session ended"); line["reason"] != "auth_unavailable" {
			t.Errorf("line of the session: got %v", line)
		}
		g.nothingHeld(t)
	})
	t.Run("never past exp", func(t *testing.T) {
		t.Parallel()
		exp := soon()
		w, e := newWitness(t), newTeller(t, introspected(exp))
		g := newGate(t, w.url, func(c *Config) {
			c.Auth.Mode, c.Auth.URL, c.Auth.StaleTTL = "introspect", e.url, time.Hour
		})
		conn := g.connect(t, "/?token=wonder", nil)
		e.now(status(500))
		at := both(t, conn, w, 3000, "token expired")
		between(t, at, exp, exp.Add(time.Second))
		g.nothingHeld(t)
	})
	t.Run("that passes", func(t *testing.T) {
		t.Parallel()
		w, e := newWitness(t), newTeller(t, accepts("Alice", 1))
		g := newGate(t, w.url, func(c *Config) { c.Auth.URL, c.Auth.StaleTTL = e.url, time.Minute })
		conn := g.connect(t, "/?token=wonder", nil)
		e.now(status(500))
		<-e.asked
		<-e.asked // in the outage
		e.now(accepts("Alice", 0))
		<-e.asked
		echoes(t, conn, "after")
	})
}

// Sessions that are over before their lease has been made, or while it is.
func TestSessionsThatEndAtOnceLeaveNothing(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) {
		byJWT(c)
		c.Limits = ratelimit.Config{}
		c.Session.Renewal = true
	})
	raw := handshake("/?token=" + g.tokenUntil(t, "Alice", time.Now().Add(time.Hour)))
	for range 100 {
		conn := g.dial(t)
		io.WriteString(conn, raw)
		conn.Read(make([]byte, 1))
		conn.Close()
	}
	g.nothingHeld(t)
}

func TestCutDoesNotWaitForAQuestion(t *testing.T) {
	asked := make(chan struct{}, 10)
	w, e := newWitness(t), newTeller(t, accepts("Alice", 0))
	g := newGate(t, w.url, func(c *Config) {
		c.Auth.URL, c.Auth.Timeout, c.Auth.Recheck = e.url, time.Hour, time.Millisecond
	})
	g.connect(t, "/?token=wonder", nil)
	e.now(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	<-asked
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { panic("Cut waits for a question") })
	g.Cut()
	stop()
}

// explosiveLog panics at the line of a session's start, the last moment before the relay has it.
type explosiveLog struct{ slog.Handler }

func (h explosiveLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "session started" {
		panic("boom")
	}
	return h.Handler.Handle(ctx, r)
}

// A panic between the lease and the relay leaves neither behind.
func TestPanicAtTheStartOfASession(t *testing.T) {
	w := newWitness(t)
	g := newGate(t, w.url, func(c *Config) {
		renewing(c)
		c.Limits.Sessions = 1
		c.Logger = slog.New(explosiveLog{c.Logger.Handler()})
	})
	a := g.upgraded(t, handshake("/?token="+g.tokenUntil(t, "Alice", hour())))
	if code, reason := a.lastWords(t); code != 1011 || reason != "internal error" {
		t.Errorf("the client: got Close %d %q, want 1011", code, reason)
	}
	a.conn.Close()
	if err := w.closed(t); !websocket.IsCloseError(err, websocket.CloseAbnormalClosure) {
		t.Errorf("the upstream: got %v, want the end of its connection", err)
	}
	g.nothingHeld(t)
}
