package fleet

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/redistest"
	"portcullis/ratelimit"
)

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
