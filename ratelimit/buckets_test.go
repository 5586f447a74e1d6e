package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// TestFullTable is a script over a table of two places, one token a second
// each, no more.
func TestFullTable(t *testing.T) {
	b := tableOf[string](t, "1/s", 2)
	const half = 500 * time.Millisecond
	for i, step := range []struct {
		at   time.Duration
		key  string
		ok   bool
		wait time.Duration
	}{
		{0, "a", true, 0},
		{half, "b", true, 0},
		{half, "c", true, 0}, // no place: the shared bucket
		{half, "d", false, time.Second},
		{half, "a", false, half}, // those with a place keep it
		{half, "b", false, time.Second},
		{2 * half, "d", true, 0},     // a has refilled: d has its place
		{2 * half, "a", false, half}, // and now a shares with c
		{3 * half, "b", true, 0},
		{3 * half, "e", true, 0}, // the shared bucket has refilled
		{3 * half, "f", false, 2 * half},
		{20 * half, "f", true, 0},
		{20 * half, "a", true, 0},
		{20 * half, "b", true, 0}, // shared once more
		{20 * half, "c", false, 2 * half},
	} {
		if wait, ok := b.take(step.key, at(step.at)); wait != step.wait || ok != step.ok {
			t.Errorf("step %d, %s at %v: got %v, %v; want %v, %v", i, step.key, step.at, wait, ok, step.wait, step.ok)
		}
		if n := len(b.ring); n > 2 {
			t.Fatalf("step %d: %d places taken", i, n)
		}
	}
}

// TestDroppingChangesNoAnswer compares a table that drops buckets with a map
// that never does: as long as the table is not full, nobody can tell.
func TestDroppingChangesNoAnswer(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	r := Rate{3, time.Second}
	b := newBuckets[int](r.limit(), 5, 1000)
	reference := make(map[int]*rate.Limiter)
	now, dropped := t0, 0
	for range 50_000 {
		now = now.Add(time.Duration(random.ExpFloat64() * float64(10*time.Millisecond)))
		key := int(random.ExpFloat64() * 200)
		lim := reference[key]
		if lim == nil {
			lim = rate.NewLimiter(r.limit(), 5)
			reference[key] = lim
		} else if b.index[key] == nil {
			dropped++
		}
		_, got := b.take(key, now)
		if want := lim.AllowN(now, 1); got != want {
			t.Fatalf("key %d at %v: got %v, want %v", key, now.Sub(t0), got, want)
		}
	}
	if dropped == 0 || len(b.ring) >= 1000 {
		t.Fatalf("%d keys had been dropped, %d are in the table: the comparison shows nothing", dropped, len(b.ring))
	}
}

// TestRefilledBucketsLeave floods a table at such a pace that a hundred
// buckets are refilling at each moment.
func TestRefilledBucketsLeave(t *testing.T) {
	b := tableOf[netip.Prefix](t, "1/s", 10_000)
	most := 0
	for n := range uint32(50_000) {
		if _, ok := b.take(nthKey(n), at(time.Duration(n)*10*time.Millisecond)); !ok {
			t.Fatalf("key %d refused", n)
		}
		most = max(most, len(b.ring))
	}
	if most > 100+100/2+sweepSteps {
		t.Errorf("%d buckets in the table, want 100 and half as many again", most)
	}
	if len(b.index) != len(b.ring)+1 {
		t.Errorf("%d in the index, %d in the ring", len(b.index), len(b.ring))
	}
}

// TestManyAtOnce has goroutines ask for the same clients' tokens in the middle
// of a flood of others: each client gets his burst, no more and no less.
func TestManyAtOnce(t *testing.T) {
	const clients, burst = 10, 5
	b := tableOf[uint32](t, "5/h", 1000)
	var allowed [clients + 1]atomic.Int32
	var askers sync.WaitGroup
	for g := range uint32(8) {
		askers.Go(func() {
			for n := range uint32(500) {
				client := 1 + n%clients
				if _, ok := b.take(client, t0); ok {
					allowed[client].Add(1)
				}
				if n > 2*clients { // all have their places
					b.take(1000+g*500+n, t0)
					b.timeUntil(b.bucketKey(n, t0), 1, t0)
				}
			}
		})
	}
	askers.Wait()
	for client := 1; client <= clients; client++ {
		if got := allowed[client].Load(); got != burst {
			t.Errorf("client %d: %d allowed, want %d", client, got, burst)
		}
	}
	if len(b.ring) != 1000 || len(b.index) != 1001 {
		t.Errorf("%d buckets in the table, %d in the index", len(b.ring), len(b.index))
	}
}

// TestFloodOfAddresses lets a million addresses knock at a gate that has one
// client who spends all his tokens. Whether they come so fast that their
// buckets fill the table or so slowly that they refill, the table keeps to its
// size and answers the client as if he were alone.
func TestFloodOfAddresses(t *testing.T) {
	for _, test := range []struct {
		name      string
		addresses uint32
		within    time.Duration
		most      int // buckets in the table
	}{
		{"at once", 250_000, 0, tableSize},
		{"within 45 seconds", 500_000, 45 * time.Second, tableSize}, // early buckets refill after 30
		{"within six hours", 250_000, 6 * time.Hour, 1000},
	} {
		if underRace() {
			test.addresses /= 3 // a million would take it half a minute; a third still fills the table
		}
		t.Run(test.name, func(t *testing.T) {
			r := Rate{2, time.Minute}
			l := newLimits(t, Config{UpgradesPerIP: r})
			client, alone := key("192.0.2.1"), rate.NewLimiter(r.limit(), r.N)

			before := heapInUse()
			for n := range test.addresses {
				now := at(test.within * time.Duration(n) / time.Duration(test.addresses))
				if n%100 == 0 {
					_, got := l.UpgradeFromAddress(client, now)
					if want := alone.AllowN(now, 1); got != want {
						t.Fatalf("client, after %d others: got %v, want %v", n, got, want)
					}
				}
				l.UpgradeFromAddress(nthKey(n), now)
			}
			used := heapInUse() - before

			b := l.addresses
			if n := len(b.ring); n > test.most || len(b.index) != n+1 {
				t.Errorf("%d buckets in the table, %d in the index", n, len(b.index))
			}
			if used > 24<<20 {
				t.Errorf("table takes %d KiB", used>>10)
			}
		})
	}
}

// underRace reports whether the race detector is on.
func underRace() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestTimeFor(t *testing.T) {
	for _, test := range []struct {
		tokens float64
		limit  rate.Limit
		want   time.Duration
	}{
		{0, 1, 0},
		{-1, 1, 0},
		{1, 4, 250 * time.Millisecond},
		{1, 10.0 / 60, 6 * time.Second},
		{1e-17, 1, 0},
		{maxCount, 1.0 / 3600, 1<<63 - 1}, // some 114,000 years
	} {
		t.Run(fmt.Sprint(test.tokens, test.limit), func(t *testing.T) {
			if got := timeFor(test.tokens, test.limit); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// TestWaitIsEnough: whoever comes back after just the time he was told gets
// his token, at any rate.
func TestWaitIsEnough(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		r := Rate{1 + random.IntN(5000), []time.Duration{time.Second, time.Minute, time.Hour}[random.IntN(3)]}
		b := newBuckets[int](r.limit(), 1+random.IntN(3), 1)
		now := at(time.Duration(random.Int64N(int64(time.Hour))))
		for range 20 {
			if wait, ok := b.take(1, now); !ok {
				now = now.Add(wait)
				if again, ok := b.take(1, now); !ok {
					t.Fatalf("%v: after %v still %v", r, wait, again)
				}
			}
			now = now.Add(time.Duration(random.Int64N(int64(r.Per) / int64(r.N))))
		}
	}
}
