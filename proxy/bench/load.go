//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stallTimeout is how long nothing may happen before a measurement is given up.
const stallTimeout = 10 * time.Second

// concurrentHandshakes is how many handshakes are under way at once.
const concurrentHandshakes = 32

// load is the client: one thread, one epoll, one read buffer, any number of connections. It is used by one goroutine.
type load struct {
	to      unix.SockaddrInet4
	request []byte
	epoll   int
	conns   []loadConn
	events  []unix.EpollEvent
	buf     []byte
	want    []byte // the echo that every connection must get

	opened func(i int) error                // called when the handshake of connection i is complete
	echoed func(i int, now time.Time) error // called when connection i has its whole echo
}

type loadConn struct {
	fd   int
	open bool
	head []byte    // an incomplete answer to the handshake
	out  []byte    // still to be written
	got  int       // bytes of the echo that have come
	sent time.Time // when the message was sent that waits for its echo
}

func newLoad(to netip.AddrPort, path string) (*load, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	runtime.LockOSThread()
	return &load{
		to: unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()},
		request: fmt.Appendf(nil, "GET %s?token=%s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n", path, token, to, handshakeKey),
		epoll:  epoll,
		events: make([]unix.EpollEvent, 512),
		buf:    make([]byte, 512<<10),
	}, nil
}

// close resets every connection.
func (l *load) close() {
	for i := range l.conns {
		l.reset(i)
	}
	unix.Close(l.epoll)
	runtime.UnlockOSThread()
}

// open brings up n connections.
func (l *load) open(ctx context.Context, n int) error {
	l.grow(n)
	up, next := 0, 0
	dial := func() error {
		if next == n {
			return nil
		}
		next++
		return l.dial(next - 1)
	}
	l.opened = func(int) error {
		up++
		return dial()
	}
	for range concurrentHandshakes {
		if err := dial(); err != nil {
			return err
		}
	}
	for up < n {
		if err := l.poll(ctx); err != nil {
			return fmt.Errorf("after %d of %d handshakes: %w", up, n, err)
		}
	}
	return nil
}

// churn opens n connections and resets each as soon as its handshake is complete.
func (l *load) churn(ctx context.Context, n int) error {
	l.grow(concurrentHandshakes)
	up, begun := 0, 0
	dial := func(i int) error {
		if begun == n {
			return nil
		}
		begun++
		return l.dial(i)
	}
	l.opened = func(i int) error {
		up++
		l.reset(i)
		return dial(i)
	}
	for i := range concurrentHandshakes {
		if err := dial(i); err != nil {
			return err
		}
	}
	for up < n {
		if err := l.poll(ctx); err != nil {
			return fmt.Errorf("after %d of %d upgrades: %w", up, n, err)
		}
	}
	return nil
}

// echoOnce sends one message on every connection and waits for the echoes.
func (l *load) echoOnce(ctx context.Context, m message) error {
	l.want = m.echoed
	left := len(l.conns)
	l.echoed = func(int, time.Time) error {
		left--
		return nil
	}
	for i := range l.conns {
		if err := l.send(i, m.sent, time.Time{}); err != nil {
			return err
		}
	}
	for left > 0 {
		if err := l.poll(ctx); err != nil {
			return fmt.Errorf("%d of %d echoes missing: %w", left, len(l.conns), err)
		}
	}
	return nil
}

// pingPong is a measurement in which every connection sends its next message as soon as it has the echo of the last.
type pingPong struct {
	message message
	warmUp  time.Duration   // not counted
	window  time.Duration   // counted; longer if need be, until one echo has come
	mark    func() error    // called as the window begins and as it ends
	latency []time.Duration // the result: one per echo that came in the window
}

// run also waits for the echoes that are under way when the window ends, so that a lost one is an error.
func (p *pingPong) run(ctx context.Context, l *load) error {
	const (
		warming = iota
		counting
		stopping
	)
	phase, waiting := warming, len(l.conns)
	l.want = p.message.echoed
	l.echoed = func(i int, now time.Time) error {
		if phase == counting {
			p.latency = append(p.latency, now.Sub(l.conns[i].sent))
		}
		if phase == stopping {
			waiting--
			return nil
		}
		return l.send(i, p.message.sent, now)
	}

	now := time.Now()
	for i := range l.conns {
		if err := l.send(i, p.message.sent, now); err != nil {
			return err
		}
	}
	next := now.Add(p.warmUp)
	for waiting > 0 {
		if err := l.poll(ctx); err != nil {
			return fmt.Errorf("after %d echoes, %d more awaited: %w", len(p.latency), waiting, err)
		}
		if phase == stopping || time.Now().Before(next) || phase == counting && len(p.latency) == 0 {
			continue
		}
		if err := p.mark(); err != nil {
			return err
		}
		phase++
		next = time.Now().Add(p.window)
	}
	return nil
}

func (l *load) grow(n int) {
	for len(l.conns) < n {
		l.conns = append(l.conns, loadConn{fd: -1})
	}
}

// dial starts connection i. Its handshake is sent when it is connected.
func (l *load) dial(i int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	l.conns[i] = loadConn{fd: fd, out: l.request}
	if err := tune(fd); err != nil {
		return fmt.Errorf("set socket options: %w", err)
	}
	if err := unix.Connect(fd, &l.to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect: %w", err)
	}
	return watch(l.epoll, fd, i, edgeTriggered)
}

func (l *load) reset(i int) {
	if l.conns[i].fd >= 0 {
		unix.Close(l.conns[i].fd)
	}
	l.conns[i] = loadConn{fd: -1}
}

func (l *load) send(i int, b []byte, now time.Time) error {
	l.conns[i].sent = now
	l.conns[i].out = b
	return l.flush(&l.conns[i])
}

func (l *load) flush(c *loadConn) error {
	if len(c.out) == 0 {
		return nil
	}
	n, err := unix.Write(c.fd, c.out)
	c.out = c.out[max(n, 0):]
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// poll waits for events and handles them.
func (l *load) poll(ctx context.Context) error {
	n, err := unix.EpollWait(l.epoll, l.events, int(stallTimeout.Milliseconds()))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("wait: %w", err)
	case n == 0:
		return fmt.Errorf("nothing came for %v", stallTimeout)
	}
	for _, ev := range l.events[:n] {
		if err := l.progress(int(ev.Fd), ev.Events); err != nil {
			return err
		}
	}
	return nil
}

// progress writes and reads on connection i as much as is possible without waiting.
func (l *load) progress(i int, events uint32) error {
	c := &l.conns[i]
	if err := l.flush(c); err != nil {
		return err
	}
	for {
		n, err := unix.Read(c.fd, l.buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return errors.New("read: the connection was closed")
		}
		if err := l.received(i, l.buf[:n]); err != nil {
			return err
		}
		if c.fd < 0 { // reset
			return nil
		}
		// A read that did not fill the buffer emptied the socket; a later byte makes a new edge (epoll(7)).
		if n < len(l.buf) && events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			return nil
		}
	}
}

func (l *load) received(i int, b []byte) error {
	c := &l.conns[i]
	if !c.open {
		return l.answered(i, b)
	}
	if len(b) > len(l.want)-c.got || !bytes.Equal(b, l.want[c.got:c.got+len(b)]) {
		return errors.New("the echo is not what was sent")
	}
	c.got += len(b)
	if c.got < len(l.want) {
		return nil
	}
	c.got = 0
	return l.echoed(i, time.Now())
}

// answered checks the answer to the handshake.
func (l *load) answered(i int, b []byte) error {
	c := &l.conns[i]
	c.head = append(c.head, b...)
	end := bytes.Index(c.head, []byte("\r\n\r\n"))
	if end < 0 {
		return nil
	}
	status, _, _ := strings.Cut(string(c.head), "\r\n")
	switch {
	case !strings.HasPrefix(status, "HTTP/1.1 101 "):
		return fmt.Errorf("upgrade refused: %s", status)
	case !bytes.Contains(c.head, []byte(handshakeAccept+"\r\n")):
		return errors.New("upgrade without the right Sec-WebSocket-Accept")
	case end+4 != len(c.head):
		return errors.New("bytes after the handshake that nobody asked for")
	}
	c.head, c.open = nil, true
	return l.opened(i)
}
