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

// Admit counts an upgrade by its address and in total, and looks at the address's failures and at the caps, before its client is
// authenticated.
func (f *Fleet) Admit(ctx context.Context, address netip.Prefix) Verdict {
	a := address.String()
	l := &f.limits
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

// Enter takes a place for a session of an authenticated client. With admit it does first what Admit does, in the same call.
func (f *Fleet) Enter(ctx context.Context, address netip.Prefix, subject string, admit bool) (p *Place, v Verdict) {
	l := new(f.limits)
	if !admit {
		l.UpgradesPerIP.N, l.AuthFailuresPerIP.N, l.Upgrades.N = 0, 0, 0
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
	var answer any
	err := errWriting
	if f.circuit.State() != gobreaker.StateOpen && f.counts.begin(f.timeout) {
		defer f.counts.writing.RUnlock()
		answer, err = f.ask(ctx, enter,
			[]string{f.key("live"), f.key("rate:s", s), keys[0], keys[1], keys[2], f.key("held", f.instance),
				f.key("rate:a", a), f.key("fail", a), f.key("rate:all")},
			stale, f.instance, every, burst, l.SessionsPerIP, l.SessionsPerSubject, l.Sessions,
			everyAddress, burstAddress, everyFailure, burstFailure, everyAll, burstAll)
	}
	if err == nil {
		v = verdictOf(answer)
	} else {
		v = f.ownShare().enter(address, subject, admit, f.counts.number(keys[0]), f.counts.number(keys[1]), f.counts.number(keys[2]))
		f.counts.stale.Store(true)
	}
	if v.Scope != "" {
		return nil, v
	}
	f.counts.add(p.keys, 1)
	return p, v
}

// errWriting says that all numbers are being written to Redis.
var errWriting = errors.New("the numbers are being written")

// Failed counts a refused credential of an address.
func (f *Fleet) Failed(ctx context.Context, address netip.Prefix) {
	every, burst := gcra(f.limits.AuthFailuresPerIP, f.limits.AuthFailuresPerIPBurst)
	if every > 0 {
		f.ask(ctx, charge, []string{f.key("fail", address.String())}, every, burst)
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
	limits                          *ratelimit.Limits
	perAddress, perSubject, inTotal int64
}

// newShare returns the limits of one of n instances. Nothing is rounded down to none.
func newShare(c ratelimit.Config, n int) *share {
	part := func(most int) int { return (most + n - 1) / n }
	rate := func(r *ratelimit.Rate, burst *int) {
		*burst = part(r.Burst(*burst))
		r.Per *= time.Duration(n)
	}
	rate(&c.UpgradesPerIP, &c.UpgradesPerIPBurst)
	rate(&c.UpgradesPerSubject, &c.UpgradesPerSubjectBurst)
	rate(&c.Upgrades, &c.UpgradesBurst)
	rate(&c.AuthFailuresPerIP, &c.AuthFailuresPerIPBurst)
	limits, err := ratelimit.New(c)
	if err != nil { // what was good for all is good for a part
		limits, _ = ratelimit.New(ratelimit.Config{})
	}
	return &share{limits, int64(part(c.SessionsPerIP)), int64(part(c.SessionsPerSubject)), int64(part(c.Sessions))}
}

// ownShare is the present one. Where Redis is back at this very moment it is made anew.
func (f *Fleet) ownShare() *share {
	if s := f.share.Load(); s != nil {
		return s
	}
	return newShare(f.limits, int(f.members.size.Load()))
}

func (s *share) admit(address netip.Prefix, ofAddress, ofAll int64) Verdict {
	now := time.Now()
	if wait, ok := s.limits.UpgradeFromAddress(address, now); !ok {
		return Verdict{RateAddress, wait}
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

func (s *share) enter(address netip.Prefix, subject string, admit bool, ofAddress, ofSubject, ofAll int64) Verdict {
	if admit {
		if v := s.admit(address, 0, 0); v.Scope != "" {
			return v
		}
	}
	if wait, ok := s.limits.UpgradeOfSubject(subject, time.Now()); !ok {
		return Verdict{RateSubject, wait}
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
