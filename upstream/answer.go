package upstream

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net/http"

	"portcullis/proxy/header"
)

const (
	// maxHeader bounds the header of an answer, 1xx answers before it included, in bytes on the wire.
	maxHeader = 64 << 10

	// maxInterim is how many 1xx answers may come before the final one; net/http's client once had the same bound.
	maxInterim = 5
)

// The reasons of a HandshakeError.
const (
	reasonCancelled  = "cancelled"
	reasonWrite      = "request could not be sent"
	reasonNoAnswer   = "no answer in time"
	reasonClosed     = "connection ended within the answer"
	reasonTooLong    = "answer's header is longer than 64 KiB"
	reasonNoHTTP     = "answer is not HTTP"
	reasonInterim    = "too many 1xx answers"
	reasonStatus     = "answer's status is not one of HTTP"
	reasonVersion    = "101 of another HTTP version than 1.1"
	reasonBody       = "101 with Content-Length or Transfer-Encoding"
	reasonUpgrade    = "101 without Upgrade: websocket"
	reasonConnection = "101 without Connection: Upgrade"
	reasonAccept     = "101 with a wrong Sec-WebSocket-Accept"
	reasonProtocol   = "101 with a subprotocol that was not offered"
	reasonExtensions = "101 with an extension that was not offered"
)

// HandshakeError is an upstream that was reached but did not give a usable answer.
type HandshakeError struct {
	// Reason is one of a fixed list, fit for a log line. It holds nothing of what was sent or received.
	Reason string

	// Err is the network's or the context's error; nil where the answer itself was wrong.
	Err error
}

func (e *HandshakeError) Error() string {
	if e.Err == nil {
		return "upstream handshake: " + e.Reason
	}
	return "upstream handshake: " + e.Reason + ": " + e.Err.Error()
}

func (e *HandshakeError) Unwrap() error { return e.Err }

// Timeout says that no answer came in time, rather than a bad one.
func (e *HandshakeError) Timeout() bool { return isTimeout(e.Err) }

// Accept returns the Sec-WebSocket-Accept value for a Sec-WebSocket-Key (RFC 6455 section 4.2.2).
func Accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

var errTooLong = errors.New("too long")

// limitedReader is the wire below the bufio.Reader of an answer. It bounds what a header may take from it, and keeps the error
// that reading ended with, because http.ReadResponse's errors quote the answer and do not tell its faults from the network's.
type limitedReader struct {
	src  io.Reader
	left int // bytes; negative: no bound
	err  error
}

func (m *limitedReader) Read(p []byte) (n int, err error) {
	switch {
	case m.left < 0:
		n, err = m.src.Read(p)
	case m.left == 0:
		err = errTooLong
	default:
		n, err = m.src.Read(p[:min(len(p), m.left)])
		m.left -= n
	}
	if err != nil {
		m.err = err
	}
	return n, err
}

// fault is the HandshakeError for an answer that http.ReadResponse would not take.
func (m *limitedReader) fault() *HandshakeError {
	switch {
	case m.err == nil:
		return &HandshakeError{Reason: reasonNoHTTP}
	case m.err == errTooLong:
		return &HandshakeError{Reason: reasonTooLong}
	case m.err == io.EOF:
		return &HandshakeError{Reason: reasonClosed, Err: io.ErrUnexpectedEOF}
	case isTimeout(m.err):
		return &HandshakeError{Reason: reasonNoAnswer, Err: m.err}
	default:
		return &HandshakeError{Reason: reasonClosed, Err: m.err}
	}
}

// readAnswer reads the head of the upstream's final answer. One that is a refusal has its body still to come.
func (x *handshake) readAnswer() (*Conn, *http.Response, error) {
	for range maxInterim + 1 {
		resp, err := http.ReadResponse(x.answer, nil)
		if err != nil {
			return nil, nil, x.limited.fault()
		}
		if !isHeader(resp.Header) {
			return nil, nil, &HandshakeError{Reason: reasonNoHTTP}
		}
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols:
			c, err := x.accepted(resp)
			return c, nil, err
		case resp.StatusCode >= 600 || resp.StatusCode < 100: // net/http's server panics on some of these
			return nil, nil, &HandshakeError{Reason: reasonStatus}
		case resp.StatusCode >= 200:
			return nil, resp, nil
		}
	}
	return nil, nil, &HandshakeError{Reason: reasonInterim}
}

// accepted makes a Conn of a 101, or says what is wrong with it: the list of RFC 6455 section 4.1, made stricter where it
// is silent on doubled fields.
func (x *handshake) accepted(resp *http.Response) (*Conn, error) {
	h := resp.Header
	wrong := func(reason string) (*Conn, error) { return nil, &HandshakeError{Reason: reason} }
	if resp.Proto != "HTTP/1.1" {
		return wrong(reasonVersion)
	}
	// A body behind a 101 is read differently by different readers (RFC 9110 section 8.6, RFC 9112 section 6.1 forbid it). Some
	// servers say of every answer that has none that its length is 0, which nobody can read otherwise.
	if !header.IsEmptyBody(h) || len(resp.TransferEncoding) > 0 {
		return wrong(reasonBody)
	}
	delete(h, "Content-Length")
	if v := h["Upgrade"]; len(v) != 1 || !header.EqualFold(v[0], "websocket") {
		return wrong(reasonUpgrade)
	}
	if !header.HasToken(h["Connection"], "upgrade") {
		return wrong(reasonConnection)
	}
	if v := h["Sec-Websocket-Accept"]; len(v) != 1 || v[0] != Accept(x.key) {
		return wrong(reasonAccept)
	}
	protocol, ok := chosenProtocol(h[protocolField], x.offered[protocolField])
	if !ok {
		return wrong(reasonProtocol)
	}
	extensions, ok := acceptedExtensions(h[extensionsField], x.offered[extensionsField])
	if !ok {
		return wrong(reasonExtensions)
	}
	c := &Conn{Header: h, Protocol: protocol, Extensions: extensions}
	if n := x.answer.Buffered(); n > 0 {
		c.Early = make([]byte, n)
		io.ReadFull(x.answer, c.Early) // cannot fail: it is in the buffer
	}
	return c, nil
}
