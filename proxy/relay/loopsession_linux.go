package relay

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// loopSession is a session on an event loop. While it is idle it owns no
// goroutine, no stack and no buffer. Its methods run on the loop's goroutine,
// but for Close and cut.
type loopSession struct {
	relay    *Relay
	loop     *loop
	ended    func(End)
	target   string
	policy   policy
	timer    timer
	fds      [2]int32
	slot     int32
	readable [2]bool   // there may be something to read from that side
	toEnd    [2]bool   // a short read does not show that there is no more: it is read until there is none
	hung     [2]uint32 // what epoll has told of that side's end
	again    bool      // it is in the loop's list of those to be read again
	closed   [2]bool
	pending  [2][]byte // handed out for that side, which would not take it yet
	unread   [2][]byte // read from that side, and not yet shown to the policy
}

func newLoopSession(r *Relay, h Handover) *loopSession {
	s := &loopSession{relay: r, ended: h.Ended, target: h.Target}
	s.unread = [2][]byte{h.ClientEarly, h.UpstreamEarly}
	s.policy.start(h.Rules, h.Rules.scanRules(h.Extensions), s, rand.Uint64(), now())
	s.policy.startResumption(h.Resume, now())
	s.policy.pushAll(h, now())
	return s
}

func (s *loopSession) home() (route, target string) { return s.policy.route, s.target }

// begin is the first that the loop does for a session.
func (s *loopSession) begin() {
	s.loop.place(s)
	for on := range side(2) {
		s.watch(on)
		s.resume(on)
	}
	s.settle()
}

// watch has epoll tell of everything that comes to pass on a side, once.
func (s *loopSession) watch(on side) {
	const everything = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP
	event := unix.EpollEvent{Events: everything | unix.EPOLLET, Fd: s.slot, Pad: int32(on)}
	if unix.EpollCtl(s.loop.epoll, unix.EPOLL_CTL_ADD, int(s.fds[on]), &event) != nil {
		s.policy.readFailed(on, s.loop.now) // ENOMEM or ENOSPC: a side that cannot be watched is lost
	}
}

// ready does what epoll says can be done for a side. What errors and hang-ups
// mean is found out by the call that follows.
func (s *loopSession) ready(on side, events uint32) {
	// Before the end, and at urgent data, a read is short with more behind it.
	const more = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLPRI
	if events&more != 0 {
		s.toEnd[on] = true
		s.hung[on] |= events & (unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR)
		s.policy.watch(on, s.loop.now)
	}
	if events&(unix.EPOLLIN|more) != 0 {
		s.readable[on] = true
	}
	if events&(unix.EPOLLOUT|more) != 0 && len(s.pending[on]) > 0 {
		s.flush(on)
	}
	if s.mayRead(on) {
		s.read(on)
	}
	s.settle()
}

// mayRead reports whether a side is to be read now.
func (s *loopSession) mayRead(from side) bool {
	return s.readable[from] && !s.policy.peers[from].reading.eof && !s.policy.peers[from].end.gone && len(s.unread[from]) == 0 && s.flows(from)
}

// mayResume reports whether what was read before can go on now.
func (s *loopSession) mayResume(from side) bool {
	return s.policy.resume != nil && len(s.unread[from]) > 0 && s.flows(from)
}

// readAgain reads what was left for later.
func (s *loopSession) readAgain() {
	s.again = false
	for from := range side(2) {
		if s.mayRead(from) {
			s.read(from)
		}
	}
	s.settle()
}

// read reads a side once. Where that did not fill the buffer there was no more,
// and epoll tells of what comes.
func (s *loopSession) read(from side) {
	buf := s.loop.buf
	n := s.policy.takePartial(from, buf)
	most := min(s.policy.readLimit(from, s.loop.now), len(buf)-n)
	m, err := read(s.fds[from], buf[n:n+most])
	if m < most && !s.toEnd[from] {
		s.readable[from] = false
	}
	switch {
	case m > 0:
		s.pass(from, buf[:n+m], bytes.Clone)
	case m == 0 && err == nil:
		s.policy.eof(from, s.loop.now)
	case err == unix.EAGAIN:
		s.readable[from] = false
		s.pass(from, buf[:n], bytes.Clone) // carries it on
	default:
		s.policy.readFailed(from, s.loop.now)
	}
}

// pass shows bytes from one side to the policy and writes to the other what it
// says. What the other does not take now, and what comes after it, is kept.
func (s *loopSession) pass(from side, b []byte, keep func([]byte) []byte) {
	to := from.other()
	for len(b) > 0 {
		var out []byte
		out, b = s.policy.receive(from, b, s.loop.now)
		s.write(to, out)
		if len(b) > 0 {
			s.insert(to)
			if !s.flows(from) {
				s.unread[from] = keep(b)
				return
			}
		}
	}
}

// flows reports whether what a side sends can go on now.
func (s *loopSession) flows(from side) bool {
	return (len(s.pending[from.other()]) == 0 || s.policy.resume != nil) && !s.policy.held(from)
}

// resume shows the policy what was read before it could go on.
func (s *loopSession) resume(from side) {
	if b := s.unread[from]; len(b) > 0 && s.flows(from) {
		s.unread[from] = nil
		s.pass(from, b, func(b []byte) []byte { return b }) // it is the session's own already
	}
}

// write writes what the policy has handed out for a side that has nothing pending.
func (s *loopSession) write(to side, b []byte) { s.writeKeeping(to, b, nil) }

// writeKeeping is write, and keeps of what is left a part of kept, which nobody changes; nil: a copy.
func (s *loopSession) writeKeeping(to side, b, kept []byte) {
	if len(b) == 0 {
		return
	}
	n, err := write(s.fds[to], b)
	switch {
	case n == len(b):
		s.policy.endWrite(to, s.loop.now)
	case err == nil || err == unix.EAGAIN:
		if kept == nil {
			kept = bytes.Clone(b[n:])
		} else {
			kept = kept[n:]
		}
		s.pending[to] = kept
	default:
		s.pending[to] = nil
		s.policy.writeFailed(to, s.loop.now)
	}
}

// flush writes what a side would not take before.
func (s *loopSession) flush(to side) {
	b := s.pending[to]
	n, err := write(s.fds[to], b)
	switch {
	case n == len(b):
		s.pending[to] = nil
		s.policy.endWrite(to, s.loop.now)
	case err == nil || err == unix.EAGAIN:
		s.pending[to] = b[n:]
		s.policy.progress(to, s.loop.now)
		return
	default:
		s.pending[to] = nil
		s.policy.writeFailed(to, s.loop.now)
	}
	s.resume(to.other())
}

// insert writes what frames of our own are due to a side.
func (s *loopSession) insert(to side) {
	b := s.policy.insertion(to, s.loop.now)
	s.writeKeeping(to, b, b)
}

// settle does what the policy wants done after anything has happened.
func (s *loopSession) settle() {
	// One side's end may be the other's, which may come before it, and set free what was kept for the first.
	for range 3 {
		for to := range side(2) {
			if s.policy.resume != nil {
				s.resume(to) // what was kept for want of room
			}
			if s.policy.wants(to) {
				s.serve(to)
			}
		}
	}
	if s.closed[client] && s.closed[upstream] && s.policy.over() {
		s.finish()
		return
	}
	if !s.again && (s.mayRead(client) || s.mayRead(upstream) || s.mayResume(client) || s.mayResume(upstream)) {
		s.again = true
		s.loop.again = append(s.loop.again, s)
	}
	if s.policy.wake < s.timer.at || !s.timer.set && s.policy.wake != never {
		s.loop.wheel.set(s, s.policy.wake)
	}
}

func (s *loopSession) serve(to side) {
	if s.policy.peers[to].end.gone {
		if !s.closed[to] {
			s.closed[to] = true
			s.pending[to], s.unread[to] = nil, nil
			unix.Close(int(s.fds[to])) // which takes it out of epoll: there is no other duplicate
			s.resume(to.other())       // what was kept while this side took nothing
		}
		return
	}
	for s.policy.wants(to) && !s.policy.peers[to].end.gone { // pushes may wait in line
		s.insert(to)
		if s.policy.takeFIN(to, s.loop.now) {
			unix.Shutdown(int(s.fds[to]), unix.SHUT_WR) // where that fails the peer is gone, as reading will tell
		}
	}
}

// finish ends the session: both connections are closed.
func (s *loopSession) finish() {
	if s.loop.table[s.slot] != s {
		return
	}
	s.loop.remove(s)
	end := s.policy.summary(s.loop.now)
	go func() { // the loop waits for nobody
		s.ended(end)
		s.relay.unregister(s)
	}()
}

func (s *loopSession) prepare(conn net.Conn) (replace func([]byte), cancel func(), err error) {
	c, ok := plain(conn)
	if !ok {
		return nil, nil, errors.New("no plain socket")
	}
	fd, err := detach(c)
	if err != nil {
		return nil, nil, err
	}
	return func(early []byte) {
		conn.Close() // which leaves the socket open; see add
		s.replaceClient(int32(fd), early)
	}, func() { unix.Close(fd) }, nil
}

// replaceClient gives the session another connection of its client's, as a descriptor.
func (s *loopSession) replaceClient(fd int32, early []byte) {
	if !s.closed[client] {
		s.dismissClient()
	}
	s.fds[client], s.closed[client] = fd, false
	s.readable[client], s.toEnd[client], s.hung[client] = false, false, 0
	s.pending[client], s.unread[client] = nil, nil
	if len(early) > 0 {
		s.unread[client] = early
	}
	s.watch(client)
	s.resume(client)
}

// dismissClient has the client's connection told that another has taken its place.
func (s *loopSession) dismissClient() {
	fd := int(s.fds[client])
	unix.EpollCtl(s.loop.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	file := os.NewFile(uintptr(fd), "")
	conn, err := net.FileConn(file) // a duplicate
	file.Close()
	switch {
	case err != nil:
	case len(s.pending[client]) > 0 || s.policy.resume.firstUnsent: // maybe inside a frame
		conn.Close()
	default:
		go s.relay.dismissals.dismiss(conn, s.policy.closeTimeout)
	}
}

func (s *loopSession) delivery(to side) (delivery, bool) { return deliveryOn(int(s.fds[to])) }

func (s *loopSession) hungUp(from side) (fin, broken bool) {
	return s.hung[from] != 0, s.hung[from]&unix.EPOLLERR != 0
}

func (s *loopSession) tick() {
	s.policy.tick(s.loop.now)
	s.resume(client) // either may have been held
	s.resume(upstream)
	s.settle()
}

func (s *loopSession) Close(why Reason, c Closing) {
	s.loop.post(func() { s.endNow(why, c) })
}

func (s *loopSession) endNow(why Reason, c Closing) {
	if !s.policy.over() {
		s.policy.end(why, c, s.loop.now)
		s.settle()
	}
}

func (s *loopSession) cut() {
	s.loop.post(func() {
		if !s.policy.over() {
			s.policy.cut(s.loop.now)
			s.settle()
		}
	})
}
