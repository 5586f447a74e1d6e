package proxy

import (
	"container/list"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// waiting is the connections whose request has not come, or not all of it, and those that have been refused and are not
// closed yet. Each costs a descriptor, for as long as headerTimeout and before any limit has counted it, so that all
// together have a bound: where they are more, the one that has been there for longest makes room. A client that means it
// is through within a round trip or two.
type waiting struct {
	most int
	log  *slog.Logger
	tell rate.Sometimes

	mu    sync.Mutex
	conns list.List // of *markedConn, the oldest first
}

// share is at most n, and at most a quarter of the process's descriptors.
func share(n int) int {
	if all := Descriptors(); all > 0 {
		n = min(n, max(all/4, 1))
	}
	return n
}

// newWaiting leaves three quarters of the process's descriptors to those who have asked for something.
func newWaiting(log *slog.Logger) *waiting {
	return &waiting{most: share(math.MaxInt), log: log, tell: rate.Sometimes{Interval: time.Minute}}
}

// add takes a connection in that has just been accepted.
func (w *waiting) add(c *net.TCPConn) *markedConn {
	m := &markedConn{TCPConn: c, waiting: w}
	w.put(m)
	return m
}

// put takes m in, unless it is there or has been closed.
func (w *waiting) put(m *markedConn) {
	w.mu.Lock()
	if m.place != nil || m.closed {
		w.mu.Unlock()
		return
	}
	m.place = w.conns.PushBack(m)
	full := w.conns.Len() > w.most
	if full {
		oldest := w.conns.Remove(w.conns.Front()).(*markedConn)
		oldest.place, oldest.closed = nil, true
		oldest.TCPConn.Close() // under mu: once it is free, the request on it may reach the handler, which finds it closed
	}
	w.mu.Unlock()
	if full {
		w.tell.Do(func() {
			w.log.Warn("too many connections that ask nothing: the oldest are closed", "most", w.most)
		})
	}
}

// remove lets go of a connection, for good if it is to be closed. It reports whether it was open until now. A second call
// changes nothing.
func (w *waiting) remove(m *markedConn, closed bool) (open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	open = !m.closed
	m.closed = m.closed || closed
	if m.place != nil {
		w.conns.Remove(m.place)
		m.place = nil
	}
	return open
}
