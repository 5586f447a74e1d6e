package proxy

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/redistest"
	"portcullis/proxy/session"
)

// A renewal reaches its session in whichever instance it is. While that cannot be asked it is told to come again, and not that its
// token is bad.
func TestRenewalOverTheFleet(t *testing.T) {
	s, echo := redistest.Start(t), newEcho(t)
	a, b := newGate(t, echo, sharing(s, "a", renewing)), newGate(t, echo, sharing(s, "b", renewing))
	joined(t, a, b)
	conn, id := a.open(t, "/?token="+a.tokenUntil(t, "Alice", hour()))
	next := hour().Add(time.Hour)
	for _, g := range []*testGate{b, a, b} {
		answer := g.send(t, renewal(b.tokenUntil(t, "Alice", next), id))
		if want := fmt.Sprintf(`{"expires":"%s"}`, next.UTC().Format(time.RFC3339)); answer.StatusCode != 200 || answer.body != want {
			t.Fatalf("got %d %s, want %s", answer.StatusCode, answer.body, want)
		}
		next = next.Add(time.Minute)
	}
	for _, raw := range []string{renewal(b.tokenUntil(t, "Mallory", next), id), renewal(b.tokenUntil(t, "Alice", next), strings.Repeat("A", 26)), renewal("bad", id)} {
		if answer := b.send(t, raw); answer.StatusCode != 401 {
			t.Errorf("got %d %s", answer.StatusCode, answer.body)
		}
	}
	s.Kill()
	if answer := b.send(t, renewal(b.tokenUntil(t, "Alice", next), id)); answer.StatusCode != 503 || answer.Header.Get("Retry-After") == "" {
		t.Errorf("without Redis: got %d %s", answer.StatusCode, answer.body)
	}
	if answer := b.send(t, renewal("bad", id)); answer.StatusCode != 401 {
		t.Errorf("a bad token without Redis: got %d", answer.StatusCode)
	}
	if answer := a.send(t, renewal(a.tokenUntil(t, "Alice", next), id)); answer.StatusCode != 200 {
		t.Errorf("its own without Redis: got %d %s", answer.StatusCode, answer.body)
	}
	echoes(t, conn, "still here")
}

// A ticket opens a session at any instance, and one only. Without Redis one of another instance is told to come again.
func TestTicketsOfTheFleet(t *testing.T) {
	s, echo := redistest.Start(t), newEcho(t)
	hasty := func(c *Config) { c.Fleet.Timeout = time.Second }
	a, b := newGate(t, echo, sharing(s, "a", ticketing, hasty)), newGate(t, echo, sharing(s, "b", ticketing, hasty))
	ticket := a.ticket(t, "wonder")
	echoes(t, b.connect(t, "/?ticket="+ticket, nil), "hello")
	for _, g := range []*testGate{a, b} {
		if got := g.status(t, "/?ticket="+ticket); got != 401 {
			t.Errorf("again: got %d", got)
		}
	}
	for _, unused := range []string{a.ticket(t, "good"), b.ticket(t, "good")} {
		s.Stop()
		answer := b.send(t, handshake("/?ticket="+unused))
		if answer.StatusCode != 503 || answer.Header.Get("Retry-After") == "" {
			t.Errorf("without Redis: got %d %s", answer.StatusCode, answer.body)
		}
		own := a.ticket(t, "wonder")
		if got := a.status(t, "/?ticket="+own); got != 101 {
			t.Errorf("its own without Redis: got %d", got)
		}
		if got := b.status(t, "/?ticket="+own); got != 503 {
			t.Errorf("another's without Redis: got %d", got)
		}
		s.Continue()
		eventually(t, "Redis answers", func() bool { return b.status(t, "/?ticket="+a.ticket(t, "wonder")) == 101 })
	}
}

// A call that is sent again to another instance has its effect once.
func TestIdempotencyOverTheFleet(t *testing.T) {
	s := redistest.Start(t)
	all := newFleet(t, s, 2)
	conn := all[1].gate.connect(t, "/?token=wonder", nil)
	for i, o := range []*operator{all[0], all[1], all[0]} {
		a := o.call("POST", "/api/messages?subject=Alice", "once", asText, "Idempotency-Key: k")
		if a.StatusCode != 200 || a.json["reached"] != 1.0 || (a.Header.Get("Idempotency-Replayed") != "") != (i > 0) {
			t.Errorf("call %d: %d %s", i+1, a.StatusCode, a.text)
		}
	}
	if a := all[1].call("POST", "/api/messages?subject=Alice", "other", asText, "Idempotency-Key: k"); a.StatusCode != 422 {
		t.Errorf("another call: %d %s", a.StatusCode, a.text)
	}
	all[0].call("POST", "/api/messages?subject=Alice", "twice", asText)
	for _, want := range []string{"once", "twice"} {
		if _, got, err := conn.ReadMessage(); err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	s.Kill()
	if a := all[0].call("POST", "/api/messages?subject=Alice", "lost", asText, "Idempotency-Key: l"); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
		t.Errorf("without Redis: %d %s", a.StatusCode, a.text)
	}
}

// A client that comes back to another instance gets each push once, also one to whom an instance has been started since.
func TestHistoryOfTheFleet(t *testing.T) {
	s := redistest.Start(t)
	keeping := func(c *Config) {
		c.Session.Hello, c.Session.History = true, session.HistorySize{Pushes: 100, Age: time.Hour}
	}
	all := newFleet(t, s, 2, keeping)
	type hello struct {
		Portcullis struct{ Push string }
	}
	open := func(o *operator, last string) (*websocket.Conn, string) {
		t.Helper()
		conn := o.gate.connect(t, "/?token=wonder&portcullis_last_push="+last, nil)
		var h hello
		if err := conn.ReadJSON(&h); err != nil || h.Portcullis.Push == "" {
			t.Fatalf("hello: %+v, %v", h, err)
		}
		return conn, h.Portcullis.Push
	}
	push := func(o *operator, text string) string {
		t.Helper()
		a := o.call("POST", "/api/messages?subject=Alice", text, asText)
		id, _ := a.json["id"].(string)
		if a.StatusCode != 200 || id == "" || a.json["unanswered"] != nil {
			t.Fatalf("%d %s", a.StatusCode, a.text)
		}
		return id
	}
	want := func(conn *websocket.Conn, texts ...string) (last string) {
		t.Helper()
		for _, text := range texts {
			var h hello
			if _, got, err := conn.ReadMessage(); err != nil || string(got) != text {
				t.Fatalf("got %q, %v; want %q", got, err, text)
			}
			if err := conn.ReadJSON(&h); err != nil {
				t.Fatal(err)
			}
			last = h.Portcullis.Push
		}
		return last
	}
	conn, first := open(all[0], "")
	if id := push(all[1], "one"); want(conn, "one") != id {
		t.Error("the id is another's")
	}
	last := push(all[0], "two")
	want(conn, "two")
	conn.Close()
	push(all[0], "three")
	publisher(t, s)(`{"v":1,"from":"billing-1","n":1,"to":{"subject":"Alice"},"send":{"text":"four"}}`)
	back, _ := open(all[1], last)
	want(back, "three", "four")
	push(all[0], "five")
	want(back, "five")
	late := newOperator(t, sharing(s, "late", keeping))
	late.joined()
	old, _ := open(late, first)
	want(old, "one", "two", "three", "four", "five")
	push(late, "six")
	want(old, "six")
	last = want(back, "six")
	// A gap is told where the history does not reach back, or where the id is of no push.
	for _, none := range []string{"1-1", "99999999999999-0", "k3v9x2mq-9"} {
		conn := late.gate.connect(t, "/?token=wonder&portcullis_last_push="+none, nil)
		conn.ReadMessage() // hello
		_, got, err := conn.ReadMessage()
		if err != nil || !strings.Contains(string(got), "push_gap") {
			t.Errorf("from %s: got %s, %v", none, got, err)
		}
	}
	// A client that knows more than its instance gets nothing twice.
	ms, _, _ := strings.Cut(last, "-")
	n, _ := strconv.ParseInt(ms, 10, 64)
	ahead, _ := open(all[0], fmt.Sprint(n+1, "-0"))
	time.Sleep(2 * time.Millisecond) // the next push has an id of a later moment
	push(all[0], "seven")
	want(ahead, "seven")
}

// Where Redis has lost the history a client is told that there is a gap.
func TestGapAfterFlush(t *testing.T) {
	s := redistest.Start(t)
	keeping := func(c *Config) {
		c.Session.Hello, c.Session.History = true, session.HistorySize{Pushes: 100, Age: time.Hour}
	}
	a := newFleet(t, s, 1, keeping)[0]
	first := a.call("POST", "/api/messages?subject=Alice", "one", asText).json["id"].(string)
	a.call("POST", "/api/messages?subject=Alice", "two", asText)
	redisOf(t, s).FlushAll(t.Context())
	later := newOperator(t, sharing(s, "later", keeping))
	later.joined()
	conn := later.gate.connect(t, "/?token=wonder&portcullis_last_push="+first, nil)
	conn.ReadMessage() // hello
	if _, got, err := conn.ReadMessage(); !strings.Contains(string(got), "push_gap") {
		t.Errorf("got %s, %v", got, err)
	}
}

// Who is kept out is so at an instance, too, that starts later.
func TestKeptOutOfTheFleet(t *testing.T) {
	s := redistest.Start(t)
	all := newFleet(t, s, 1)
	all[0].want(200, `{"reached":0,"ending":0}`, "DELETE", "/api/sessions?subject=Alice&for=10m", "")
	later := newOperator(t, sharing(s, "later"))
	later.joined()
	if got := later.gate.status(t, "/?token=wonder"); got != http.StatusForbidden {
		t.Errorf("she is let in: status %d", got)
	}
}

// Who is kept out stays so when Redis has lost it, when an instance was not reached by the kick, and for the first client of one that starts.
func TestKeptOutWhateverHappens(t *testing.T) {
	s := redistest.Start(t)
	link := s.NewLink(t)
	all := newFleet(t, s, 1)
	slow := newOperator(t, sharing(s, "slow", func(c *Config) { c.Fleet.RedisURL = link.URL() }))
	slow.joined()
	conn := slow.gate.connect(t, "/?token=wonder", nil)
	release, reopen := link.HoldAnswers()
	kicked := all[0].call("DELETE", "/api/sessions?subject=Alice&for=10m", "")
	if kicked.StatusCode != 200 || fmt.Sprint(kicked.json["unanswered"]) != "[slow]" {
		t.Errorf("%d %s", kicked.StatusCode, kicked.text)
	}
	time.Sleep(1100 * time.Millisecond) // the kick counts for a second
	reopen()
	release()
	if _, m, err := conn.ReadMessage(); !websocket.IsCloseError(err, 3003) { // which it learns later
		t.Errorf("got %q, %v", m, err)
	}
	if got := slow.gate.status(t, "/?token=wonder"); got != http.StatusForbidden {
		t.Errorf("where the kick was late: status %d", got)
	}
	client := redisOf(t, s)
	client.FlushAll(t.Context())
	eventually(t, "it is written anew", func() bool { return client.ZCard(t.Context(), "{portcullis}:kept_out").Val() == 1 })
	started := newOperator(t, sharing(s, "started"))
	if got := started.gate.status(t, "/?token=wonder"); got != http.StatusForbidden {
		t.Errorf("at one that has just started: status %d", got)
	}
}
