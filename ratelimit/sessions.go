package ratelimit

import (
	"net/netip"
	"sync"
)

// Cap names a cap on open sessions; "" is no cap.
type Cap string

// The caps of [Config].
const (
	CapAddress Cap = "address" // SessionsPerIP
	CapSubject Cap = "subject" // SessionsPerSubject
	CapTotal   Cap = "total"   // Sessions
)

// sessions counts the open sessions.
type sessions struct {
	max int // of all together; 0: no cap

	mu        sync.Mutex // guards all below, and the released field of every slot
	total     int
	byAddress counts[netip.Prefix]
	bySubject counts[subjectKey]
}

// Slot counts one open session, until it is released.
type Slot struct {
	sessions   *sessions
	address    netip.Prefix // guarded by sessions.mu
	subject    subjectKey
	hasSubject bool // counted by subject too
	released   bool // guarded by sessions.mu
	followers  []Follower
}

// Follower is told what becomes of a slot.
type Follower interface {
	Release()
	Move(to netip.Prefix)
}

// Follow has a follower told. It is called before the slot is used by anybody else.
func (slot *Slot) Follow(f Follower) { slot.followers = append(slot.followers, f) }

func newSessions(c Config) *sessions {
	return &sessions{
		max:       c.Sessions,
		byAddress: newCounts[netip.Prefix](c.SessionsPerIP),
		bySubject: newCounts[subjectKey](c.SessionsPerSubject),
	}
}

func (s *sessions) full(address netip.Prefix) Cap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached(&Slot{address: address})
}

func (s *sessions) acquire(address netip.Prefix, subject string) (*Slot, Cap) {
	slot := &Slot{sessions: s, address: address}
	if subject != "" && s.bySubject.max > 0 {
		slot.subject, slot.hasSubject = keyOfSubject(subject), true
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if full := s.reached(slot); full != "" {
		return nil, full
	}
	s.total++
	s.byAddress.add(address)
	if slot.hasSubject {
		s.bySubject.add(slot.subject)
	}
	return slot, ""
}

// reached names the cap that leaves no room for this slot, or "". The client's own
// caps come before the total, which the client cannot change. The caller holds mu.
func (s *sessions) reached(slot *Slot) Cap {
	switch {
	case s.byAddress.full(slot.address):
		return CapAddress
	case slot.hasSubject && s.bySubject.full(slot.subject):
		return CapSubject
	case s.max > 0 && s.total >= s.max:
		return CapTotal
	}
	return ""
}

// Release gives the slot back. It may be called from any goroutine and any
// number of times; only the first counts.
func (slot *Slot) Release() {
	s := slot.sessions
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot.released {
		return
	}
	for _, f := range slot.followers {
		defer f.Release()
	}
	slot.released = true
	s.total--
	s.byAddress.remove(slot.address)
	if slot.hasSubject {
		s.bySubject.remove(slot.subject)
	}
}

// Address is where the session is counted.
func (slot *Slot) Address() netip.Prefix {
	slot.sessions.mu.Lock()
	defer slot.sessions.mu.Unlock()
	return slot.address
}

// Move counts the session at another address. undo counts it where it was, whatever the cap there; ok is false where the cap of
// the other address leaves no room, and nothing has changed.
func (slot *Slot) Move(to netip.Prefix) (undo func(), ok bool) {
	s := slot.sessions
	s.mu.Lock()
	defer s.mu.Unlock()
	from := slot.address
	if from == to || slot.released {
		return func() {}, true
	}
	if s.byAddress.full(to) {
		return nil, false
	}
	slot.move(to)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slot.released && slot.address == to {
			slot.move(from)
		}
	}, true
}

// move is called with mu held.
func (slot *Slot) move(to netip.Prefix) {
	slot.sessions.byAddress.add(to)
	slot.sessions.byAddress.remove(slot.address)
	slot.address = to
	for _, f := range slot.followers {
		f.Move(to)
	}
}

// counts are the numbers of sessions by key. It holds only keys that have sessions,
// and nothing if there is no cap.
type counts[K comparable] struct {
	max int // 0: no cap
	n   map[K]int
}

func newCounts[K comparable](max int) counts[K] {
	return counts[K]{max: max, n: make(map[K]int)}
}

func (c counts[K]) full(key K) bool {
	return c.max > 0 && c.n[key] >= c.max
}

func (c counts[K]) add(key K) {
	if c.max > 0 {
		c.n[key]++
	}
}

func (c counts[K]) remove(key K) {
	if c.max == 0 {
		return
	}
	c.n[key]--
	if c.n[key] == 0 {
		delete(c.n, key)
	}
}
