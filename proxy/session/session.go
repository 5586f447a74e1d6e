package session

import (
	"cmp"
	"context"
	"log/slog"
	"sync"

	"portcullis/proxy/admin"
	"portcullis/proxy/relay"
	"portcullis/ratelimit"
)

// Info says which session it is. Its strings are copies: one that pointed into the request would keep all of it alive.
type Info struct {
	ID       string // 26 characters of base32, 128 random bits; not a secret
	Subject  string
	Client   string // its address
	Path     string
	Upstream string // host and port
	Route    string // as the settings name it; empty: there is only one
}

func (s *Session) attrs() []slog.Attr {
	attrs := append(make([]slog.Attr, 0, 13), // and those of its end
		slog.String("session", s.ID),
		slog.String("subject", s.Subject),
		slog.String("client", s.Address()),
		slog.String("path", s.Path),
		slog.String("upstream", s.Upstream),
	)
	if s.Route != "" {
		attrs = append(attrs, slog.String("route", s.Route))
	}
	return attrs
}

// Session is one client's connection to an upstream, from its upgrade to its end. There are as many as open connections, so
// it is small.
type Session struct {
	Info
	manager *Manager
	limits  *Limits
	slot    *ratelimit.Slot
	control *control   // nil: nothing can be done with it but to wait for its end
	entry   *entry     // its place in the registry; nil: there is none
	resume  *resumable // nil: it ends with its client's connection
}

// control is by what a session is found, verified again, spoken to and ended.
type control struct {
	credential *credential // nil: it neither ends nor is verified again nor can be renewed
	history    *position   // in the history of pushes; nil: the client did not ask for it

	mu      sync.Mutex // guards the credential's grant, and what follows
	live    relay.Session
	waiting *waiting // nil: nothing
}

// waiting is what was decided about a session before the relay had it.
type waiting struct {
	ending *ending       // why it is to end; nil: it is not
	early  []*relay.Push // what it is to get first
}

// wait has a session end, or get a push, as soon as the relay has it. It reports false where it is to end already. The caller holds
// mu, and the relay does not have the session.
func (c *control) wait(e *ending, p *relay.Push) bool {
	if c.waiting == nil {
		c.waiting = new(waiting)
	}
	w := c.waiting
	if w.ending != nil {
		return false
	}
	if w.ending = e; p != nil {
		w.early = append(w.early, p)
	}
	return true
}

// ending is why a session ends, and what both sides are told.
type ending struct {
	reason  relay.Reason
	closing relay.Closing
}

// Start hands both connections to the relay, which owns them and the session's slot from here on. The session may be over before
// Start returns. h.Ended, h.Recipient, h.Pushes and h.Resume are set here. first is what the client of a resumable session gets
// before anything else: it comes when the session can be returned to.
func (s *Session) Start(h relay.Handover, first []byte) {
	m := s.manager
	m.metrics.SessionStarted(s.Route)
	if m.log.Enabled(context.Background(), slog.LevelDebug) {
		m.log.LogAttrs(context.Background(), slog.LevelDebug, "session started", s.attrs()...)
	}
	m.events.opened(s)
	h.Ended = s.ended
	h.Rules = cmp.Or(h.Rules, m.relay.Rules)
	if s.control == nil {
		m.relay.Start(h)
		return
	}
	m.publisher.Lock() // a push is before the start, and then the relay has it before it reads anything, or behind it
	h.Recipient, h.Pushes = (*recipient)(s), s.control.early()
	if r := s.resume; r != nil {
		h.Resume = &relay.Resumable{Owner: (*recipient)(s), Secret: *r.secret, First: first}
		r.secret = nil
	}
	if s.control.history != nil && !h.Rules.CanPush(h.Extensions) {
		m.history.skip(s) // it can be told nothing, of what was and of what comes
	}
	live := m.relay.Start(h)
	s.started(live)
	m.publisher.Unlock()
}

// early are the pushes that came before the relay had the session.
func (c *control) early() []*relay.Push {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return nil
	}
	return c.waiting.early
}

// started notes that the relay has the session. An end that was decided before comes now, and what it has missed.
func (s *Session) started(live relay.Session) {
	c := s.control
	c.mu.Lock()
	w := c.waiting
	c.live, c.waiting = live, nil
	c.mu.Unlock()
	switch {
	case w != nil && w.ending != nil:
		live.Close(w.ending.reason, w.ending.closing)
	case c.history != nil:
		s.manager.relay.Push(nil, []relay.Session{live}, []relay.Recipient{(*recipient)(s)})
	}
}

// end ends a session, or has it ended as soon as the relay has it.
func (c *control) end(e ending) {
	c.mu.Lock()
	live := c.live
	if live == nil {
		c.wait(&e, nil)
	}
	c.mu.Unlock()
	if live != nil {
		live.Close(e.reason, e.closing)
	}
}

// Release forgets a session that comes to nothing. Its slot stays its opener's.
func (s *Session) Release() {
	if s.control == nil {
		return
	}
	if s.manager.registry != nil {
		s.manager.registry.remove(s)
	}
	if s.resume != nil {
		s.manager.resumables.remove(s)
	}
	if c := s.control.credential; c != nil {
		s.manager.leases.Release(&c.lease)
	}
}

// ended is the end of a session: its slot is free again, and one line tells what it was.
func (s *Session) ended(e relay.End) {
	s.Release()
	s.slot.Release()
	s.manager.events.ended(s, e)
	s.manager.metrics.SessionEnded(admin.EndedSession{
		Route:            s.Route,
		Reason:           string(e.Reason),
		Code:             e.Code,
		Duration:         e.Duration,
		ClientMessages:   e.FromClient.Messages,
		ClientBytes:      e.FromClient.Bytes,
		UpstreamMessages: e.FromUpstream.Messages,
		UpstreamBytes:    e.FromUpstream.Bytes,
	})
	s.manager.log.LogAttrs(context.Background(), slog.LevelInfo, "session ended", append(s.attrs(),
		slog.String("reason", string(e.Reason)),
		slog.Int("code", e.Code),
		slog.Duration("duration", e.Duration),
		slog.Int64("client_messages", e.FromClient.Messages),
		slog.Int64("client_bytes", e.FromClient.Bytes),
		slog.Int64("upstream_messages", e.FromUpstream.Messages),
		slog.Int64("upstream_bytes", e.FromUpstream.Bytes),
	)...)
}
