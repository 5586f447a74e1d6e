package upstream

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	"portcullis/proxy/header"
)

const (
	// readBuffer holds a usual 101 whole. It also bounds Conn.Early: what does not fit stays in the socket.
	readBuffer = 1 << 10

	// maxKeptRequest is the largest request buffer that goes back to the pool. Usual requests are under 1 KiB. A client's
	// header may be as large as MaxHeaderBytes, and the pool should not fill up with such buffers.
	maxKeptRequest = 8 << 10
)

// handshake holds the buffers and the state of one opening handshake. It comes from a pool and goes back to it.
type handshake struct {
	request []byte
	key     string
	offered http.Header

	limited limitedReader
	answer  *bufio.Reader // reads limited
}

var handshakes = sync.Pool{New: func() any {
	x := &handshake{}
	x.answer = bufio.NewReaderSize(&x.limited, readBuffer)
	return x
}}

// release returns x to the pool with nothing of its handshake reachable from it.
func (x *handshake) release() {
	if cap(x.request) > maxKeptRequest {
		x.request = nil
	}
	x.key, x.offered, x.limited = "", nil, limitedReader{}
	x.answer.Reset(&x.limited)
	handshakes.Put(x)
}

// compose writes the whole request into x.request, so that it can be sent with one write. It checks all that came from
// the client, although net/http and the gate have checked it before: a line break that got this far would begin a second request.
func (x *handshake) compose(u *Upstream, t *target, req *Request) error {
	if req.Path != "" && req.Path[0] != '/' || strings.Contains(req.Path, "?") || !sendable(req.Path) {
		return errors.New("malformed path")
	}
	if !sendable(req.Query) {
		return errors.New("malformed query")
	}
	host := u.host
	if host == "" {
		host = req.Host
	}
	if host == "" {
		host = t.authority
	}
	if !header.IsHost(host) {
		return errors.New("malformed Host")
	}

	// A key of 16 random bytes, new for each connection (RFC 6455 section 4.1). It is never the client's own: whoever
	// chooses the key can prepare the answer.
	var nonce [16]byte
	rand.Read(nonce[:])
	x.key = base64.StdEncoding.EncodeToString(nonce[:])
	x.offered = req.Header

	b := append(x.request[:0], "GET "...)
	b = t.appendURI(b, req.Path, req.Query)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, host...)
	b = append(b, "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "...)
	b = append(b, x.key...)
	b = append(b, "\r\n"...)
	for name, values := range req.Header {
		if !header.IsToken(name) {
			return errors.New("malformed header field name")
		}
		switch header.KindOf(name) {
		case header.Hop, header.Framing:
			continue // each could make the upstream see a body, another protocol or another request
		}
		name := http.CanonicalHeaderKey(name)
		switch name {
		case "Host", "Sec-Websocket-Version", "Sec-Websocket-Key", "Sec-Websocket-Accept":
			continue // written above, or the upstream's to write
		case protocolField:
			name = "Sec-WebSocket-Protocol" // as RFC 6455 spells it, for backends that compare bytes
		case extensionsField:
			name = "Sec-WebSocket-Extensions"
		}
		for _, v := range values {
			if !header.IsValue(v) {
				return fmt.Errorf("malformed value of header field %s", name)
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	x.request = append(b, "\r\n"...)
	return nil
}

// roundTrip sends the request and reads the head of the answer. It returns a Conn, whose net.Conn is not yet set, or a refusal,
// whose body is still to be read.
func (x *handshake) roundTrip(conn net.Conn) (*Conn, *http.Response, error) {
	x.limited = limitedReader{src: conn, left: maxHeader}
	if _, err := conn.Write(x.request); err != nil {
		return nil, nil, &HandshakeError{Reason: reasonWrite, Err: err}
	}
	return x.readAnswer()
}
