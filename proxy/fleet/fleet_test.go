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
	s.until("the other counts with it, and no more by its share", func() bool {
		p, v := b.Enter(ctx, Entry{Address: here, Subject: "Alice", Admit: false})
		if v.Scope == "" {
			p.Release()
		}
		return v.Scope == SessionsSubject
	})
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
