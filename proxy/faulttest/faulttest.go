// Package faulttest puts a faulty network between two peers: a TCP proxy in the process of a test, each of whose connections can be
// reset, stalled, half-opened or slowed down. Only tests use it.
package faulttest

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Direction is one of the two of a link.
type Direction int

const (
	// Up is from who has connected to the proxy to its target.
	Up Direction = iota
	// Down is back.
	Down
)

// state is how a direction carries what comes.
type state int

const (
	carried state = iota
	held          // nothing is read any more
	lost          // all is read and goes nowhere, an end of the stream, too
	slowed
)

const (
	// slow is how much a direction that is slowed down carries, in bytes a second.
	slow = 16 << 10
	// window is of the sockets' buffers, in bytes: what a peer has sent beyond it has not left it.
	window = 16 << 10
	// piece is what is carried at once, in bytes.
	piece = 2 << 10
)

// Proxy carries connections to a target.
type Proxy struct {
	// Addr is where it listens: host:port.
	Addr string

	target string
	links  chan *Link

	mu      sync.Mutex // guards what follows
	begin   func(*Link)
	open    map[net.Conn]bool
	closed  bool
	running sync.WaitGroup
	done    chan struct{} // closed at the end
}

// New starts a proxy to target, a host:port, until the end of the test.
func New(t testing.TB, target string) *Proxy {
	t.Helper()
	listen := net.ListenConfig{Control: small}
	l, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, links: make(chan *Link, 10_000), open: make(map[net.Conn]bool), done: make(chan struct{})}
	p.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(p.done)
		p.mu.Lock()
		p.closed = true
		for conn := range p.open {
			conn.Close()
		}
		p.mu.Unlock()
		p.running.Wait()
	})
	return p
}

// small has a socket take no more than a window of bytes that nobody reads.
func small(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { setBuffers(fd, window) })
}

// Begin has every link that comes from now on begin with a fault. Nil: with none.
func (p *Proxy) Begin(fault func(*Link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begin = fault
}

// Next is the next link that has come.
func (p *Proxy) Next(t testing.TB) *Link {
	t.Helper()
	select {
	case l := <-p.links:
		return l
	case <-time.After(30 * time.Second):
		t.Fatal("no connection comes to the faulty network")
		return nil
	}
}

// keep has a connection closed at the end, if not before. False: it is over.
func (p *Proxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return false
	}
	p.open[conn] = true
	return true
}

func (p *Proxy) forget(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, conn)
}

// serve carries one connection.
func (p *Proxy) serve(from net.Conn) {
	if !p.keep(from) {
		return
	}
	defer p.forget(from)
	dialer := net.Dialer{Control: small}
	to, err := dialer.Dial("tcp", p.target)
	if err != nil {
		from.(*net.TCPConn).SetLinger(0)
		return
	}
	if !p.keep(to) {
		return
	}
	defer p.forget(to)
	l := &Link{proxy: p, from: from.(*net.TCPConn), to: to.(*net.TCPConn), changed: make(chan struct{})}
	p.mu.Lock()
	begin := p.begin
	p.mu.Unlock()
	if begin != nil {
		begin(l)
	}
	p.links <- l
	var both sync.WaitGroup
	both.Go(func() { l.carry(Up, l.from, l.to) })
	both.Go(func() { l.carry(Down, l.to, l.from) })
	both.Wait()
}

// Link is one connection through the proxy.
type Link struct {
	proxy    *Proxy
	from, to *net.TCPConn

	mu      sync.Mutex // guards what follows
	states  [2]state
	changed chan struct{} // closed and replaced when states change
}

// Reset breaks the connection off on both sides.
func (l *Link) Reset() {
	for _, conn := range []*net.TCPConn{l.from, l.to} {
		conn.SetLinger(0)
		conn.Close()
	}
}

// Stall has nothing carried any more, in either direction. Both connections stay.
func (l *Link) Stall() { l.set(held, Up, Down) }

// HalfOpen loses what comes in one direction, its end, too: whoever waits for it learns nothing of a peer that has gone.
func (l *Link) HalfOpen(d Direction) { l.set(lost, d) }

// Slow has a few KiB a second carried in each direction.
func (l *Link) Slow() { l.set(slowed, Up, Down) }

func (l *Link) set(s state, of ...Direction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range of {
		l.states[d] = s
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// await returns how a direction carries when it is not held any more. False: it is over before.
func (l *Link) await(d Direction) (state, bool) {
	for {
		l.mu.Lock()
		s, changed := l.states[d], l.changed
		l.mu.Unlock()
		if s != held {
			return s, true
		}
		select {
		case <-changed:
		case <-l.proxy.done:
			return s, false
		}
	}
}

// carry carries one direction to its end.
func (l *Link) carry(d Direction, from, to *net.TCPConn) {
	b := make([]byte, piece)
	for {
		n, err := from.Read(b)
		s, ok := l.await(d)
		switch {
		case !ok:
			return
		case s == lost && err == nil:
			continue
		case s == lost:
			return
		case s == slowed:
			select {
			case <-time.After(time.Duration(n) * time.Second / slow):
			case <-l.proxy.done:
				return
			}
		}
		if _, wrong := to.Write(b[:n]); wrong != nil {
			l.broken(wrong)
			return
		}
		if err == io.EOF {
			to.CloseWrite()
			return
		}
		if err != nil {
			l.broken(err)
			return
		}
	}
}

// broken passes on that a peer has broken off, unless that is not to be noticed.
func (l *Link) broken(err error) {
	l.mu.Lock()
	faulty := l.states[Up] == lost || l.states[Down] == lost || l.states[Up] == held || l.states[Down] == held
	l.mu.Unlock()
	if !faulty && !errors.Is(err, net.ErrClosed) {
		l.Reset()
	}
}
