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

// failures keeps the failure budget of each address. A token is charged only once
// the verifier has refused. So that no address can have more guesses checked than
// it has tokens, its attempts under way never outnumber its tokens:
//
//	attempts under way <= tokens
//
// An attempt begins only if that leaves room for it. It ends with a token charged
// (Charge) or without (Release). Time only adds tokens.
//
// Addresses that share the table's shared bucket share its attempts too.
type failures struct {
	buckets *buckets[netip.Prefix]

	mu sync.Mutex // guards byAddress and all fields of its elements; taken before buckets.mu
	// byAddress has the addresses with attempts under way or waiting, and no others.
	byAddress map[netip.Prefix]*addressAttempts
}

// addressAttempts are the attempts of one address.
type addressAttempts struct {
	underWay int
	waiting  list.List   // of *Attempt, the longest waiting first
	refill   *time.Timer // runs admit when a token comes back; nil if never needed
}

// Attempt is the permission to check one credential. It must be ended: by Charge
// if the credential was refused, by Release if it was accepted or the verifier did
// not answer. A client that goes away does not end it. Only the first call of
// either counts, so that Release can be deferred.
type Attempt struct {
	failures  *failures    // nil: there is no limit
	key       netip.Prefix // in failures.byAddress
	admission chan error   // gets nil when the attempt is under way, or why it is refused; room for one
	ended     bool         // guarded by failures.mu
}

func newFailures(b *buckets[netip.Prefix]) *failures {
	return &failures{buckets: b, byAddress: make(map[netip.Prefix]*addressAttempts)}
}

func (f *failures) left(key netip.Prefix, now time.Time) (wait time.Duration, ok bool) {
	wait = f.buckets.timeUntil(f.buckets.bucketKey(key, now), 1, now)
	return wait, wait == 0
}

func (f *failures) begin(ctx context.Context, key netip.Prefix) (*Attempt, error) {
	f.mu.Lock()
	key = f.buckets.bucketKey(key, time.Now())
	c := f.byAddress[key]
	if c == nil {
		c = new(addressAttempts)
		f.byAddress[key] = c
	}
	a := &Attempt{failures: f, key: key, admission: make(chan error, 1)}
	queued := c.waiting.PushBack(a)
	f.admit(key, c)
	f.mu.Unlock()

	select {
	case err := <-a.admission:
		return a.outcome(err)
	case <-ctx.Done():
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case err := <-a.admission: // in the same moment; as if ctx had ended a little later
		return a.outcome(err)
	default:
		c.waiting.Remove(queued)
		f.admit(key, c)
		return nil, ctx.Err()
	}
}

// outcome is what begin returns when admit has answered.
func (a *Attempt) outcome(err error) (*Attempt, error) {
	if err != nil {
		return nil, err
	}
	return a, nil
}

// admit answers the waiting attempts whose turn has come, schedules itself for
// when a refill lets the next one in, and drops c when it is idle. It is called
// after every change of c and of its tokens; c is f.byAddress[key]. The caller
// holds mu.
func (f *failures) admit(key netip.Prefix, c *addressAttempts) {
	now := time.Now()
	if wait := f.buckets.timeUntil(key, 1, now); wait > 0 {
		// Used up: releasing an attempt under way makes no room.
		for c.waiting.Len() > 0 {
			c.next().admission <- &BudgetError{Wait: wait}
		}
	}
	if c.refill != nil {
		c.refill.Stop()
	}
	for c.waiting.Len() > 0 {
		wait := f.buckets.timeUntil(key, c.underWay+1, now)
		if wait > 0 {
			if c.underWay < f.buckets.burst { // otherwise the bucket cannot hold one more token
				f.scheduleAdmit(key, c, wait)
			}
			return
		}
		c.underWay++
		c.next().admission <- nil
	}
	if c.underWay == 0 {
		delete(f.byAddress, key)
	}
}

// next takes the longest waiting attempt out of the queue.
func (c *addressAttempts) next() *Attempt {
	return c.waiting.Remove(c.waiting.Front()).(*Attempt)
}

// scheduleAdmit runs admit again after wait. The caller holds mu.
func (f *failures) scheduleAdmit(key netip.Prefix, c *addressAttempts, wait time.Duration) {
	if c.refill != nil {
		c.refill.Reset(wait)
		return
	}
	c.refill = time.AfterFunc(wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.byAddress[key] == c { // not dropped since
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
		// There is a token, unless the table has filled up since the attempt
		// began. Then the shared bucket pays, if it has a token.
		f.buckets.take(a.key, time.Now())
	}
	c := f.byAddress[a.key]
	c.underWay--
	f.admit(a.key, c)
}
