package session

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/frame"
	"portcullis/proxy/lease"
	"portcullis/proxy/relay"
)

// credential is what a session lives by.
type credential struct {
	lease lease.Lease
	grant auth.Grant // without its token where that is not to be verified again; guarded by the control's mu
}

// holder is a session as its lease sees it.
type holder Session

// leaseEndings are what both sides get when a lease ends.
var leaseEndings = map[lease.EndReason]ending{
	lease.Expired:     {relay.Expired, relay.Closing{Code: frame.CodeUnauthorized, Reason: "token expired"}},
	lease.Revoked:     {relay.Revoked, relay.Closing{Code: frame.CodeUnauthorized, Reason: "token revoked"}},
	lease.Unavailable: {relay.AuthUnavailable, relay.Closing{Code: frame.CodeTryAgain, Reason: "authentication unavailable"}},
}

// LeaseEnded tells both sides.
func (h *holder) LeaseEnded(why lease.EndReason) { h.control.end(leaseEndings[why]) }

// VerifyAgain asks about the credential that the session lives by now. Another subject than the session's means that the
// credential is another's by now, which ends the session.
func (h *holder) VerifyAgain(ctx context.Context) (lease.Terms, error) {
	s := (*Session)(h)
	m := s.manager
	s.control.mu.Lock()
	grant := s.control.credential.grant
	s.control.mu.Unlock()
	decision, err := m.verifier.VerifyAgain(ctx, grant.Credential)
	if err == nil && decision.Subject != s.Subject {
		err = &auth.RefusedError{Cause: errors.New("it names another subject now")}
	}
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelDebug, "not verified again", slog.String("subject", s.Subject), slog.Any("error", err))
	}
	if _, unavailable := errors.AsType[*auth.UnavailableError](err); unavailable {
		m.warn.outage.Do(func() { m.log.Warn("sessions cannot be verified again, and end if that lasts", "error", err) })
	}
	_, refused := errors.AsType[*auth.RefusedError](err)
	_, denied := errors.AsType[*auth.DeniedError](err)
	if refused || denied {
		err = lease.ErrRefused
	}
	if err == nil {
		if wrong := m.regroup(s, decision); wrong != nil {
			m.warn.groups.Do(func() {
				m.log.Warn("a session keeps its groups: those of its recheck cannot be used", "session", s.ID, "error", wrong)
			})
		}
	}
	return terms(decision), err
}

// kept is what a session keeps of its grant: no token of which the verifier could say nothing new.
func kept(g auth.Grant) auth.Grant {
	if g.Final {
		g.Credential = auth.Credential{}
	}
	g.Groups, g.Claims, g.Headers = nil, nil, nil // which were used when it was opened
	return g.Clone()
}

func terms(d auth.Decision) lease.Terms {
	return lease.Terms{Until: d.Until, Expires: d.Expires, Final: d.Final}
}

// End is when a session with that decision ends unless it is verified again or renewed; zero: never.
func End(d auth.Decision) time.Time { return terms(d).End() }
