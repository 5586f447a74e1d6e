// Package ticket keeps a value, such as the verified credential of a client, under a random ticket that can be redeemed once.
//
// A browser can set no header on a WebSocket handshake, so a token would have to stand in the URL, where histories, logs and
// Referer headers keep it. A ticket may stand there: by the time somebody reads it, it has been used or has run out. Tickets
// are in the memory of one process, and only that process redeems them.
package ticket

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// Config is how many tickets a [Store] keeps, and for how long.
type Config struct {
	// TTL is how long a ticket can be redeemed. It must be positive.
	TTL time.Duration
	// BindAddress says that a ticket can be redeemed only from the address that it was issued to.
	BindAddress bool
	// Total and PerOwner bound the tickets that are neither redeemed nor expired: all of them, and those of one address or
	// one subject. They must be positive.
	Total, PerOwner int
}

// Owner says to whom a ticket is issued.
type Owner struct {
	Address netip.Prefix // as limits count addresses: an IPv6 /64 is one
	Subject string
}

// The errors of [Store.Issue]. A full store issues nothing rather than drop a ticket: a valid ticket must stay valid.
var (
	ErrOwner = errors.New("too many unused tickets of this owner")
	ErrTotal = errors.New("too many unused tickets")
)

// size is the length of a ticket's random part, in bytes: 256 bits.
const size = 32

// encoding refuses other spellings of the same bytes.
var encoding = base64.RawURLEncoding.Strict()

// Store keeps a V for each ticket. It is safe for concurrent use, and its methods take the same time however many tickets
// there are. A full store takes Total times some 400 bytes, and what the Vs hold.
type Store[V any] struct {
	config Config

	mu        sync.Mutex // guards what follows
	tickets   map[[sha256.Size]byte]*list.Element
	queue     list.List // of *entry[V]; those issued first expire first
	addresses map[netip.Prefix]int
	subjects  map[string]int
	timer     *time.Timer // runs expire when the first of the queue expires; stopped when there is none
}

type entry[V any] struct {
	// key is the hash of the ticket. So the time of a look-up reveals nothing about the tickets, and whoever reads this
	// memory cannot redeem any.
	key     [sha256.Size]byte
	owner   Owner
	expires time.Time
	value   V
}

// New returns an empty Store.
func New[V any](c Config) *Store[V] {
	s := &Store[V]{
		config:    c,
		tickets:   make(map[[sha256.Size]byte]*list.Element),
		addresses: make(map[netip.Prefix]int),
		subjects:  make(map[string]int),
	}
	s.timer = time.AfterFunc(c.TTL, s.expire)
	s.timer.Stop()
	return s
}

// Close forgets all tickets.
func (s *Store[V]) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
	for s.queue.Len() > 0 {
		s.remove(s.queue.Front())
	}
}

// Issue returns a new ticket for v, 43 characters of base64url, and until when it can be redeemed.
func (s *Store[V]) Issue(o Owner, v V) (ticket string, until time.Time, err error) {
	var random [size]byte
	rand.Read(random[:]) // never fails (Go 1.24)

	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.queue.Len() >= s.config.Total:
		return "", time.Time{}, ErrTotal
	case s.addresses[o.Address] >= s.config.PerOwner, s.subjects[o.Subject] >= s.config.PerOwner:
		return "", time.Time{}, ErrOwner
	}
	h := &entry[V]{key: sha256.Sum256(random[:]), owner: o, expires: time.Now().Add(s.config.TTL), value: v}
	s.tickets[h.key] = s.queue.PushBack(h)
	s.addresses[o.Address]++
	s.subjects[o.Subject]++
	if s.queue.Len() == 1 {
		s.timer.Reset(s.config.TTL)
	}
	return encoding.EncodeToString(random[:]), h.expires, nil
}

// Redeem returns the value of a ticket, to one caller and once. With BindAddress, a ticket that comes from another address than
// its owner's has leaked: it is used up, and nobody gets the value.
func (s *Store[V]) Redeem(ticket string, from netip.Prefix) (v V, ok bool) {
	var random [size]byte
	if len(ticket) != encoding.EncodedLen(size) {
		return v, false
	}
	if n, err := encoding.Decode(random[:], []byte(ticket)); err != nil || n != size {
		return v, false
	}
	key := sha256.Sum256(random[:])

	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.tickets[key]
	if e == nil {
		return v, false
	}
	h := e.Value.(*entry[V])
	s.remove(e)
	if s.config.BindAddress && h.owner.Address != from || !time.Now().Before(h.expires) {
		return v, false
	}
	return h.value, true
}

// Len is how many tickets are neither redeemed nor expired.
func (s *Store[V]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.Len()
}

// expire forgets the tickets that have expired, and with them the credentials they stand for.
func (s *Store[V]) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.queue.Front(); e != nil; e = s.queue.Front() {
		if wait := time.Until(e.Value.(*entry[V]).expires); wait > 0 {
			s.timer.Reset(wait)
			return
		}
		s.remove(e)
	}
}

// remove forgets a ticket. The caller holds mu.
func (s *Store[V]) remove(e *list.Element) {
	h := s.queue.Remove(e).(*entry[V])
	delete(s.tickets, h.key)
	decrement(s.addresses, h.owner.Address)
	decrement(s.subjects, h.owner.Subject)
}

// decrement counts one down, and deletes a count of zero.
func decrement[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}
