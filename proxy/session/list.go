package session

import (
	"time"

	"portcullis/proxy/relay"
)

// Status is what a live session is, and what it has done so far.
type Status struct {
	ID           string        `json:"id"`
	Subject      string        `json:"subject"`
	Groups       []string      `json:"groups"`
	Address      string        `json:"address"`
	Path         string        `json:"path"`
	Upstream     string        `json:"upstream"`
	Route        string        `json:"route"` // empty: there is only one
	Instance     string        `json:"instance"`
	Since        Timestamp     `json:"since"`
	Expires      Timestamp     `json:"expires"`
	Detached     Timestamp     `json:"detached"` // since when the client is away; null: it is there
	FromClient   relay.Traffic `json:"from_client"`
	FromUpstream relay.Traffic `json:"from_upstream"`
}

// List returns up to limit sessions that f chooses, the oldest first, from behind a place on. next is the place for the
// following page; 0: there is none. Sessions that open meanwhile come last, those that end are left out, and none comes twice.
func (m *Manager) List(f Filter, limit int, after int64) (page []Status, next int64) {
	var live []relay.Session
	var at []int // whose each of live is
	m.registry.mu.Lock()
	for s := range m.registry.find(&f, after) {
		if len(page) == limit {
			next = time.Time(page[limit-1].Since).UnixNano()
			break
		}
		page = append(page, m.status(s))
		s.control.mu.Lock()
		if s.control.live != nil {
			live, at = append(live, s.control.live), append(at, len(page)-1)
		}
		s.control.mu.Unlock()
	}
	m.registry.mu.Unlock()
	fromClient, fromUpstream := m.relay.Traffic(live)
	for i, n := range at {
		page[n].FromClient, page[n].FromUpstream = fromClient[i], fromUpstream[i]
	}
	return page, next
}

// status is that of a session, but for its traffic. The caller holds the registry's mu.
func (m *Manager) status(s *Session) Status {
	st := Status{
		ID: s.ID, Subject: s.Subject, Groups: s.entry.groups, Address: s.Address(), Path: s.Path, Upstream: s.Upstream, Route: s.Route,
		Instance: m.instance, Since: Timestamp(time.Unix(0, s.entry.order)),
	}
	if st.Groups == nil {
		st.Groups = []string{}
	}
	if c := s.control.credential; c != nil {
		st.Expires = Timestamp(m.leases.End(&c.lease))
	}
	if s.resume != nil {
		st.Detached = Timestamp(m.resumables.detachedSince(s))
	}
	return st
}
