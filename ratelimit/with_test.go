package ratelimit

import (
	"net/netip"
	"testing"
	"time"
)

// A rate that is as it was goes on, also where it is only written otherwise; one that is new begins anew.
func TestWithKeepsRates(t *testing.T) {
	key := netip.MustParsePrefix("192.0.2.1/32")
	now := time.Now()
	old := Config{UpgradesPerIP: Rate{1, time.Hour}, UpgradesPerSubject: Rate{1, time.Hour}, Upgrades: Rate{1, time.Hour}, AuthFailuresPerIP: Rate{1, time.Hour}, RequestsPerIP: Rate{1, time.Hour}}
	spend := func(l *Limits) (left int) {
		attempt, err := l.Attempt(t.Context(), key)
		if err == nil {
			attempt.Charge()
			attempt.Release()
			left++
		}
		for _, take := range []func() (time.Duration, bool){
			func() (time.Duration, bool) { return l.UpgradeFromAddress(key, now) },
			func() (time.Duration, bool) { return l.UpgradeOfSubject("alice", now) },
			func() (time.Duration, bool) { return l.UpgradeGlobal(now) },
			func() (time.Duration, bool) { return l.RequestFromAddress(key, now) },
		} {
			if _, ok := take(); ok {
				left++
			}
		}
		return left
	}
	l, err := New(old)
	if err != nil {
		t.Fatal(err)
	}
	if got := spend(l); got != 5 {
		t.Fatalf("%d of 5 tokens at first", got)
	}
	same := old
	same.UpgradesPerIPBurst = 1 // the rate's number
	next, err := l.With(same)
	if err != nil {
		t.Fatal(err)
	}
	if got := spend(next); got != 0 {
		t.Errorf("%d tokens came back with the same rates", got)
	}
	other := old
	other.UpgradesPerIPBurst, other.Upgrades = 2, Rate{2, time.Hour}
	if next, err = next.With(other); err != nil {
		t.Fatal(err)
	}
	if got := spend(next); got != 2 {
		t.Errorf("%d tokens with two rates of five that are new, want 2", got)
	}
	if _, err := next.With(Config{Sessions: -1}); err == nil {
		t.Error("a negative cap was taken")
	}
}

// Sessions that were counted count under another cap, and are given back whatever the caps are by then.
func TestWithKeepsCounts(t *testing.T) {
	key, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
	l, err := New(Config{SessionsPerIP: 3})
	if err != nil {
		t.Fatal(err)
	}
	var slots []*Slot
	take := func(l *Limits, key netip.Prefix, want Cap) {
		t.Helper()
		slot, full := l.AcquireSlot(key, "alice")
		if full != want {
			t.Errorf("got cap %q, want %q", full, want)
		}
		if slot != nil {
			slots = append(slots, slot)
		}
	}
	with := func(c Config) {
		t.Helper()
		if l, err = l.With(c); err != nil {
			t.Fatal(err)
		}
	}
	take(l, key, "")
	take(l, key, "")
	with(Config{SessionsPerIP: 2})
	take(l, key, CapAddress)
	with(Config{SessionsPerSubject: 1}) // the first two were counted by no subject
	take(l, key, "")
	take(l, other, CapSubject)
	with(Config{Sessions: 3})
	take(l, other, CapTotal)
	with(Config{})
	take(l, other, "")
	with(Config{SessionsPerIP: 2})
	if _, ok := slots[2].Move(other); !ok {
		t.Error("a session that counts by no address cannot move")
	}
	for _, slot := range slots {
		slot.Release()
	}
	wantNoSessions(t, l)
}
