package relay

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// epoch is where every moment counts from.
var epoch = time.Now()

func now() moment { return time.Since(epoch) }

// stream is a session on the stream engine: for each side a goroutine that
// reads it and writes to the other. It serves every net.Conn, TLS included.
//
// What goes out to a side is decided and written by whoever holds its turn, so
// that bytes reach the wire in the order in which policy gave them out. Frames
// of our own never wait for a turn: whoever holds it looks for them before
// giving it up and after. Lock order: a turn, then mu; no I/O under mu.
type stream struct {
	relay *Relay
	conns [2]net.Conn
	turn  [2]sync.Mutex // held by who writes to that side
	ended func(End)
	over  chan struct{} // closed at the end; terminating only

	mu     sync.Mutex // guards what follows
	policy policy
	timer  *time.Timer // runs tick
	armed  moment      // when it fires
	thawed sync.Cond   // of mu: a throttled side may be read again
	closed [2]bool     // somebody closes that side's connection, or has
	open   int         // connections that have not been closed
}

func newStream(r *Relay, h Handover) *stream {
	s := &stream{relay: r, conns: [2]net.Conn{h.Client, h.Upstream}, ended: h.Ended, open: 2}
	s.policy.start(r.rules, r.scanRules(h.Extensions), s, rand.Uint64(), now())
	s.armed = never
	s.thawed.L = &s.mu
	s.timer = time.AfterFunc(time.Duration(never), s.tick)
	if r.terminate {
		s.over = make(chan struct{})
	}
	return s
}

func (s *stream) run(h Handover) {
	if s.relay.terminate {
		go s.terminate(h)
	} else {
		go s.pump(client, h.ClientEarly)
		go s.pump(upstream, h.UpstreamEarly)
	}
	s.settle() // sets the timer
}

// pump reads side from until it ends.
func (s *stream) pump(from side, early []byte) {
	s.pass(from, early)
	var r reader
	defer r.release()
	for {
		b, err := r.read(s, from)
		s.pass(from, b)
		if err != nil {
			s.readEnded(from, err)
			return
		}
	}
}

// pass shows bytes from one side to the policy and writes to the other what it says.
func (s *stream) pass(from side, b []byte) {
	if len(b) == 0 {
		return
	}
	to := from.other()
	s.turn[to].Lock()
	for rest := b; len(rest) > 0; {
		s.mu.Lock()
		var out []byte
		out, rest = s.policy.receive(from, rest, now())
		s.mu.Unlock()
		s.write(to, out)
		if len(rest) > 0 {
			s.insert(to)
			s.turn[to].Unlock()
			s.thaw(from)
			s.turn[to].Lock()
		}
	}
	s.turn[to].Unlock()
	s.settle()
}

// thaw waits while a side is throttled.
func (s *stream) thaw(from side) {
	s.settle() // it may end what is waited for
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.policy.throttled(from) && s.open > 0 {
		s.thawed.Wait()
	}
}

// write writes what the policy has handed out for a side, and tells it. The
// caller holds that side's turn.
func (s *stream) write(to side, b []byte) {
	if len(b) == 0 {
		return
	}
	_, err := s.conns[to].Write(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.policy.deafened(to, now())
	} else {
		s.policy.written(to, now())
	}
}

// insert writes what frames of our own are due. The caller holds that side's turn.
func (s *stream) insert(to side) {
	s.mu.Lock()
	b := s.policy.insertion(to, nil, now())
	s.mu.Unlock()
	s.write(to, b)
}

// readEnded tells the policy why reading a side has ended.
func (s *stream) readEnded(from side, err error) {
	s.mu.Lock()
	if err == io.EOF {
		s.policy.eof(from, now())
	} else {
		s.policy.lost(from, now())
	}
	s.mu.Unlock()
	s.settle()
}

// settle sets the timer and has done what the policy wants done: each side in
// a goroutine of its own, since writing to one must not keep the other waiting.
func (s *stream) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if wake := s.policy.wake; wake < s.armed && s.open > 0 {
		s.armed = wake
		s.timer.Reset(wake - now())
	}
	if !s.policy.throttled(client) {
		s.thawed.Broadcast()
	}
	for to := range side(2) {
		if s.policy.wants(to) && !s.closed[to] {
			go s.serve(to)
		}
	}
}

// serve does what the policy wants done for one side. If somebody else has the
// turn there, they will settle after it.
func (s *stream) serve(to side) {
	if s.closeGone(to) {
		return
	}
	if !s.turn[to].TryLock() {
		return
	}
	s.insert(to)
	s.mu.Lock()
	fin := s.policy.takeFIN(to, now())
	s.mu.Unlock()
	if fin {
		s.closeWrite(to)
	}
	s.turn[to].Unlock()
	s.settle()
}

// closeWrite shuts our direction towards a side. Where that fails the peer is
// gone, and its reader learns so.
func (s *stream) closeWrite(to side) {
	if c, ok := s.conns[to].(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// closeGone closes a side's connection if the policy is through with it. Whoever closes
// the second one ends the session.
func (s *stream) closeGone(to side) bool {
	s.mu.Lock()
	gone, closed := s.policy.ends[to].gone, s.closed[to]
	s.closed[to] = gone
	s.mu.Unlock()
	if !gone || closed {
		return gone
	}
	s.conns[to].Close()

	s.mu.Lock()
	s.open--
	last := s.open == 0
	s.thawed.Broadcast()
	end := s.policy.summary(now())
	s.mu.Unlock()
	if last {
		s.timer.Stop()
		if s.over != nil {
			close(s.over)
		}
		s.ended(end)
		s.relay.forget(s)
	}
	return true
}

func (s *stream) delivery(to side) (delivery, bool) { return deliveryOf(s.conns[to]) }

func (s *stream) tick() {
	s.mu.Lock()
	s.armed = never
	s.policy.tick(now())
	s.mu.Unlock()
	s.settle()
}

func (s *stream) Close(why Reason, c Closing) {
	s.mu.Lock()
	s.policy.end(why, c, now())
	s.mu.Unlock()
	s.settle()
}

func (s *stream) cut() {
	s.mu.Lock()
	s.policy.cut(now())
	s.mu.Unlock()
	s.settle()
}

const (
	// smallRead is what a blocked read holds on to. Most messages fit.
	smallRead = 1 << 10
	// largeRead is what is borrowed for a side that sends more than that.
	largeRead = 32 << 10
)

var largeReads = sync.Pool{New: func() any { return new([largeRead]byte) }}

// reader reads one side. It waits with a small buffer, and has a large one
// only while bytes come faster than that takes them.
type reader struct {
	small []byte
	large *[largeRead]byte
}

// read returns bytes for policy.receive, valid until the next call.
func (r *reader) read(s *stream, from side) ([]byte, error) {
	if r.small == nil {
		r.small = make([]byte, smallRead)
	}
	buf := r.small
	if r.large != nil {
		buf = r.large[:]
	}
	s.mu.Lock()
	carried := s.policy.carried(from, buf)
	most := min(s.policy.allowance(from, now()), len(buf)-carried)
	s.mu.Unlock()
	n, err := s.conns[from].Read(buf[carried : carried+most])
	n += carried
	switch {
	case r.large == nil && n == smallRead:
		r.large = largeReads.Get().(*[largeRead]byte)
	case r.large != nil && n < smallRead:
		n = copy(r.small, buf[:n])
		buf = r.small
		r.release()
	}
	return buf[:n], err
}

func (r *reader) release() {
	if r.large != nil {
		largeReads.Put(r.large)
		r.large = nil
	}
}
