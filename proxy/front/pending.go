package front

import (
	"container/list"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pendingConns are the connections whose request has not come, or not all of it, and those that have been refused and are not
// closed yet. Such a connection holds a descriptor for up to headerTimeout before any limit applies. Beyond max the oldest is
// closed; an honest client is through within a round trip or two.
type pendingConns struct {
	max  int
	log  *slog.Logger
	warn rate.Sometimes

	mu    sync.Mutex
	conns list.List // of *trackedConn, the oldest first
}

// CapByDescriptors is at most n, and at most a quarter of the process's descriptors.
func CapByDescriptors(n int) int {
	if all := Descriptors(); all > 0 {
		n = min(n, max(all/4, 1))
	}
	return n
}

// newPendingConns leaves three quarters of the process's descriptors to those who have asked for something.
func newPendingConns(log *slog.Logger) *pendingConns {
	return &pendingConns{max: CapByDescriptors(math.MaxInt), log: log, warn: rate.Sometimes{Interval: time.Minute}}
}

// add takes a connection in that has just been accepted.
func (p *pendingConns) add(c socket, head *proxyHead) *trackedConn {
	m := &trackedConn{socket: c, head: head, pending: p}
	p.put(m)
	return m
}

// put takes c in, unless it is there or has been closed.
func (p *pendingConns) put(c *trackedConn) {
	p.mu.Lock()
	if c.element != nil || c.closed {
		p.mu.Unlock()
		return
	}
	c.element = p.conns.PushBack(c)
	full := p.conns.Len() > p.max
	if full {
		oldest := p.conns.Remove(p.conns.Front()).(*trackedConn)
		oldest.element, oldest.closed = nil, true
		oldest.socket.Close() // under mu: once it is free, the request on it may reach the handler, which finds it closed
	}
	p.mu.Unlock()
	if full {
		p.warn.Do(func() {
			p.log.Warn("too many connections that ask nothing: the oldest are closed", "most", p.max)
		})
	}
}

// remove lets go of a connection, for good if it is to be closed. It reports whether it was open until now. A second call
// changes nothing.
func (p *pendingConns) remove(c *trackedConn, closed bool) (open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	open = !c.closed
	c.closed = c.closed || closed
	if c.element != nil {
		p.conns.Remove(c.element)
		c.element = nil
	}
	return open
}

// Pending is how many connections have no request, or have been refused and are not closed yet.
func (s *Server) Pending() int {
	s.pending.mu.Lock()
	defer s.pending.mu.Unlock()
	return s.pending.conns.Len()
}
