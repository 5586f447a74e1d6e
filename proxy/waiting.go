package proxy

import (
	"container/list"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// waiting is the connections whose request has not come, or not all of it. Each costs a descriptor for as long as
// headerTimeout and nobody knows yet whom to blame, so that all together have a bound: where they are more, the one that
// has been silent for longest makes room. A client that means it is through within a round trip or two.
type waiting struct {
	most int // 0: no bound
	log  *slog.Logger
	tell rate.Sometimes

	mu    sync.Mutex
	conns list.List // of *markedConn, the oldest first
}

// newWaiting leaves three quarters of the process's descriptors to those who have asked for something.
func newWaiting(log *slog.Logger) *waiting {
	return &waiting{most: descriptors() / 4, log: log, tell: rate.Sometimes{Interval: time.Minute}}
}

// add takes a connection in that has just been accepted.
func (w *waiting) add(c *net.TCPConn) *markedConn {
	m := &markedConn{TCPConn: c, waiting: w}
	w.mu.Lock()
	m.place = w.conns.PushBack(m)
	var oldest *markedConn
	if w.most > 0 && w.conns.Len() > w.most {
		oldest = w.conns.Front().Value.(*markedConn)
	}
	w.mu.Unlock()
	if oldest != nil {
		oldest.Close()
		w.tell.Do(func() {
			w.log.Warn("too many connections that ask nothing: the oldest are closed", "most", w.most)
		})
	}
	return m
}

// remove lets go of a connection. A second call changes nothing.
func (w *waiting) remove(m *markedConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.place != nil {
		w.conns.Remove(m.place)
		m.place = nil
	}
}
