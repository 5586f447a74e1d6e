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
// What goes out to a side is decided and written by its one writer, so that
// bytes reach the wire in the order in which policy gave them out. Whoever has
// something for a side that has no writer becomes it, and writes whatever else
// is due there before it stops being it (serve).
type stream struct {
	relay  *Relay
	conns  [2]net.Conn
	ended  func(End)
	target string
	over   chan struct{} // closed at the end; terminating only

	mu       sync.Mutex // guards what follows; released for I/O
	policy   policy
	timer    *time.Timer // runs tick
	armed    moment      // when it fires
	writing  [2]bool     // that side has a writer
	inWrite  [2]bool     // which is in a call of Write
	free     sync.Cond   // of mu: a side has none any more
	thawed   sync.Cond   // of mu: a side that is held may be read again
	closed   [2]bool     // somebody closes that side's connection, or has
	open     int         // connections that have not been closed
	finished bool
}

func newStream(r *Relay, h Handover) *stream {
	s := &stream{relay: r, conns: [2]net.Conn{h.Client, h.Upstream}, ended: h.Ended, target: h.Target, open: 2}
	s.policy.start(h.Rules, h.Rules.scanRules(h.Extensions), s, rand.Uint64(), now())
	s.policy.startResumption(h.Resume, now())
	s.policy.pushAll(h, now())
	s.armed = never
	s.free.L, s.thawed.L = &s.mu, &s.mu
	s.timer = time.AfterFunc(time.Duration(never), s.tick)
	if h.Rules.terminate {
		s.over = make(chan struct{})
	}
	return s
}

func (s *stream) home() (route, target string) { return s.policy.route, s.target }

func (s *stream) run(h Handover) {
	if h.Rules.terminate {
		go s.terminate(h)
	} else {
		go s.pump(client, h.Client, h.ClientEarly)
		go s.pump(upstream, h.Upstream, h.UpstreamEarly)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle() // sets the timer
}

// pump reads side from until it ends, or has another connection.
func (s *stream) pump(from side, conn net.Conn, early []byte) {
	s.pass(from, conn, early)
	var r reader
	defer r.release()
	for {
		b, err := r.read(s, from, conn)
		s.pass(from, conn, b)
		if err != nil {
			s.readEnded(from, conn, err)
			return
		}
	}
}

// pass shows bytes from one side to the policy and writes to the other what it says. Those of a connection that is the side's no
// more are dropped.
func (s *stream) pass(from side, conn net.Conn, b []byte) {
	to := from.other()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(b) > 0 && s.conns[from] == conn {
		if s.policy.resume != nil { // neither waits for the other
			_, b = s.policy.receive(from, b, now())
			s.settle()
			s.thaw(from, conn)
			continue
		}
		s.startWriting(to)
		var out []byte
		out, b = s.policy.receive(from, b, now())
		s.write(to, out)
		s.serve(to)
		s.thaw(from, conn)
	}
}

// The following, up to settle, are called with mu held.

// thaw waits while a side is held.
func (s *stream) thaw(from side, conn net.Conn) {
	for s.policy.held(from) && !s.closed[from] && s.conns[from] == conn {
		s.thawed.Wait()
	}
}

// startWriting makes the caller the writer of a side, as soon as it has none. The
// caller ends it with serve.
func (s *stream) startWriting(to side) {
	for s.writing[to] {
		s.free.Wait()
	}
	s.writing[to] = true
}

// write writes what the policy has handed out for a side, and tells it. The
// caller is that side's writer.
func (s *stream) write(to side, b []byte) {
	if len(b) == 0 {
		return
	}
	conn := s.conns[to]
	s.inWrite[to] = true
	s.mu.Unlock()
	_, err := conn.Write(b)
	s.mu.Lock()
	s.inWrite[to] = false
	switch {
	case s.conns[to] != conn && err == nil: // another has taken its place meanwhile
		go s.relay.dismissals.dismiss(conn, s.policy.closeTimeout)
	case s.conns[to] != conn:
		go conn.Close()
	case err != nil:
		s.policy.writeFailed(to, now())
	default:
		s.policy.endWrite(to, now())
	}
}

// serve writes what else is due to a side, and leaves it without a writer.
func (s *stream) serve(to side) {
	for s.policy.wants(to) && !s.policy.peers[to].end.gone {
		s.write(to, s.policy.insertion(to, now()))
		if s.policy.takeFIN(to, now()) {
			conn := s.conns[to]
			s.mu.Unlock()
			closeWrite(conn)
			s.mu.Lock()
		}
	}
	s.writing[to] = false
	s.free.Broadcast()
	s.settle()
}

// settle sets the timer and has done what the policy wants done, each in a goroutine of its own,
// since whoever calls has other things to do than to wait for a peer. There
// are never more than two to a side: one writes, and one closes it meanwhile.
func (s *stream) settle() {
	if s.open == 0 && s.policy.over() {
		s.finish()
		return
	}
	if wake := s.policy.wake; wake < s.armed {
		s.armed = wake
		s.timer.Reset(wake - now())
	}
	for to := range side(2) {
		switch {
		case s.closed[to] || !s.policy.wants(to):
		case s.policy.peers[to].end.gone:
			s.closed[to] = true
			go s.close(s.conns[to])
		case !s.writing[to]:
			s.writing[to] = true
			go func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.serve(to)
			}()
		}
	}
	s.thawed.Broadcast()
}

// readEnded tells the policy why reading a side has ended.
func (s *stream) readEnded(from side, conn net.Conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.conns[from] != conn:
		return
	case err == io.EOF:
		s.policy.eof(from, now())
	default:
		s.policy.readFailed(from, now())
	}
	s.settle()
}

// closeWrite shuts our direction towards a side. Where that fails the peer is
// gone, and its reader learns so.
func closeWrite(conn net.Conn) {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// close closes a connection, which ends its reader and its writer.
func (s *stream) close(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.settle()
}

// finish ends the session: all connections are closed. The caller holds mu.
func (s *stream) finish() {
	if s.finished {
		return
	}
	s.finished = true
	s.timer.Stop()
	if s.over != nil {
		close(s.over)
	}
	end := s.policy.summary(now())
	go func() {
		s.ended(end)
		s.relay.unregister(s)
	}()
}

func (s *stream) prepare(conn net.Conn) (replace func([]byte), cancel func(), err error) {
	return func(early []byte) { s.replaceClient(conn, early) }, func() {}, nil
}

// takeoverGrace is how long a write to a connection may still take whose place another has taken: its Close frame goes behind whole
// frames only, and the new connection has to wait for that writer.
const takeoverGrace = 50 * time.Millisecond

// replaceClient gives the session another connection of its client's. The caller holds mu.
func (s *stream) replaceClient(conn net.Conn, early []byte) {
	old := s.conns[client]
	switch {
	case s.closed[client]:
		s.open++
	case s.policy.resume.firstUnsent:
		go old.Close()
	case s.inWrite[client]: // its writer sees to it, soon
		old.SetWriteDeadline(time.Now().Add(takeoverGrace))
	default:
		go s.relay.dismissals.dismiss(old, s.policy.closeTimeout)
	}
	s.conns[client], s.closed[client] = conn, false
	go s.pump(client, conn, early)
}

func (s *stream) delivery(to side) (delivery, bool) { return deliveryOf(s.conns[to]) }

func (s *stream) hungUp(from side) (fin, broken bool) {
	fin, broken = hungUpOf(s.conns[from])
	return fin, broken && s.policy.peers[from].end.fin != finSent
}

func (s *stream) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = never
	s.policy.tick(now())
	s.settle()
}

func (s *stream) Close(why Reason, c Closing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy.end(why, c, now())
	s.settle()
}

func (s *stream) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy.cut(now())
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
func (r *reader) read(s *stream, from side, conn net.Conn) ([]byte, error) {
	if r.small == nil {
		r.small = make([]byte, smallRead)
	}
	buf := r.small
	if r.large != nil {
		buf = r.large[:]
	}
	s.mu.Lock()
	s.thaw(from, conn)
	if s.conns[from] != conn {
		s.mu.Unlock()
		return nil, net.ErrClosed
	}
	carried := s.policy.takePartial(from, buf)
	most := min(s.policy.readLimit(from, now()), len(buf)-carried)
	s.mu.Unlock()
	n, err := conn.Read(buf[carried : carried+most])
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
