package front

import (
	"bufio"
	"bytes"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
)

// maxHeadV1 is the length of the longest head of version 1 (https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt, section 2.1).
// One of version 2 may have 4 KiB behind its first 16 bytes, by the library, which is room for a client's certificate.
const maxHeadV1 = 107

// proxyHead is the head of the PROXY protocol with which a connection is to begin.
type proxyHead struct {
	within time.Duration // it has to come

	once    sync.Once
	reader  *bufio.Reader  // has what was read behind the head; nil: nothing is left of it
	good    bool           // there is a head, and it says who the client is
	source  netip.AddrPort // of the client; zero: the peer speaks for itself
	refused func(error)    // told what is wrong with a head
}

// readHead reads the head, once, and reports whether it is a good one. Else it closes the connection.
func (c *trackedConn) readHead() bool {
	h := c.head
	h.once.Do(func() {
		c.socket.SetReadDeadline(time.Now().Add(h.within))
		h.reader = bufio.NewReaderSize(c.socket, 256)
		var err error
		if h.source, err = parseHead(h.reader); err == nil {
			h.good = true
			return
		}
		if err != errSilent {
			h.refused(err)
		}
		c.Close()
	})
	return h.good
}

var (
	errSilent = errors.New("nothing came") // so nothing is wrong: balancers connect like that to see whether somebody listens
	errFamily = errors.New("the head names no address of TCP")
)

// parseHead reads a head of version 1 or 2. The source is zero where the head says that the peer speaks for itself (LOCAL, UNKNOWN).
// What TLVs say is not looked at.
func parseHead(r *bufio.Reader) (source netip.AddrPort, err error) {
	head, err := r.Peek(1)
	if err != nil {
		return source, errSilent
	}
	// The library wants a head of version 1 in one piece.
	for head[0] == 'P' && err == nil && len(head) < maxHeadV1 && bytes.IndexByte(head, '\n') < 0 {
		_, err = r.Peek(len(head) + 1)
		head, _ = r.Peek(r.Buffered())
	}
	parsed, err := proxyproto.Read(r)
	if err != nil || parsed.Command.IsLocal() {
		return source, err
	}
	from, _, ok := parsed.TCPAddrs()
	if !ok || !from.AddrPort().Addr().IsValid() || from.AddrPort().Addr().IsUnspecified() {
		return source, errFamily
	}
	return netip.AddrPortFrom(from.AddrPort().Addr().Unmap(), uint16(from.Port)), nil
}

// take moves what was read behind the head to b; 0: nothing is left of it.
func (h *proxyHead) take(b []byte) (n int) {
	if h.reader == nil {
		return 0
	}
	if n = min(len(b), h.reader.Buffered()); n > 0 {
		n, _ = h.reader.Read(b[:n])
	}
	if h.reader.Buffered() == 0 {
		h.reader = nil
	}
	return n
}

// rest is what was read behind the head and not taken.
func (h *proxyHead) rest() []byte {
	if h == nil || h.reader == nil {
		return nil
	}
	rest := make([]byte, h.reader.Buffered())
	h.take(rest)
	return rest
}
