package session

import (
	"sync"
	"sync/atomic"

	"portcullis/proxy/relay"
)

// Event is something that has come to pass with a session.
type Event struct {
	Type    string  `json:"type"` // opened, ended or push_dropped
	Session Status  `json:"session"`
	Reason  string  `json:"reason,omitempty"`           // why it ended, or the push was dropped
	Code    int     `json:"code,omitempty"`             // of its end
	Seconds float64 `json:"duration_seconds,omitempty"` // that it lasted
}

const (
	maxSubscribers = 64
	maxEvents      = 4096 // that wait for one subscriber
)

// events tells subscribers what happens. It waits for none of them.
type events struct {
	any  atomic.Bool // there is a subscriber
	mu   sync.Mutex  // guards what follows
	all  map[*Subscription]struct{}
	shut bool
}

// Subscription gets events until it is closed, or falls behind.
type Subscription struct {
	events *events
	c      chan Event
	lost   bool // guarded by events.mu
}

func newEvents() *events { return &events{all: make(map[*Subscription]struct{})} }

// Subscribe returns a subscription to what happens from now on; nil: there are too many. Close has to follow.
func (m *Manager) Subscribe() *Subscription {
	e := m.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shut || len(e.all) >= maxSubscribers {
		return nil
	}
	s := &Subscription{events: e, c: make(chan Event, maxEvents)}
	e.all[s] = struct{}{}
	e.any.Store(true)
	return s
}

// Events are closed when the subscription has fallen behind, or the manager is closed.
func (s *Subscription) Events() <-chan Event { return s.c }

// Lost reports whether the subscription has fallen behind: there are events that it will not get.
func (s *Subscription) Lost() bool {
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	return s.lost
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	s.events.remove(s)
}

// remove ends a subscription. The caller holds mu.
func (e *events) remove(s *Subscription) {
	if _, there := e.all[s]; there {
		delete(e.all, s)
		e.any.Store(len(e.all) > 0)
		close(s.c)
	}
}

func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.shut = true
	for s := range e.all {
		e.remove(s)
	}
}

func (e *events) publish(v Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.all {
		select {
		case s.c <- v:
		default:
			s.lost = true
			e.remove(s)
		}
	}
}

// about is an event about a session, if anybody wants to know.
func (e *events) about(s *Session, typ string) (v Event, wanted bool) {
	if s.control == nil || s.manager.registry == nil || !e.any.Load() {
		return v, false
	}
	s.manager.registry.mu.Lock()
	defer s.manager.registry.mu.Unlock()
	return Event{Type: typ, Session: s.manager.status(s)}, true
}

func (e *events) opened(s *Session) {
	if v, wanted := e.about(s, "opened"); wanted {
		e.publish(v)
	}
}

func (e *events) ended(s *Session, end relay.End) {
	if v, wanted := e.about(s, "ended"); wanted {
		v.Reason, v.Code, v.Seconds = string(end.Reason), end.Code, float64(end.Duration.Milliseconds())/1000
		v.Session.FromClient, v.Session.FromUpstream = end.FromClient, end.FromUpstream
		e.publish(v)
	}
}

func (e *events) pushDropped(s *Session, why relay.Drop) {
	if v, wanted := e.about(s, "push_dropped"); wanted {
		v.Reason = string(why)
		e.publish(v)
	}
}
