package gate

import (
	"fmt"
	"net/http"
	"time"

	"portcullis/proxy/fleet"
	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// CheckOrigin refuses a request that a page of another origin sent.
func (g *Gate) CheckOrigin(r *Request) *refusal.Refusal {
	if !g.Origins.Allows(r.HTTP.Header["Origin"]) {
		return &refusal.Refusal{Reason: refusal.Origin}
	}
	return nil
}

// CheckRates counts a request, by its address and in total, and refuses one too many. It also refuses an address that has used
// up its failed authentications.
func (g *Gate) CheckRates(r *Request) *refusal.Refusal {
	if no := g.checkOwnRates(r); no != nil || g.Fleet == nil {
		return no
	}
	if g.Fleet.Waiting() {
		return &refusal.Refusal{Reason: refusal.FleetUnavailable}
	}
	switch v := g.Fleet.Admit(r.HTTP.Context(), r.Key); v.Scope {
	case fleet.SessionsAddress, fleet.SessionsTotal:
		return nil // the caps of sessions are none of its matters
	default:
		return g.fleetRefusal(v)
	}
}

// fleetRefusal is the refusal for what the fleet says; nil: it says nothing.
func (g *Gate) fleetRefusal(v fleet.Verdict) *refusal.Refusal {
	switch v.Scope {
	case "":
		return nil
	case fleet.RateAddress:
		return g.rateRefusal(v.Wait)
	case fleet.Failures:
		return &refusal.Refusal{Reason: refusal.AuthFailures, RetryAfter: v.Wait}
	case fleet.RateGlobal:
		return &refusal.Refusal{Reason: refusal.RateGlobal, RetryAfter: v.Wait}
	case fleet.RateSubject:
		return &refusal.Refusal{Reason: refusal.RateSubject, RetryAfter: v.Wait}
	case fleet.SessionsAddress:
		return &refusal.Refusal{Reason: refusal.SessionsAddress}
	case fleet.SessionsSubject:
		return &refusal.Refusal{Reason: refusal.SessionsSubject}
	}
	return &refusal.Refusal{Reason: refusal.SessionsTotal}
}

// rateRefusal is that of an address with too many upgrades.
func (g *Gate) rateRefusal(wait time.Duration) *refusal.Refusal {
	return &refusal.Refusal{Reason: refusal.RateAddress, RetryAfter: wait, Header: http.Header{
		"RateLimit-Policy": {g.Limits.Policy()},
		"RateLimit":        {fmt.Sprintf(`"upgrades";r=0;t=%d`, refusal.Seconds(wait))},
	}}
}

// checkOwnRates is CheckRates of this instance alone: what is too much for one is too much for all.
func (g *Gate) checkOwnRates(r *Request) *refusal.Refusal {
	now := time.Now()
	if wait, ok := g.Limits.UpgradeFromAddress(r.Key, now); !ok {
		return g.rateRefusal(wait)
	}
	if wait, ok := g.Limits.FailuresLeft(r.Key, now); !ok {
		return &refusal.Refusal{Reason: refusal.AuthFailures, RetryAfter: wait}
	}
	if wait, ok := g.Limits.UpgradeGlobal(now); !ok {
		return &refusal.Refusal{Reason: refusal.RateGlobal, RetryAfter: wait}
	}
	return nil
}

// checkSessionCaps refuses early, before the verifier is asked, if no session slot is free.
func (g *Gate) checkSessionCaps(u *upgrade) *refusal.Refusal {
	scope := g.Limits.SessionsFull(u.Key)
	if scope == ratelimit.CapAddress && g.Sessions.HasDetached(u.Key) {
		return nil // which makes room once the client has been authenticated
	}
	return capRefusal(scope)
}

func capRefusal(scope ratelimit.Cap) *refusal.Refusal {
	switch scope {
	case "":
		return nil
	case ratelimit.CapAddress:
		return &refusal.Refusal{Reason: refusal.SessionsAddress}
	case ratelimit.CapSubject:
		return &refusal.Refusal{Reason: refusal.SessionsSubject}
	default:
		return &refusal.Refusal{Reason: refusal.SessionsTotal}
	}
}

// takeSlot takes the session's place before anything is dialled, and only for a client that has been authenticated. At the cap of
// its address or subject, the session ends first whose client has been away for longest.
func (g *Gate) takeSlot(u *upgrade) *refusal.Refusal {
	if no := g.checkSubject(u.grant.Subject); no != nil {
		return no
	}
	slot, scope := g.Limits.AcquireSlot(u.Key, u.grant.Subject)
	evicted := false
	for scope == ratelimit.CapAddress && g.Sessions.EvictDetachedOfAddress(u.Key) ||
		scope == ratelimit.CapSubject && g.Sessions.EvictDetachedOfSubject(u.grant.Subject) {
		evicted = true
		slot, scope = g.Limits.AcquireSlot(u.Key, u.grant.Subject)
	}
	u.slot = slot
	if scope != "" || g.Fleet == nil {
		return capRefusal(scope)
	}
	entry := fleet.Entry{Address: u.Key, Subject: u.grant.Subject, Admit: u.unasked}
	if evicted {
		g.Fleet.Settle()
	}
	place, v := g.Fleet.Enter(u.HTTP.Context(), entry)
	for v.Scope == fleet.SessionsAddress && g.Sessions.EvictDetachedOfAddress(u.Key) ||
		v.Scope == fleet.SessionsSubject && g.Sessions.EvictDetachedOfSubject(u.grant.Subject) {
		entry.Admit, entry.Again = false, true
		g.Fleet.Settle()
		place, v = g.Fleet.Enter(u.HTTP.Context(), entry)
	}
	if v.Scope != "" {
		return g.fleetRefusal(v) // the slot is given back with what else the upgrade holds
	}
	slot.Follow(place)
	return nil
}

// checkSubject refuses a subject that was kicked and is kept out, and one that comes too often.
func (g *Gate) checkSubject(subject string) *refusal.Refusal {
	if g.Sessions.KeptOut(subject) {
		return &refusal.Refusal{Reason: refusal.Kicked}
	}
	if wait, ok := g.Limits.UpgradeOfSubject(subject, time.Now()); !ok {
		return &refusal.Refusal{Reason: refusal.RateSubject, RetryAfter: wait}
	}
	return nil
}

func (g *Gate) checkOrigin(u *upgrade) *refusal.Refusal { return g.CheckOrigin(u.Request) }

// checkRates is CheckRates, and looks at the caps of the fleet, too, since it asks already. Where nobody is asked about the client the
// fleet is asked once, for all that it limits: when a place is taken, or when there is none to take.
func (g *Gate) checkRates(u *upgrade) *refusal.Refusal {
	if no := g.checkOwnRates(u.Request); no != nil || g.Fleet == nil {
		return no
	}
	if g.Fleet.Waiting() {
		return &refusal.Refusal{Reason: refusal.FleetUnavailable}
	}
	if u.unasked = u.route.first == nil && (!u.route.needsCredential() || u.route.auth.Local() || g.hasTicket(u)); u.unasked {
		return nil
	}
	return g.admit(u)
}

// admitUnasked is for an upgrade that is refused before it takes a place.
func (g *Gate) admitUnasked(u *upgrade) *refusal.Refusal {
	if !u.unasked {
		return nil
	}
	return g.admit(u)
}

// admit asks the fleet about rates. Those of plain requests are each instance's own.
func (g *Gate) admit(u *upgrade) *refusal.Refusal {
	if u.plain {
		return g.fleetRefusal(g.Fleet.FailuresLeft(u.HTTP.Context(), u.Key))
	}
	v := g.Fleet.Admit(u.HTTP.Context(), u.Key)
	if v.Scope == fleet.SessionsAddress && g.Sessions.HasDetached(u.Key) {
		return nil // see checkSessionCaps
	}
	return g.fleetRefusal(v)
}
