package ratelimit

import (
	"container/list"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// BudgetError says that an address has used up its failed authentications.
type BudgetError struct {
	Wait time.Duration // until it may try again
}

func (e *BudgetError) Error() string {
	return fmt.Sprintf("failed authentications used up for the next %v", e.Wait)
}

// failures keeps the failure budget of each address. A token is charged only
// when the verifier has refused, which is known only after the fact; so that no
// address can have more guesses checked than it has tokens, its attempts under
// way never outnumber them:
//
//	attempts under way <= tokens
//
// An attempt is begun only where that leaves room for it, and ends taking a
// token along (Charge) or not (Release); time only adds tokens.
//
// Addresses that share the table's shared bucket share its attempts too.
type failures struct {
	buckets *buckets[netip.Prefix]

	mu sync.Mutex // guards calls and all fields of its elements; taken before buckets.mu
	// calls has the addresses with attempts under way or waiting, and no others.
	calls map[netip.Prefix]*calls
}

// calls are the attempts of one address.
type calls struct {
	underWay int
	waiting  list.List   // of *Attempt, the longest waiting first
	refill   *time.Timer // runs admit when a token comes back; nil if never needed
}

// Attempt is the leave to try one credential. It must be ended: by Charge if
// the credential was refused, by Release if it was accepted or nobody knows,
// because the verifier did not answer. A client that goes away ends no attempt. The first of the
// two counts and later calls do nothing, so that Release can be deferred.
type Attempt struct {
	failures *failures    // nil: there is no limit to account to
	key      netip.Prefix // in failures.calls
	answer   chan error   // gets nil when the attempt is under way, or why it will not be; room for one
	ended    bool         // guarded by failures.mu
}

func newFailures(b *buckets[netip.Prefix]) *failures {
	return &failures{buckets: b, calls: make(map[netip.Prefix]*calls)}
}

func (f *failures) left(key netip.Prefix, now time.Time) (wait time.Duration, ok bool) {
	wait = f.buckets.until(f.buckets.bucketKey(key, now), 1, now)
	return wait, wait == 0
}

func (f *failures) attempt(ctx context.Context, key netip.Prefix) (*Attempt, error) {
	f.mu.Lock()
	key = f.buckets.bucketKey(key, time.Now())
	c := f.calls[key]
	if c == nil {
		c = new(calls)
		f.calls[key] = c
	}
	a := &Attempt{failures: f, key: key, answer: make(chan error, 1)}
	place := c.waiting.PushBack(a)
	f.admit(key, c)
	f.mu.Unlock()

	select {
	case err := <-a.answer:
		return a.answered(err)
	case <-ctx.Done():
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case err := <-a.answer: // in the same moment; as if ctx had ended a little later
		return a.answered(err)
	default:
		c.waiting.Remove(place)
		f.admit(key, c)
		return nil, ctx.Err()
	}
}

// answered is what attempt returns when admit has answered.
func (a *Attempt) answered(err error) (*Attempt, error) {
	if err != nil {
		return nil, err
	}
	return a, nil
}

// admit answers those waiting whose turn has come, sees to it that it runs
// again when a refill lets the next one in, and forgets c when it is idle. It
// is called after every change of c and of its tokens; c is f.calls[key]. The
// caller holds mu.
func (f *failures) admit(key netip.Prefix, c *calls) {
	now := time.Now()
	if wait := f.buckets.until(key, 1, now); wait > 0 {
		// Used up: no attempt under way could make room by being released.
		for c.waiting.Len() > 0 {
			c.next().answer <- &BudgetError{Wait: wait}
		}
	}
	if c.refill != nil {
		c.refill.Stop()
	}
	for c.waiting.Len() > 0 {
		wait := f.buckets.until(key, c.underWay+1, now)
		if wait > 0 {
			if c.underWay < f.buckets.burst { // else the bucket has no room for a token more
				f.wake(key, c, wait)
			}
			return
		}
		c.underWay++
		c.next().answer <- nil
	}
	if c.underWay == 0 {
		delete(f.calls, key)
	}
}

// next takes the longest waiting attempt out of the queue.
func (c *calls) next() *Attempt {
	return c.waiting.Remove(c.waiting.Front()).(*Attempt)
}

// wake has admit run again after wait. The caller holds mu.
func (f *failures) wake(key netip.Prefix, c *calls, wait time.Duration) {
	if c.refill != nil {
		c.refill.Reset(wait)
		return
	}
	c.refill = time.AfterFunc(wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.calls[key] == c { // not forgotten since
			f.admit(key, c)
		}
	})
}

// Charge ends the attempt and takes one of the address's failure tokens: the
// verifier, or a cache of its answers, has refused the credential.
func (a *Attempt) Charge() { a.end(true) }

// Release ends the attempt and costs nothing.
func (a *Attempt) Release() { a.end(false) }

func (a *Attempt) end(charge bool) {
	f := a.failures
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.ended {
		return
	}
	a.ended = true
	if charge {
		// There is a token, but where the table has filled up since the
		// attempt began: then one of the shared bucket goes, if it has one.
		f.buckets.take(a.key, time.Now())
	}
	c := f.calls[a.key]
	c.underWay--
	f.admit(a.key, c)
}
