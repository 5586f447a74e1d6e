//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// echoServer is the backend of every target, and the token endpoint: one thread, one epoll, one read buffer. It
// echoes frame by frame, so that a large message costs no memory, and understands only as much HTTP as the handshake and
// `GET /token` need.
type echoServer struct {
	epoll, listener, stopped int         // descriptors; stopped is an eventfd
	conns                    []*echoConn // by descriptor
	buf                      []byte
	asked                    func() error // by GET /push; nil: nothing happens
}

// echoConn is one client of the echo server.
type echoConn struct {
	fd       int
	upgraded bool
	frames   frameEcho
	rest     []byte // an incomplete request or frame header; the next read is appended to it
	out      []byte // what the socket has not taken yet; nothing is read until it is written
}

func newEchoServer(addr netip.AddrPort) (*echoServer, error) {
	s := &echoServer{epoll: -1, listener: -1, stopped: -1, buf: make([]byte, 512<<10)}
	if err := s.listen(addr); err != nil {
		s.close()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return s, nil
}

func (s *echoServer) listen(addr netip.AddrPort) (err error) {
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if s.stopped, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return err
	}
	if s.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.Bind(s.listener, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		return err
	}
	if err := unix.Listen(s.listener, 4096); err != nil {
		return err
	}
	return errors.Join(
		watch(s.epoll, s.listener, s.listener, unix.EPOLLIN),
		watch(s.epoll, s.stopped, s.stopped, unix.EPOLLIN))
}

// serve runs until stop is called and then closes every connection.
func (s *echoServer) serve() error {
	runtime.LockOSThread() // a thread of its own: a message does not wait for the Go scheduler
	defer runtime.UnlockOSThread()
	defer s.close()

	events := make([]unix.EpollEvent, 512)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait: %w", err)
		}
		for _, ev := range events[:max(n, 0)] {
			switch fd := int(ev.Fd); fd {
			case s.stopped:
				return nil
			case s.listener:
				if err := s.accept(); err != nil {
					return fmt.Errorf("accept: %w", err)
				}
			default:
				if !s.serveConn(s.conns[fd], ev.Events) {
					unix.Close(fd)
					s.conns[fd] = nil
				}
			}
		}
	}
}

// stop makes serve return; it may be called from any goroutine, once, while serve runs.
func (s *echoServer) stop() error {
	_, err := unix.Write(s.stopped, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

func (s *echoServer) close() {
	for fd, c := range s.conns {
		if c != nil {
			unix.Close(fd)
		}
	}
	for _, fd := range []int{s.listener, s.stopped, s.epoll} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (s *echoServer) accept() error {
	for {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		if err := tune(fd); err != nil {
			return err
		}
		for fd >= len(s.conns) {
			s.conns = append(s.conns, nil)
		}
		s.conns[fd] = &echoConn{fd: fd}
		if err := watch(s.epoll, fd, fd, edgeTriggered); err != nil {
			return err
		}
	}
}

// serveConn handles an event; false ends the connection.
func (s *echoServer) serveConn(c *echoConn, events uint32) bool {
	if !c.flush() {
		return false
	}
	for len(c.out) == 0 {
		kept := copy(s.buf, c.rest)
		n, err := unix.Read(c.fd, s.buf[kept:])
		if errors.Is(err, unix.EAGAIN) {
			return true
		}
		if n <= 0 {
			return false
		}
		if !s.received(c, s.buf[:kept+n]) {
			return false
		}
		// A read that did not fill the buffer emptied the socket; a later byte makes a new edge (epoll(7)).
		if n < len(s.buf)-kept && events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			return true
		}
	}
	return true
}

func (s *echoServer) received(c *echoConn, b []byte) bool {
	if c.upgraded {
		out, rest := c.frames.echo(b)
		c.rest = append(c.rest[:0], rest...)
		return c.send(out)
	}
	for !c.upgraded {
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			c.rest = append(c.rest[:0], b...)
			return len(b) < 16<<10
		}
		if s.asked != nil && bytes.HasPrefix(b, []byte("GET "+pushPath+" ")) {
			if s.asked() != nil {
				return false
			}
			return c.send([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
		}
		var answer string
		answer, c.upgraded = respond(b[:end])
		if !c.send([]byte(answer)) {
			return false
		}
		b = b[end+4:]
	}
	c.rest = nil
	return len(b) == 0 || s.received(c, b)
}

// send writes b, and keeps what the socket does not take. It reports whether the connection still works.
func (c *echoConn) send(b []byte) bool {
	if len(c.out) > 0 || len(b) == 0 {
		c.out = append(c.out, b...)
		return true
	}
	n, err := unix.Write(c.fd, b)
	c.out = append(c.out, b[max(n, 0):]...)
	return err == nil || errors.Is(err, unix.EAGAIN)
}

// flush writes what was kept.
func (c *echoConn) flush() bool {
	if len(c.out) == 0 {
		return true
	}
	n, err := unix.Write(c.fd, c.out)
	c.out = append(c.out[:0], c.out[max(n, 0):]...)
	return err == nil || errors.Is(err, unix.EAGAIN)
}

// respond answers a request's head: the token endpoint on /token, the handshake everywhere else.
func respond(head []byte) (answer string, upgraded bool) {
	request, rest, _ := bytes.Cut(head, []byte("\r\n"))
	if bytes.HasPrefix(request, []byte("GET /token?")) {
		if bytes.Contains(request, []byte("token="+token+" ")) {
			return "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1", false
		}
		return "HTTP/1.1 400 Bad Request\r\nContent-Length: 1\r\n\r\n0", false
	}
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Sec-WebSocket-Key")) {
			return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
				"Sec-WebSocket-Accept: " + acceptKey(bytes.TrimSpace(value)) + "\r\n\r\n", true
		}
	}
	return "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n", false
}

// frameEcho turns a client's masked frames into the server's unmasked ones, of any length, in pieces of any length.
type frameEcho struct {
	left int    // payload bytes of the current frame still to come
	key  uint32 // the mask, rotated to the next byte
	drop bool   // the current frame is a pong, which gets no answer
}

// echo rewrites b in place and returns parts of it: out is to be sent, rest is the start of a header, to be passed again,
// followed by more bytes.
func (f *frameEcho) echo(b []byte) (out, rest []byte) {
	base, w, r := 0, 0, 0
	for r < len(b) {
		if f.left == 0 {
			h, ok := parseHeader(b[r:])
			if !ok {
				return b[base:w], b[r:]
			}
			f.left, f.key, f.drop = h.payload, h.key, h.opcode == opPong
			if f.drop {
				r += h.size
				continue
			}
			if w == base { // nothing written yet: leave the payload where it is, four bytes behind a header without key
				base = r + 4
				w = base
			}
			copy(b[w:], b[r:r+h.size-4])
			b[w+1] &^= 0x80
			if h.opcode == opPing {
				b[w] += opPong - opPing
			}
			w += h.size - 4
			r += h.size
			continue
		}
		n := min(f.left, len(b)-r)
		if !f.drop {
			if w != r {
				copy(b[w:], b[r:r+n])
			}
			f.key = xor(b[w:w+n], f.key)
			w += n
		}
		r += n
		f.left -= n
	}
	return b[base:w], nil
}

// frameHeader is the header of a client's frame.
type frameHeader struct {
	opcode  byte
	payload int
	key     uint32
	size    int // of the header itself, its key included
}

// parseHeader reads the header at the start of b; false if it is incomplete. Every client here masks its frames, so the
// mask bit is not checked.
func parseHeader(b []byte) (frameHeader, bool) {
	if len(b) < 2 {
		return frameHeader{}, false
	}
	h := frameHeader{opcode: b[0] & 0x0f, payload: int(b[1] & 0x7f), size: 6}
	switch h.payload {
	case 126:
		h.size = 8
	case 127:
		h.size = 14
	}
	if len(b) < h.size {
		return frameHeader{}, false
	}
	switch h.size {
	case 8:
		h.payload = int(binary.BigEndian.Uint16(b[2:]))
	case 14:
		h.payload = int(binary.BigEndian.Uint64(b[2:]) &^ (1 << 63))
	}
	h.key = binary.LittleEndian.Uint32(b[h.size-4:])
	return h, true
}
