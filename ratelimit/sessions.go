package ratelimit

import (
	"net/netip"
	"sync"
)

// Scope names a cap on open sessions; "" is no cap.
type Scope string

// The caps of [Config].
const (
	ScopeAddress Scope = "address" // SessionsPerIP
	ScopeSubject Scope = "subject" // SessionsPerSubject
	ScopeTotal   Scope = "total"   // Sessions
)

// sessions counts the open sessions.
type sessions struct {
	max int // of all together; 0: no cap

	mu        sync.Mutex // guards all below, and the released field of every slot
	total     int
	byAddress counts[netip.Prefix]
	bySubject counts[subjectKey]
}

// Slot is the place of one open session.
type Slot struct {
	sessions *sessions
	address  netip.Prefix
	subject  subjectKey
	named    bool // counted by subject
	released bool // guarded by sessions.mu
}

func newSessions(c Config) *sessions {
	return &sessions{
		max:       c.Sessions,
		byAddress: newCounts[netip.Prefix](c.SessionsPerIP),
		bySubject: newCounts[subjectKey](c.SessionsPerSubject),
	}
}

func (s *sessions) full(address netip.Prefix) Scope {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached(&Slot{address: address})
}

func (s *sessions) open(address netip.Prefix, subject string) (*Slot, Scope) {
	slot := &Slot{sessions: s, address: address}
	if subject != "" && s.bySubject.max > 0 {
		slot.subject, slot.named = keyOf(subject), true
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if scope := s.reached(slot); scope != "" {
		return nil, scope
	}
	s.total++
	s.byAddress.add(address)
	if slot.named {
		s.bySubject.add(slot.subject)
	}
	return slot, ""
}

// reached names the cap that leaves no room for this slot, or "". The client's
// own caps come before the total, which it can do nothing about. The caller holds mu.
func (s *sessions) reached(slot *Slot) Scope {
	switch {
	case s.byAddress.full(slot.address):
		return ScopeAddress
	case slot.named && s.bySubject.full(slot.subject):
		return ScopeSubject
	case s.max > 0 && s.total >= s.max:
		return ScopeTotal
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
	slot.released = true
	s.total--
	s.byAddress.remove(slot.address)
	if slot.named {
		s.bySubject.remove(slot.subject)
	}
}

// counts are sessions by key. It holds the keys that have any, and none at all
// where there is no cap to need them.
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
