package front

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// glance is how often the connections of requests that wait are looked at.
const glance = 200 * time.Millisecond

// presence ends the context of a request once its client is gone, lest its slot and its dial outlive it.
//
// net/http ends that context with what the client sends, and hears nothing more behind the first byte that comes early. But a
// client may shut its direction and wait for the answer, and may send frames in advance. So net/http's word is a hint alone,
// and the socket is asked for what is true: a client that was reset is gone. One that has sent FIN may have closed or may be
// waiting, and TCP tells which only when something is written to it (a unix socket tells at once); it is given what the relay gives a
// client that is half-closed, CLOSE_TIMEOUT. Where the socket can't be asked, a client that was reset is given that too.
type presence struct {
	context.Context
	cancel context.CancelFunc
	conn   *trackedConn
	heard  context.Context // net/http's, which ends when it has read the end

	old  bool      // it has been here for a glance; most have not when they go
	shut time.Time // when the client's direction was found shut; zero: it is open
}

// presences are the requests that are looked after, by one timer, which runs while there are any.
type presences struct {
	grace time.Duration // for a client that has shut its direction

	mu    sync.Mutex // guards what follows
	all   map[*presence]struct{}
	timer *time.Timer // nil: there are none
}

func newPresences(grace time.Duration) *presences {
	return &presences{grace: grace, all: make(map[*presence]struct{})}
}

// watch returns r with a context that ends when its client is gone, or with base, until stop is called.
func (s *presences) watch(base context.Context, r *http.Request) (watched *http.Request, stop func()) {
	conn := trackedConnFrom(r)
	if conn == nil { // not from Serve
		return r, func() {}
	}
	w := &presence{conn: conn, heard: r.Context()}
	w.Context, w.cancel = context.WithCancel(base)
	s.add(w)
	return r.WithContext(w), func() { s.remove(w) }
}

// Value has the values of net/http's context, behind its own: those by which package context finds whose end is whose.
func (w *presence) Value(key any) any {
	if v := w.Context.Value(key); v != nil {
		return v
	}
	return w.heard.Value(key)
}

func (s *presences) add(w *presence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[w] = struct{}{}
	if s.timer == nil {
		s.timer = time.AfterFunc(glance, s.look)
	}
}

func (s *presences) remove(w *presence) {
	s.mu.Lock()
	delete(s.all, w)
	s.mu.Unlock()
	w.cancel()
}

// look looks at each once, and has itself called again. It is never called twice at once.
func (s *presences) look() {
	var old []*presence
	s.mu.Lock()
	for w := range s.all {
		if w.old {
			old = append(old, w)
		}
		w.old = true
	}
	s.mu.Unlock()
	now := time.Now()
	for _, w := range old { // not under mu: that is a system call each
		w.look(now, s.grace)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		s.timer = nil
	} else {
		s.timer.Reset(glance)
	}
}

func (w *presence) look(now time.Time, grace time.Duration) {
	shut, reset := peerState(w.conn.socket)
	if w.shut.IsZero() && (shut || w.heard.Err() != nil) {
		w.shut = now
	}
	if reset || !w.shut.IsZero() && now.Sub(w.shut) >= grace {
		w.cancel()
	}
}
