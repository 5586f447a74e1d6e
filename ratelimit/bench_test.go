package ratelimit

import (
	"context"
	"testing"
	"time"
)

// These measure the limits alone: the parsing of addresses is not in the
// figures, and only those of attempts have the reading of the clock. Keys that are new each time are the hostile
// input: they cost a look-up, a sweep, an insertion and a removal, and must not
// cost more the longer it goes on.

func BenchmarkUpgradeFromAddress(b *testing.B) {
	const clients = 1 << 24 // far more than the table has places
	for _, bench := range []struct {
		name    string
		clients int
		pace    time.Duration // between requests
	}{
		{"one client", 1, time.Second},
		{"one client refused", 1, 0},
		{"10000 clients", 10_000, time.Microsecond},
		{"ever new addresses, which refill", clients, time.Millisecond},
		{"ever new addresses, table full and turning over", clients, 700 * time.Nanosecond},
		{"ever new addresses, table full and stuck", clients, 0},
	} {
		b.Run(bench.name, func(b *testing.B) {
			l := newLimits(b, Config{UpgradesPerIP: Rate{20, time.Second}})
			now := t0
			n := 0
			request := func() {
				now = now.Add(bench.pace)
				l.UpgradeFromAddress(nthKey(uint32(n%bench.clients)), now)
				n++
			}
			for range 2 * tableSize { // begin in the steady state
				request()
			}
			b.ReportAllocs()
			for b.Loop() {
				request()
			}
		})
	}
}

func BenchmarkUpgradeFromAddressParallel(b *testing.B) {
	l := newLimits(b, Config{UpgradesPerIP: Rate{20, time.Second}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for n := uint32(0); pb.Next(); n++ {
			l.UpgradeFromAddress(nthKey(n%1000), t0)
		}
	})
}

func BenchmarkUpgradeOfSubject(b *testing.B) {
	l := newLimits(b, Config{UpgradesPerSubject: Rate{20, time.Second}})
	const subject = "8f14e45fceea167a5a36dedd4bea2543c9f0f895fb98ab9159f51fd0297e236d"
	b.ReportAllocs()
	for b.Loop() {
		l.UpgradeOfSubject(subject, t0)
	}
}

// BenchmarkAttempt is the common case: a good credential that need not wait.
func BenchmarkAttempt(b *testing.B) {
	l := newLimits(b, Config{AuthFailuresPerIP: Rate{10, time.Minute}})
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := l.FailuresLeft(client, t0); !ok {
			b.Fatal("no failures left")
		}
		a, err := l.Attempt(ctx, client)
		if err != nil {
			b.Fatal(err)
		}
		a.Release()
	}
}

// BenchmarkAttemptCharged is guessing from ever new addresses.
func BenchmarkAttemptCharged(b *testing.B) {
	l := newLimits(b, Config{AuthFailuresPerIP: Rate{10, time.Minute}})
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // rather refused than waiting
	var n uint32
	b.ReportAllocs()
	for b.Loop() {
		if a, err := l.Attempt(ctx, nthKey(n)); err == nil {
			a.Charge()
		}
		n++
	}
}

func BenchmarkSession(b *testing.B) {
	l := newLimits(b, Config{Sessions: 1000, SessionsPerIP: 10, SessionsPerSubject: 10})
	b.ReportAllocs()
	for b.Loop() {
		if full := l.SessionsFull(client); full != "" {
			b.Fatal(full)
		}
		slot, full := l.AcquireSlot(client, "ada")
		if full != "" {
			b.Fatal(full)
		}
		slot.Release()
	}
}
