package ratelimit

import (
	"net/netip"
	"sync"
	"testing"
)

func TestSessionCaps(t *testing.T) {
	l := newLimits(t, Config{Sessions: 4, SessionsPerIP: 2, SessionsPerSubject: 2})
	a, b, c := key("192.0.2.1"), key("192.0.2.2"), key("192.0.2.3")
	var slots []*Slot
	for i, step := range []struct {
		release int // slot number to give back first; 0: none
		address netip.Prefix
		subject string
		full    Cap // what the cheap check says before
		want    Cap
	}{
		{0, a, "ada", "", ""}, // slot 1
		{0, a, "bob", "", ""}, // slot 2
		{0, a, "cid", CapAddress, CapAddress},
		{0, b, "ada", "", ""}, // slot 3
		{0, c, "ada", "", CapSubject},
		{0, c, "", "", ""}, // slot 4: nobody's session counts too
		{0, c, "", CapTotal, CapTotal},
		{0, c, "ada", CapTotal, CapSubject}, // the client's own cap first
		{0, a, "ada", CapAddress, CapAddress},
		{1, c, "ada", "", ""},             // slot 5
		{1, b, "eve", CapTotal, CapTotal}, // released twice, gone once
		{4, b, "eve", "", ""},             // slot 6
		{2, b, "bob", CapAddress, CapAddress},
		{0, a, "ada", "", CapSubject},
		{0, a, "bob", "", ""}, // slot 7: a refused Open has taken nothing
	} {
		if step.release > 0 {
			slots[step.release-1].Release()
		}
		if got := l.SessionsFull(step.address); got != step.full {
			t.Errorf("step %d: SessionsFull: got %q, want %q", i, got, step.full)
		}
		slot, got := l.AcquireSlot(step.address, step.subject)
		if got != step.want || (slot == nil) != (got != "") {
			t.Errorf("step %d: Open: got %v, %q; want %q", i, slot, got, step.want)
		}
		if slot != nil {
			slots = append(slots, slot)
		}
	}
	for _, slot := range slots {
		slot.Release()
	}
	wantNoSessions(t, l)
}

func wantNoSessions(t *testing.T, l *Limits) {
	t.Helper()
	s := l.sessions.counts
	if s.total != 0 || len(s.byAddress) != 0 || len(s.bySubject) != 0 {
		t.Errorf("left behind: %d in total, addresses %v, subjects %v", s.total, s.byAddress, s.bySubject)
	}
}

func TestKeysAreNotCountedWithoutACap(t *testing.T) {
	l := newLimits(t, Config{Sessions: 10})
	slot, _ := l.AcquireSlot(key("192.0.2.1"), "ada")
	defer slot.Release()
	if n := len(l.sessions.counts.byAddress) + len(l.sessions.counts.bySubject); n != 0 {
		t.Errorf("%d keys kept for caps that are not set", n)
	}
}

// TestSlotsAreReleasedExactlyOnce opens and releases from many goroutines,
// every slot from two at once. The caps hold at every moment, and in the end
// nothing is left.
func TestSlotsAreReleasedExactlyOnce(t *testing.T) {
	const total, perAddress = 20, 3
	l := newLimits(t, Config{Sessions: total, SessionsPerIP: perAddress, SessionsPerSubject: 5})
	var mu sync.Mutex // guards held
	held := make(map[netip.Prefix]int)
	hold := func(address netip.Prefix, n int) {
		mu.Lock()
		defer mu.Unlock()
		held[address] += n
		sum := 0
		for _, n := range held {
			sum += n
		}
		if held[address] > perAddress || sum > total {
			t.Errorf("%d slots of %v, %d in total", held[address], address, sum)
		}
	}
	var clients sync.WaitGroup
	for n := range uint32(32) {
		clients.Go(func() {
			address, subject := nthKey(n%8), string(rune('a'+n%6))
			for range 200 {
				slot, full := l.AcquireSlot(address, subject)
				if full != "" {
					continue
				}
				hold(address, 1)
				hold(address, -1)
				var ends sync.WaitGroup
				ends.Go(slot.Release)
				ends.Go(slot.Release)
				ends.Wait()
			}
		})
	}
	clients.Wait()
	wantNoSessions(t, l)
}
