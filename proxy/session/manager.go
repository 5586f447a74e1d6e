package session

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/lease"
	"portcullis/proxy/relay"
	"portcullis/ratelimit"
)

// Config is what a Manager needs.
type Config struct {
	// Renewal lets a session live on by another token of the same subject; it is then found by its id.
	Renewal bool `env:"RENEWAL" envDefault:"false"`
	// Hello sends a session's id, and when its credential ends, as a first text message. It needs Renewal.
	Hello bool `env:"SESSION_HELLO" envDefault:"false"`

	// Lease is how credentials are verified again. With Recheck above zero even those without an end are.
	Lease lease.Config `env:"-"`
	// Relay moves the bytes.
	Relay *relay.Relay `env:"-"`
	// Verifier is asked again about the credential of an open session. In the mode that has none it is never called.
	Verifier Verifier `env:"-"`
	// Logger gets one line per ended session. Nil: nothing is logged.
	Logger *slog.Logger `env:"-"`
	// Metrics counts.
	Metrics *admin.Metrics `env:"-"`
}

// Verifier verifies the credential of a client that was accepted and whose session is open. [*auth.Auth] is one; a gate with
// several routes has one for each.
type Verifier interface {
	VerifyAgain(context.Context, auth.Credential) (auth.Decision, error)
}

// Manager keeps the live sessions. It is safe for concurrent use.
type Manager struct {
	hello    bool
	recheck  bool // sessions are verified again even where the verifier's acceptance has no end
	relay    *relay.Relay
	leases   *lease.Keeper
	verifier Verifier
	log      *slog.Logger
	metrics  *admin.Metrics
	outage   rate.Sometimes // of the line in the log about sessions that cannot be verified again

	mu   sync.Mutex
	byID map[string]*Session // those that can be renewed; guarded by mu; nil: none can
}

// New returns a Manager without sessions.
func New(c Config) *Manager {
	m := &Manager{
		hello:    c.Hello,
		recheck:  c.Lease.Recheck > 0,
		relay:    c.Relay,
		leases:   lease.New(c.Lease),
		verifier: c.Verifier,
		log:      cmp.Or(c.Logger, slog.New(slog.DiscardHandler)),
		metrics:  c.Metrics,
		outage:   rate.Sometimes{Interval: time.Minute},
	}
	if c.Renewal {
		m.byID = make(map[string]*Session)
	}
	return m
}

// Open enters the session that an upgrade becomes. Its lease runs from here on, and it can be found by its id, since its client
// may renew it as soon as it knows that. Start or Release has to follow.
func (m *Manager) Open(i Info, g auth.Grant, slot *ratelimit.Slot) *Session {
	s := &Session{Info: i, manager: m, slot: slot}
	renewable := m.Renewable(g.Decision)
	if recheck := m.recheck && !g.Final; terms(g.Decision).End().IsZero() && !recheck && !renewable {
		return s
	}
	s.credential = &credential{session: s, grant: kept(g)}
	m.leases.Hold(&s.credential.lease, s.credential, terms(g.Decision))
	if renewable {
		m.mu.Lock()
		m.byID[s.ID] = s
		m.mu.Unlock()
	}
	return s
}

// kept is what a session keeps of its grant: no token of which the verifier could say nothing new.
func kept(g auth.Grant) auth.Grant {
	if g.Final {
		g.Credential = auth.Credential{}
	}
	return g.Clone()
}

// Renewable reports whether a session with that decision can be renewed: not if its subject is only a hash of its token.
func (m *Manager) Renewable(d auth.Decision) bool { return m.byID != nil && !d.Pseudonym }

// Renew lets the session of that id live on by another grant, and by no other. It reports false where there is no such session of
// the same subject, or it is ending.
func (m *Manager) Renew(id string, g auth.Grant) bool {
	s := m.find(id)
	if s == nil || g.Pseudonym || s.Subject != g.Subject {
		return false
	}
	c := s.credential
	c.mu.Lock()
	c.grant = kept(g)
	c.mu.Unlock()
	if !m.leases.Renew(&c.lease, terms(g.Decision)) {
		return false
	}
	m.log.LogAttrs(context.Background(), slog.LevelDebug, "session renewed", s.attrs()...)
	return true
}

// find returns nil for an id of no open session that can be renewed.
func (m *Manager) find(id string) *Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.byID[id]
}

func (m *Manager) remove(s *Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byID, s.ID)
}

// VerifyAgain asks about the credential that the session lives by now. Another subject than the session's means that the
// credential is another's by now, which ends the session.
func (c *credential) VerifyAgain(ctx context.Context) (lease.Terms, error) {
	s := c.session
	m := s.manager
	c.mu.Lock()
	grant := c.grant
	c.mu.Unlock()
	decision, err := m.verifier.VerifyAgain(ctx, grant.Credential)
	if err == nil && decision.Subject != s.Subject {
		err = &auth.RefusedError{Cause: errors.New("it names another subject now")}
	}
	if err != nil {
		m.log.LogAttrs(ctx, slog.LevelDebug, "not verified again", slog.String("subject", s.Subject), slog.Any("error", err))
	}
	if _, unavailable := errors.AsType[*auth.UnavailableError](err); unavailable {
		m.outage.Do(func() { m.log.Warn("sessions cannot be verified again, and end if that lasts", "error", err) })
	}
	_, refused := errors.AsType[*auth.RefusedError](err)
	_, denied := errors.AsType[*auth.DeniedError](err)
	if refused || denied {
		err = lease.ErrRefused
	}
	return terms(decision), err
}

func terms(d auth.Decision) lease.Terms {
	return lease.Terms{Until: d.Until, Expires: d.Expires, Final: d.Final}
}

// End is when a session with that decision ends unless it is verified again or renewed; zero: never.
func End(d auth.Decision) time.Time { return terms(d).End() }

// Drain ends all sessions with Close 1001, spread over that time; see [relay.Relay.Drain].
func (m *Manager) Drain(ctx context.Context, spread time.Duration) { m.relay.Drain(ctx, spread) }

// Wait returns nil once there is no session, and ctx's error when that ends first.
func (m *Manager) Wait(ctx context.Context) error { return m.relay.Wait(ctx) }

// Len is the number of live sessions.
func (m *Manager) Len() int { return m.relay.Len() }

// Held is how many sessions have something to be done about their credential, and how many can be found by their id.
func (m *Manager) Held() (leases, renewable int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leases.Len(), len(m.byID)
}

// Close ends all sessions at once, without a Close frame, waits for their ends until ctx does, and forgets all leases.
func (m *Manager) Close(ctx context.Context) {
	m.relay.Cut()
	m.relay.Wait(ctx)
	m.leases.Close()
}
