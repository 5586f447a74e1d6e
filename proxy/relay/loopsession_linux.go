package relay

import (
	"bytes"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// loopSession is a session on an event loop. While it is idle it owns no
// goroutine, no stack and no buffer. Its methods run on the loop's goroutine,
// but for Close and cut.
type loopSession struct {
	relay    *Relay
	loop     *loop
	ended    func(End)
	policy   policy
	timer    timer
	fds      [2]int32
	interest [2]uint32 // what epoll watches for; 0: it does not know the descriptor
	slot     int32
	closed   [2]bool
	pending  [2][]byte // handed out for that side, which would not take it yet
	unread   [2][]byte // read from that side, and not yet shown to the policy
}

func newLoopSession(r *Relay, h Handover) *loopSession {
	s := &loopSession{relay: r, ended: h.Ended}
	s.unread = [2][]byte{h.ClientEarly, h.UpstreamEarly}
	s.policy.start(r.rules, r.scanRules(h.Extensions), s, rand.Uint64(), now())
	return s
}

// begin is the first that the loop does for a session.
func (s *loopSession) begin() {
	s.loop.place(s)
	for from := range side(2) {
		s.resume(from)
	}
	s.settle()
}

// ready does what epoll says can be done for a side. The flags for errors and
// hang-ups cannot be masked, so they count as whatever is watched for; the
// call that follows finds out what they mean.
func (s *loopSession) ready(on side, events uint32) {
	const trouble = unix.EPOLLERR | unix.EPOLLHUP
	events &= s.interest[on] | trouble
	if events&trouble != 0 {
		events |= s.interest[on]
	}
	if events&unix.EPOLLOUT != 0 {
		s.flush(on)
	}
	if events&unix.EPOLLIN != 0 {
		s.read(on)
	}
	s.settle()
}

// read reads a side once.
func (s *loopSession) read(from side) {
	buf := s.loop.buf
	n := s.policy.carried(from, buf)
	most := min(s.policy.allowance(from, s.loop.now), len(buf)-n)
	m, err := read(s.fds[from], buf[n:n+most])
	switch {
	case m > 0:
		s.pass(from, buf[:n+m], bytes.Clone)
	case m == 0 && err == nil:
		s.policy.eof(from, s.loop.now)
	case err == unix.EAGAIN || err == unix.EINTR:
		s.pass(from, buf[:n], bytes.Clone) // carries it on
	default:
		s.policy.lost(from, s.loop.now)
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
	return len(s.pending[from.other()]) == 0 && !s.policy.throttled(from)
}

// resume shows the policy what was read before it could go on.
func (s *loopSession) resume(from side) {
	if b := s.unread[from]; len(b) > 0 && s.flows(from) {
		s.unread[from] = nil
		s.pass(from, b, func(b []byte) []byte { return b }) // it is the session's own already
	}
}

// write writes what the policy has handed out for a side that has nothing pending.
func (s *loopSession) write(to side, b []byte) {
	if len(b) == 0 {
		return
	}
	n, err := write(s.fds[to], b)
	switch {
	case n == len(b):
		s.policy.written(to, s.loop.now)
	case err == nil || err == unix.EAGAIN || err == unix.EINTR:
		s.pending[to] = bytes.Clone(b[n:])
	default:
		s.pending[to] = nil
		s.policy.deafened(to, s.loop.now)
	}
}

// flush writes what a side would not take before.
func (s *loopSession) flush(to side) {
	b := s.pending[to]
	n, err := write(s.fds[to], b)
	switch {
	case n == len(b):
		s.pending[to] = nil
		s.policy.written(to, s.loop.now)
	case err == nil || err == unix.EAGAIN || err == unix.EINTR:
		s.pending[to] = b[n:]
		s.policy.progress(to, s.loop.now)
		return
	default:
		s.pending[to] = nil
		s.policy.deafened(to, s.loop.now)
	}
	s.resume(to.other())
}

// insert writes what frames of our own are due to a side.
func (s *loopSession) insert(to side) {
	s.write(to, s.policy.insertion(to, nil, s.loop.now))
}

// settle does what the policy wants done after anything has happened.
func (s *loopSession) settle() {
	// One side's end may be the other's, which may come before it.
	for range 2 {
		for to := range side(2) {
			if s.policy.wants(to) {
				s.serve(to)
			}
		}
	}
	if s.closed[client] && s.closed[upstream] {
		s.finish()
		return
	}
	s.watch(client)
	s.watch(upstream)
	if s.policy.wake < s.timer.at || !s.timer.set && s.policy.wake != never {
		s.loop.wheel.set(s, s.policy.wake)
	}
}

func (s *loopSession) serve(to side) {
	if s.policy.ends[to].gone {
		if !s.closed[to] {
			s.closed[to] = true
			s.interest[to] = 0 // closing takes it out of epoll: there is no other duplicate
			s.pending[to], s.unread[to] = nil, nil
			unix.Close(int(s.fds[to]))
		}
		return
	}
	s.insert(to)
	if s.policy.takeFIN(to, s.loop.now) {
		unix.Shutdown(int(s.fds[to]), unix.SHUT_WR) // where that fails the peer is gone, as reading will tell
	}
}

// watch tells epoll what a side is watched for. A side from which nothing is
// to be read leaves epoll altogether, for a peer that resets its connection
// would otherwise wake the loop for ever.
func (s *loopSession) watch(on side) {
	if s.closed[on] {
		return
	}
	var want uint32
	if !s.policy.ends[on].eof && s.flows(on) && len(s.unread[on]) == 0 {
		want |= unix.EPOLLIN
	}
	if len(s.pending[on]) > 0 {
		want |= unix.EPOLLOUT
	}
	had := s.interest[on]
	if want == had {
		return
	}
	op := unix.EPOLL_CTL_MOD
	switch {
	case had == 0:
		op = unix.EPOLL_CTL_ADD
	case want == 0:
		op = unix.EPOLL_CTL_DEL
	}
	event := unix.EpollEvent{Events: want, Fd: s.slot, Pad: int32(on)}
	if unix.EpollCtl(s.loop.epoll, op, int(s.fds[on]), &event) != nil {
		// ENOMEM or ENOSPC: a side that cannot be watched is lost.
		s.policy.lost(on, s.loop.now)
		s.serve(on)
		return
	}
	s.interest[on] = want
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
		s.relay.forget(s)
	}()
}

func (s *loopSession) delivery(to side) (delivery, bool) { return deliveryOn(int(s.fds[to])) }

func (s *loopSession) tick() {
	s.policy.tick(s.loop.now)
	s.resume(client) // it may have been throttled
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
