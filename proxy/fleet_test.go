package proxy

import (
	"fmt"
	"net/http"
	"strings"
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
		c.Fleet.RedisURL, c.Fleet.Instance, c.Fleet.Timeout = s.URL(), instance, patience // a crowded machine is not what a test is about
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

// joined waits until an instance is on the bus.
func (o *operator) joined() {
	o.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(patience); ; {
		if o.call("POST", "/api/messages?subject=nobody", "x", asText).StatusCode == 200 {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			o.t.Fatal("it is not on the bus")
		}
	}
}

// newFleet starts instances a, b and so on, which are on the bus.
func newFleet(t *testing.T, s *redistest.Server, n int, edits ...func(*Config)) (all []*operator) {
	t.Helper()
	for i := range n {
		all = append(all, newOperator(t, sharing(s, string(rune('a'+i)), edits...)))
	}
	for _, o := range all {
		o.joined()
	}
	return all
}

// publisher returns what a backend does that publishes to the bus itself.
func publisher(t *testing.T, s *redistest.Server) func(text string) {
	client := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { client.Close() })
	return func(text string) {
		t.Helper()
		if err := client.Publish(t.Context(), "{portcullis}:bus", text).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// A kick and a message reach the sessions of every instance, each once, and one that does not answer is named.
func TestOneKickAndOneBroadcast(t *testing.T) {
	s := redistest.Start(t)
	newInstance := func(name string) *operator { return newOperator(t, sharing(s, name, withAPI)) }
	a, b := newInstance("a"), newInstance("b")
	conns := []*websocket.Conn{a.gate.connect(t, "/?token=wonder", nil), b.gate.connect(t, "/?token=wonder", nil), b.gate.connect(t, "/?token=good", nil)}
	a.joined()
	b.joined()
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

	publish := publisher(t, s)
	publish(`{"v":1,"from":"billing-1","n":1,"to":{"subject":"Nobody"},"kick":{"code":4000,"reason":"by the bus","for":"1m"}}`)
	for i, bad := range []string{
		`"to":{},"send":{"text":"x"}`, `"to":{"all":false},"send":{"text":"x"}`, `"to":{"all":true,"subject":"x"},"send":{"text":"x"}`,
		`"to":{"subjct":"x"},"send":{"text":"x"}`, `"to":{"subject":7},"send":{"text":"x"}`, `"to":{"subject":"` + strings.Repeat("x", 1025) + `"},"send":{"text":"x"}`,
		`"to":{"subject":"a\u0000"},"send":{"text":"x"}`, `"to":null,"send":{"text":"x"}`, `"to":[],"send":{"text":"x"}`,
		`"to":{"all":true},"send":null`, `"to":{"all":true},"send":{"text":"x","base64":"eA=="}`, `"to":{"all":true},"send":{"text":7}`,
		`"to":{"all":true},"send":{"base64":"!"}`, `"to":{"all":true},"send":{"text":"\u0000portcullis x"}`, `"to":{"all":true},"send":{"bytes":"x"}`,
		`"to":{"all":true},"kick":{"code":99999}`, `"to":{"all":true},"kick":{"code":1001}`, `"to":{"all":true},"kick":{"code":"4000"}`,
		`"to":{"all":true},"kick":{"reason":"` + strings.Repeat("x", 124) + `"}`, `"to":{"all":true},"kick":{"for":"1m"}`,
		`"to":{"subject":"Alice"},"kick":{"for":"-1m"}`, `"to":{"subject":"Alice"},"kick":{"for":"1000h"}`, `"to":{"subject":"Alice"},"kick":{"for":7}`,
		`"to":{"all":true},"kick":7`, `"to":{"all":true},"kick":{"now":true}`,
	} {
		publish(fmt.Sprintf(`{"v":1,"from":"billing-1","n":%d,%s}`, i+2, bad))
	}
	publish(`{"v":1,"from":"billing-1","n":27,"to":{"all":true},"send":{"text":"by the bus"}}`)
	publish(`{"v":1,"from":"billing-1","n":28,"to":{"path":"/","except":"x"},"send":{"base64":"AAH/"}}`)
	for _, want := range []string{"by the bus", "\x00\x01\xff"} {
		if _, got, err := conns[2].ReadMessage(); err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	for _, o := range []*operator{a, b} {
		dropped := func() float64 { return o.gate.metric(t, "portcullis_bus_dropped_total", "malformed") }
		eventually(t, "25 are dropped", func() bool { return dropped() >= 25 })
		if got := dropped(); got != 25 {
			t.Errorf("%v are dropped, want 25", got)
		}
	}
	echoes(t, conns[2], "and still")

	s.Kill()
	a.want(503, `{"error":"the other instances cannot be reached at the moment; nobody was"}`, "POST", "/api/messages?all=true", "lost", asText)
	echoes(t, conns[2], "and got nothing")
}

// joined waits until gates are on the bus.
func joined(t *testing.T, all ...*testGate) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for _, g := range all {
		for g.Ready() != nil {
			select {
			case <-tick.C:
			case <-timeout:
				t.Fatal(g.Ready())
			}
		}
	}
}

// The list has the sessions of all instances, page by page, each once, whichever is asked; one is found by its id everywhere.
func TestListOfTheFleet(t *testing.T) {
	s := redistest.Start(t)
	all := newFleet(t, s, 3, func(c *Config) { c.Session.Renewal = true }) // by which a client knows its id
	ids := make(map[string]string)                                         // by id, the instance
	for i := range 10 {
		o := all[i%3]
		_, id := o.gate.open(t, "/?token=wonder")
		ids[id] = string(rune('a' + i%3))
	}
	seen, pages, cursor := make(map[string]bool), 0, ""
	var last float64
	for {
		page := all[pages%3].call("GET", "/api/sessions?subject=Alice&limit=3"+cursor, "")
		sessions, _ := page.json["sessions"].([]any)
		if page.StatusCode != 200 || len(sessions) == 0 || page.json["unanswered"] != nil {
			t.Fatalf("%d %s", page.StatusCode, page.text)
		}
		for _, one := range sessions {
			one := one.(map[string]any)
			id := one["id"].(string)
			if seen[id] || one["instance"] != ids[id] {
				t.Errorf("%s is listed again, or of %v in place of %s", id, one["instance"], ids[id])
			}
			seen[id] = true
			since, _ := time.Parse(time.RFC3339, one["since"].(string))
			if at := float64(since.Unix()); at < last {
				t.Errorf("%s is not in its order", id)
			} else {
				last = at
			}
		}
		pages++
		next, more := page.json["next"].(string)
		if !more {
			break
		}
		cursor = "&cursor=" + next
	}
	if len(seen) != 10 || pages != 4 {
		t.Errorf("%d sessions on %d pages, want 10 on 4", len(seen), pages)
	}
	for id, instance := range ids {
		for _, o := range all {
			if one := o.call("GET", "/api/sessions/"+id, ""); one.StatusCode != 200 || one.json["instance"] != instance {
				t.Errorf("%d %s, want the one of %s", one.StatusCode, one.text, instance)
			}
		}
		all[0].want(200, `{"reached":1,"ending":0}`, "DELETE", "/api/sessions/"+id, "")
	}
	for i := range ids {
		all[strings.Index("abc", ids[i])].gate.journal.next(t, "session ended")
	}
	for id := range ids {
		all[1].want(404, `{"error":"no session with that id is open"}`, "GET", "/api/sessions/"+id, "")
		break
	}
	// Without the others it has its own, and says who is missing.
	conn, id := all[0].gate.open(t, "/?token=wonder")
	s.Kill()
	alone := all[0].call("GET", "/api/sessions", "")
	if sessions, _ := alone.json["sessions"].([]any); alone.StatusCode != 200 || len(sessions) != 1 || fmt.Sprint(alone.json["unanswered"]) != "[b c]" {
		t.Errorf("%d %s", alone.StatusCode, alone.text)
	}
	if one := all[0].call("GET", "/api/sessions/"+id, ""); one.StatusCode != 200 {
		t.Errorf("%d %s", one.StatusCode, one.text)
	}
	if one := all[1].call("GET", "/api/sessions/"+id, ""); one.StatusCode != 503 || one.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", one.StatusCode, one.text)
	}
	echoes(t, conn, "still there")
}

// calls counts the calls of Redis, and how many of them failed.
func (g *testGate) calls(t *testing.T) (n uint64) {
	t.Helper()
	families, err := g.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "portcullis_redis_call_duration_seconds" {
			for _, m := range f.GetMetric() {
				n += m.GetHistogram().GetSampleCount()
			}
		}
	}
	return n
}

// An upgrade asks Redis before its client is verified and after; once, where nobody is asked to verify it.
func TestCallsOfAnUpgrade(t *testing.T) {
	s, echo := redistest.Start(t), newEcho(t)
	limits := ratelimit.Config{
		UpgradesPerIP: ratelimit.Rate{N: 1000, Per: time.Second}, AuthFailuresPerIP: ratelimit.Rate{N: 2, Per: time.Hour}, SessionsPerSubject: 100,
	}
	for _, tt := range []struct {
		name string
		edit func(*Config)
		url  func(g *testGate) string
		want float64
	}{
		{"endpoint", func(c *Config) {}, func(*testGate) string { return "/?token=wonder" }, 2},
		{"jwt", byJWT, func(g *testGate) string { return "/?token=" + g.tokenUntil(t, "Alice", hour()) }, 1},
		{"none", func(c *Config) { c.Auth.Mode, c.Auth.URL, c.Limits.SessionsPerSubject = "none", "", 0 }, func(*testGate) string { return "/" }, 1},
	} {
		g := newGate(t, echo, sharing(s, tt.name, func(c *Config) { c.Limits = limits }, tt.edit))
		url := tt.url(g)
		const upgrades = 50
		before := g.calls(t)
		for range upgrades {
			g.connect(t, url, nil)
		}
		// Besides there are heartbeats, a few at most.
		if got := float64(g.calls(t)-before) / upgrades; got < tt.want || got > tt.want+0.5 {
			t.Errorf("%s: %.1f calls an upgrade, want %v", tt.name, got, tt.want)
		}
		if tt.name == "none" {
			continue
		}
		for i, want := range []int{401, 401, 429} {
			if got := g.status(t, "/?token=wrong"); got != want {
				t.Errorf("%s: wrong token %d: status %d, want %d", tt.name, i+1, got, want)
			}
		}
		other := newGate(t, echo, sharing(s, tt.name+"2", func(c *Config) { c.Limits = limits }, tt.edit))
		for _, target := range []string{"/?token=wrong", "/", url} {
			if got := other.status(t, target); got != 429 {
				t.Errorf("%s: at another instance: %s: status %d", tt.name, target, got)
			}
		}
		redisOf(t, s).FlushAll(t.Context())
	}
}

func redisOf(t *testing.T, s *redistest.Server) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { client.Close() })
	return client
}

// Clients whom the verifier does not name count together by their tokens.
func TestCapOfTheNameless(t *testing.T) {
	s, echo := redistest.Start(t), newEcho(t)
	edit := func(c *Config) { c.Limits.SessionsPerSubject = 1 }
	a, b := newGate(t, echo, sharing(s, "a", edit)), newGate(t, echo, sharing(s, "b", edit))
	a.connect(t, "/?token=good", nil)
	if got := b.status(t, "/?token=good"); got != 429 {
		t.Errorf("a second session: status %d", got)
	}
	b.connect(t, "/?token=wonder", nil)
}

// An instance that drains is none of the fleet any more, and its sessions are listed as long as they are there.
func TestDrainLeavesTheFleet(t *testing.T) {
	s := redistest.Start(t)
	all := newFleet(t, s, 2, func(c *Config) { c.DrainDelay = time.Second })
	all[1].gate.connect(t, "/?token=wonder", nil)
	drained := make(chan error, 1)
	go func() { drained <- all[1].gate.Drain(t.Context()) }()
	client := redisOf(t, s)
	eventually(t, "it drains", func() bool { return client.SIsMember(t.Context(), "{portcullis}:draining", "b").Val() })
	list := all[0].call("GET", "/api/sessions", "")
	if sessions, _ := list.json["sessions"].([]any); len(sessions) != 1 || list.json["unanswered"] != nil {
		t.Errorf("while it drains: %s", list.text)
	}
	<-drained
	all[0].want(200, `{"sessions":[],"next":null}`, "GET", "/api/sessions", "")
}

// In a fleet, too, a client that is away makes room for its subject's next.
func TestEvictionInAFleet(t *testing.T) {
	edit := resuming(func(c *Config) { c.Limits.SessionsPerSubject = 1 })
	g := newGate(t, newEcho(t), sharing(redistest.Start(t), "a", edit))
	for i := range 10 {
		c := newResumer(t, g, "/?token=wonder")
		if err := c.tryOpen(); err != nil {
			t.Fatalf("session %d: %v", i+1, err)
		}
		c.cut()
		g.journal.next(t, "session detached")
	}
}

// While Redis is away all instances together let no more credentials be guessed than one may.
func TestFailuresWithoutRedis(t *testing.T) {
	s, echo := redistest.Start(t), newEcho(t)
	edit := func(c *Config) {
		c.Limits.AuthFailuresPerIP, c.Limits.AuthFailuresPerIPBurst = ratelimit.Rate{N: 4, Per: time.Hour}, 4
	}
	a, b := newGate(t, echo, sharing(s, "a", edit)), newGate(t, echo, sharing(s, "b", edit))
	for wait := time.Now().Add(patience); a.gauge(t, "portcullis_fleet_instances")+b.gauge(t, "portcullis_fleet_instances") != 4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(wait) {
			t.Fatal("they do not know each other")
		}
	}
	s.Kill()
	tried := 0
	for range 10 {
		for _, g := range []*testGate{a, b} {
			if g.status(t, "/?token=wrong") == http.StatusUnauthorized {
				tried++
			}
		}
	}
	if tried == 0 || tried > 4 {
		t.Errorf("%d wrong tokens were tried, want 4 at most", tried)
	}
}

func (g *testGate) gauge(t *testing.T, name string) float64 { return g.metric(t, name, "") }

func TestLongID(t *testing.T) {
	a := newFleet(t, redistest.Start(t), 1)[0]
	for _, id := range []string{strings.Repeat("A", 2000), "a%00b"} {
		a.want(404, `{"error":"no session with that id is open"}`, "DELETE", "/api/sessions/"+id, "")
	}
}
