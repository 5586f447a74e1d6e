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
	// maxHeader bounds the header of an answer, together with the 1xx answers before it, in bytes on the wire.
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
	// Reason is one of a fixed list, fit for a log line. It quotes nothing that was sent or received.
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

// Timeout reports whether no answer came in time, as opposed to a bad one.
func (e *HandshakeError) Timeout() bool { return isTimeout(e.Err) }

// Accept returns the Sec-WebSocket-Accept value for a Sec-WebSocket-Key (RFC 6455 section 4.2.2).
func Accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

var errTooLong = errors.New("too long")

// limitedReader reads from the connection for the bufio.Reader of an answer. It bounds the bytes of the header. It also keeps
// the last error of the connection, because the errors of http.ReadResponse quote the answer, and do not say whether the answer
// or the network was at fault.
type limitedReader struct {
	src  io.Reader
	left int // bytes; negative: no bound
	err  error
}

func (r *limitedReader) Read(p []byte) (n int, err error) {
	switch {
	case r.left < 0:
		n, err = r.src.Read(p)
	case r.left == 0:
		err = errTooLong
	default:
		n, err = r.src.Read(p[:min(len(p), r.left)])
		r.left -= n
	}
	if err != nil {
		r.err = err
	}
	return n, err
}

// handshakeError is the error for an answer that http.ReadResponse did not accept.
func (r *limitedReader) handshakeError() *HandshakeError {
	switch {
	case r.err == nil:
		return &HandshakeError{Reason: reasonNoHTTP}
	case r.err == errTooLong:
		return &HandshakeError{Reason: reasonTooLong}
	case r.err == io.EOF:
		return &HandshakeError{Reason: reasonClosed, Err: io.ErrUnexpectedEOF}
	case isTimeout(r.err):
		return &HandshakeError{Reason: reasonNoAnswer, Err: r.err}
	default:
		return &HandshakeError{Reason: reasonClosed, Err: r.err}
	}
}

// readAnswer reads the head of the upstream's final answer. The body of a refusal is still to be read.
func (x *handshake) readAnswer() (*Conn, *http.Response, error) {
	for range maxInterim + 1 {
		resp, err := http.ReadResponse(x.answer, nil)
		if err != nil {
			return nil, nil, x.limited.handshakeError()
		}
		if !isHeader(resp.Header) {
			return nil, nil, &HandshakeError{Reason: reasonNoHTTP}
		}
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols:
			c, err := x.acceptSwitch(resp)
			return c, nil, err
		case resp.StatusCode >= 600 || resp.StatusCode < 100: // net/http's server panics on some of these
			return nil, nil, &HandshakeError{Reason: reasonStatus}
		case resp.StatusCode >= 200:
			return nil, resp, nil
		}
	}
	return nil, nil, &HandshakeError{Reason: reasonInterim}
}

// acceptSwitch checks a 101 and returns a Conn for it. It follows the list of RFC 6455 section 4.1, and is stricter where that
// says nothing about doubled fields.
func (x *handshake) acceptSwitch(resp *http.Response) (*Conn, error) {
	h := resp.Header
	wrong := func(reason string) (*Conn, error) { return nil, &HandshakeError{Reason: reason} }
	if resp.Proto != "HTTP/1.1" {
		return wrong(reasonVersion)
	}
	// Different readers understand a 101 with a body differently (RFC 9110 section 8.6 and RFC 9112 section 6.1 forbid it).
	// Content-Length: 0 is allowed: some servers add it to every answer without a body, and it has only one meaning.
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
