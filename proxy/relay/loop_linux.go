package relay

import (
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// haveLoops: this system has an event loop.
const haveLoops = true

// loops are the event loops of a relay, one to each processor.
type loops struct {
	all     []*loop
	keeping atomic.Int32 // how many of them wait and keep their processor
	procs   atomic.Int32 // GOMAXPROCS of late: Go changes it with the limits of a container
}

func newLoops() *loops {
	ls := &loops{}
	for range runtime.GOMAXPROCS(0) {
		ls.all = append(ls.all, &loop{loops: ls})
	}
	return ls
}

// add gives a session to a loop. It reports false, and has left both
// connections as they were, where no loop can take it: one of them is no
// plain socket, or there is no descriptor left.
func (ls *loops) add(s *loopSession, h Handover) bool {
	c, ok := plain(h.Client)
	if !ok {
		return false
	}
	u, ok := plain(h.Upstream)
	if !ok {
		return false
	}
	return ls.choose().add(s, c, u)
}

// socket is a connection that is one, without TLS.
type socket interface {
	net.Conn
	syscall.Conn
}

// plain returns a connection of TCP or of a unix socket.
func plain(c net.Conn) (socket, bool) {
	switch c := c.(type) {
	case *net.TCPConn:
		return c, true
	case *net.UnixConn:
		return c, true
	}
	return nil, false
}

// loopFull is how many sessions a loop gets before the next one is begun. The
// more descriptors share a wait, the less a message costs: with 64 busy sessions on two
// processors, two loops spent a third more CPU than one, most of it on falling asleep and
// waking up. One loop carries what these many sessions are likely to send.
const loopFull = 1024

// choose returns the first loop that is not full, or the one with the fewest sessions.
func (ls *loops) choose() *loop {
	fewest := ls.all[0]
	for _, l := range ls.all {
		n := l.count.Load()
		if n < loopFull {
			return l
		}
		if n < fewest.count.Load() {
			fewest = l
		}
	}
	return fewest
}

// detach returns a second descriptor, owned by the caller and still
// non-blocking, for a connection that stays in Go's poller until the net.Conn is closed.
func detach(c socket) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(own uintptr) {
		fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
	}); e != nil {
		return -1, e
	}
	return fd, err
}

// loop relays sessions with one goroutine, one epoll instance and one buffer.
// Everything a session has is touched by that goroutine alone; others reach it
// through the mailbox. It runs only while it has sessions, and a little longer.
//
// Descriptors are watched edge-triggered: epoll tells once that there is
// something to read or room to write, and need not look again at every wait.
// One read to a ready side and turn, so that no session keeps the others waiting
// for longer than that; those with more to read are read again in the next.
type loop struct {
	loops *loops
	count atomic.Int64 // sessions, those in the mailbox included

	mu      sync.Mutex // guards what follows
	running bool
	mailbox []func()
	epoll   int // valid while running
	bell    int // an eventfd that wakes the loop for its mailbox; valid while running

	// The goroutine's own.
	now     moment // as of the last wake-up
	wheel   wheel
	table   []*loopSession // by the slot that an event names
	free    []int32        // slots that are not in use
	freed   []int32        // those of this turn: events of the turn may still name them
	live    int
	counted moment // the tick of the wheel in which it asked for GOMAXPROCS
	idle    moment // since when live is 0; 0: it is not
	buf     []byte
	events  []unix.EpollEvent
	again   []*loopSession // those to be read in the next turn, whatever epoll says
	tours   []*tour        // visits that are asked for, in that order
}

const (
	// loopRead is the size of a loop's buffer: what one read takes at most.
	loopRead = 64 << 10
	// loopEvents is how many ready descriptors one wait may report.
	loopEvents = 256
	// loopLinger is how long a loop waits for a session before it stops.
	loopLinger = moment(100 * time.Millisecond)
	// bellSlot is what an event of the bell names instead of a slot.
	bellSlot = -1
)

func (l *loop) add(s *loopSession, c, u socket) bool {
	cfd, err := detach(c)
	if err != nil {
		return false
	}
	ufd, err := detach(u)
	if err != nil {
		unix.Close(cfd)
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.running && l.start() != nil {
		unix.Close(cfd)
		unix.Close(ufd)
		return false
	}
	// From here on the descriptors are the loop's. Closing the net.Conns takes
	// the sockets out of Go's poller, deadlines and all, and leaves them open.
	c.Close()
	u.Close()
	s.loop = l
	s.fds = [2]int32{int32(cfd), int32(ufd)}
	l.count.Add(1)
	draining := s.relay.register(s) // before it can end, and be forgotten
	l.send(s.begin)
	if draining {
		l.send(func() { s.endNow(Drained, goingAway) })
	}
	return true
}

// start sets the loop going. The caller holds mu.
func (l *loop) start() (err error) {
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if l.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(l.epoll)
		return err
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: bellSlot}
	if err = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.bell, &event); err != nil {
		unix.Close(l.bell)
		unix.Close(l.epoll)
		return err
	}
	l.running = true
	go l.run()
	return nil
}

// send has the loop call f. The caller holds mu, and the loop is running.
func (l *loop) send(f func()) {
	l.mailbox = append(l.mailbox, f)
	if len(l.mailbox) == 1 {
		unix.Write(l.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// post has the loop call f. It reports false for a loop that does not run, which has no
// session that f could be about.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running {
		l.send(f)
	}
	return l.running
}

// run is the loop.
func (l *loop) run() {
	l.now, l.idle = now(), 0
	l.wheel.tick = l.now / wheelTick
	l.buf = make([]byte, loopRead)
	l.events = make([]unix.EpollEvent, loopEvents)
	for l.open() {
		more := len(l.again)
		n := l.wait()
		l.now = now()
		for _, e := range l.events[:n] {
			if e.Fd == bellSlot {
				var b [8]byte
				unix.Read(l.bell, b[:])
				continue
			}
			if s := l.table[e.Fd]; s != nil {
				s.ready(side(e.Pad), e.Events)
			}
		}
		for i := range more {
			l.again[i].readAgain()
		}
		l.again = slices.Delete(l.again, 0, more)
		l.visit()
		l.wheel.advance(l.now, (*loopSession).tick)
		l.free = append(l.free, l.freed...)
		l.freed = l.freed[:0]
	}
}

// wait waits for events and returns how many came.
//
// For the first millisecond the loop keeps its processor. Go's scheduler takes it
// away from a system call that lasts for 20 µs; the thread that watches for that,
// woken all the time, and the getting it back cost a busy loop a twentieth of its
// CPU. One processor is left to everybody else, though: the last loop to wait lets
// go of its own at once.
func (l *loop) wait() int {
	timeout := l.timeout()
	if timeout == 0 {
		return poll(l.epoll, l.events, 0)
	}
	if tick := l.now / wheelTick; tick != l.counted {
		l.counted = tick
		l.loops.procs.Store(int32(runtime.GOMAXPROCS(0)))
	}
	n := 0
	if l.loops.keeping.Add(1) < l.loops.procs.Load() {
		n = poll(l.epoll, l.events, 1)
	}
	l.loops.keeping.Add(-1)
	if n == 0 {
		n, _ = unix.EpollWait(l.epoll, l.events, timeout)
	}
	return max(n, 0) // EINTR: nothing else can happen to a wait of our own
}

// open empties the mailbox and reports whether the loop goes on. One that has
// had nothing to do for a while stops and owns nothing.
func (l *loop) open() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.mailbox) > 0 {
		mail := l.mailbox
		l.mailbox = nil
		l.mu.Unlock()
		l.now = now() // no session begins before it was made
		for _, f := range mail {
			f()
		}
		l.mu.Lock()
	}
	if l.live > 0 || len(l.tours) > 0 {
		l.idle = 0
		return true
	}
	if l.idle == 0 {
		l.idle = l.now
	}
	if l.now < l.idle+loopLinger {
		return true
	}
	unix.Close(l.bell)
	unix.Close(l.epoll)
	l.running = false
	l.table, l.free, l.freed, l.buf, l.events, l.again, l.tours = nil, nil, nil, nil, nil, nil, nil
	return false
}

// timeout is the one for the next wait, in milliseconds; -1 is for ever.
func (l *loop) timeout() int {
	wait := l.wheel.wait(l.now)
	switch {
	case len(l.again) > 0 || len(l.tours) > 0:
		wait = 0
	case l.live == 0:
		wait = loopLinger
	}
	if wait == never {
		return -1
	}
	return int((wait + time.Millisecond - 1) / time.Millisecond)
}

// place gives a session a slot in the table.
func (l *loop) place(s *loopSession) {
	l.live++
	if n := len(l.free); n > 0 {
		s.slot = l.free[n-1]
		l.free = l.free[:n-1]
		l.table[s.slot] = s
		return
	}
	s.slot = int32(len(l.table))
	l.table = append(l.table, s)
}

// remove takes it back.
func (l *loop) remove(s *loopSession) {
	l.live--
	l.count.Add(-1)
	l.wheel.clear(s)
	l.table[s.slot] = nil
	l.freed = append(l.freed, s.slot)
}
