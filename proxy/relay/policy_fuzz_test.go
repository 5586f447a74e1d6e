package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unicode/utf8"

	"portcullis/proxy/frame"
)

// FuzzPolicy has two peers do anything in any order: well-formed frames and garbage, cut anywhere; FIN and reset; not
// taking what is written, or not being there to take it; silence; and from our side pushes, drain and cut. Whatever they do:
//
//   - nothing follows a Close frame, no frame is masked wrongly, and the engine has no reason to spin (script checks that
//     as it goes along, and that nothing is due before wake);
//   - what one peer gets is, byte for byte, what the other has sent, without the pongs that answer our pings, and with
//     our own frames at boundaries alone, and pushes between messages, in their order;
//   - of each push that was queued it is known what became of it;
//   - traffic is counted as a second parser counts it, and where messages are taken apart no text that is not UTF-8 is a message;
//   - once the end has begun and the peers fall silent, the session is over when every timeout has passed.
func FuzzPolicy(f *testing.F) {
	r := rand.NewChaCha8([32]byte{})
	for n := range 64 {
		b := make([]byte, 8*n)
		r.Read(b)
		f.Add(n%2 == 0, b)
	}
	f.Fuzz(playAtRandom)
}

// TestRandomSessions is FuzzPolicy with more seeds than a corpus should have.
func TestRandomSessions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		b := make([]byte, r.IntN(400))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		terminate := r.IntN(2) == 0
		if !t.Run("", func(t *testing.T) { playAtRandom(t, terminate, b) }) {
			t.Fatalf("terminate %v, moves %q", terminate, b)
		}
	}
}

func playAtRandom(t *testing.T, terminate bool, moves []byte) {
	c := scriptConfig()
	if terminate {
		c = terminateConfig()
	}
	c.SessionMax, c.IdleTimeout, c.MessageMaxBytes, c.PushQueue = 10*time.Minute, 3*time.Minute, 100, 30
	s := newScript(t, c)
	next := func() byte {
		if len(moves) == 0 {
			return 0
		}
		b := moves[0]
		moves = moves[1:]
		return b
	}
	to, queued := &scriptRecipient{}, 0
	var ended [2]bool // the peer has shut its direction, or broken off
	send := func(from side, b []byte) {
		if !ended[from] {
			s.send(from, b)
		}
	}
	for len(moves) > 0 {
		move := next()
		from := side(move & 1)
		p := &s.peers[from]
		switch move >> 1 % 26 {
		case 0, 1, 2, 3:
			send(from, from.text("message "+string(rune('a'+next()%26))))
		case 4, 5:
			h := frame.Header{Fin: move&0x80 != 0, Opcode: frame.Opcode(next() % 3)}
			send(from, from.frame(h, "part"))
		case 6:
			send(from, from.ping("app"))
		case 7:
			send(from, from.pong("app"))
		case 8, 9:
			if len(p.pings) > 0 {
				send(from, from.pong(string(p.pings[int(next())%len(p.pings)])))
			}
		case 10:
			send(from, from.close(1000+int(next()), "bye"))
		case 11, 12: // several frames, cut anywhere
			b := bytes.Join([][]byte{from.text("0123456789"), from.ping("01234"), from.text("x")}, nil)
			n := int(next()) % len(b)
			send(from, b[:n])
			if move&0x80 == 0 {
				send(from, b[n:])
			}
		case 13:
			b := make([]byte, next()%16)
			for i := range b {
				b[i] = next()
			}
			if len(b) > 0 {
				send(from, b)
			}
		case 14:
			if move&0x80 != 0 && !ended[from] {
				ended[from] = true
				s.sendFIN(from)
			}
		case 15:
			if move&0xc0 == 0xc0 && !ended[from] {
				ended[from] = true
				s.reset(from)
			}
		case 16:
			s.block(from)
		case 17, 18:
			s.unblock(from)
		case 19:
			p.broken = p.broken || move&0xc0 == 0xc0
		case 20:
			s.wait(time.Duration(next()) * time.Millisecond)
		case 21:
			s.wait(time.Duration(next()) * 200 * time.Millisecond)
		case 22:
			if next() < 32 {
				s.end(Drained, goingAway)
			}
		case 23:
			if next() < 4 {
				s.cut()
			}
		case 24, 25:
			queued += s.push(to, fmt.Sprintf("%s%c", pushMark, 'a'+queued%26))[0].Reached
		}
	}
	s.end(Drained, goingAway)
	if s.policy.reason == "" {
		t.Errorf("it is to end, and has no reason")
	}
	s.wait(4 * 5 * time.Second) // a boundary, the taking, the answer, the FIN
	if !s.policy.over() {
		t.Errorf("it is not over: %+v", s.policy.peers)
	}
	for from := range side(2) {
		s.checkWire(from, terminate)
	}
	p := &s.peers[client]
	if n := p.pushes + len(to.dropped); n > queued || n < queued-1 { // one may have been cut in the middle
		t.Errorf("%d pushes were queued, %d came and %d were dropped", queued, p.pushes, len(to.dropped))
	}
}

// checkWire compares what a side has sent with what the other got of it, and with the count.
func (s *script) checkWire(from side, terminate bool) {
	s.t.Helper()
	want, traffic, refused := s.sent(from)
	e := s.policy.summary(s.clock)
	got := [2]Traffic{e.FromClient, e.FromUpstream}[from]
	if refused && got.Bytes <= traffic.Bytes {
		got.Bytes = traffic.Bytes // what came of it before that showed is counted, too
	}
	if got != traffic {
		s.t.Errorf("%v sent %+v, and %+v was counted", from, traffic, got)
	}
	if terminate {
		return // the library makes other frames of them
	}
	to := &s.peers[from.other()]
	raw := to.raw
	if to.closed && !bytes.HasPrefix(want, raw) { // then the last is our own
		for at := 0; at < len(raw); {
			h, size, _ := frame.Parse(raw[at:])
			if h.Opcode == frame.Close {
				raw = raw[:at]
				break
			}
			at += size + int(h.Length)
		}
	}
	raw = append(raw, to.wire...)
	if !bytes.HasPrefix(want, raw) {
		s.t.Errorf("%v sent %x,\n%v got %x", from, want, from.other(), raw)
	}
}

// sent reads what the policy has taken of a side's bytes, up to the Close frame or the first violation. It
// returns all that may go on to the other side, what is to be counted, and whether the last of it is text that is refused.
func (s *script) sent(from side) (wire []byte, traffic Traffic, refused bool) {
	b := s.peers[from].consumed
	limit := s.policy.plain[from].MaxMessage
	var size int64
	open := false
	var message []byte // if it is text
	isText := false
	for {
		h, head, err := frame.Parse(b)
		if err != nil || head == 0 {
			return wire, traffic, false
		}
		data := h.Opcode <= frame.Binary
		if h.Opcode != frame.Continuation && data {
			size = 0
		}
		size += h.Length
		switch {
		case h.RSV != 0, h.Masked != (from == client), h.Opcode > frame.Binary && h.Opcode < frame.Close, h.Opcode > frame.Pong,
			!data && (!h.Fin || h.Length > 125 || b[1]&0x7f > 125),
			data && open != (h.Opcode == frame.Continuation),
			data && (size > limit || size < 0):
			return wire, traffic, false
		}
		n := int(min(h.Length, int64(len(b)-head)))
		payload := bytes.Clone(b[head : head+n])
		if h.Masked {
			frame.Mask(h.Key, 0, payload)
		}
		switch {
		case data:
			open = !h.Fin
			traffic.Bytes += int64(n)
			if h.Opcode != frame.Continuation {
				message, isText = nil, h.Opcode == frame.Text
			}
			message = append(message, payload...)
			if whole := h.Fin && int64(n) == h.Length; s.policy.terminate && isText && !isUTF8(message, whole) {
				return wire, traffic, true
			}
			if h.Fin && int64(n) == h.Length {
				traffic.Messages++
			}
		case int64(n) < h.Length:
			return wire, traffic, false
		default:
			size -= h.Length
		}
		if h.Opcode == frame.Close {
			if _, _, err := frame.ParseClose(payload); err == nil {
				wire = append(wire, b[:head+n]...)
			}
			return wire, traffic, false
		}
		ours := h.Opcode == frame.Pong && len(payload) == 8 && binary.BigEndian.Uint64(payload)-scriptNonce-1 < 1000
		if !ours {
			wire = append(wire, b[:head+n]...)
		}
		b = b[head+n:]
	}
}

// isUTF8 reports whether a message is UTF-8, or may become it.
func isUTF8(message []byte, whole bool) bool {
	for len(message) > 0 {
		r, n := utf8.DecodeRune(message)
		if r == utf8.RuneError && n == 1 {
			return !whole && !utf8.FullRune(message)
		}
		message = message[n:]
	}
	return true
}
