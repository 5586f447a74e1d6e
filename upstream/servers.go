package upstream

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Servers is what is known of the servers behind several upstreams: how many sessions each has, how it is, and how many handshakes are
// under way. An upstream that takes another's place finds its servers as that one has left them. It is safe for concurrent use.
type Servers struct {
	mu        sync.Mutex              // guards what follows, the health and live of each server, and the endpoints of all upstreams
	all       map[uint64]*server      // by id
	addresses map[string][]netip.Addr // of targets whose names have several, as last looked up
}

// server is an address of a target, for all upstreams that have it.
type server struct {
	id      uint64 // a hash of the target and the address, the same in every process
	dials   atomic.Pointer[chan struct{}]
	waiting atomic.Int64 // for a place in dials

	health
	live    int
	users   int       // upstreams that have it
	checked time.Time // when its last health check began
}

// NewServers returns a Servers that knows none.
func NewServers() *Servers {
	return &Servers{all: make(map[uint64]*server), addresses: make(map[string][]netip.Addr)}
}

// enter returns the server of an address of a target, for an upstream that allows so many handshakes at once; leave has to follow. isNew
// says that it was not known. The caller holds mu.
func (s *Servers) enter(t *target, address string, maxDials int) (found *server, isNew bool) {
	id := xxhash.Sum64String(t.raw + "\x00" + address)
	found = s.all[id]
	if isNew = found == nil; isNew {
		found = &server{id: id}
		s.all[id] = found
	}
	if dials := found.dials.Load(); dials == nil || cap(*dials) != maxDials {
		dials := make(chan struct{}, maxDials)
		found.dials.Store(&dials) // those that are under way count in the old one
	}
	found.users++
	return found, isNew
}

// forget forgets a server that nobody has. The caller holds mu.
func (s *Servers) forget(e *server) {
	if e.users == 0 && e.live == 0 && s.all[e.id] == e {
		delete(s.all, e.id)
	}
}
