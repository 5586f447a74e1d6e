package proxy

import (
	"net/http"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/redis/go-redis/v9"

	"portcullis/proxy/redistest"
	"portcullis/ratelimit"
)

// sharing is an instance of a fleet.
func sharing(s *redistest.Server, instance string, edits ...func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Fleet.RedisURL, c.Fleet.Instance, c.Fleet.Budget = s.URL(), instance, patience // a crowded machine is not what a test is about
		for _, edit := range edits {
			edit(c)
		}
	}
}

func (g *testGate) status(t *testing.T, target string) int {
	t.Helper()
	conn, resp, err := g.tryConnect(target, nil)
	if err == nil {
		conn.Close()
	}
	if resp == nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// Two gates count as one: a cap of a user, a rate of an address, refused credentials.
func TestTwoGatesCountAsOne(t *testing.T) {
	s, echo := redistest.Start(t), newEcho(t)
	edit := func(c *Config) {
		c.Limits.SessionsPerSubject = 2
		c.Limits.UpgradesPerIP, c.Limits.UpgradesPerIPBurst = ratelimit.Rate{N: 20, Per: time.Hour}, 12
		c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: 2, Per: time.Hour}
	}
	a, b := newGate(t, echo, sharing(s, "a", edit)), newGate(t, echo, sharing(s, "b", edit))
	first := a.connect(t, "/?token=wonder", nil)
	echoes(t, b.connect(t, "/?token=wonder", nil), "hello")
	if got := b.status(t, "/?token=wonder"); got != http.StatusTooManyRequests {
		t.Errorf("a third session: status %d", got)
	}
	if line := b.journal.next(t, "refused"); line["reason"] != "sessions_subject" {
		t.Errorf("line %v", line)
	}
	first.Close()
	a.journal.next(t, "session ended")
	eventually(t, "the place is free everywhere", func() bool { // it takes four of the upgrades at most
		return b.status(t, "/?token=wonder") == http.StatusSwitchingProtocols
	})
	for _, g := range []*testGate{a, b} {
		if got := g.status(t, "/?token=wrong"); got != http.StatusUnauthorized {
			t.Errorf("a wrong token: status %d", got)
		}
	}
	if got := a.status(t, "/?token=good"); got != http.StatusTooManyRequests {
		t.Errorf("after two wrong tokens: status %d", got)
	}
	if line := a.journal.next(t, "refused"); line["reason"] != "token_refused" {
		t.Errorf("line %v", line)
	}
	if line := a.journal.next(t, "refused"); line["reason"] != "auth_failures" {
		t.Errorf("line %v", line)
	}
}

// A Redis that is not there keeps nobody out, and no gate from starting.
func TestGateWithoutItsRedis(t *testing.T) {
	s := redistest.New(t)
	g := newGate(t, newEcho(t), sharing(s, "a", func(c *Config) { c.Limits.SessionsPerSubject = 1 }))
	echoes(t, g.connect(t, "/?token=wonder", nil), "hello")
	if got := g.status(t, "/?token=wonder"); got != http.StatusTooManyRequests {
		t.Errorf("a second session: status %d", got)
	}
	if !g.journal.contains("Redis does not answer") {
		t.Error("nobody is told")
	}
	if err := g.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// eventually waits for something to become so, and asks four times at most.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for range 4 {
		<-tick.C
		if so() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// A kick and a message reach the sessions of every instance, each once, and one that does not answer is named.
func TestOneKickAndOneBroadcast(t *testing.T) {
	s := redistest.Start(t)
	newInstance := func(name string) *operator { return newOperator(t, sharing(s, name, withAPI)) }
	a, b := newInstance("a"), newInstance("b")
	conns := []*websocket.Conn{a.gate.connect(t, "/?token=wonder", nil), b.gate.connect(t, "/?token=wonder", nil), b.gate.connect(t, "/?token=good", nil)}
	var last response
	eventually(t, "both are on the bus", func() bool {
		last = a.call("POST", "/api/messages?subject=nobody", "x", asText)
		return last.StatusCode == 200 && b.call("POST", "/api/messages?subject=nobody", "x", asText).StatusCode == 200
	})
	a.want(200, `{"reached":3,"ending":0,"too_slow":0,"extension":0,"full":0}`, "POST", "/api/messages?all=true", "to all", asText)
	b.want(200, `{"reached":2,"ending":0,"too_slow":0,"extension":0,"full":0}`, "POST", "/api/messages?subject=Alice", "to Alice", asText)
	for i, conn := range conns {
		want := []string{"to all", "to Alice"}
		if i == 2 {
			want = want[:1]
		}
		for _, m := range want {
			if _, got, err := conn.ReadMessage(); err != nil || string(got) != m {
				t.Fatalf("client %d: got %q, %v; want %q", i, got, err, m)
			}
		}
	}
	a.want(200, `{"reached":2,"ending":0}`, "DELETE", "/api/sessions?subject=Alice&for=10m", "")
	for _, conn := range conns[:2] {
		if _, m, err := conn.ReadMessage(); !websocket.IsCloseError(err, 3003) {
			t.Errorf("got %q, %v", m, err)
		}
	}
	for _, o := range []*operator{a, b} {
		if got := o.gate.status(t, "/?token=wonder"); got != http.StatusForbidden {
			t.Errorf("she is let in: status %d", got)
		}
	}
	echoes(t, conns[2], "still there")
	a.want(404, `{"error":"no session with that id is open"}`, "DELETE", "/api/sessions/AAAAAAAAAAAAAAAAAAAAAAAAAA", "")

	client := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer client.Close()
	for _, bad := range []string{"", "{", `{"v":2,"id":"x","from":"y","body":{}}`, `{"v":1,"id":"x","from":"y"}`, `{"v":1,"id":"x","from":"y","body":{"kick":{"code":3003}}}`,
		`{"v":1,"id":"x","from":"y","body":{"all":true,"kick":{"code":99999}}}`, `{"v":1,"id":"x","from":"y","body":{"all":true,"send":{"body":"/w=="}}}`} {
		client.Publish(t.Context(), "{portcullis}:bus", bad)
	}
	echoes(t, conns[2], "and still")

	s.Kill()
	a.want(503, `{"error":"the other instances cannot be reached at the moment; nobody was"}`, "POST", "/api/messages?all=true", "lost", asText)
	echoes(t, conns[2], "and got nothing")
}
