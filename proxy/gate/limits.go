package gate

import (
	"fmt"
	"net/http"
	"time"

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
	now := time.Now()
	if wait, ok := g.Limits.UpgradeFromAddress(r.Key, now); !ok {
		return &refusal.Refusal{Reason: refusal.RateAddress, RetryAfter: wait, Header: http.Header{
			"RateLimit-Policy": {g.Limits.Policy()},
			"RateLimit":        {fmt.Sprintf(`"upgrades";r=0;t=%d`, refusal.Seconds(wait))},
		}}
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
	for scope == ratelimit.CapAddress && g.Sessions.EvictDetachedOfAddress(u.Key) ||
		scope == ratelimit.CapSubject && g.Sessions.EvictDetachedOfSubject(u.grant.Subject) {
		slot, scope = g.Limits.AcquireSlot(u.Key, u.grant.Subject)
	}
	u.slot = slot
	return capRefusal(scope)
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
func (g *Gate) checkRates(u *upgrade) *refusal.Refusal  { return g.CheckRates(u.Request) }
