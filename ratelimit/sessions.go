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

// sessions holds the open sessions to caps.
type sessions struct {
	caps
	counts *openSessions // of which other caps may have been before
}

// caps are the most sessions. 0: no cap.
type caps struct{ total, perAddress, perSubject int }

// openSessions counts the open sessions.
type openSessions struct {
	mu        sync.Mutex // guards all below, and the released field of every slot
	total     int
	byAddress counts[netip.Prefix]
	bySubject counts[subjectKey]
}

// Slot counts one open session, until it is released.
type Slot struct {
	sessions      *openSessions
	address       netip.Prefix // guarded by sessions.mu
	subject       subjectKey
	hasAddress    bool // counted by address too
	mostOfAddress int  // the cap by which it was counted
	hasSubject    bool // counted by subject too
	released      bool // guarded by sessions.mu
	followers     []Follower
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
		caps:   caps{c.Sessions, c.SessionsPerIP, c.SessionsPerSubject},
		counts: &openSessions{byAddress: make(counts[netip.Prefix]), bySubject: make(counts[subjectKey])},
	}
}

func (s *sessions) full(address netip.Prefix) Cap {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	return s.reached(&Slot{address: address, hasAddress: s.perAddress > 0})
}

func (s *sessions) acquire(address netip.Prefix, subject string) (*Slot, Cap) {
	n := s.counts
	slot := &Slot{sessions: n, address: address, hasAddress: s.perAddress > 0, mostOfAddress: s.perAddress}
	if subject != "" && s.perSubject > 0 {
		slot.subject, slot.hasSubject = keyOfSubject(subject), true
	}

	n.mu.Lock()
	defer n.mu.Unlock()
	if full := s.reached(slot); full != "" {
		return nil, full
	}
	n.total++
	if slot.hasAddress {
		n.byAddress[address]++
	}
	if slot.hasSubject {
		n.bySubject[slot.subject]++
	}
	return slot, ""
}

// reached names the cap that leaves no room for this slot, or "". The client's own
// caps come before the total, which the client cannot change. The caller holds mu.
func (s *sessions) reached(slot *Slot) Cap {
	switch n := s.counts; {
	case slot.hasAddress && n.byAddress[slot.address] >= s.perAddress:
		return CapAddress
	case slot.hasSubject && n.bySubject[slot.subject] >= s.perSubject:
		return CapSubject
	case s.total > 0 && n.total >= s.total:
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
	if slot.hasAddress {
		s.byAddress.remove(slot.address)
	}
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
	if slot.hasAddress && s.byAddress[to] >= slot.mostOfAddress {
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
	if slot.hasAddress {
		slot.sessions.byAddress[to]++
		slot.sessions.byAddress.remove(slot.address)
	}
	slot.address = to
	for _, f := range slot.followers {
		f.Move(to)
	}
}

// counts are the numbers of sessions by key. It holds only keys that have sessions.
type counts[K comparable] map[K]int

func (c counts[K]) remove(key K) {
	if c[key]--; c[key] == 0 {
		delete(c, key)
	}
}
