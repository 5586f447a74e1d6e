// Package lease ends sessions when their credential does.
//
// A verifier's acceptance holds for a time. A [Keeper] has each session's [Lease]
// asked about again shortly before that time is over, and ends the session
// when the answer is a refusal, when there has been no answer for too long, or when the
// credential itself has run out. It knows times and answers; what is asked, and what
// ending means, is for the lease's [Holder].
package lease

import (
	"cmp"
	"container/heap"
	"container/list"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Config is how a Keeper asks.
type Config struct {
	// Timeout is how long a question may take, by a bound of whoever asks: theirs says what is wrong. One that takes twice as
	// long is ended here. It must be positive.
	Timeout time.Duration
	// Recheck asks about every lease at least that often. 0: only when its time is nearly over.
	Recheck time.Duration
	// Stale is for how long beyond its time a lease holds while nobody can answer.
	Stale time.Duration
	// PerSecond bounds how many questions are asked, so that sessions whose
	// leases end together do not fall upon the verifier together. 0: 1000.
	PerSecond int
}

// ErrRefused is what VerifyAgain returns, wrapped or not, for a refusal. Any other
// error means that there was no answer.
var ErrRefused = errors.New("credential refused")

// Terms are what a verifier's acceptance promises.
type Terms struct {
	Until   time.Time // the answer holds; zero: for ever
	Expires time.Time // the credential itself; zero: unknown
	Final   bool      // asking again about the same credential cannot change the answer
}

// EndReason says why a lease ended.
type EndReason int

const (
	Expired     EndReason = iota // the credential, or the answer, ran out
	Revoked                      // the verifier refused it
	Unavailable                  // nobody could say, for longer than Stale
)

// Holder is whose a lease is. Its methods are called in a goroutine of their own,
// never two at once for one lease.
type Holder interface {
	// VerifyAgain asks about the credential that the holder has now.
	VerifyAgain(context.Context) (Terms, error)
	// LeaseEnded is called at most once, and never after Release has returned, unless it was being called.
	LeaseEnded(EndReason)
}

// Lease is one session's.
type Lease struct {
	// Guarded by the keeper's mu.
	holder  Holder // nil: it has ended or was released
	terms   Terms
	at      time.Time     // when something is to be done, with a monotonic reading
	grace   time.Time     // by when the first question about the terms has its answer; until then the lack of one ends nothing
	due     *list.Element // in the keeper's due; nil: not there
	asking  bool
	renewed bool // while asking: the answer is about a credential that does not count any more
	index   int  // in the queue; -1: not there
}

// Keeper watches over leases. It is safe for concurrent use.
type Keeper struct {
	config  Config
	pace    *rate.Limiter
	context context.Context // of every question
	cancel  context.CancelFunc
	running sync.WaitGroup // questions

	began time.Time // with both clocks

	mu     sync.Mutex    // guards what follows
	moved  time.Duration // by how much the wall clock has been set or the machine has slept since began
	queue  queue         // by time
	due    list.List     // of *Lease that are to be asked about as soon as the pace allows, in the order of their time
	timer  *time.Timer
	closed bool
}

const (
	// retryInterval is how long after a question without an answer the next is asked.
	retryInterval = time.Second
	// paceInterval is how long the pace is given to allow more questions.
	paceInterval = time.Second / 10
	// maxSleep is how often the wall clock is looked at at least: it may be set, or the machine may have slept, and a credential
	// runs out by that clock.
	maxSleep = 10 * time.Second
	// clockStep is by how much it must have moved against the monotonic clock to matter: NTP slews by less than 1 ms a second.
	clockStep = time.Second
)

// New returns a Keeper without leases.
func New(c Config) *Keeper {
	per := cmp.Or(c.PerSecond, 1000)
	k := &Keeper{config: c, pace: rate.NewLimiter(rate.Limit(per), max(per/10, 1)), began: time.Now()}
	k.context, k.cancel = context.WithCancel(context.Background())
	k.timer = time.AfterFunc(time.Hour, k.wake)
	k.timer.Stop()
	return k
}

// Close forgets all leases, without ending them, and waits for the questions under way.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closed = true
	k.timer.Stop()
	for _, l := range k.queue {
		l.index = -1 // it may yet be released
	}
	k.queue = nil
	for k.due.Len() > 0 {
		k.due.Remove(k.due.Front()).(*Lease).due = nil
	}
	k.mu.Unlock()
	k.cancel()
	k.running.Wait()
}

// Hold watches over a lease from now on, until it is released. A lease without an
// end that is not to be rechecked costs nothing.
func (k *Keeper) Hold(l *Lease, h Holder, t Terms) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l.holder, l.index = h, -1
	k.hold(l, t, time.Now())
}

// Renew replaces the terms of a lease that is held: its holder has another
// credential by now. It reports whether the lease was still held: one that has
// ended or was released is not renewed.
func (k *Keeper) Renew(l *Lease, t Terms) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.holder == nil || k.closed {
		return false
	}
	l.renewed = l.asking
	k.hold(l, t, time.Now())
	return true
}

// Release forgets a lease: its session is over.
func (k *Keeper) Release(l *Lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l.holder = nil
	k.remove(l)
}

// End is when a lease ends by its present terms; zero: never.
func (k *Keeper) End(l *Lease) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return l.terms.End()
}

// Len is how many leases there is something to be done about.
func (k *Keeper) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.queue)
	for e := k.due.Front(); e != nil; e = e.Next() {
		if e.Value.(*Lease).index < 0 { // else it has been counted
			n++
		}
	}
	return n
}

func (k *Keeper) hold(l *Lease, t Terms, now time.Time) {
	l.terms = t
	k.remove(l)
	at := k.config.next(t, now)
	if at.IsZero() || k.closed || l.holder == nil {
		return
	}
	l.grace = at.Add(k.config.Timeout)
	k.schedule(l, at)
}

func (k *Keeper) schedule(l *Lease, at time.Time) {
	now := time.Now()
	l.at = steady(at, now)
	heap.Push(&k.queue, l)
	if l.index == 0 {
		k.rearm(now)
	}
}

// steady is t by the monotonic clock. A time of a credential has only the wall clock's, and two times of which one has both are
// in no fixed order once the wall clock is set. What an answer promises from now on counts by the monotonic clock, lest a
// clock that is put back make it hold for longer.
func steady(t, now time.Time) time.Time { return now.Add(t.Sub(now)) }

// followClock moves the leases whose credential, by a wall clock that has been set, ends sooner than it was scheduled.
func (k *Keeper) followClock(now time.Time) {
	moved := now.Round(0).Sub(k.began.Round(0)) - now.Sub(k.began)
	if (moved - k.moved).Abs() < clockStep {
		return
	}
	k.moved = moved
	for _, l := range k.queue {
		if limit, _ := k.config.limit(l.terms, l.grace); !limit.IsZero() {
			if at := steady(limit, now); at.Before(l.at) {
				l.at = at
			}
		}
	}
	heap.Init(&k.queue)
}

// rearm has wake run when there is something to do.
func (k *Keeper) rearm(now time.Time) {
	wait := maxSleep
	if len(k.queue) > 0 {
		wait = min(wait, k.queue[0].at.Sub(now))
	}
	if k.due.Len() > 0 {
		wait = min(wait, paceInterval)
	}
	if len(k.queue) > 0 || k.due.Len() > 0 {
		k.timer.Reset(wait)
	}
}

func (k *Keeper) remove(l *Lease) {
	if l.due != nil {
		k.due.Remove(l.due)
		l.due = nil
	}
	if l.index >= 0 {
		heap.Remove(&k.queue, l.index)
	}
}

// next is when there is next something to do about a lease with fresh terms; zero: never.
//
// It is asked about early enough for a question to time out before its time is
// over, and earlier still by a random part of an eighth of it, so that leases given
// together do not end together; but not before three quarters of it have passed.
func (c *Config) next(t Terms, now time.Time) (at time.Time) {
	if t.Until.IsZero() && t.Expires.IsZero() {
		if c.Recheck > 0 && !t.Final {
			return now.Add(jittered(c.Recheck))
		}
		return time.Time{}
	}
	until := t.End()
	if t.Final {
		return until
	}
	lifetime := until.Sub(now)
	ask := lifetime - c.Timeout - time.Duration(rand.Int64N(int64(max(lifetime/8, 1))))
	ask = max(ask, lifetime*3/4)
	if lifetime <= 0 && (t.Expires.IsZero() || now.Before(t.Expires)) {
		ask = retryInterval // an answer that has expired already would otherwise be asked for in a tight loop
	}
	if c.Recheck > 0 {
		ask = min(ask, jittered(c.Recheck))
	}
	return now.Add(ask)
}

// jittered is d less a random part of a tenth of it.
func jittered(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d/10)+1))
}

// End is when the answer holds no longer, which is never later than the credential
// does; zero: never.
func (t Terms) End() time.Time {
	if t.Until.IsZero() || !t.Expires.IsZero() && t.Expires.Before(t.Until) {
		return t.Expires
	}
	return t.Until
}

// limit is when a lease ends if nobody answers any more, and why; zero: never.
// That is not before grace: an answer may come to a session with little of its
// time left, and for the verifier's being slow it is not to be ended.
func (c *Config) limit(t Terms, grace time.Time) (time.Time, EndReason) {
	if t.Until.IsZero() && t.Expires.IsZero() {
		return time.Time{}, Unavailable
	}
	if t.Final {
		return t.End(), Expired
	}
	limit := t.End()
	if !t.Until.IsZero() {
		limit = t.Until.Add(c.Stale)
	}
	if limit.Before(grace) {
		limit = grace
	}
	if !t.Expires.IsZero() && !t.Expires.After(limit) {
		return t.Expires, Expired
	}
	return limit, Unavailable
}

// wake does what is due.
func (k *Keeper) wake() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.followClock(now)
	for len(k.queue) > 0 && !k.closed && !k.queue[0].at.After(now) {
		l := heap.Pop(&k.queue).(*Lease)
		limit, why := k.config.limit(l.terms, l.grace)
		if !limit.IsZero() && !now.Before(limit) {
			k.remove(l)
			k.end(l, why)
			continue
		}
		if !l.asking && l.due == nil && !l.terms.Final { // which comes early where the wall clock was put back
			l.due = k.due.PushBack(l)
		}
		if !limit.IsZero() {
			k.schedule(l, limit) // the answer decides; if it does not come, the limit does
		}
	}
	for k.due.Len() > 0 && !k.closed && k.pace.AllowN(now, 1) {
		l := k.due.Front().Value.(*Lease)
		k.due.Remove(l.due)
		l.due = nil
		k.ask(l)
	}
	if !k.closed {
		k.rearm(now)
	}
}

// end tells the holder, once. The caller holds mu.
func (k *Keeper) end(l *Lease, why EndReason) {
	if h := l.holder; h != nil {
		l.holder = nil
		go h.LeaseEnded(why)
	}
}

// ask asks about a lease. The caller holds mu.
func (k *Keeper) ask(l *Lease) {
	l.asking = true
	holder := l.holder
	k.running.Go(func() {
		ctx, cancel := context.WithTimeout(k.context, 2*k.config.Timeout)
		defer cancel()
		terms, err := holder.VerifyAgain(ctx)

		k.mu.Lock()
		defer k.mu.Unlock()
		renewed := l.renewed
		l.asking, l.renewed = false, false
		if l.holder == nil || k.closed {
			return
		}
		now := time.Now()
		switch {
		case renewed:
			k.hold(l, l.terms, now) // its time to be asked about may have passed meanwhile
		case errors.Is(err, ErrRefused):
			k.remove(l)
			if expires := l.terms.Expires; !expires.IsZero() && !now.Before(expires) {
				k.end(l, Expired)
			} else {
				k.end(l, Revoked)
			}
		case err != nil:
			k.remove(l)
			l.grace = time.Time{}
			at := now.Add(jittered(retryInterval))
			if limit, _ := k.config.limit(l.terms, l.grace); !limit.IsZero() && limit.Before(at) {
				at = limit
			}
			k.schedule(l, at)
		default:
			k.hold(l, terms, now)
		}
	})
}

// queue is a heap of leases by time.
type queue []*Lease

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(l any) {
	l.(*Lease).index = len(*q)
	*q = append(*q, l.(*Lease))
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	l := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	l.index = -1
	return l
}
