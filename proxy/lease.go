package proxy

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"

	"portcullis/proxy/auth"
	"portcullis/proxy/frame"
	"portcullis/proxy/lease"
	"portcullis/proxy/relay"
)

// endings are what a session's end is called, and what both sides are told of it, when its lease ends.
var endings = map[lease.Why]struct {
	reason  relay.Reason
	closing relay.Closing
}{
	lease.Expired:     {relay.Expired, relay.Closing{Code: frame.CodeUnauthorized, Reason: "token expired"}},
	lease.Revoked:     {relay.Revoked, relay.Closing{Code: frame.CodeUnauthorized, Reason: "token revoked"}},
	lease.Unavailable: {relay.AuthUnavailable, relay.Closing{Code: frame.CodeTryAgain, Reason: "authentication unavailable"}},
}

// tenure ends a session when its credential does. Beside the lease it costs what is kept to ask about again: the token, of at
// most auth.MaxTokenBytes, or in mode forward the head of the request; nothing in mode jwt, where there is nothing to ask.
type tenure struct {
	lease.Lease

	mu   sync.Mutex    // guards what follows
	live relay.Session // nil: the relay does not have the session yet
	over *lease.Why    // it ended before that; nil: it has not
}

// newTenure returns the tenure of the session that u becomes; nil if its credential neither ends, nor is asked about again,
// nor can be renewed.
func (p *Proxy) newTenure(u *upgrade) *tenure {
	recheck := p.recheck && !u.decision.Final
	if termsOf(u.decision).End().IsZero() && !recheck && !p.renewable(u) {
		return nil
	}
	t := &tenure{}
	t.Ask, t.End = p.asker(u), t.end
	return t
}

// end tells both sides, or begin, where the relay does not have them yet.
func (t *tenure) end(why lease.Why) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.over = &why
		return
	}
	t.live.Close(endings[why].reason, endings[why].closing)
}

// begin notes that the relay has the session.
func (t *tenure) begin(live relay.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live = live; t.over != nil {
		live.Close(endings[*t.over].reason, endings[*t.over].closing)
	}
}

// hold hands the lease of the session that u becomes to the keeper. Start or release has to follow.
func (s *session) hold(u *upgrade) {
	p, t := s.proxy, s.tenure
	if t == nil {
		return
	}
	p.keeper.Hold(&t.Lease, termsOf(u.decision))
	if p.renewable(u) {
		p.renewals.add(s) // what can be found is held
	}
}

// start hands the session to the relay. It may be over before start returns.
func (s *session) start(h relay.Handover) {
	live := s.proxy.relay.Start(h)
	if s.tenure != nil {
		s.tenure.begin(live)
	}
}

// release forgets the lease of a session that is over, or comes to nothing.
func (s *session) release() {
	if s.tenure != nil {
		s.proxy.renewals.remove(s)
		s.proxy.keeper.Release(&s.tenure.Lease)
	}
}

// asker returns what asks about u's credential again. It holds nothing else of u. Another subject than u's means that the
// credential is another's by now, which is a no to the session.
func (p *Proxy) asker(u *upgrade) func(context.Context) (lease.Terms, error) {
	if u.decision.Final {
		return nil
	}
	credential, subject := u.credential, strings.Clone(u.decision.Subject)
	credential.Token = strings.Clone(credential.Token)
	return func(ctx context.Context) (lease.Terms, error) {
		decision, err := p.auth.VerifyAgain(ctx, credential)
		if err == nil && decision.Subject != subject {
			err = &auth.RefusedError{Cause: errors.New("it names another subject now")}
		}
		if err != nil {
			p.log.LogAttrs(ctx, slog.LevelDebug, "not verified again", slog.String("subject", subject), slog.Any("error", err))
		}
		if _, unavailable := errors.AsType[*auth.UnavailableError](err); unavailable {
			p.outage.Do(func() { p.log.Warn("sessions cannot be verified again, and end if that lasts", "error", err) })
		}
		_, refused := errors.AsType[*auth.RefusedError](err)
		_, denied := errors.AsType[*auth.DeniedError](err)
		if refused || denied {
			err = lease.ErrRefused
		}
		return termsOf(decision), err
	}
}

func termsOf(d auth.Decision) lease.Terms {
	return lease.Terms{Until: d.Until, Expires: d.Expires, Final: d.Final}
}
