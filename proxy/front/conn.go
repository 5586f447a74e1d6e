package front

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
)

// trackedConn remembers whether its request reached our handler. What net/http refuses itself it answers without telling anyone;
// all that shows is a connection that became active, was written to, and closed without the handler having run.
type trackedConn struct {
	*net.TCPConn
	// Only the connection's goroutine in net/http touches these, until the connection is hijacked.
	awaitingHandler bool // a request has begun, and has not reached our handler
	answered        bool // net/http has answered it

	pending *pendingConns
	element *list.Element // in pending, and guarded by its mutex; nil: it is not there
	closed  bool          // guarded by pending's mutex
}

// maxAlert is the size of a TLS alert at most, with its record's header, nonce and tag: what is written as a connection closes.
const maxAlert = 64

func (c *trackedConn) Write(b []byte) (int, error) {
	c.answered = c.answered || c.awaitingHandler && len(b) > maxAlert // net/http's shortest answer has 103 bytes
	return c.TCPConn.Write(b)
}

func (c *trackedConn) Close() error {
	c.pending.remove(c, true)
	return c.TCPConn.Close()
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

// untrack returns a hijacked connection as the relay wants it: a plain *net.TCPConn where there is no TLS.
func untrack(c net.Conn) net.Conn {
	if tracked, ok := c.(*trackedConn); ok {
		return tracked.TCPConn
	}
	return c
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
		peer, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		s.malformed(peer.Addr().Unmap())
	}
}
