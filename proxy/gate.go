package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// findClient never refuses. A second call changes nothing.
func (p *Proxy) findClient(u *upgrade) *refusal.Refusal {
	if u.client.Addr.IsValid() {
		return nil
	}
	u.client = p.clientIP.Resolve(clientip.ParsePeer(u.r.RemoteAddr), u.r.Header["X-Forwarded-For"])
	u.address = ratelimit.AddressKey(u.client.Addr)
	u.route = route(u.r, u.client)
	return nil
}

func (p *Proxy) checkOrigin(u *upgrade) *refusal.Refusal {
	if !p.origins.Allows(u.r.Header["Origin"]) {
		return &refusal.Refusal{Reason: refusal.Origin}
	}
	return nil
}

func (p *Proxy) checkRates(u *upgrade) *refusal.Refusal {
	now := time.Now()
	if wait, ok := p.limits.UpgradeFromAddress(u.address, now); !ok {
		return &refusal.Refusal{Reason: refusal.RateAddress, RetryAfter: wait, Header: http.Header{
			"RateLimit-Policy": {p.limits.Policy()},
			"RateLimit":        {fmt.Sprintf(`"upgrades";r=0;t=%d`, refusal.Seconds(wait))},
		}}
	}
	if wait, ok := p.limits.FailuresLeft(u.address, now); !ok {
		return &refusal.Refusal{Reason: refusal.AuthFailures, RetryAfter: wait}
	}
	if wait, ok := p.limits.UpgradeGlobal(now); !ok {
		return &refusal.Refusal{Reason: refusal.RateGlobal, RetryAfter: wait}
	}
	return nil
}

// checkRoom spares the verifier a client for whom there is no slot anyway.
func (p *Proxy) checkRoom(u *upgrade) *refusal.Refusal {
	return full(p.limits.SessionsFull(u.address))
}

func full(scope ratelimit.Scope) *refusal.Refusal {
	switch scope {
	case "":
		return nil
	case ratelimit.ScopeAddress:
		return &refusal.Refusal{Reason: refusal.SessionsAddress}
	case ratelimit.ScopeSubject:
		return &refusal.Refusal{Reason: refusal.SessionsSubject}
	default:
		return &refusal.Refusal{Reason: refusal.SessionsTotal}
	}
}

// authenticate finds the credential and asks the verifier about it. Every credential that is refused is charged to the
// address, also one that is refused by its looks.
func (p *Proxy) authenticate(u *upgrade) *refusal.Refusal {
	if !p.auth.Required() {
		return nil
	}
	credential, err := p.auth.Find(u.r)
	ticket, err := p.findTicket(u, err)
	missing := errors.Is(err, auth.ErrMissing)
	if missing && p.first == nil {
		return &refusal.Refusal{Reason: refusal.TokenMissing, Header: challenge("")}
	}
	attempt, no := p.attempt(u)
	if no != nil {
		return no
	}
	defer attempt.Release()
	if missing {
		// The attempt lasts from before the socket is open: an address has no more open than it may have failures.
		if credential.Token, no = p.receiveToken(u); no != nil {
			if u.open && no.Reason != refusal.Draining {
				attempt.Charge() // else sockets that stay silent would cost nothing
			}
			return no
		}
		err = auth.CheckToken(credential.Token)
	}
	if err == nil {
		u.credential = credential.Via(u.route)
		if ticket != "" {
			err = p.redeem(u, ticket)
		} else {
			u.decision, err = p.verify(u)
		}
	}
	switch {
	case err != nil:
		return charge(attempt, p.tokenRefusal(u, err))
	case u.r.Context().Err() != nil:
		return p.gone(u.r.Context().Err())
	}
	return nil
}

// attempt waits for the leave to try a credential, up to AUTH_TIMEOUT.
func (p *Proxy) attempt(u *upgrade) (*ratelimit.Attempt, *refusal.Refusal) {
	ctx, cancel := context.WithTimeout(u.r.Context(), p.authTimeout)
	defer cancel()
	attempt, err := p.limits.Attempt(ctx, u.address)
	if err == nil {
		return attempt, nil
	}
	if spent, ok := errors.AsType[*ratelimit.BudgetError](err); ok {
		return nil, &refusal.Refusal{Reason: refusal.AuthFailures, RetryAfter: spent.Wait}
	}
	if u.r.Context().Err() != nil {
		return nil, p.gone(err)
	}
	// The verifier is busy with as many credentials of this address as may still fail.
	return nil, &refusal.Refusal{Reason: refusal.AuthFailures, Err: err, RetryAfter: p.authTimeout}
}

// verify asks the verifier, and waits for its answer even if the client leaves meanwhile: who could guess and hang up would
// guess for nothing.
func (p *Proxy) verify(u *upgrade) (auth.Decision, error) {
	return p.auth.Verify(p.base, u.credential)
}

// observeAuth has the metrics know one call of the verifier.
func (p *Proxy) observeAuth(took time.Duration, err error) {
	_, unavailable := errors.AsType[*auth.UnavailableError](err)
	result := admin.AuthRefused
	switch {
	case err == nil:
		result = admin.AuthAccepted
	case exhausted(err):
		result = admin.AuthOverload
	case unavailable:
		result = admin.AuthUnavailable
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		result = admin.AuthAborted
	}
	p.metrics.AuthCall(result, took)
}

// tokenRefusal is the no to a credential, with the challenge of RFC 6750 section 3.1.
func (p *Proxy) tokenRefusal(u *upgrade, err error) *refusal.Refusal {
	if malformed, ok := errors.AsType[*auth.MalformedError](err); ok {
		no := &refusal.Refusal{Reason: refusal.TokenMalformed, Detail: malformed.Reason, Header: challenge("invalid_token")}
		if malformed.Request {
			no.Status, no.Header = http.StatusBadRequest, challenge("invalid_request")
		}
		return no
	}
	if refused, ok := errors.AsType[*auth.RefusedError](err); ok {
		return &refusal.Refusal{Reason: refusal.TokenRefused, Err: err, Header: challenge("invalid_token", refused.Challenge...)}
	}
	if denied, ok := errors.AsType[*auth.DeniedError](err); ok {
		// RFC 9110 section 11.6.1: a challenge belongs to 401. RFC 6750 section 3.1 has one here, too, which the verifier then made.
		no := &refusal.Refusal{Reason: refusal.TokenDenied, Err: err}
		if len(denied.Challenge) > 0 {
			no.Header = challenge("", denied.Challenge...)
		}
		return no
	}
	if errors.Is(err, auth.ErrConflict) {
		return &refusal.Refusal{Reason: refusal.TokenConflict, Header: challenge("invalid_request")}
	}
	if p.base.Err() != nil || u.r.Context().Err() != nil {
		return p.gone(err)
	}
	if exhausted(err) {
		return &refusal.Refusal{Reason: refusal.Overload, Err: err}
	}
	no := &refusal.Refusal{Reason: refusal.AuthUnavailable, Err: err} // whatever it is, it is no yes
	if unavailable, ok := errors.AsType[*auth.UnavailableError](err); ok {
		no.RetryAfter = unavailable.RetryAfter
	}
	return no
}

// challenge is WWW-Authenticate as of RFC 6750 section 3, without an error code where no credential was shown; or what the
// verifier challenged with.
func challenge(code string, verifiers ...string) http.Header {
	values := verifiers
	if len(values) == 0 {
		values = []string{`Bearer realm="portcullis"`}
		if code != "" {
			values[0] += `, error="` + code + `"`
		}
	}
	return http.Header{"WWW-Authenticate": values}
}

// gone is the no to a request whose context has ended: by Cut, or because the client went away.
func (p *Proxy) gone(err error) *refusal.Refusal {
	if p.base.Err() != nil {
		return &refusal.Refusal{Reason: refusal.Draining, Err: err}
	}
	return &refusal.Refusal{Reason: refusal.ClientGone, Err: err}
}

// takeSlot takes the session's place before anything is dialled, and only for a client that has been authenticated.
func (p *Proxy) takeSlot(u *upgrade) *refusal.Refusal {
	if no := p.checkSubjectRate(u); no != nil {
		return no
	}
	slot, scope := p.limits.Open(u.address, u.decision.Subject)
	u.slot = slot
	return full(scope)
}

func (p *Proxy) checkSubjectRate(u *upgrade) *refusal.Refusal {
	if wait, ok := p.limits.UpgradeOfSubject(u.decision.Subject, time.Now()); !ok {
		return &refusal.Refusal{Reason: refusal.RateSubject, RetryAfter: wait}
	}
	return nil
}
