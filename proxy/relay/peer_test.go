package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// writeDeadline bounds everything that a test waits for and that should come at once.
const patience = 30 * time.Second

// peer is a client or an upstream that does nothing by itself and forgives
// nothing: every frame it reads must obey RFC 6455, and none may follow a Close.
type testPeer struct {
	t     testing.TB
	conn  net.Conn
	tcp   *net.TCPConn // conn, or what TLS runs over
	role  frame.Role   // in which it speaks
	rules frame.Rules  // what it hears must obey
	scan  frame.Scanner

	buf      []byte
	from, to int    // what of buf has been read and not yet looked at
	payload  []byte // of the last frame
	closed   bool   // a Close frame has come

	// each, if set, is given the payload of data frames piece by piece, which then have none.
	each func(piece []byte)
}

func newPeer(t testing.TB, role frame.Role, conn net.Conn, tcp *net.TCPConn) *testPeer {
	conn.SetDeadline(time.Now().Add(patience))
	return &testPeer{t: t, conn: conn, tcp: tcp, role: role, rules: frame.Rules{From: 1 - role}, buf: make([]byte, 32<<10)}
}

// received is one frame, unmasked. Its payload is valid until the next read.
type received struct {
	frame.Header
	payload []byte
}

// name is what a test wants to see of a frame: "text hello", "close 1000 bye".
func (f received) name() string {
	names := map[frame.Opcode]string{
		frame.Continuation: "continuation", frame.Text: "text", frame.Binary: "binary",
		frame.Close: "close", frame.Ping: "ping", frame.Pong: "pong",
	}
	name := names[f.Opcode]
	if !f.Fin {
		name += " part"
	}
	if f.Opcode == frame.Close {
		code, reason, err := frame.ParseClose(f.payload)
		if err != nil {
			return "close: " + err.Error()
		}
		if name = fmt.Sprint("close ", code); reason != "" {
			name += " " + reason
		}
		return name
	}
	if len(f.payload) > 0 {
		name += " " + string(f.payload)
	}
	return name
}

// read returns the next frame. io.EOF: the stream ended between two frames;
// io.ErrUnexpectedEOF: inside one.
func (p *testPeer) read() (received, error) {
	var f received
	p.payload = p.payload[:0]
	var at int64 // of the payload
	for begun := false; ; {
		part, err := p.scan.Next(p.buf[p.from:p.to], &p.rules)
		if err != nil {
			return received{}, err
		}
		if part.Size > 0 {
			if p.closed {
				return received{}, errors.New("a frame after a Close frame")
			}
			if part.Starts || part.Control {
				f.Header, begun = part.Header, true
			}
			wire := p.buf[p.from : p.from+part.Size]
			piece := wire[part.Size-part.Payload:]
			if f.Key != [4]byte{} {
				frame.Mask(f.Key, at, piece)
			}
			at += int64(len(piece))
			if p.each == nil || part.Control {
				p.payload = append(p.payload, piece...)
			} else {
				p.each(piece)
			}
			p.from += part.Size
			if begun && !p.scan.Inside() || part.Control {
				f.payload = p.payload
				p.closed = f.Opcode == frame.Close
				return f, nil
			}
		}
		if p.from == p.to {
			p.from, p.to = 0, 0
		}
		if part.Size > 0 && p.from < p.to {
			continue
		}
		p.to = copy(p.buf, p.buf[p.from:p.to])
		p.from = 0
		n, err := p.conn.Read(p.buf[p.to:])
		p.to += n
		if n == 0 && err != nil {
			if err == io.EOF && (begun || p.to > 0) {
				err = io.ErrUnexpectedEOF
			}
			return received{}, err
		}
	}
}

// expect reads as many frames as it is given names.
func (p *testPeer) expect(want ...string) {
	p.t.Helper()
	for _, want := range want {
		f, err := p.read()
		if err != nil {
			p.t.Fatalf("%s reads %v, want %q", p, err, want)
		}
		if got := f.name(); got != want {
			p.t.Fatalf("%s reads %.200q, want %.200q", p, got, want)
		}
	}
}

// expectEOF demands that the stream ends here, between two frames.
func (p *testPeer) expectEOF() {
	p.t.Helper()
	if f, err := p.read(); err != io.EOF {
		p.t.Fatalf("%s reads %.200q, %v, want EOF", p, f.name(), err)
	}
}

// expectCut demands that the stream ends here, in whatever way.
func (p *testPeer) expectCut() {
	p.t.Helper()
	f, err := p.read()
	if timeout, ok := errors.AsType[net.Error](err); err == nil || ok && timeout.Timeout() {
		p.t.Fatalf("%s reads %.200q, %v, want an end", p, f.name(), err)
	}
}

// write writes bytes as they are.
func (p *testPeer) write(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatalf("%s writes: %v", p, err)
	}
}

// send writes one whole frame.
func (p *testPeer) send(op frame.Opcode, payload string) {
	p.t.Helper()
	p.write(p.wire(frame.Header{Fin: true, Opcode: op}, payload))
}

// sendClose writes a Close frame.
func (p *testPeer) sendClose(code int, reason string) {
	p.t.Helper()
	p.send(frame.Close, string(frame.ClosePayload(code, reason)))
}

// wire is a frame as this peer sends it.
func (p *testPeer) wire(h frame.Header, payload string) []byte {
	return appendFrame(nil, p.role, h, []byte(payload))
}

func appendFrame(b []byte, role frame.Role, h frame.Header, payload []byte) []byte {
	h.Length = int64(len(payload))
	if role == frame.Client {
		h.Masked = true
		for i := range h.Key {
			h.Key[i] = byte(rand.Uint32())
		}
	}
	b = h.Append(b)
	start := len(b)
	b = append(b, payload...)
	if h.Masked {
		frame.Mask(h.Key, 0, b[start:])
	}
	return b
}

// appendBulk is appendFrame for tests that move many bytes: its masking key is
// zero, since masking is slow under the race detector.
func appendBulk(b []byte, role frame.Role, h frame.Header, payload []byte) []byte {
	h.Length = int64(len(payload))
	h.Masked = role == frame.Client
	return append(h.Append(b), payload...)
}

// closeWrite shuts this peer's direction: a FIN, or over TLS its close_notify.
func (p *testPeer) closeWrite() {
	p.t.Helper()
	if err := p.conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		p.t.Fatalf("%s shuts its direction: %v", p, err)
	}
}

// reset has the connection end in a RST instead of a FIN.
func (p *testPeer) reset() {
	p.tcp.SetLinger(0)
	p.tcp.Close()
}

// echo returns all messages and answers pings, and the Close frame, until the
// connection ends; what it returns then is nil after a Close frame.
func (p *testPeer) echo() error {
	var out []byte
	for {
		f, err := p.read()
		if p.closed && err == io.EOF {
			return p.conn.Close()
		}
		if err != nil {
			return err
		}
		switch f.Opcode {
		case frame.Pong:
			continue
		case frame.Ping:
			f.Opcode = frame.Pong
		}
		out = appendBulk(out[:0], p.role, frame.Header{Fin: f.Fin, RSV: f.RSV, Opcode: f.Opcode}, f.payload)
		if _, err := p.conn.Write(out); err != nil {
			return err
		}
		if f.Opcode == frame.Close && p.role == frame.Server {
			return p.conn.Close()
		}
	}
}

func (p *testPeer) String() string {
	if p.role == frame.Client {
		return "client"
	}
	return "upstream"
}

// pattern is a payload of n bytes, up to patternMax, of an endless one of which
// at bytes have gone before, so that one that is lost, doubled or out of order shows.
func pattern(at int64, n int) []byte { return patternTable[at%patternPeriod:][:n] }

const (
	patternPeriod = 65521 // a prime: no buffer size is a multiple of it
	patternMax    = 128 << 10
)

var patternTable = func() []byte {
	b := make([]byte, patternPeriod)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(b)
	return bytes.Repeat(b, 4)
}()
