package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
	"unicode/utf8"

	"portcullis/proxy/frame"
)

// fuzzedStream is one peer's side of a session, from its first byte to its FIN, and
// what else there is to know of it. The other peer answers a Close frame and
// says nothing else, so what becomes of the session does not depend on time.
type fuzzedStream struct {
	from       side
	extensions string
	largest    int64 // MESSAGE_MAX_BYTES
	wire       []byte
}

// fate is what becomes of a session.
type fate struct {
	forwarded []byte // reaches the other peer as it was sent
	toOther   string // what the relay itself says to the other peer after that, and
	toSender  string // to the sender
	end       End    // without its duration
}

// model says, by RFC 6455 and the rules of this package, what must become of
// a stream. It is written as naively as it can be, without package frame,
// over the whole stream at once.
func (f *fuzzedStream) model() (want fate) {
	traffic := &want.end.FromClient
	if f.from == upstream {
		traffic = &want.end.FromUpstream
	}
	var open bool  // a message is
	var size int64 // of the message
	b := f.wire
	violated := func(reason Reason, code int) fate {
		want.end.Reason, want.end.Code = reason, code
		want.toSender, want.toOther = fmt.Sprint("close ", code), "close 1001"
		return want
	}
	broken := false // inside a frame
	for len(b) >= 2 {
		fin, rsv, op := b[0]&0x80 != 0, b[0]&0x70, b[0]&0x0f
		masked, length := b[1]&0x80 != 0, uint64(b[1]&0x7f)
		head, least := 2, uint64(0)
		switch length {
		case 126:
			head, least = 4, 126
		case 127:
			head, least = 10, 65536
		}
		if len(b) < head {
			break
		}
		switch length {
		case 126:
			length = uint64(binary.BigEndian.Uint16(b[2:]))
		case 127:
			length = binary.BigEndian.Uint64(b[2:])
		}
		if length >= 1<<63 || length < least {
			return violated(reasonFraming[f.from], 1002)
		}
		var key [4]byte
		if masked {
			if len(b) < head+4 {
				break
			}
			key = [4]byte(b[head:])
			head += 4
		}

		control := op >= 8
		var mayRSV byte
		switch {
		case f.extensions == "":
		case f.extensions != "permessage-deflate":
			mayRSV = 0x70
		case op == 1 || op == 2:
			mayRSV = 0x40
		}
		if masked != (f.from == client) || op > 2 && op < 8 || op > 10 || rsv&^mayRSV != 0 ||
			control && (!fin || length > 125) ||
			op == 0 && !open || !control && op != 0 && open {
			return violated(reasonFraming[f.from], 1002)
		}

		if control {
			if uint64(len(b)) < uint64(head)+length {
				break
			}
			whole := b[:head+int(length)]
			b = b[len(whole):]
			if op == 8 {
				payload := bytes.Clone(whole[head:])
				for i := range payload {
					payload[i] ^= key[i%4]
				}
				code, valid := closeCode(payload)
				if !valid {
					return violated(reasonFraming[f.from], 1002)
				}
				want.forwarded = append(want.forwarded, whole...)
				want.end.Reason, want.end.Code = reasonClosed[f.from], code
				want.toSender = "close answered"
				return want
			}
			want.forwarded = append(want.forwarded, whole...)
			continue
		}

		if op != 0 {
			size = 0
		}
		if f.largest > 0 && (length > uint64(f.largest) || size+int64(length) > f.largest) {
			return violated(reasonTooBig[f.from], 1009)
		}
		size += int64(min(length, 1<<40))
		open = !fin
		here := min(uint64(len(b)-head), length)
		want.forwarded = append(want.forwarded, b[:head+int(here)]...)
		traffic.Bytes += int64(here)
		b = b[head+int(here):]
		if broken = here < length; broken {
			break
		}
		if fin {
			traffic.Messages++
		}
	}

	// The stream ended without a Close frame.
	switch {
	case f.from == client:
		want.end.Reason, want.end.Code = ClientGone, 1006
		want.toSender = gone1011 // for then the upstream ends, too
	case broken: // amid a frame nothing can be said
		want.end.Reason, want.end.Code = UpstreamGone, 1011
	default:
		want.end.Reason, want.end.Code = UpstreamGone, 1011
		want.toOther, want.toSender = gone1011, "close answered"
	}
	return want
}

func closeCode(payload []byte) (code int, valid bool) {
	if len(payload) == 0 {
		return 1005, true
	}
	if len(payload) == 1 {
		return 0, false
	}
	code = int(payload[0])<<8 | int(payload[1])
	switch code {
	case 1004, 1005, 1006, 1015:
		return 0, false
	}
	return code, code >= 1000 && code < 5000 && utf8.Valid(payload[2:])
}

// recorder keeps what is read.
type recorder struct {
	net.Conn
	bytes []byte
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.bytes = append(r.bytes, b[:n]...)
	return n, err
}

// play has a relay carry the stream, cut into pieces, the first of which
// comes with the handshake if early is set.
func (f *fuzzedStream) play(t *testing.T, r *Relay, cuts []byte, early bool) (got fate) {
	t.Helper()
	var far, near [2]*net.TCPConn
	for s := range far {
		far[s], near[s] = tcpPair(t)
		defer far[s].Close()
	}
	ended := make(chan End, 1)
	h := Handover{Client: near[client], Upstream: near[upstream], Extensions: f.extensions, Ended: func(e End) { ended <- e }}
	pieces := f.pieces(cuts)
	if early && len(pieces) > 0 {
		*[2]*[]byte{&h.ClientEarly, &h.UpstreamEarly}[f.from] = bytes.Clone(pieces[0])
		pieces = pieces[1:]
	}
	r.Start(h)

	roles := [2]frame.Role{frame.Client, frame.Server}
	other := &recorder{Conn: far[f.from.other()]}
	listener := newPeer(t, roles[f.from.other()], other, nil)
	sender := newPeer(t, roles[f.from], far[f.from], nil)
	for _, p := range []*testPeer{listener, sender} {
		if f.extensions != "" {
			p.rules.FrameRSV = 0x70
		}
	}
	listened := make(chan string, 1)
	go func() {
		defer listener.conn.Close()
		for {
			fr, err := listener.read()
			if err != nil {
				listened <- ending(err)
				return
			}
			if fr.Opcode == frame.Close {
				answer := listener.wire(frame.Header{Fin: true, Opcode: frame.Close}, string(frame.ClosePayload(1000, "answered")))
				if _, err := listener.conn.Write(answer); err != nil {
					listened <- err.Error()
					return
				}
				listened <- fr.name()
				return
			}
		}
	}()
	sent := make(chan error, 1)
	go func() {
		for _, piece := range pieces {
			if _, err := far[f.from].Write(piece); err != nil {
				sent <- err
				return
			}
		}
		sent <- far[f.from].CloseWrite()
	}()

	for {
		fr, err := sender.read()
		if err != nil {
			if said := ending(err); said != "" {
				t.Errorf("the sender reads: %s", said)
			}
			break
		}
		got.toSender = fr.name()
		if fr.Opcode == frame.Close && got.toSender != gone1011 {
			got.toSender = got.toSender[:len("close 1000")] // without what is said of a violation
		}
		if fr.name() == "close 1000 answered" {
			got.toSender = "close answered"
		}
	}
	if err := <-sent; err != nil {
		t.Errorf("the sender writes: %v", err)
	}
	far[f.from].Close()
	got.toOther = <-listened
	select {
	case got.end = <-ended:
		if got.end.Duration > patience/2 {
			t.Errorf("the session took %v: it waited for what does not come", got.end.Duration)
		}
		got.end.Duration = 0
	case <-time.After(patience):
		t.Fatal("the session does not end")
	}
	got.forwarded = other.bytes
	return got
}

// ending is what is wrong with how reading ended.
func ending(err error) string {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	return err.Error()
}

// pieces cuts the stream into pieces of those sizes, over and over.
func (f *fuzzedStream) pieces(cuts []byte) (all [][]byte) {
	b := f.wire
	for i := 0; len(b) > 0 && len(cuts) > 0 && len(all) < 64; i++ {
		n := min(1+int(cuts[i%len(cuts)]), len(b))
		all = append(all, b[:n])
		b = b[n:]
	}
	if len(b) > 0 {
		all = append(all, b)
	}
	return all
}

// FuzzEngines feeds streams of frames, valid or not, in pieces to both
// engines, and demands of each what the model says: the same bytes, the same
// last words to both peers, the same reason, code and counts.
func FuzzEngines(f *testing.F) {
	const largest = 300
	type target struct {
		name           string
		limited, plain *Relay
	}
	var targets []target
	for _, e := range engines {
		if e.terminates() || e.tls {
			continue // no stream of bytes there, and there the same engine
		}
		c := e.config()
		limited := c
		limited.MessageMaxBytes = largest
		targets = append(targets, target{e.name, newRig(f, e, limited).Relay, newRig(f, e, c).Relay})
	}

	rng := rand.New(rand.NewPCG(6, 455))
	for seed := range 150 {
		cuts := make([]byte, rng.IntN(4))
		for i := range cuts {
			cuts[i] = byte(rng.IntN(40))
		}
		f.Add(byte(seed), randomStream(rng, side(seed&1)), cuts)
	}
	f.Fuzz(func(t *testing.T, settings byte, wire, cuts []byte) {
		s := &fuzzedStream{from: side(settings & 1), wire: wire}
		early := settings&2 != 0
		if settings&4 != 0 {
			s.largest = largest
		}
		switch settings >> 3 & 3 {
		case 1:
			s.extensions = "permessage-deflate"
		case 2:
			s.extensions = "permessage-deflate, x-unknown"
		}
		want := s.model()
		for _, target := range targets {
			r := target.plain
			if s.largest > 0 {
				r = target.limited
			}
			got := s.play(t, r, cuts, early)
			// What the other peer read begins with what was forwarded. Then come our last
			// words, which the strict peer has told.
			if want.end.Reason == reasonClosed[s.from] {
				want.toOther = got.toOther // the sender's own words, which are forwarded
			} else if want.toOther == "" && got.toOther == "" || len(got.forwarded) > len(want.forwarded) {
				got.forwarded = got.forwarded[:min(len(got.forwarded), len(want.forwarded))]
			}
			if !bytes.Equal(got.forwarded, want.forwarded) {
				t.Errorf("%s forwards %x, want %x", target.name, got.forwarded, want.forwarded)
			}
			if got.toOther != want.toOther || got.toSender != want.toSender || got.end != want.end {
				t.Errorf("%s says %q to the other peer, %q to the sender, and ends with %+v;\nwant %q, %q, %+v",
					target.name, got.toOther, got.toSender, got.end, want.toOther, want.toSender, want.end)
			}
		}
	})
}

// randomStream is some frames, most of them valid, with now and then a bit
// turned over, and an end that may be anywhere.
func randomStream(rng *rand.Rand, from side) (b []byte) {
	role := [2]frame.Role{frame.Client, frame.Server}[from]
	open := false
	for range rng.IntN(8) {
		h := frame.Header{Fin: rng.IntN(3) > 0, Opcode: frame.Opcode(1 + rng.IntN(2))}
		n := []int{0, 1, 5, 125, 126, 200, 301, 70_000}[rng.IntN(8)]
		switch {
		case rng.IntN(4) == 0:
			h.Fin, h.Opcode, n = true, frame.Ping+frame.Opcode(rng.IntN(2)), min(n, 125)
		case rng.IntN(12) == 0:
			payload := frame.ClosePayload([]int{1000, 1005, 4000, 1006, 99}[rng.IntN(5)], "Olá")
			b = appendFrame(b, role, frame.Header{Fin: true, Opcode: frame.Close}, payload)
			continue
		case open:
			h.Opcode, open = frame.Continuation, !h.Fin
		default:
			open = !h.Fin
			if rng.IntN(4) == 0 {
				h.RSV = frame.RSV1
			}
		}
		b = appendFrame(b, role, h, pattern(0, n))
	}
	if len(b) > 0 && rng.IntN(4) == 0 {
		b[rng.IntN(min(len(b), 400))] ^= 1 << rng.IntN(8)
	}
	if len(b) > 0 && rng.IntN(3) == 0 {
		b = b[:rng.IntN(len(b))]
	}
	return b
}
