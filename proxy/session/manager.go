package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
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
	// Renewal lets a session live on by another token of the same subject.
	Renewal bool `env:"RENEWAL" envDefault:"false" fixed:"true"`
	// Hello sends a session's id, when its credential ends and where the history of pushes stands, as a first text message. It
	// needs Renewal or History.
	Hello bool `env:"SESSION_HELLO" envDefault:"false" fixed:"true"`
	// Groups are the places from which a session has its groups: claim:NAME, a string or a list; auth:HEADER of the
	// verifier's answer, a list by comma; query:NAME, which the client chooses.
	Groups []string `env:"SESSION_GROUPS" needs:"ADMIN_TOKEN"`
	// History is how many pushes are kept for clients that come back, and for how long. Zero: none.
	History HistorySize `env:"PUSH_HISTORY" envDefault:"" needs:"ADMIN_TOKEN" fixed:"true"`

	// Listed has every session found by id, subject, group, path and address. Renewal does so, too.
	Listed bool `env:"-"`
	// Shared says that pushes have their ids from a fleet.
	Shared bool `env:"-"`
	// Instance names this process among others. Empty: the manager makes a name up.
	Instance string `env:"-"`
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
	rules      rules
	groups     atomic.Pointer[Groups]
	instance   string // this process, among others
	relay      *relay.Relay
	leases     *lease.Keeper
	registry   *registry // nil: sessions are not found
	keptOut    keptOut
	publisher  sync.Mutex // while one push is queued everywhere, no other begins
	history    *history   // nil: pushes are not kept
	events     *events
	resumables *resumables // nil: no session is resumable
	verifier   Verifier
	log        *slog.Logger
	metrics    *admin.Metrics
	warn       struct {
		outage    rate.Sometimes // sessions cannot be verified again
		forgotten rate.Sometimes // some are not resumable any more
		groups    rate.Sometimes // those that a recheck gave cannot be used
	}
}

// rules are what the settings say of sessions.
type rules struct {
	hello   bool // each begins with a message that says which it is
	renewal bool
	recheck bool // they are verified again even where the verifier's acceptance has no end
}

// New returns a Manager without sessions. The error joins every mistake in the settings, one a line.
func New(c Config) (*Manager, error) {
	groups, err := ParseGroups(c.Groups)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		rules:      rules{c.Hello, c.Renewal, c.Lease.Recheck > 0},
		instance:   cmp.Or(c.Instance, instanceName()),
		relay:      c.Relay,
		leases:     lease.New(c.Lease),
		history:    newHistory(c.History, c.Shared),
		events:     newEvents(),
		resumables: newResumables(c.Relay),
		verifier:   c.Verifier,
		log:        cmp.Or(c.Logger, slog.New(slog.DiscardHandler)),
		metrics:    c.Metrics,
	}
	m.SetGroups(groups)
	m.warn.outage.Interval, m.warn.groups.Interval, m.warn.forgotten.Interval = time.Minute, time.Minute, time.Minute
	if c.Renewal || c.Listed {
		m.registry = newRegistry()
	}
	return m, nil
}

// instanceName tells this process from others: the host's name and a random part.
func instanceName() string {
	host, _ := os.Hostname()
	return cmp.Or(host, "portcullis") + "-" + strings.ToLower(rand.Text()[:6])
}

// ErrKicked says that a subject is kept out for a while.
var ErrKicked = errors.New("the subject was kicked and is kept out")

// Opening is what a session begins with.
type Opening struct {
	Info
	Grant  auth.Grant
	Slot   *ratelimit.Slot
	Groups []string // see [Manager.Groups]
	// LastPush is the id of the last push that the client has seen, as its parameter says; empty: it wants those from now on.
	// Nil: it did not ask for ids.
	LastPush *string
	// Limits are told to the library of a client that may come back. Nil: there are none.
	Limits *Limits
	// Resumption is for a client that may come back. Nil: it did not offer to.
	Resumption *Resumption
}

// Open enters the session that an upgrade becomes. Its lease runs from here on, and it can be found, since its client may renew it
// as soon as it knows its id. Start or Release has to follow. The error is ErrKicked or nil.
func (m *Manager) Open(o Opening) (*Session, error) {
	s := &Session{Info: o.Info, manager: m, limits: o.Limits, slot: o.Slot}
	d := o.Grant.Decision
	recheck := m.rules.recheck && !d.Final
	leased := !terms(d).End().IsZero() || recheck || m.Renewable(d)
	resumable := o.Resumption != nil && m.resumables != nil
	if !leased && m.registry == nil && !resumable {
		return s, nil
	}
	s.control = &control{history: m.history.position(o.LastPush)}
	if leased {
		s.control.credential = &credential{grant: kept(o.Grant)}
	}
	if m.registry != nil {
		s.entry = &entry{groups: o.Groups}
	}
	if err := m.enter(s); err != nil {
		return nil, err
	}
	if c := s.control.credential; c != nil {
		m.leases.Hold(&c.lease, (*holder)(s), terms(d))
	}
	if resumable {
		m.resumables.add(s, o.Resumption)
	}
	return s, nil
}

// enter has a session found, unless its subject is kept out.
func (m *Manager) enter(s *Session) error {
	if m.registry == nil {
		return nil
	}
	m.registry.mu.Lock()
	defer m.registry.mu.Unlock()
	// Whoever keeps a subject out does so before he looks for its sessions, which takes the same lock.
	if m.keptOut.has(s.Subject, time.Now()) {
		return ErrKicked
	}
	m.registry.add(s)
	return nil
}

// Instance is the name of this process, among others.
func (m *Manager) Instance() string { return m.instance }

// Finds reports whether sessions are found at all.
func (m *Manager) Finds() bool { return m.registry != nil }

// Renewable reports whether a session with that decision can be renewed: not if its subject is only a hash of its token.
func (m *Manager) Renewable(d auth.Decision) bool { return m.rules.renewal && !d.Pseudonym }

// Renew lets the session of that id live on by another grant, and by no other. It reports false where there is no such session of
// the same subject, or it is ending. The error is a [*GroupsError]: the session is as it was.
func (m *Manager) Renew(id string, g auth.Grant) (renewed bool, err error) {
	s := m.find(id)
	if s == nil || g.Pseudonym || s.Subject != g.Subject || s.control.credential == nil {
		return false, nil
	}
	c := s.control.credential
	if err := m.regroup(s, g.Decision); err != nil {
		return false, err
	}
	s.control.mu.Lock()
	c.grant = kept(g)
	s.control.mu.Unlock()
	if !m.leases.Renew(&c.lease, terms(g.Decision)) {
		return false, nil
	}
	m.log.LogAttrs(context.Background(), slog.LevelDebug, "session renewed", s.attrs()...)
	return true, nil
}

// find returns nil for an id of no open session.
func (m *Manager) find(id string) *Session {
	m.registry.mu.Lock()
	defer m.registry.mu.Unlock()
	return m.registry.byID[id]
}

// Drain ends all sessions with Close 1001, spread over that time; see [relay.Relay.Drain].
func (m *Manager) Drain(ctx context.Context, spread time.Duration) { m.relay.Drain(ctx, spread) }

// Wait returns nil once there is no session, and ctx's error when that ends first.
func (m *Manager) Wait(ctx context.Context) error { return m.relay.Wait(ctx) }

// Len is the number of live sessions.
func (m *Manager) Len() int { return m.relay.Len() }

// Held is how many sessions have something to be done about their credential, and how many can be found.
func (m *Manager) Held() (leases, found int) {
	if m.registry == nil {
		return m.leases.Len(), 0
	}
	m.registry.mu.Lock()
	defer m.registry.mu.Unlock()
	return m.leases.Len(), len(m.registry.byID)
}

// Close ends all sessions at once, without a Close frame, waits for their ends until ctx does, and forgets all leases.
func (m *Manager) Close(ctx context.Context) {
	m.relay.Cut()
	m.relay.Wait(ctx)
	m.resumables.close()
	m.leases.Close()
	m.events.close()
}
