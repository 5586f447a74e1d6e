package ratelimit

import (
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// sweepSteps is how many buckets the table checks for each new key. With 4, full
// buckets are dropped faster than new keys can come: a table that has room holds
// at most one and a half times the buckets that are still refilling.
const sweepSteps = 4

// buckets is a bounded table of token buckets of one rate and burst, by key.
//
// A full bucket is equivalent to none, so full buckets, and only those, are
// dropped to make room. Until the table is full its answers are exact, and no
// flood of keys can make it forget a client that has spent its tokens. There is
// no scan and no goroutine: each new key moves a hand a few buckets on around the
// table and drops those that have refilled.
//
// In a full table the keys without a bucket share one, so new clients are refused
// for each other's requests until buckets refill. That takes more clients than
// the table has room for, each of which has spent a token that is not yet back.
// Letting new keys pass instead would turn the limit off for whoever sends from
// enough addresses.
type buckets[K comparable] struct {
	limit rate.Limit
	burst int
	size  int // the most buckets, without the shared one

	mu    sync.Mutex // guards all below, and serialises the use of the limiters
	index map[K]*bucket[K]
	ring  []*bucket[K] // what the hand goes around: all in index but the shared bucket
	hand  int          // position in ring
	spare *bucket[K]   // one dropped bucket, full, for the next new key; or nil
}

type bucket[K comparable] struct {
	key     K
	limiter *rate.Limiter
}

// newBuckets returns an empty table. The shared bucket is that of the zero key.
func newBuckets[K comparable](limit rate.Limit, burst, size int) *buckets[K] {
	b := &buckets[K]{limit: limit, burst: burst, size: size, index: make(map[K]*bucket[K])}
	var shared K
	b.index[shared] = b.newBucket()
	return b
}

func (b *buckets[K]) newBucket() *bucket[K] {
	return &bucket[K]{limiter: rate.NewLimiter(b.limit, b.burst)}
}

// take takes a token from the key's bucket. If it is empty, ok is false and wait
// is how long until it has a token.
func (b *buckets[K]) take(key K, now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()

	e := b.index[key]
	if e == nil {
		e = b.add(key, now)
	}
	return take(e.limiter, now)
}

// timeUntil returns how long until the key's bucket has n tokens, 0 if it has
// them. It makes no bucket. For n above the burst the time is above 0 and has no
// other meaning.
func (b *buckets[K]) timeUntil(key K, n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()

	tokens := float64(b.burst)
	if e := b.index[key]; e != nil {
		tokens = e.limiter.TokensAt(now)
	}
	return timeFor(float64(n)-tokens, b.limit)
}

// bucketKey returns the key whose bucket this key uses: the key itself, or the zero
// key of the shared bucket if the key has no bucket and there is no room for one.
func (b *buckets[K]) bucketKey(key K, now time.Time) K {
	b.mu.Lock()
	defer b.mu.Unlock()

	if b.index[key] == nil && len(b.ring) >= b.size {
		b.sweep(now)
		if len(b.ring) >= b.size {
			var shared K
			return shared
		}
	}
	return key
}

// add returns a bucket for a key that has none: its own, full, or the shared
// one. The caller holds mu.
func (b *buckets[K]) add(key K, now time.Time) *bucket[K] {
	b.sweep(now)
	if len(b.ring) >= b.size {
		var shared K
		return b.index[shared]
	}
	e := b.spare
	if e == nil {
		e = b.newBucket()
	}
	b.spare = nil
	e.key = key
	b.index[key] = e
	b.ring = append(b.ring, e)
	return e
}

// sweep moves the hand a few buckets on and drops those that have refilled.
// The caller holds mu.
func (b *buckets[K]) sweep(now time.Time) {
	for range min(sweepSteps, len(b.ring)) {
		if b.hand >= len(b.ring) {
			b.hand = 0
		}
		e := b.ring[b.hand]
		if e.limiter.TokensAt(now) < float64(b.burst) {
			b.hand++
			continue
		}
		delete(b.index, e.key)
		last := len(b.ring) - 1
		b.ring[b.hand], b.ring[last] = b.ring[last], nil
		b.ring = b.ring[:last]
		b.spare = e
	}
}

// take takes a token from lim. If there is none, ok is false and wait is how
// long until there is one.
func take(lim *rate.Limiter, now time.Time) (wait time.Duration, ok bool) {
	if lim.AllowN(now, 1) {
		return 0, true
	}
	return timeFor(1-lim.TokensAt(now), lim.Limit()), false
}

// timeFor returns how long it takes to refill so many tokens. Less than a
// nanosecond is 0, as in package rate. The rest is rounded, so that the token is
// there after the wait: no rounding error can ask for a nanosecond more.
func timeFor(tokens float64, limit rate.Limit) time.Duration {
	d := tokens / float64(limit) * float64(time.Second)
	switch {
	case d < 1:
		return 0
	case d >= math.MaxInt64:
		return math.MaxInt64
	}
	return time.Duration(math.Round(d))
}
