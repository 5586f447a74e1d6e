package gate

import (
	"cmp"
	"context"
	"errors"
	"net/http"

	"portcullis/proxy/auth"
	"portcullis/proxy/fleet"
	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// authenticate finds the credential and has it verified. Every refused credential is charged to the address, malformed ones too.
func (g *Gate) authenticate(u *upgrade) *refusal.Refusal {
	if !u.route.needsCredential() {
		u.grant.Pseudonym = true // whose session it is nobody can show later
		return nil
	}
	credential, err := u.route.auth.Find(u.withResumption())
	ticket, err := g.findTicket(u, err)
	missing := errors.Is(err, auth.ErrMissing)
	if missing && (u.route.first == nil || u.plain) {
		return cmp.Or(g.admitUnasked(u), &refusal.Refusal{Reason: refusal.TokenMissing, Header: refusal.Challenge("")})
	}
	attempt, no := g.attempt(u.Request)
	if no != nil {
		return no
	}
	defer attempt.Release()
	if missing {
		// The attempt lasts from before the socket is open: an address has no more open than it may have failures.
		if credential.Token, no = g.receiveToken(u); no != nil {
			if u.switched() && no.Reason != refusal.Draining {
				g.chargeFailure(u.Request, attempt) // else sockets that stay silent would cost nothing
			}
			return no
		}
		err = auth.CheckToken(credential.Token)
	}
	if err == nil {
		// The verifier is asked to the end even if the client leaves meanwhile: who could guess and hang up would guess for nothing.
		u.grant.Credential = credential.WithForwarded(u.Forwarded)
		if ticket != "" {
			err = g.redeem(u, ticket)
		} else {
			u.grant.Decision, err = u.route.auth.Verify(g.Base, u.grant.Credential)
		}
	}
	switch {
	case err != nil:
		if no := g.admitUnasked(u); no != nil {
			return no // and the client does not learn what its credential is
		}
		return g.charge(u.Request, attempt, g.tokenRefusal(u.Request, err))
	case u.HTTP.Context().Err() != nil:
		return g.contextRefusal(u.HTTP.Context().Err())
	}
	u.subject = u.grant.Subject
	return nil
}

// Bearer verifies the token in the Authorization header, as authenticate does that of an upgrade, and then calls use with it. A
// refusal of the credential is charged to the address, whichever of the two returns it.
func (g *Gate) Bearer(r *Request, use func(auth.Grant) *refusal.Refusal) *refusal.Refusal {
	credential, err := auth.Bearer(r.HTTP)
	if errors.Is(err, auth.ErrMissing) {
		return &refusal.Refusal{Reason: refusal.TokenMissing, Header: refusal.Challenge("")}
	}
	attempt, no := g.attempt(r)
	if no != nil {
		return no
	}
	defer attempt.Release()
	grant := auth.Grant{Credential: credential}
	if err == nil {
		grant.Decision, err = g.Auth.Verify(g.Base, credential)
	}
	if err != nil {
		return g.charge(r, attempt, g.tokenRefusal(r, err))
	}
	r.subject = grant.Subject
	if no = g.checkSubject(grant.Subject); no == nil {
		no = use(grant)
	}
	return g.charge(r, attempt, no)
}

// Try has a request try a credential in a way of its own: try reports whether the credential was refused, which is charged to the
// address as in an upgrade.
func (g *Gate) Try(r *Request, try func() (refused bool)) *refusal.Refusal {
	attempt, no := g.attempt(r)
	if no != nil {
		return no
	}
	defer attempt.Release()
	if try() {
		g.chargeFailure(r, attempt)
	}
	return nil
}

// charge charges an attempt for a refusal of its credential, and returns that refusal.
func (g *Gate) charge(r *Request, attempt *ratelimit.Attempt, no *refusal.Refusal) *refusal.Refusal {
	if no != nil && no.Reason.ChargesFailure() {
		g.chargeFailure(r, attempt)
	}
	return no
}

// chargeFailure charges an attempt to its address, here and in the fleet.
func (g *Gate) chargeFailure(r *Request, attempt *ratelimit.Attempt) {
	attempt.Charge()
	if g.Fleet != nil {
		g.Fleet.Failed(r.HTTP.Context(), r.Key)
	}
}

// attempt waits until the address may try another credential, up to AUTH_TIMEOUT.
func (g *Gate) attempt(r *Request) (*ratelimit.Attempt, *refusal.Refusal) {
	ctx, cancel := context.WithTimeout(r.HTTP.Context(), g.authTimeout)
	defer cancel()
	attempt, err := g.Limits.Attempt(ctx, r.Key)
	if err == nil {
		return attempt, nil
	}
	if spent, ok := errors.AsType[*ratelimit.BudgetError](err); ok {
		return nil, &refusal.Refusal{Reason: refusal.AuthFailures, RetryAfter: spent.Wait}
	}
	if r.HTTP.Context().Err() != nil {
		return nil, g.contextRefusal(err)
	}
	// The verifier is busy with as many credentials of this address as may still fail.
	return nil, &refusal.Refusal{Reason: refusal.AuthFailures, Err: err, RetryAfter: g.authTimeout}
}

// tokenRefusal is the refusal of a credential, with the challenge of RFC 6750 section 3.1.
func (g *Gate) tokenRefusal(r *Request, err error) *refusal.Refusal {
	if malformed, ok := errors.AsType[*auth.MalformedError](err); ok {
		no := &refusal.Refusal{Reason: refusal.TokenMalformed, Detail: malformed.Reason, Header: refusal.Challenge("invalid_token")}
		if malformed.Request {
			no.Status, no.Header = http.StatusBadRequest, refusal.Challenge("invalid_request")
		}
		return no
	}
	if refused, ok := errors.AsType[*auth.RefusedError](err); ok {
		return &refusal.Refusal{Reason: refusal.TokenRefused, Err: err, Header: refusal.Challenge("invalid_token", refused.Challenge...)}
	}
	if denied, ok := errors.AsType[*auth.DeniedError](err); ok {
		// RFC 9110 section 11.6.1: a challenge belongs to 401. RFC 6750 section 3.1 has one here, too, which the verifier then made.
		no := &refusal.Refusal{Reason: refusal.TokenDenied, Err: err}
		if len(denied.Challenge) > 0 {
			no.Header = refusal.Challenge("", denied.Challenge...)
		}
		return no
	}
	if errors.Is(err, fleet.ErrAway) {
		return &refusal.Refusal{Reason: refusal.FleetUnavailable, Err: err}
	}
	if errors.Is(err, auth.ErrConflict) {
		return &refusal.Refusal{Reason: refusal.TokenConflict, Header: refusal.Challenge("invalid_request")}
	}
	if Exhausted(err) {
		return &refusal.Refusal{Reason: refusal.Overload, Err: err}
	}
	// Before the client's leaving: clients that do not wait for AUTH_TIMEOUT must not hide a service that hangs.
	if unavailable, ok := errors.AsType[*auth.UnavailableError](err); ok {
		return &refusal.Refusal{Reason: refusal.AuthUnavailable, Err: err, RetryAfter: unavailable.RetryAfter}
	}
	if g.Base.Err() != nil || r.HTTP.Context().Err() != nil {
		return g.contextRefusal(err)
	}
	return &refusal.Refusal{Reason: refusal.AuthUnavailable, Err: err} // any other error means: not accepted
}

// contextRefusal is the refusal of a request whose context has ended: because the gate closes, or the client went away.
func (g *Gate) contextRefusal(err error) *refusal.Refusal {
	if g.Base.Err() != nil {
		return &refusal.Refusal{Reason: refusal.Draining, Err: err}
	}
	return &refusal.Refusal{Reason: refusal.ClientGone, Err: err}
}
