package ratelimit

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestZeroConfigLimitsNothing(t *testing.T) {
	l := newLimits(t, Config{})
	a := key("192.0.2.1")
	for range 1000 {
		if _, ok := l.UpgradeFromAddress(a, t0); !ok {
			t.Fatal("upgrade of an address refused")
		}
		if _, ok := l.UpgradeGlobal(t0); !ok {
			t.Fatal("upgrade refused")
		}
		if _, ok := l.UpgradeOfSubject("ada", t0); !ok {
			t.Fatal("upgrade of a subject refused")
		}
		if _, ok := l.FailuresLeft(a, t0); !ok {
			t.Fatal("no failures left")
		}
		attempt, err := l.Attempt(context.Background(), a)
		if err != nil {
			t.Fatal(err)
		}
		attempt.Charge()
		attempt.Release()
		if full := l.SessionsFull(a); full != "" {
			t.Fatalf("sessions full: %s", full)
		}
		if _, full := l.AcquireSlot(a, "ada"); full != "" {
			t.Fatalf("no slot: %s", full)
		}
	}
	if l.Policy() != "" {
		t.Errorf("got policy %q, want none", l.Policy())
	}
}

// TestUpgrades runs one script for each question about upgrades: two tokens a
// second, a burst of three.
func TestUpgrades(t *testing.T) {
	r := Rate{2, time.Second}
	l := newLimits(t, Config{
		Upgrades: r, UpgradesBurst: 3,
		UpgradesPerIP: r, UpgradesPerIPBurst: 3,
		UpgradesPerSubject: r, UpgradesPerSubjectBurst: 3,
		RequestsPerIP: r, RequestsPerIPBurst: 3,
	})
	for name, ask := range map[string]func(time.Time) (time.Duration, bool){
		"address": func(now time.Time) (time.Duration, bool) { return l.UpgradeFromAddress(key("192.0.2.1"), now) },
		"request": func(now time.Time) (time.Duration, bool) { return l.RequestFromAddress(key("192.0.2.1"), now) },
		"global":  l.UpgradeGlobal,
		"subject": func(now time.Time) (time.Duration, bool) { return l.UpgradeOfSubject("ada", now) },
	} {
		t.Run(name, func(t *testing.T) {
			for i, step := range []struct {
				at   time.Duration
				ok   bool
				wait time.Duration
			}{
				{0, true, 0},
				{0, true, 0},
				{0, true, 0},
				{0, false, 500 * time.Millisecond},
				{0, false, 500 * time.Millisecond}, // asking again costs nothing
				{499 * time.Millisecond, false, time.Millisecond},
				{500 * time.Millisecond, true, 0},
				{500 * time.Millisecond, false, 500 * time.Millisecond},
				{time.Hour, true, 0},
				{time.Hour, true, 0},
				{time.Hour, true, 0},
				{time.Hour, false, 500 * time.Millisecond},
			} {
				if wait, ok := ask(at(step.at)); wait != step.wait || ok != step.ok {
					t.Errorf("step %d, at %v: got %v, %v; want %v, %v", i, step.at, wait, ok, step.wait, step.ok)
				}
			}
		})
	}
}

func TestKeysAreLimitedApart(t *testing.T) {
	l := newLimits(t, Config{UpgradesPerIP: Rate{1, time.Second}, UpgradesPerSubject: Rate{1, time.Second}})
	for _, step := range []struct {
		addr string
		ok   bool
	}{
		{"192.0.2.1", true},
		{"192.0.2.2", true},
		{"192.0.2.1", false},
		{"::ffff:192.0.2.2", false},
		{"2001:db8::1", true},
		{"2001:db8::ffff:1", false}, // the same /64
		{"2001:db8:0:1::1", true},
	} {
		if _, ok := l.UpgradeFromAddress(key(step.addr), t0); ok != step.ok {
			t.Errorf("%s: got %v, want %v", step.addr, ok, step.ok)
		}
	}
	long := strings.Repeat("x", 1<<20)
	for _, step := range []struct {
		subject string
		ok      bool
	}{
		{"ada", true}, {"bob", true}, {"ada", false},
		{long, true}, {long + "y", true}, {long, false},
		{"", true}, {"", true}, // nobody
	} {
		if _, ok := l.UpgradeOfSubject(step.subject, t0); ok != step.ok {
			t.Errorf("subject %.10q: got %v, want %v", step.subject, ok, step.ok)
		}
	}
}

func TestPolicy(t *testing.T) {
	for _, test := range []struct {
		name string
		c    Config
		want string
	}{
		{"second", Config{UpgradesPerIP: Rate{20, time.Second}, UpgradesPerIPBurst: 50}, `"upgrades";q=20;w=1`},
		{"hour", Config{UpgradesPerIP: Rate{100, time.Hour}}, `"upgrades";q=100;w=3600`},
		{"global only", Config{Upgrades: Rate{20, time.Second}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := newLimits(t, test.c).Policy(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestPerSubject(t *testing.T) {
	for _, test := range []struct {
		name string
		c    Config
		want bool
	}{
		{"others", Config{Upgrades: Rate{1, time.Second}, Sessions: 1, SessionsPerIP: 1}, false},
		{"rate", Config{UpgradesPerSubject: Rate{1, time.Second}}, true},
		{"cap", Config{SessionsPerSubject: 1}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.c.PerSubject(); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
