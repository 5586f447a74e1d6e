package proxy

import (
	"net/http"
	"testing"
	"time"

	"portcullis/proxy/redistest"
	"portcullis/ratelimit"
)

// sharing is an instance of a fleet.
func sharing(s *redistest.Server, instance string, edits ...func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Fleet.RedisURL, c.Fleet.Instance = s.URL(), instance
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
