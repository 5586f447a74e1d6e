package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"portcullis/ratelimit"
)

// Scope names a limit of the fleet; "" is none.
type Scope string

// The limits.
const (
	RateAddress     Scope = "rate_address"
	Failures        Scope = "failures"
	RateGlobal      Scope = "rate_global"
	RateSubject     Scope = "rate_subject"
	SessionsAddress Scope = "sessions_address"
	SessionsSubject Scope = "sessions_subject"
	SessionsTotal   Scope = "sessions_total"
)

// Verdict is what the fleet says of an upgrade.
type Verdict struct {
	Scope Scope         // the limit that it has reached; "": none
	Wait  time.Duration // until that lets one more in; 0: nobody knows
}

// gcra is a rate in the two numbers of the algorithm, in milliseconds; 0, 0: no limit.
func gcra(r ratelimit.Rate, burst int) (every, room float64) {
	if r.N == 0 {
		return 0, 0
	}
	every = float64(r.Per) / float64(time.Millisecond) / float64(r.N)
	return every, every * float64(r.Burst(burst))
}

// Waiting reports whether this instance has no name in the fleet yet, because another process that may live has it: nobody would find
// the sessions that it took.
func (f *Fleet) Waiting() bool { return f.members.taken.Load() && !f.members.first.Load() }

// Admit counts an upgrade by its address and in total, and looks at the address's failures and at the caps, before its client is
// authenticated.
func (f *Fleet) Admit(ctx context.Context, address netip.Prefix) Verdict {
	a := address.String()
	l := f.limits.Load()
	everyAddress, burstAddress := gcra(l.UpgradesPerIP, l.UpgradesPerIPBurst)
	everyFailure, burstFailure := gcra(l.AuthFailuresPerIP, l.AuthFailuresPerIPBurst)
	everyAll, burstAll := gcra(l.Upgrades, l.UpgradesBurst)
	if everyAddress+everyFailure+everyAll == 0 && l.SessionsPerIP+l.Sessions == 0 {
		return Verdict{} // there is nothing to ask
	}
	answer, err := f.ask(ctx, admit,
		[]string{f.key("live"), f.key("rate:a", a), f.key("fail", a), f.key("rate:all"), f.key("cap:a", a), f.key("cap:all")},
		stale, everyAddress, burstAddress, everyFailure, burstFailure, everyAll, burstAll, l.SessionsPerIP, l.Sessions)
	if err != nil {
		return f.ownShare().admit(address, f.number("cap:a", a), f.number("cap:all"))
	}
	return verdictOf(answer)
}

// FailuresLeft looks at the failures of an address, and counts nothing.
func (f *Fleet) FailuresLeft(ctx context.Context, address netip.Prefix) Verdict {
	limits := f.limits.Load()
	every, burst := gcra(limits.AuthFailuresPerIP, limits.AuthFailuresPerIPBurst)
	if every == 0 {
		return Verdict{}
	}
	a := address.String()
	answer, err := f.ask(ctx, admit,
		[]string{f.key("live"), f.key("rate:a", a), f.key("fail", a), f.key("rate:all"), f.key("cap:a", a), f.key("cap:all")},
		stale, 0, 0, every, burst, 0, 0, 0, 0)
	if err != nil {
		if wait, ok := f.ownShare().limits.FailuresLeft(address, time.Now()); !ok {
			return Verdict{Failures, wait}
		}
		return Verdict{}
	}
	return verdictOf(answer)
}

// Entry is a client who is to have a place.
type Entry struct {
	Address netip.Prefix
	Subject string // empty: it has none
	Admit   bool   // what Admit asks has not been asked, and is in the same call
	Again   bool   // it has been counted before by its subject's rate
}

// Enter takes a place for a session of an authenticated client.
func (f *Fleet) Enter(ctx context.Context, e Entry) (p *Place, v Verdict) {
	l, address, subject := new(*f.limits.Load()), e.Address, e.Subject
	if !e.Admit {
		l.UpgradesPerIP.N, l.AuthFailuresPerIP.N, l.Upgrades.N = 0, 0, 0
	}
	if e.Again {
		l.UpgradesPerSubject.N = 0
	}
	a, s := address.String(), subjectKey(subject)
	if subject == "" {
		l.UpgradesPerSubject.N, l.SessionsPerSubject = 0, 0
	}
	every, burst := gcra(l.UpgradesPerSubject, l.UpgradesPerSubjectBurst)
	everyAddress, burstAddress := gcra(l.UpgradesPerIP, l.UpgradesPerIPBurst)
	everyFailure, burstFailure := gcra(l.AuthFailuresPerIP, l.AuthFailuresPerIPBurst)
	everyAll, burstAll := gcra(l.Upgrades, l.UpgradesBurst)
	p = &Place{fleet: f}
	keys := []string{f.key("cap:a", a), f.key("cap:s", s), f.key("cap:all")}
	for i, most := range []int{l.SessionsPerIP, l.SessionsPerSubject, l.Sessions} {
		if most > 0 {
			p.keys = append(p.keys, keys[i])
		}
	}
	p.address = f.key("cap:a", a)
	if len(p.keys) == 0 && every+everyAddress+everyFailure+everyAll == 0 {
		return p, Verdict{} // there is nothing to ask
	}
	ofShare := func(s *share) Verdict {
		return s.enter(e, f.counts.number(keys[0]), f.counts.number(keys[1]), f.counts.number(keys[2]))
	}
	alone := f.share.Load()
	if alone != nil { // Redis may answer, and not have what the others hold
		if v = ofShare(alone); v.Scope != "" {
			return nil, v
		}
	}
	var answer any
	var err error
	switch {
	case f.circuit.State() == gobreaker.StateOpen:
		err = gobreaker.ErrOpenState
		f.countAlone()
	case !f.counts.begin(f.timeout):
		err = errWriting
	default:
		defer f.counts.writing.RUnlock()
		_, ended := f.counts.numbers(keys)
		answer, err = f.ask(ctx, enter,
			[]string{f.key("live"), f.key("rate:s", s), keys[0], keys[1], keys[2], f.key("held", f.instance),
				f.key("rate:a", a), f.key("fail", a), f.key("rate:all")},
			stale, f.instance, every, burst, l.SessionsPerIP, l.SessionsPerSubject, l.Sessions,
			everyAddress, burstAddress, everyFailure, burstFailure, everyAll, burstAll, ended[0], ended[1], ended[2])
	}
	if err == nil && isLost(answer) {
		err = errLost
		f.countAlone()
		f.members.nudge()
	}
	switch {
	case err == nil:
		v = verdictOf(answer)
	case alone == nil:
		v = ofShare(f.ownShare())
	}
	switch {
	case v.Scope != "":
		return nil, v
	case err == errWriting:
		f.counts.tell(p.keys, 1) // when that is over
	default:
		f.counts.add(p.keys, 1)
	}
	return p, v
}

// errWriting says that all numbers are being written to Redis.
var errWriting = errors.New("the numbers are being written")

// errLost says that Redis has lost what was written there.
var errLost = errors.New("the instance is not known to Redis any more")

// isLost reports whether the answer of enter says so.
func isLost(answer any) bool {
	parts, _ := answer.([]any)
	return len(parts) == 2 && parts[0] == int64(-1)
}

// Failed counts a refused credential of an address.
func (f *Fleet) Failed(ctx context.Context, address netip.Prefix) {
	limits := f.limits.Load()
	every, burst := gcra(limits.AuthFailuresPerIP, limits.AuthFailuresPerIPBurst)
	if every == 0 {
		return
	}
	if _, err := f.ask(ctx, charge, []string{f.key("fail", address.String())}, every, burst); err != nil {
		f.ownShare().charge(ctx, address)
	}
}

func (f *Fleet) number(parts ...string) int64 { return f.counts.number(f.key(parts...)) }

// subjectKey keeps subjects of any length short, and out of Redis.
func subjectKey(subject string) string {
	sum := sha256.Sum256([]byte(subject))
	return hex.EncodeToString(sum[:16])
}

// verdictOf reads the answer of admit and enter. One that makes no sense refuses nothing: the instance's own limits have let it pass.
func verdictOf(answer any) Verdict {
	parts, _ := answer.([]any)
	if len(parts) != 2 {
		return Verdict{}
	}
	scope, ok := parts[0].(int64)
	wait, ok2 := parts[1].(int64)
	if !ok || !ok2 || scope < 0 || int(scope) >= len(scopes) {
		return Verdict{}
	}
	return Verdict{scopes[scope], time.Duration(wait) * time.Millisecond}
}

// Place is the place of one session in the caps of the fleet.
type Place struct {
	fleet *Fleet
	once  sync.Once

	mu      sync.Mutex // guards what follows
	keys    []string
	address string
}

// Release gives the place back. Only the first call counts.
func (p *Place) Release() {
	p.once.Do(func() {
		p.mu.Lock()
		keys := p.keys
		p.mu.Unlock()
		p.change(keys, -1)
	})
}

// Move counts the session at another address. Caps are not looked at: the instance's own are.
func (p *Place) Move(to netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	address := p.fleet.key("cap:a", to.String())
	for i, key := range p.keys {
		if key == p.address && address != key {
			p.change([]string{key}, -1)
			p.keys[i] = address
			p.change([]string{address}, 1)
		}
	}
	p.address = address
}

func (p *Place) change(keys []string, n int64) { p.fleet.counts.tell(keys, n) }

// share is this instance's part of the limits while Redis is away.
type share struct {
	of                              int // instances
	limits                          *ratelimit.Limits
	perAddress, perSubject, inTotal int64
}

// newShare returns the limits of one of n instances. Nothing is rounded down to none.
func newShare(c ratelimit.Config, n int) *share {
	part := func(most int) int64 { return int64((most + n - 1) / n) }
	return &share{n, ratelimit.Part(c, n), part(c.SessionsPerIP), part(c.SessionsPerSubject), part(c.Sessions)}
}

// ownShare is the present one, or for a single call that Redis did not answer one that is kept for such.
func (f *Fleet) ownShare() *share {
	if s := f.share.Load(); s != nil {
		return s
	}
	n := int(f.members.size.Load())
	if s := f.spare.Load(); s != nil && s.of == n {
		return s
	}
	s := newShare(*f.limits.Load(), n)
	f.spare.Store(s)
	return s
}

// SetLimits has the fleet hold to other limits from here on, as far as this instance goes.
func (f *Fleet) SetLimits(c ratelimit.Config) {
	f.limits.Store(&c)
	f.spare.Store(nil)
	if s := f.share.Load(); s != nil {
		f.share.CompareAndSwap(s, newShare(c, s.of))
	}
}

// charge counts a refused credential of an address.
func (s *share) charge(ctx context.Context, address netip.Prefix) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Millisecond) // nobody waits for the address's budget
	defer cancel()
	if attempt, err := s.limits.Attempt(ctx, address); err == nil {
		attempt.Charge()
		attempt.Release()
	}
}

func (s *share) admit(address netip.Prefix, ofAddress, ofAll int64) Verdict {
	now := time.Now()
	if wait, ok := s.limits.UpgradeFromAddress(address, now); !ok {
		return Verdict{RateAddress, wait}
	}
	if wait, ok := s.limits.FailuresLeft(address, now); !ok {
		return Verdict{Failures, wait}
	}
	if wait, ok := s.limits.UpgradeGlobal(now); !ok {
		return Verdict{RateGlobal, wait}
	}
	switch {
	case s.perAddress > 0 && ofAddress >= s.perAddress:
		return Verdict{Scope: SessionsAddress}
	case s.inTotal > 0 && ofAll >= s.inTotal:
		return Verdict{Scope: SessionsTotal}
	}
	return Verdict{}
}

func (s *share) enter(e Entry, ofAddress, ofSubject, ofAll int64) Verdict {
	if e.Admit {
		if v := s.admit(e.Address, 0, 0); v.Scope != "" {
			return v
		}
	}
	subject := e.Subject
	if !e.Again {
		if wait, ok := s.limits.UpgradeOfSubject(subject, time.Now()); !ok {
			return Verdict{RateSubject, wait}
		}
	}
	switch {
	case s.perAddress > 0 && ofAddress >= s.perAddress:
		return Verdict{Scope: SessionsAddress}
	case subject != "" && s.perSubject > 0 && ofSubject >= s.perSubject:
		return Verdict{Scope: SessionsSubject}
	case s.inTotal > 0 && ofAll >= s.inTotal:
		return Verdict{Scope: SessionsTotal}
	}
	return Verdict{}
}
