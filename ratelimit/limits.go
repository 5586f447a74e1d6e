// Package ratelimit decides how often and how many: upgrades in a time, failed
// authentications in a time, sessions at once. It knows keys and clocks, not
// HTTP: what to answer, and with how much jitter, is the caller's.
//
// # What is limited
//
//	by            how often (token buckets)                how many at once
//	address       UpgradeFromAddress, Attempt (failures),  SessionsFull, AcquireSlot,
//	              UnknownReturn, RequestFromAddress        Slot.Move
//	subject       UpgradeOfSubject                         AcquireSlot
//	all together  UpgradeGlobal                            SessionsFull, AcquireSlot
//
// An address is a key made by [AddressKey]; a subject is the name that the
// verifier gave the client, of any length, "" for a client without one. Each
// limit stands alone and is off until [Config] sets it.
//
// A gate asks from cheap to costly, and takes a slot only for a client that
// has been authenticated:
//
//	UpgradeFromAddress, FailuresLeft, UpgradeGlobal, SessionsFull   before authentication
//	Attempt ... Charge or Release                                   around the call to the verifier
//	UpgradeOfSubject, AcquireSlot                                   once the subject is known
//	Slot.Release                                                    when the session has ended
//
// # Time
//
// The methods that never wait take the time as a parameter. They return whether
// the event may happen at that time and, if not, how long until there is a token.
// A refusal takes no token, so a client that keeps trying does not have to wait
// longer for it. [Limits.Attempt] may wait, and so reads the clock itself.
//
// # Memory
//
// Everything here that is kept by address or subject is bounded, whatever
// clients send. Token buckets live in tables of 65,536, some 20 MiB each when
// full. A full table still limits every client that it knows, and lets those for
// whom it has no room share one bucket. Sessions and
// authentication calls are counted per key only while they are under way, so
// those counters are bounded by the connections that are open.
package ratelimit

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

// tableSize is the most buckets in a table. It must hold the clients that have
// spent a token and not yet got it back: at 20/s, up to 65,536 clients within
// 50 ms.
const tableSize = 1 << 16

// Limits are the limits of one gate. They are safe for use by any number of
// goroutines. Make them with [New].
type Limits struct {
	// nil: no limit.
	addresses *buckets[netip.Prefix]
	subjects  *buckets[subjectKey]
	global    *rate.Limiter
	failures  *failures
	requests  *buckets[netip.Prefix]
	returns   *buckets[netip.Prefix] // never nil

	sessions *sessions
	of       Config

	policy, requestPolicy string
}

// New makes the limits that c describes. Its error joins every mistake in c,
// one line each, beginning with the variable's name.
func New(c Config) (*Limits, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return build(c), nil
}

// With returns the limits that c describes, for sessions and clients that l has counted: a rate that is as it was goes on, one that is
// new begins anew. A cap that is new counts only the sessions from here on. Its error is as that of [New].
func (l *Limits) With(c Config) (*Limits, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	next := build(c)
	same := func(r, old Rate, burst, oldBurst int) bool { return r == old && r.Burst(burst) == old.Burst(oldBurst) }
	if same(c.UpgradesPerIP, l.of.UpgradesPerIP, c.UpgradesPerIPBurst, l.of.UpgradesPerIPBurst) {
		next.addresses = l.addresses
	}
	if same(c.RequestsPerIP, l.of.RequestsPerIP, c.RequestsPerIPBurst, l.of.RequestsPerIPBurst) {
		next.requests = l.requests
	}
	if same(c.UpgradesPerSubject, l.of.UpgradesPerSubject, c.UpgradesPerSubjectBurst, l.of.UpgradesPerSubjectBurst) {
		next.subjects = l.subjects
	}
	if same(c.Upgrades, l.of.Upgrades, c.UpgradesBurst, l.of.UpgradesBurst) {
		next.global = l.global
	}
	if same(c.AuthFailuresPerIP, l.of.AuthFailuresPerIP, c.AuthFailuresPerIPBurst, l.of.AuthFailuresPerIPBurst) {
		next.failures = l.failures
	}
	next.returns = l.returns
	next.sessions = &sessions{caps{c.Sessions, c.SessionsPerIP, c.SessionsPerSubject}, l.sessions.counts}
	return next, nil
}

// Part returns the limits of one of n who hold those of c together. Nothing is rounded down to none. c is one that New takes.
func Part(c Config, n int) *Limits {
	for _, r := range []struct {
		rate  *Rate
		burst *int
	}{
		{&c.UpgradesPerIP, &c.UpgradesPerIPBurst}, {&c.UpgradesPerSubject, &c.UpgradesPerSubjectBurst}, {&c.Upgrades, &c.UpgradesBurst},
		{&c.AuthFailuresPerIP, &c.AuthFailuresPerIPBurst},
	} {
		*r.burst = (r.rate.Burst(*r.burst) + n - 1) / n
		r.rate.Per *= time.Duration(n)
	}
	return build(c)
}

// build makes the limits of a Config that has no mistakes.
func build(c Config) *Limits {
	l := &Limits{
		of:       c,
		sessions: newSessions(c),
		returns:  newBuckets[netip.Prefix](returnsPerSecond, returnsPerSecond, tableSize),
	}
	if r := c.UpgradesPerIP; r.N > 0 {
		l.addresses = newBuckets[netip.Prefix](r.limit(), r.Burst(c.UpgradesPerIPBurst), tableSize)
		l.policy = fmt.Sprintf(`"upgrades";q=%d;w=%d`, r.N, r.Per/time.Second)
	}
	if r := c.UpgradesPerSubject; r.N > 0 {
		l.subjects = newBuckets[subjectKey](r.limit(), r.Burst(c.UpgradesPerSubjectBurst), tableSize)
	}
	if r := c.Upgrades; r.N > 0 {
		l.global = rate.NewLimiter(r.limit(), r.Burst(c.UpgradesBurst))
	}
	if r := c.AuthFailuresPerIP; r.N > 0 {
		l.failures = newFailures(newBuckets[netip.Prefix](r.limit(), r.Burst(c.AuthFailuresPerIPBurst), tableSize))
	}
	if r := c.RequestsPerIP; r.N > 0 {
		l.requests = newBuckets[netip.Prefix](r.limit(), r.Burst(c.RequestsPerIPBurst), tableSize)
		l.requestPolicy = fmt.Sprintf(`"requests";q=%d;w=%d`, r.N, r.Per/time.Second)
	}
	return l
}

// UpgradeFromAddress takes one of the address's upgrade tokens. If there is
// none, ok is false and wait is how long until there is one.
func (l *Limits) UpgradeFromAddress(key netip.Prefix, now time.Time) (wait time.Duration, ok bool) {
	if l.addresses == nil {
		return 0, true
	}
	return l.addresses.take(key, now)
}

// RequestFromAddress takes one of the address's tokens for plain requests. If
// there is none, ok is false and wait is how long until there is one.
func (l *Limits) RequestFromAddress(key netip.Prefix, now time.Time) (wait time.Duration, ok bool) {
	if l.requests == nil {
		return 0, true
	}
	return l.requests.take(key, now)
}

// returnsPerSecond bounds the returns of an address to sessions that nobody knows, and their bursts: an office behind one address
// gets in again soon after a restart of the gate, and who guesses tokens does not get far.
const returnsPerSecond = 50

// UnknownReturn takes one of the address's tokens for a return to a session that nobody knows. If there is none, ok is false and
// wait is how long until there is one.
func (l *Limits) UnknownReturn(key netip.Prefix, now time.Time) (wait time.Duration, ok bool) {
	return l.returns.take(key, now)
}

// UpgradeGlobal takes one of the upgrade tokens that all clients share. If
// there is none, ok is false and wait is how long until there is one.
func (l *Limits) UpgradeGlobal(now time.Time) (wait time.Duration, ok bool) {
	if l.global == nil {
		return 0, true
	}
	return take(l.global, now)
}

// UpgradeOfSubject takes one of the subject's upgrade tokens. If there is
// none, ok is false and wait is how long until there is one. The subject "" is
// nobody's and is not limited.
func (l *Limits) UpgradeOfSubject(subject string, now time.Time) (wait time.Duration, ok bool) {
	if l.subjects == nil || subject == "" {
		return 0, true
	}
	return l.subjects.take(keyOfSubject(subject), now)
}

// FailuresLeft reports whether the address may still try a credential, and if
// not, in how long. It takes nothing and never waits: it is the cheap check before
// the work of authentication. It reserves nothing; [Limits.Attempt] decides.
func (l *Limits) FailuresLeft(key netip.Prefix, now time.Time) (wait time.Duration, ok bool) {
	if l.failures == nil {
		return 0, true
	}
	return l.failures.left(key, now)
}

// Attempt asks to try one credential of a client at this address. The caller
// may ask the verifier once Attempt has returned an [Attempt], which it must
// end.
//
// An address may have as many attempts under way as it has failure tokens, so
// that guessing in parallel gains nothing over guessing in turn. Further
// attempts wait, first come first served, until one under way is released, a
// token comes back, or ctx ends. The error is a [*BudgetError] when the
// failures are used up, at once or while waiting; otherwise it is ctx.Err().
func (l *Limits) Attempt(ctx context.Context, key netip.Prefix) (*Attempt, error) {
	if l.failures == nil {
		return new(Attempt), nil
	}
	return l.failures.begin(ctx, key)
}

// SessionsFull names the cap that leaves no room for a further session of this
// address, or "" if there is room. It takes nothing: it is the cheap check before
// authentication, when the subject is not known yet. [Limits.AcquireSlot] decides.
func (l *Limits) SessionsFull(key netip.Prefix) Cap {
	return l.sessions.full(key)
}

// AcquireSlot counts a session by its address, by its subject and in the total. If
// a cap is reached it counts nothing and returns the name of the cap. Sessions of
// the subject "", which is nobody's, count by address and in the total only.
// The caller must release the slot when the session has ended.
func (l *Limits) AcquireSlot(key netip.Prefix, subject string) (*Slot, Cap) {
	return l.sessions.acquire(key, subject)
}

// Policy is the value of the RateLimit-Policy header for upgrades of one
// address, such as `"upgrades";q=20;w=1`: 20 in a window of 1 second
// (draft-ietf-httpapi-ratelimit-headers). "" if they are not limited.
func (l *Limits) Policy() string { return l.policy }

// RequestPolicy is the same for plain requests of one address.
func (l *Limits) RequestPolicy() string { return l.requestPolicy }
