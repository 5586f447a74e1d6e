package front

import (
	"container/list"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
)

// socket is a connection of TCP or of a unix socket, as the relay's loop takes it.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// plain returns c as a socket, where it is one.
func plain(c net.Conn) (_ socket, ok bool) {
	switch c := c.(type) {
	case *net.TCPConn:
		return c, true
	case *net.UnixConn:
		return c, true
	}
	return nil, false
}

// trackedConn remembers whether its request reached our handler. What net/http refuses itself it answers without telling anyone;
// all that shows is a connection that became active, was written to, and closed without the handler having run.
type trackedConn struct {
	socket
	// Only the connection's goroutine in net/http touches these, until the connection is hijacked.
	awaitingHandler bool // a request has begun, and has not reached our handler
	answered        bool // net/http has answered it

	head *proxyHead // nil: the connection begins with a request, or with TLS

	pending *pendingConns
	element *list.Element // in pending, and guarded by its mutex; nil: it is not there
	closed  bool          // guarded by pending's mutex
}

// maxAlert is the size of a TLS alert at most, with its record's header, nonce and tag: what is written as a connection closes.
const maxAlert = 64

func (c *trackedConn) Write(b []byte) (int, error) {
	c.answered = c.answered || c.awaitingHandler && len(b) > maxAlert // net/http's shortest answer has 103 bytes
	return c.socket.Write(b)
}

// Read reads what stands behind the PROXY head. A connection that has no good one is closed by then, and net/http does not answer its end.
func (c *trackedConn) Read(b []byte) (int, error) {
	if c.head == nil {
		return c.socket.Read(b)
	}
	if !c.readHead() {
		return 0, io.EOF
	}
	if n := c.head.take(b); n > 0 {
		return n, nil
	}
	return c.socket.Read(b)
}

// unixPeer is the other end of every connection to a unix socket. The path that it may have itself is its own choice, and may look like
// an address.
var unixPeer = &net.UnixAddr{Name: "@", Net: "unix"}

// RemoteAddr is the client's address: by the PROXY head, which it waits for, if there is to be one. net/http asks for it first, on the
// connection's own goroutine, so that Accept does not wait for it.
func (c *trackedConn) RemoteAddr() net.Addr {
	if c.head != nil && c.readHead() && c.head.source.IsValid() {
		return net.TCPAddrFromAddrPort(c.head.source)
	}
	return c.peer()
}

// peer is the other end of the connection itself.
func (c *trackedConn) peer() net.Addr {
	if _, isUnix := c.socket.(*net.UnixConn); isUnix {
		return unixPeer
	}
	return c.socket.RemoteAddr()
}

func (c *trackedConn) Close() error {
	c.pending.remove(c, true)
	return c.socket.Close()
}

type connKey struct{}

// trackedConnOf finds the connection below c, which may be TLS; nil if it is not tracked.
func trackedConnOf(c net.Conn) *trackedConn {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	tracked, _ := c.(*trackedConn)
	return tracked
}

// trackedConnFrom finds the connection of a request; nil if it is not tracked.
func trackedConnFrom(r *http.Request) *trackedConn {
	tracked, _ := r.Context().Value(connKey{}).(*trackedConn)
	return tracked
}

// untrack returns a hijacked connection as the relay wants it, a plain one where there is no TLS, and what has been read of it already.
func untrack(c net.Conn) (_ net.Conn, read []byte) {
	tracked, ok := c.(*trackedConn)
	if !ok {
		return c, nil
	}
	return tracked.socket, tracked.head.rest()
}

// markHandled notes that r is not net/http's to refuse any more, nor its connection to be evicted. It reports false if that has
// happened already.
func markHandled(r *http.Request) bool {
	c := trackedConnFrom(r)
	if c == nil {
		return true
	}
	c.awaitingHandler = false
	return c.pending.remove(c, false)
}

// connState reports the requests that net/http refused, and has connections that are kept count as pending.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	tracked := trackedConnOf(c)
	switch {
	case tracked == nil:
	case state == http.StateActive:
		tracked.awaitingHandler = true
	case state == http.StateIdle:
		tracked.pending.put(tracked)
	case state == http.StateClosed && tracked.awaitingHandler && tracked.answered && !s.closing.Load():
		s.malformed(addrOf(tracked.RemoteAddr()))
	}
}

// addrOf is the address of a peer; zero where it has none.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
