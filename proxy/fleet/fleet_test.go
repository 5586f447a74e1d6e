package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"portcullis/proxy/admin"
	"portcullis/proxy/redistest"
	"portcullis/ratelimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testPatience = 20 * time.Second

// server is a Redis of a test's own, and a client of it.
type server struct {
	*redistest.Server
	*redis.Client
	t testing.TB
}

// newServer is one that runs.
func newServer(t testing.TB) *server { return serverOf(t, redistest.Start(t)) }

func serverOf(t testing.TB, r *redistest.Server) *server {
	s := &server{Server: r, t: t}
	s.Client = redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { s.Client.Close() })
	return s
}

// until waits for something to become so.
func (s *server) until(what string, so func() bool) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(testPatience); !so(); {
		select {
		case <-tick.C:
		case <-timeout:
			s.t.Fatalf("not in time: %s", what)
		}
	}
}

// lines counts what is logged.
type lines struct {
	slog.Handler
	warnings, infos atomic.Int64
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		l.warnings.Add(1)
	} else {
		l.infos.Add(1)
	}
	return nil
}

// newInstance is an instance of a fleet.
func (s *server) newInstance(name string, limits ratelimit.Config, edits ...func(*Config)) (*Fleet, *lines) {
	s.t.Helper()
	log := &lines{Handler: slog.DiscardHandler}
	c := Config{RedisURL: s.URL(), Name: "test", Instance: name, Limits: limits, Logger: slog.New(log), Metrics: admin.NewMetrics(admin.Known{})}
	c.Timeout = testPatience // a crowded machine is not what a test is about
	for _, edit := range edits {
		edit(&c)
	}
	f, err := New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(f.Close)
	return f, log
}

// known waits until Redis knows those instances.
func (s *server) known(n int64, all ...*Fleet) {
	s.t.Helper()
	s.until(fmt.Sprint(n, " instances are known"), func() bool {
		if s.ZCard(context.Background(), "{test}:live").Val() != n {
			return false
		}
		for _, f := range all {
			f.beat(context.Background())
			if f.members.size.Load() != n {
				return false
			}
		}
		return true
	})
}

var here = netip.MustParsePrefix("192.0.2.1/32")

func TestOneRate(t *testing.T) {
	s := newServer(t)
	limits := ratelimit.Config{UpgradesPerIP: ratelimit.Rate{N: 60, Per: time.Hour}, UpgradesPerIPBurst: 5, AuthFailuresPerIP: ratelimit.Rate{N: 2, Per: time.Hour}}
	a, _ := s.newInstance("a", limits)
	b, _ := s.newInstance("b", limits)
	s.known(2, a, b)
	ctx := context.Background()
	admitted := 0
	for i := range 10 {
		v := []*Fleet{a, b}[i%2].Admit(ctx, here)
		if v.Scope == "" {
			admitted++
		} else if v.Scope != RateAddress || v.Wait <= 0 || v.Wait > time.Minute {
			t.Errorf("got %+v", v)
		}
	}
	if admitted != 5 {
		t.Errorf("%d were admitted, want 5", admitted)
	}
	other := netip.MustParsePrefix("192.0.2.2/32")
	if v := b.Admit(ctx, other); v.Scope != "" {
		t.Errorf("another address: got %+v", v)
	}
	a.Failed(ctx, other)
	b.Failed(ctx, other)
	if v := a.Admit(ctx, other); v.Scope != Failures || v.Wait <= 0 {
		t.Errorf("after two failures: got %+v", v)
	}
	s.ScriptFlush(ctx)
	if v := b.Admit(ctx, here); v.Scope != RateAddress {
		t.Errorf("after the scripts were flushed: got %+v", v)
	}
}

// A fourth session of a subject with a cap of three is refused wherever it knocks, also when thirty try at once.
func TestOneCap(t *testing.T) {
	s := newServer(t)
	limits := ratelimit.Config{SessionsPerSubject: 3}
	var all []*Fleet
	for _, name := range []string{"a", "b", "c"} {
		f, _ := s.newInstance(name, limits)
		all = append(all, f)
	}
	s.known(3, all...)
	ctx := context.Background()
	var mu sync.Mutex
	var places []*Place
	var knocking sync.WaitGroup
	for i := range 30 {
		knocking.Go(func() {
			p, v := all[i%3].Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false})
			mu.Lock()
			defer mu.Unlock()
			if v.Scope == "" {
				places = append(places, p)
			} else if v.Scope != SessionsSubject {
				t.Errorf("got %+v", v)
			}
		})
	}
	knocking.Wait()
	if len(places) != 3 {
		t.Fatalf("%d have a place, want 3", len(places))
	}
	if p, v := all[0].Enter(ctx, Entry{Address: here, Subject: "Bob", Admit: false}); v.Scope != "" {
		t.Errorf("another subject: got %+v", v)
	} else {
		p.Release()
	}
	places[0].Release()
	places[0].Release()
	s.until("a place is free", func() bool {
		p, v := all[2].Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false})
		if v.Scope == "" {
			places[0] = p
		}
		return v.Scope == ""
	})
	if _, v := all[1].Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false}); v.Scope != SessionsSubject {
		t.Errorf("got %+v", v)
	}
	for _, p := range places {
		p.Release()
	}
	s.until("nothing is left", func() bool { return len(s.Keys(ctx, "{test}:cap:*").Val()) == 0 })
}

// A session that comes back from another address is counted there.
func TestPlaceMoves(t *testing.T) {
	s := newServer(t)
	f, _ := s.newInstance("a", ratelimit.Config{SessionsPerIP: 1})
	s.known(1, f)
	ctx := context.Background()
	p, _ := f.Enter(ctx, Entry{Address: here, Subject: "", Admit: false})
	there := netip.MustParsePrefix("192.0.2.9/32")
	p.Move(there)
	s.until("the first address is free", func() bool { return f.Admit(ctx, here).Scope == "" })
	s.until("the second is not", func() bool { return f.Admit(ctx, there).Scope == SessionsAddress })
	p.Release()
	s.until("it is free, too", func() bool { return f.Admit(ctx, there).Scope == "" })
}

// Sessions that begin and end by the hundred, from many addresses, leave nothing behind.
func TestManySessions(t *testing.T) {
	s := newServer(t)
	f, _ := s.newInstance("a", ratelimit.Config{SessionsPerIP: 10, Sessions: 10_000})
	s.known(1, f)
	ctx := context.Background()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 150 {
				p, v := f.Enter(ctx, Entry{Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i), byte(n)}), 32), Subject: "", Admit: false})
				if v.Scope != "" {
					t.Errorf("got %+v", v)
					return
				}
				p.Release()
			}
		})
	}
	all.Wait()
	s.until("nothing is left", func() bool {
		return len(s.Keys(ctx, "{test}:cap:*").Val()) == 0 && s.Exists(ctx, "{test}:held:a").Val() == 0
	})
}

// What an instance held that was killed is free when its heartbeat is stale; what it had is forgotten.
func TestDeadInstance(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	limits := ratelimit.Config{Sessions: 1}
	a, _ := s.newInstance("a", limits)
	b, _ := s.newInstance("b", limits)
	s.known(2, a, b)
	ctx := context.Background()
	if _, v := a.Enter(ctx, Entry{Address: here, Subject: "", Admit: false}); v.Scope != "" {
		t.Fatalf("got %+v", v)
	}
	a.stop() // as by kill -9: it says nothing
	a.running.Wait()
	if _, v := b.Enter(ctx, Entry{Address: here, Subject: "", Admit: false}); v.Scope != SessionsTotal {
		t.Fatalf("got %+v", v)
	}
	began := time.Now()
	s.until("its place is free", func() bool {
		_, v := b.Enter(ctx, Entry{Address: here, Subject: "", Admit: false})
		return v.Scope == ""
	})
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("after %v", took)
	}
	s.until("it is forgotten", func() bool {
		return s.ZCard(ctx, "{test}:live").Val() == 1 && s.Exists(ctx, "{test}:held:a").Val() == 0
	})
}

// An instance that finds its counts gone writes them anew.
func TestFlushAll(t *testing.T) {
	s := newServer(t)
	limits := ratelimit.Config{SessionsPerSubject: 2, Sessions: 10}
	a, _ := s.newInstance("a", limits)
	b, _ := s.newInstance("b", limits)
	s.known(2, a, b)
	ctx := context.Background()
	for range 2 {
		if _, v := a.Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false}); v.Scope != "" {
			t.Fatalf("got %+v", v)
		}
	}
	s.FlushAll(ctx)
	s.until("the counts are back", func() bool { return s.HGet(ctx, "{test}:cap:all", "a").Val() == "2" })
	if _, v := b.Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false}); v.Scope != SessionsSubject {
		t.Errorf("got %+v", v)
	}
}

// Redis away at the start, then there, then hanging, then back: no upgrade waits longer than the budget, each instance holds its
// share, and one warning tells of each outage.
func TestRedisComesAndGoes(t *testing.T) {
	t.Parallel()
	s := serverOf(t, redistest.New(t)) // which does not run yet
	limits := ratelimit.Config{SessionsPerSubject: 4}
	quickly := func(c *Config) { c.Timeout = 100 * time.Millisecond }
	a, log := s.newInstance("a", limits, quickly)
	ctx := context.Background()
	quick := func(f *Fleet, subject string) (*Place, Verdict) {
		t.Helper()
		began := time.Now()
		p, v := f.Enter(ctx, Entry{Address: here, Subject: subject, Admit: false})
		if took := time.Since(began); took > 2*time.Second { // a crowded machine; the budget is 100 ms
			t.Errorf("it took %v", took)
		}
		return p, v
	}
	for i := range 6 {
		if _, v := quick(a, "Alice"); (v.Scope == "") != (i < 4) {
			t.Errorf("session %d alone: got %+v", i+1, v)
		}
	}
	s.Start()
	s.until("it counts in Redis", func() bool { return s.HGet(ctx, "{test}:cap:s:"+subjectKey("Alice"), "a").Val() == "4" })
	b, _ := s.newInstance("b", limits, quickly)
	s.known(2, a, b)
	if _, v := quick(b, "Alice"); v.Scope != SessionsSubject {
		t.Errorf("got %+v", v)
	}
	s.Stop()
	s.until("both know", func() bool {
		quick(a, "Carol")
		quick(b, "Carol")
		return a.share.Load() != nil && b.share.Load() != nil
	})
	given := 0
	for range 4 {
		if _, v := quick(b, "Bob"); v.Scope == "" {
			given++
		}
	}
	if given != 2 {
		t.Errorf("one of two instances gives %d of 4 places, want 2", given)
	}
	s.Continue()
	s.until("it counts in Redis again", func() bool { return s.HGet(ctx, "{test}:cap:s:"+subjectKey("Bob"), "b").Val() == "2" })
	if n := log.warnings.Load(); n < 1 || n > 3 {
		t.Errorf("%d warnings", n)
	}
}

// What is under a key need not be ours: then it is deleted, and every instance writes what it holds anew.
func TestWrongTypes(t *testing.T) {
	s := newServer(t)
	limits := ratelimit.Config{
		Sessions: 5, SessionsPerSubject: 5, UpgradesPerIP: ratelimit.Rate{N: 1000, Per: time.Second},
		UpgradesPerSubject: ratelimit.Rate{N: 1000, Per: time.Second}, AuthFailuresPerIP: ratelimit.Rate{N: 1000, Per: time.Second},
	}
	a, log := s.newInstance("a", limits)
	b, _ := s.newInstance("b", limits)
	s.known(2, a, b)
	ctx := context.Background()
	for range 4 {
		if _, v := a.Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false}); v.Scope != "" {
			t.Fatalf("got %+v", v)
		}
	}
	address, subject := here.String(), subjectKey("Alice")
	for _, key := range []string{"cap:all", "cap:s:" + subject, "held:a", "held:b", "rate:a:" + address, "rate:s:" + subject, "fail:" + address, "live", "owners", "draining", "epoch", "secret"} {
		for _, foreign := range []func(key string){
			func(key string) { s.Set(ctx, key, "mine", 0) },
			func(key string) { s.RPush(ctx, key, "mine") },
			func(key string) { s.HSet(ctx, key, "a", "many", "b", "x") },
		} {
			s.Del(ctx, "{test}:"+key)
			foreign("{test}:" + key)
			s.until("it counts again after "+key, func() bool {
				a.Failed(ctx, here)
				b.Admit(ctx, here)
				for _, f := range []*Fleet{a, b} {
					if p, v := f.Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: true}); v.Scope == "" {
						p.Release()
					}
					f.beat(ctx)
				}
				return s.HGet(ctx, "{test}:cap:all", "a").Val() == "4" && s.SIsMember(ctx, "{test}:held:a", "{test}:cap:all").Val() &&
					s.ZCard(ctx, "{test}:live").Val() == 2 && s.HGet(ctx, "{test}:owners", "a").Val() == a.members.token &&
					a.share.Load() == nil && b.share.Load() == nil
			})
		}
	}
	if log.warnings.Load() == 0 {
		t.Error("nobody is told")
	}
}

// The second of two processes with one name waits for the first to be found dead, and then has its name, or ends.
func TestTwoOfOneName(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	limits := ratelimit.Config{Sessions: 3}
	first, _ := s.newInstance("a", limits)
	ctx := context.Background()
	for range 2 {
		first.Enter(ctx, Entry{Address: here, Subject: "", Admit: false})
	}
	failed := make(chan error, 1)
	second, log := s.newInstance("a", limits, func(c *Config) { c.Failed = func(err error) { failed <- err } })
	third, _ := s.newInstance("a", limits)
	if err := second.Ready(); err == nil || !strings.Contains(err.Error(), `INSTANCE: "a"`) {
		t.Errorf("ready: %v", err)
	}
	if log.warnings.Load() != 1 {
		t.Errorf("%d warnings", log.warnings.Load())
	}
	// It counts alone, and harms the counts of the first not.
	if _, v := second.Enter(ctx, Entry{Address: here, Subject: "", Admit: false}); v.Scope != "" {
		t.Errorf("got %+v", v)
	}
	if n := s.HGet(ctx, "{test}:cap:all", "a").Val(); n != "2" {
		t.Errorf("the first holds %s", n)
	}
	select {
	case err := <-failed:
		if err == nil || !strings.Contains(err.Error(), "INSTANCE") || time.Since(second.members.started) < nameTime {
			t.Errorf("after %v: %v", time.Since(second.members.started), err)
		}
	case <-time.After(nameTime + testPatience):
		t.Error("it waits on")
	}
	second.Close()
	if s.ZScore(ctx, "{test}:live", "a").Val() == 0 || s.HGet(ctx, "{test}:cap:all", "a").Val() != "2" {
		t.Error("the first is forgotten with it")
	}
	_ = third
}

// One that finds the first dead has its name, and what the first held is free.
func TestNameOfTheDead(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	limits := ratelimit.Config{Sessions: 2}
	first, _ := s.newInstance("a", limits)
	ctx := context.Background()
	first.Enter(ctx, Entry{Address: here, Subject: "", Admit: false})
	first.stop() // as by kill -9
	first.running.Wait()
	second, _ := s.newInstance("a", limits)
	if second.Ready() == nil {
		t.Error("it is ready while the first seems to live")
	}
	s.until("it has the name", func() bool { return second.Ready() == nil })
	s.until("what the first held is free", func() bool { return s.HLen(ctx, "{test}:cap:all").Val() == 0 })
	// The first was only paused: it counts alone, says so, and takes nothing from the second.
	first.beat(ctx)
	if first.members.joined.Load() || first.share.Load() == nil || first.Ready() != nil {
		t.Error("the first goes on as if it had its name")
	}
	first.Close()
	if second.beat(ctx); !second.members.joined.Load() || s.HGet(ctx, "{test}:owners", "a").Val() != second.members.token {
		t.Error("the second has lost its name")
	}
}

// One that drains counts for none, and what its sessions hold still does.
func TestDrainingInstance(t *testing.T) {
	s := newServer(t)
	limits := ratelimit.Config{Sessions: 2}
	a, _ := s.newInstance("a", limits)
	b, _ := s.newInstance("b", limits)
	s.known(2, a, b)
	ctx := context.Background()
	p, _ := a.Enter(ctx, Entry{Address: here, Subject: "", Admit: false})
	b.Enter(ctx, Entry{Address: here, Subject: "", Admit: false})
	a.Drain()
	b.beat(ctx)
	if n := b.members.size.Load(); n != 1 {
		t.Errorf("%d instances", n)
	}
	if _, v := b.Enter(ctx, Entry{Address: here, Subject: "", Admit: false}); v.Scope != SessionsTotal {
		t.Errorf("got %+v", v)
	}
	if others := b.Others(); len(others) != 1 || others[0] != "a" {
		t.Errorf("others: %q", others)
	}
	p.Release()
	s.until("its place is free", func() bool {
		_, v := b.Enter(ctx, Entry{Address: here, Subject: "", Admit: false})
		return v.Scope == ""
	})
	a.Close()
	if names, _ := b.alive(ctx); len(names) != 1 {
		t.Errorf("%q live", names)
	}
	if s.SCard(ctx, "{test}:draining").Val() != 0 {
		t.Error("it is still draining")
	}
	var none *Fleet
	none.Drain()
	if none.Ready() != nil || none.Secret() != "" {
		t.Error("no fleet is not ready")
	}
}

// The clock of an instance does not matter: here that of one shows the year 2000.
func TestClockFarOff(t *testing.T) {
	s := newServer(t)
	limits := ratelimit.Config{UpgradesPerIP: ratelimit.Rate{N: 60, Per: time.Hour}, UpgradesPerIPBurst: 4, SessionsPerSubject: 3}
	right, _ := s.newInstance("right", limits)
	ctx := context.Background()
	synctest.Test(t, func(t *testing.T) {
		log := &lines{Handler: slog.DiscardHandler}
		wrong, err := New(Config{RedisURL: s.URL(), Name: "test", Instance: "wrong", Limits: limits, Timeout: testPatience,
			Logger: slog.New(log), Metrics: admin.NewMetrics(admin.Known{})})
		if err != nil {
			t.Fatal(err)
		}
		defer wrong.Close()
		if time.Now().Year() != 2000 {
			t.Fatalf("its clock shows %v", time.Now())
		}
		for i, want := range []Scope{"", "", "", "", RateAddress, RateAddress} {
			f := []*Fleet{wrong, right}[i%2]
			if v := f.Admit(ctx, here); v.Scope != want || v.Wait > 2*time.Minute {
				t.Errorf("%d: got %+v, want %q", i, v, want)
			}
		}
		for i, want := range []Scope{"", "", "", SessionsSubject, SessionsSubject} {
			f := []*Fleet{wrong, right}[i%2]
			if _, v := f.Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false}); v.Scope != want {
				t.Errorf("%d: got %+v, want %q", i, v, want)
			}
		}
		right.beat(ctx)
		if n := right.members.size.Load(); n != 2 {
			t.Errorf("%d instances", n)
		}
		if now, want := wrong.members.now(), s.Client.Time(ctx).Val().UnixMilli(); now < want-60_000 || now > want+60_000 {
			t.Errorf("it takes the clock of Redis to show %d, which shows %d", now, want)
		}
	})
}

// All have one secret, also one that starts when Redis has lost it.
func TestSecret(t *testing.T) {
	s := newServer(t)
	a, _ := s.newInstance("a", ratelimit.Config{})
	s.FlushAll(context.Background())
	a.beat(context.Background())
	b, _ := s.newInstance("b", ratelimit.Config{})
	if a.Secret() == "" || a.Secret() != b.Secret() {
		t.Errorf("%q and %q", a.Secret(), b.Secret())
	}
	alone, _ := serverOf(t, redistest.New(t)).newInstance("c", ratelimit.Config{})
	if alone.Secret() == "" {
		t.Error("one that is alone has none")
	}
}

// One call has the answer of two.
func TestEnterAdmits(t *testing.T) {
	s := newServer(t)
	f, _ := s.newInstance("a", ratelimit.Config{
		UpgradesPerIP: ratelimit.Rate{N: 3, Per: time.Hour}, Upgrades: ratelimit.Rate{N: 5, Per: time.Hour}, AuthFailuresPerIP: ratelimit.Rate{N: 1, Per: time.Hour},
	})
	ctx := context.Background()
	enter := func(address netip.Prefix) Scope {
		_, v := f.Enter(ctx, Entry{Address: address, Subject: "Alice", Admit: true})
		return v.Scope
	}
	for range 3 {
		if got := enter(here); got != "" {
			t.Errorf("got %s", got)
		}
	}
	if got := enter(here); got != RateAddress {
		t.Errorf("got %s", got)
	}
	there := netip.MustParsePrefix("192.0.2.2/32")
	f.Failed(ctx, there)
	if got := enter(there); got != Failures {
		t.Errorf("got %s", got)
	}
	for i, want := range []Scope{"", "", RateGlobal} { // of five, three were here
		if got := enter(netip.MustParsePrefix(fmt.Sprintf("192.0.3.%d/32", i))); got != want {
			t.Errorf("%d: got %s, want %s", i, got, want)
		}
	}
}

// A ticket is good once in the fleet, for the address that it is bound to, and its value is in no key of Redis to be read.
func TestTickets(t *testing.T) {
	s := newServer(t)
	fa, _ := s.newInstance("a", ratelimit.Config{})
	fb, _ := s.newInstance("b", ratelimit.Config{})
	a, b := fa.NewTickets(time.Hour, 5, 3), fb.NewTickets(time.Hour, 5, 3)
	ctx := context.Background()
	issue := func(t *testing.T, from *Tickets, o Owner) string {
		t.Helper()
		text, until, err := from.Issue(ctx, o, []byte("hunter2"))
		if err != nil || time.Until(until) < 59*time.Minute {
			t.Fatalf("until %v, %v", until, err)
		}
		return text
	}
	alice := Owner{"192.0.2.1/32", "Alice", true}
	text := issue(t, a, alice)
	for i, want := range []string{"hunter2", ""} {
		if got, err := b.Redeem(ctx, text, alice.Address); string(got) != want || err != nil {
			t.Errorf("use %d: got %q, %v", i+1, got, err)
		}
	}
	text = issue(t, b, alice)
	for _, from := range []string{"192.0.2.2/32", alice.Address} {
		if got, err := a.Redeem(ctx, text, from); got != nil || err != nil {
			t.Errorf("from %s: got %q, %v", from, got, err)
		}
	}
	free := issue(t, a, Owner{"192.0.2.1/32", "Alice", false})
	if got, _ := b.Redeem(ctx, free, "192.0.2.9/32"); string(got) != "hunter2" {
		t.Errorf("not bound: got %q", got)
	}
	for _, bad := range []string{"", "x", text[1:], text + "=", strings.Repeat("A", 43), strings.Repeat("A", 10_000)} {
		if got, err := a.Redeem(ctx, bad, alice.Address); got != nil || err != nil {
			t.Errorf("%.50q: got %q, %v", bad, got, err)
		}
	}
	text = issue(t, a, alice)
	var won atomic.Int64
	var racing sync.WaitGroup
	for i := range 16 {
		racing.Go(func() {
			if got, _ := []*Tickets{a, b}[i%2].Redeem(ctx, text, alice.Address); got != nil {
				won.Add(1)
			}
		})
	}
	racing.Wait()
	if won.Load() != 1 {
		t.Errorf("used %d times at once", won.Load())
	}
	for range 3 {
		issue(t, a, alice)
	}
	for _, o := range []Owner{{"192.0.2.1/32", "Bob", true}, {"192.0.2.7/32", "Alice", true}} {
		if _, _, err := b.Issue(ctx, o, nil); err != ErrTicketsOwner {
			t.Errorf("%+v: %v", o, err)
		}
	}
	issue(t, b, Owner{"192.0.2.3/32", "Carol", true})
	issue(t, b, Owner{"192.0.2.4/32", "Dora", true})
	if _, _, err := a.Issue(ctx, Owner{"192.0.2.5/32", "Eve", true}, nil); err != ErrTicketsTotal {
		t.Errorf("a sixth: %v", err)
	}
	for _, key := range s.Keys(ctx, "*").Val() {
		if dump := s.Dump(ctx, key).Val(); strings.Contains(key+dump, "hunter2") || strings.Contains(key+dump, text) {
			t.Errorf("%q can be read", key)
		}
		if ttl := s.PTTL(ctx, key).Val(); strings.Contains(key, "ticket") && (ttl <= 0 || ttl > time.Hour) {
			t.Errorf("%q is there for %v", key, ttl)
		}
	}
	s.Kill()
	if _, err := a.Redeem(ctx, text, alice.Address); err != ErrAway {
		t.Errorf("without Redis: %v", err)
	}
	if _, _, err := a.Issue(ctx, alice, nil); err != ErrAway {
		t.Errorf("without Redis: %v", err)
	}
}

func TestReplies(t *testing.T) {
	s := newServer(t)
	a, _ := s.newInstance("a", ratelimit.Config{})
	b, _ := s.newInstance("b", ratelimit.Config{})
	ctx := context.Background()
	want := func(f *Fleet, call, earlier, answer string) {
		t.Helper()
		if gotEarlier, gotAnswer, err := f.BeginReply(ctx, "key", call); gotEarlier != earlier || gotAnswer != answer || err != nil {
			t.Errorf("got %q, %q, %v; want %q, %q", gotEarlier, gotAnswer, err, earlier, answer)
		}
	}
	want(a, "1", "", "")
	want(b, "1", "1", "")
	want(b, "2", "1", "")
	b.FinishReply("key", "2", "", time.Minute) // which is not its own
	want(b, "1", "1", "")
	a.FinishReply("key", "1", "done", time.Minute)
	want(b, "1", "1", "done")
	want(b, "2", "1", "done")
	a.FinishReply("key", "1", "", time.Minute)
	want(b, "2", "", "")
	s.Kill()
	if _, _, err := a.BeginReply(ctx, "key", "1"); err != ErrAway {
		t.Errorf("without Redis: %v", err)
	}
}

func TestKeptOut(t *testing.T) {
	s := newServer(t)
	a, _ := s.newInstance("a", ratelimit.Config{})
	ctx := context.Background()
	all := func() map[string]time.Duration {
		all, err := a.keptOut(ctx)
		if err != nil {
			t.Error(err)
		}
		return all
	}
	a.KeepOut("Alice", time.Hour)
	a.KeepOut("Alice", time.Minute) // which is shorter
	a.KeepOut("Bob", time.Millisecond)
	s.until("Bob is back", func() bool { return len(all()) == 1 })
	if d := all()["Alice"]; d < 59*time.Minute || d > time.Hour {
		t.Errorf("Alice is kept out for %v", d)
	}
}

// A cluster, and a Redis that sentinels know, are used as any other.
func TestOtherForms(t *testing.T) {
	for name, url := range map[string]func() (*server, string){
		"cluster": func() (*server, string) {
			s := redistest.New(t)
			s.Cluster()
			return serverOf(t, s), "redis://" + s.Addr + "/?addr=" + s.Addr
		},
		"sentinel": func() (*server, string) {
			s, sentinel := redistest.Start(t), redistest.New(t)
			sentinel.Sentinel(s)
			return serverOf(t, s), "redis://" + sentinel.Addr + "/?master_name=gates"
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, url := url()
			limits := ratelimit.Config{SessionsPerSubject: 2, Sessions: 10, UpgradesPerIP: ratelimit.Rate{N: 10, Per: time.Hour}}
			edit := func(c *Config) {
				c.RedisURL, c.Limits, c.HistoryPushes, c.HistoryAge = url, limits, 10, time.Hour
			}
			a, b := s.newMember("a", "", edit), s.newMember("b", "", edit)
			ctx := context.Background()
			for i, want := range []Scope{"", "", SessionsSubject} {
				if _, v := []*member{a, b}[i%2].Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: true}); v.Scope != want {
					t.Errorf("%d: got %+v, want %q", i, v, want)
				}
			}
			for _, c := range []Command{kick("k"), push("p")} {
				if answers, silent, err := a.Command(ctx, c); err != nil || len(answers) != 2 || silent != nil {
					t.Errorf("%s, %s, %v", answers, silent, err)
				}
			}
			tickets := a.NewTickets(time.Hour, 5, 5)
			text, _, err := tickets.Issue(ctx, Owner{"192.0.2.1/32", "Alice", true}, []byte("x"))
			if got, wrong := b.NewTickets(time.Hour, 5, 5).Redeem(ctx, text, "192.0.2.1/32"); string(got) != "x" || err != nil || wrong != nil {
				t.Errorf("a ticket: %q, %v, %v", got, err, wrong)
			}
			if a.share.Load() != nil || b.share.Load() != nil {
				t.Error("they count alone")
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	for _, url := range []string{"http://hunter2", "redis://:hunter2@[", "hunter2", "redis://h/hunter2", "redis://h/?master_name=m&addr=hunter2&db=x"} {
		_, err := New(Config{RedisURL: url, Name: "a b", Instance: "c{"})
		if err == nil {
			t.Errorf("%s is taken", url)
			continue
		}
		text := err.Error()
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "FLEET: ") || !strings.Contains(text, "INSTANCE: ") {
			t.Errorf("%s: %v", url, text)
		}
	}
	if f, err := New(Config{}); f != nil || err != nil {
		t.Errorf("without a URL: %v, %v", f, err)
	}
	if name := (&Config{}).InstanceName(); !strings.Contains(name, "-") {
		t.Errorf("name %q", name)
	}
}
