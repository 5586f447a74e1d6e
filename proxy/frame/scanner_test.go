package frame

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// scanTests also seed FuzzScanner. The frames are a server's, which are the shorter ones; a name ending in "client"
// marks those of a client.
var scanTests = []struct {
	name  string
	rules Rules
	wire  string
	want  string // a line for every event, and the last for where it ended
}{
	{"nothing", Rules{}, "",
		"0 left"},
	{"RFC 5.7, unmasked text", Rules{}, "81 05 48656c6c6f",
		"frame 1 of 5, message, 0 left"},
	{"RFC 5.7, masked text, client", Rules{From: Client}, "81 85 37fa213d 7f9f4d5158",
		"frame 1 of 5, message, 0 left"},
	{"RFC 5.7, fragmented text", Rules{}, "01 03 48656c 80 02 6c6f",
		"frame 1 of 3, frame 0 of 2, message, 0 left"},
	{"RFC 5.7, ping", Rules{}, "89 05 48656c6c6f",
		"control 9 Hello, 0 left"},
	{"RFC 5.7, masked pong, client", Rules{From: Client}, "8a 85 37fa213d 7f9f4d5158",
		"control 10 Hello, 0 left"},
	{"empty message", Rules{}, "81 00",
		"frame 1 of 0, message, 0 left"},
	{"empty fragments", Rules{}, "01 00 00 00 00 00 80 00",
		"frame 1 of 0, frame 0 of 0, frame 0 of 0, frame 0 of 0, message, 0 left"},
	{"two messages", Rules{}, "81 01 78 82 01 79",
		"frame 1 of 1, message, frame 2 of 1, message, 0 left"},
	{"control frames between fragments", Rules{}, "01 01 78 89 00 00 01 79 8a 01 7a 80 00",
		"frame 1 of 1, control 9 , frame 0 of 1, control 10 z, frame 0 of 0, message, 0 left"},
	{"close between fragments, and after it", Rules{}, "01 01 78 88 02 03e8 80 00",
		"frame 1 of 1, control 8 \x03\xe8, frame 0 of 0, message, 0 left"},
	{"payload that looks like frames", Rules{}, "82 06 89 00 88 00 83 00",
		"frame 2 of 6, message, 0 left"},
	{"largest frame, begun", Rules{}, "82 7f 7fffffffffffffff 00 01 02",
		"frame 2 of 9223372036854775807, 0 left, inside"},

	{"ends inside a header", Rules{}, "81 00 81 7e 01",
		"frame 1 of 0, message, 3 left"},
	{"ends inside a key, client", Rules{From: Client}, "81 81 37fa21",
		"5 left"},
	{"ends after a header", Rules{}, "81 01",
		"frame 1 of 1, 0 left, inside"},
	{"ends inside a payload", Rules{}, "81 02 78",
		"frame 1 of 2, 0 left, inside"},
	{"ends inside a control frame", Rules{}, "89 02 78",
		"3 left"},
	{"ends between fragments", Rules{}, "01 01 78",
		"frame 1 of 1, 0 left"},

	{"server that masks", Rules{}, "81 81 37fa213d 4f",
		"7 left: " + string(ErrMask)},
	{"client that does not, client", Rules{From: Client}, "81 01 78",
		"3 left: " + string(ErrMask)},
	{"server that masks a control frame", Rules{}, "81 00 89 80 37fa213d",
		"frame 1 of 0, message, 6 left: " + string(ErrMask)},
	{"client that does not mask a control frame, client", Rules{From: Client}, "89 00",
		"2 left: " + string(ErrMask)},
	{"reserved opcode 3", Rules{}, "83 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 4", Rules{}, "84 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 5", Rules{}, "85 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 6", Rules{}, "86 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 7", Rules{}, "87 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 11", Rules{}, "8b 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 12", Rules{}, "8c 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 13", Rules{}, "8d 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 14", Rules{}, "8e 00", "2 left: " + string(ErrOpcode)},
	{"reserved opcode 15", Rules{}, "8f 00", "2 left: " + string(ErrOpcode)},
	{"length with its top bit", Rules{}, "82 7f 8000000000000000",
		"10 left: " + string(ErrLength)},
	{"length with its top bit in a continuation", Rules{}, "01 00 80 7f ffffffffffffffff",
		"frame 1 of 0, 10 left: " + string(ErrLength)},
	{"length of 16 bits that needs 7", Rules{}, "81 00 81 7e 0001 78",
		"frame 1 of 0, message, 5 left: " + string(ErrLengthForm)},
	{"length of 64 bits that needs 16, client", Rules{From: Client}, "82 ff 000000000000ffff 37fa213d",
		"14 left: " + string(ErrLengthForm)},
	{"length of 64 bits that needs 7 in a continuation", Rules{}, "01 00 80 7f 0000000000000000",
		"frame 1 of 0, 10 left: " + string(ErrLengthForm)},
	{"fragmented control frame", Rules{}, "09 00",
		"2 left: " + string(ErrControl)},
	{"fragmented close", Rules{}, "08 00",
		"2 left: " + string(ErrControl)},
	{"control frame of 126 bytes", Rules{}, "89 7e 007e",
		"4 left: " + string(ErrControl)},
	{"control frame of 16 EiB", Rules{}, "88 7f 7fffffffffffffff",
		"10 left: " + string(ErrControl)},
	{"control frame with a length of 16 bits that needs 7", Rules{}, "89 7e 0001 78",
		"5 left: " + string(ErrLengthForm)},
	{"control frame with a length of 64 bits that needs 7", Rules{}, "8a 7f 0000000000000000",
		"10 left: " + string(ErrLengthForm)},
	{"continuation without a message", Rules{}, "80 00",
		"2 left: " + string(ErrContinuation)},
	{"continuation after a whole message", Rules{}, "81 00 00 00",
		"frame 1 of 0, message, 2 left: " + string(ErrContinuation)},
	{"continuation after the last fragment", Rules{}, "01 00 80 00 80 00",
		"frame 1 of 0, frame 0 of 0, message, 2 left: " + string(ErrContinuation)},
	{"continuation after a control frame alone", Rules{}, "89 00 80 00",
		"control 9 , 2 left: " + string(ErrContinuation)},
	{"new message inside a fragmented one", Rules{}, "01 00 81 00",
		"frame 1 of 0, 2 left: " + string(ErrInterleaved)},
	{"new fragmented message inside another", Rules{}, "01 00 00 00 02 00",
		"frame 1 of 0, frame 0 of 0, 2 left: " + string(ErrInterleaved)},
	{"RSV1 without an extension", Rules{}, "c1 00", "2 left: " + string(ErrRSV)},
	{"RSV2 without an extension", Rules{}, "a1 00", "2 left: " + string(ErrRSV)},
	{"RSV3 without an extension", Rules{}, "91 00", "2 left: " + string(ErrRSV)},
	{"RSV1 on a control frame without an extension", Rules{}, "c9 00", "2 left: " + string(ErrRSV)},

	{"RSV1 with permessage-deflate", Rules{MessageRSV: RSV1}, "c1 01 00 81 01 78",
		"frame 1 of 1, message, frame 1 of 1, message, 0 left"},
	{"RSV1 on a first fragment, deflate", Rules{MessageRSV: RSV1}, "41 01 00 80 01 00",
		"frame 1 of 1, frame 0 of 1, message, 0 left"},
	{"RSV1 on a continuation, deflate", Rules{MessageRSV: RSV1}, "41 00 c0 00", // RFC 7692, section 6.1
		"frame 1 of 0, 2 left: " + string(ErrRSV)},
	{"RSV1 on a control frame, deflate", Rules{MessageRSV: RSV1}, "c9 00",
		"2 left: " + string(ErrRSV)},
	{"RSV2, deflate", Rules{MessageRSV: RSV1}, "e1 00",
		"2 left: " + string(ErrRSV)},
	{"all RSV with an unknown extension", Rules{FrameRSV: RSV1 | RSV2 | RSV3}, "71 00 f0 00 f9 00",
		"frame 1 of 0, frame 0 of 0, message, control 9 , 0 left"},

	{"message as large as may be", Rules{MaxMessage: 5}, "81 05 48656c6c6f",
		"frame 1 of 5, message, 0 left"},
	{"message one byte larger", Rules{MaxMessage: 4}, "81 05 48656c6c6f",
		"7 left: " + string(ErrTooBig)},
	{"fragments as large as may be", Rules{MaxMessage: 5}, "01 03 48656c 00 00 80 02 6c6f",
		"frame 1 of 3, frame 0 of 0, frame 0 of 2, message, 0 left"},
	{"fragments one byte larger", Rules{MaxMessage: 4}, "01 03 48656c 80 02 6c6f",
		"frame 1 of 3, 4 left: " + string(ErrTooBig)},
	{"each message counts for itself", Rules{MaxMessage: 1}, "81 01 78 01 01 78 80 00 82 01 79",
		"frame 1 of 1, message, frame 1 of 1, frame 0 of 0, message, frame 2 of 1, message, 0 left"},
	{"control frames do not count", Rules{MaxMessage: 1}, "01 01 78 89 05 48656c6c6f 80 00",
		"frame 1 of 1, control 9 Hello, frame 0 of 0, message, 0 left"},
	{"control frames do not begin the count again", Rules{MaxMessage: 1}, "01 01 78 89 00 80 01 79",
		"frame 1 of 1, control 9 , 3 left: " + string(ErrTooBig)},
	{"too big is told by the header alone", Rules{MaxMessage: 1 << 20}, "82 7f 0000000000100001",
		"10 left: " + string(ErrTooBig)},
}

func TestScanner(t *testing.T) {
	for _, tt := range scanTests {
		t.Run(tt.name, func(t *testing.T) {
			wire := unhex(t, tt.wire)
			if got := scan(t, &tt.rules, wire).String(); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if got := scanInPieces(t, &tt.rules, wire, []byte{1}).String(); got != tt.want {
				t.Errorf("byte by byte\ngot  %q\nwant %q", got, tt.want)
			}
			if got := reference(wire, &tt.rules).String(); got != tt.want {
				t.Errorf("the reference\ngot  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// CVE-2020-27813, in gorilla/websocket before 1.4.1: the lengths of fragments were added up before they were compared,
// so that a sum beyond int64 passed for a small one.
func TestCVE_2020_27813_LengthOverflowOverFragments(t *testing.T) {
	for _, limit := range []int64{1, 5, 1 << 20, math.MaxInt64 - 1, math.MaxInt64} {
		for _, size := range []int64{1, 2, 1 << 20, 1 << 62, math.MaxInt64} {
			if size > limit {
				continue
			}
			s := Scanner{size: size, open: true} // the first fragment's payload has come whole
			h := Header{Fin: true, Opcode: Continuation, Length: math.MaxInt64}
			if _, err := s.Next(h.Append(nil), &Rules{MaxMessage: limit}); err != ErrTooBig {
				t.Errorf("%d bytes and then %d within %d: %v", size, h.Length, limit, err)
			}
			s = Scanner{size: size, open: true}
			h.Length = limit - size
			if _, err := s.Next(h.Append(nil), &Rules{MaxMessage: limit}); err != nil {
				t.Errorf("%d bytes and then %d within %d: %v", size, h.Length, limit, err)
			}
		}
	}
}

// Without a limit, sizes are not added up at all: a stream in one endless message must not overflow.
func TestEndlessMessageWithoutLimit(t *testing.T) {
	s := Scanner{size: math.MaxInt64, open: true}
	h := Header{Opcode: Continuation, Length: math.MaxInt64}
	part, err := s.Next(h.Append(nil), &Rules{})
	if err != nil || !part.Starts || !s.Inside() {
		t.Errorf("%+v, %v", part, err)
	}
}

func TestControlPayload(t *testing.T) {
	wire := unhex(t, "8a 85 37fa213d 7f9f4d5158")
	before := bytes.Clone(wire)
	var s Scanner
	part, err := s.Next(wire, &Rules{From: Client})
	if err != nil {
		t.Fatal(err)
	}
	if got := part.ControlPayload([]byte("> "), wire); string(got) != "> Hello" {
		t.Errorf("got %q", got)
	}
	if !bytes.Equal(wire, before) {
		t.Errorf("the wire became %x", wire)
	}
}

// FuzzScanner scans any bytes under any rules, whole and in any pieces: the events, the end and the error are the same,
// and a reference parser says so, too.
func FuzzScanner(f *testing.F) {
	for _, tt := range scanTests {
		r := tt.rules
		f.Add(unhex(f, tt.wire), []byte{3, 1}, r.From == Client, r.MessageRSV, r.FrameRSV, r.MaxMessage)
	}
	f.Fuzz(func(t *testing.T, wire, cuts []byte, client bool, messageRSV, frameRSV uint8, limit int64) {
		const all = RSV1 | RSV2 | RSV3
		rules := &Rules{MessageRSV: messageRSV & all, FrameRSV: frameRSV & all, MaxMessage: max(limit, 0)}
		if client {
			rules.From = Client
		}
		whole := scan(t, rules, wire)
		for _, sizes := range [][]byte{cuts, {1}} {
			if pieces := scanInPieces(t, rules, wire, sizes); pieces.String() != whole.String() {
				t.Errorf("whole:  %v\npieces: %v", whole, pieces)
			}
		}
		want := reference(wire, rules)
		if !slices.Contains(want.violations, whole.err) {
			t.Errorf("error %v; the reference has %v", whole.err, want.violations)
		}
		want.violations = []error{whole.err} // a frame may have several; which comes first is the scanner's choice
		if whole.String() != want.String() {
			t.Errorf("got  %v\nwant %v", whole, want)
		}
	})
}

// trace is what was seen of a stream of frames.
type trace struct {
	events     []string
	left       int // bytes at the end that are no part yet
	inside     bool
	err        error
	violations []error // in place of err, what the reference could say: nil alone where all is well
}

func (tr trace) String() string {
	var b strings.Builder
	for _, e := range tr.events {
		b.WriteString(e + ", ")
	}
	fmt.Fprintf(&b, "%d left", tr.left)
	if tr.inside {
		b.WriteString(", inside")
	}
	if tr.violations != nil {
		tr.err = tr.violations[0]
	}
	if tr.err != nil {
		fmt.Fprintf(&b, ": %v", tr.err)
	}
	return b.String()
}

// scan shows a scanner the whole wire at once.
func scan(t testing.TB, rules *Rules, wire []byte) trace {
	t.Helper()
	return scanInPieces(t, rules, wire, nil)
}

// scanInPieces shows a scanner the wire in pieces of these sizes, over and over, as a relay does: what is left of one
// goes before the next. It checks what holds for every part.
func scanInPieces(t testing.TB, rules *Rules, wire, sizes []byte) (tr trace) {
	t.Helper()
	var s Scanner
	var payload, announced int64
	var carry []byte
	for i := 0; ; i++ {
		n := len(wire)
		if len(sizes) > 0 {
			n = min(n, 1+int(sizes[i%len(sizes)]))
		}
		b := append(carry, wire[:n]...)
		wire = wire[n:]
		for len(b) > 0 {
			if s.Inside() != (payload < announced) {
				t.Fatalf("inside is %v after %d of %d bytes", s.Inside(), payload, announced)
			}
			part, err := s.Next(b, rules)
			if err != nil {
				if part != (Part{}) {
					t.Fatalf("error %v and %+v", err, part)
				}
				tr.err = err
				tr.left = len(b) + len(wire)
				return tr
			}
			if part.Size == 0 {
				if part != (Part{}) || len(b) >= MaxControl {
					t.Fatalf("%d bytes give %+v", len(b), part)
				}
				break
			}
			h := part.Header
			switch head := part.Size - part.Payload; {
			case part.Size < 0 || part.Size > len(b) || part.Payload < 0 || part.Control && part.Starts:
				t.Fatalf("%d bytes give %+v", len(b), part)
			case part.Control:
				if part.Message || part.Size > MaxControl || int64(part.Payload) != h.Length || head < 2 {
					t.Fatalf("control frame %+v", part)
				}
				tr.events = append(tr.events, fmt.Sprintf("control %d %s", h.Opcode, part.ControlPayload(nil, b)))
			case part.Starts:
				if head < 2 || head > MaxHeader {
					t.Fatalf("frame %+v", part)
				}
				tr.events = append(tr.events, fmt.Sprintf("frame %d of %d", h.Opcode, h.Length))
				payload, announced = int64(part.Payload), h.Length
			case head != 0 || h != (Header{}):
				t.Fatalf("payload %+v", part)
			default:
				payload += int64(part.Payload)
			}
			if part.Message {
				tr.events = append(tr.events, "message")
			}
			b = b[part.Size:]
		}
		carry = b
		if len(wire) == 0 {
			tr.left, tr.inside = len(b), s.Inside()
			return tr
		}
	}
}

// reference reads a whole wire with refParse and finds every violation of its first bad frame.
func reference(wire []byte, rules *Rules) (tr trace) {
	open := false
	var size uint64 // of the message; within rules.MaxMessage, so that one more length cannot overflow it
	for len(wire) > 0 {
		tr.left = len(wire)
		ref := refParse(wire)
		h := ref.header
		if ref.err != nil {
			tr.violations = []error{ref.err}
			return tr
		}
		if ref.size == 0 {
			break
		}
		violation := func(is bool, err error) {
			if is {
				tr.violations = append(tr.violations, err)
			}
		}
		data, control := h.Opcode <= 2, h.Opcode >= 8 && h.Opcode <= 10
		if data && h.Opcode != Continuation {
			size = 0
		}
		rsv := rules.FrameRSV
		if h.Opcode == Text || h.Opcode == Binary {
			rsv |= rules.MessageRSV
		}
		violation(!data && !control, ErrOpcode)
		violation(h.Masked != (rules.From == Client), ErrMask)
		violation(control && (!h.Fin || wire[1]&0x7f > 125), ErrControl)
		violation(h.Opcode == Continuation && !open, ErrContinuation)
		violation(data && h.Opcode != Continuation && open, ErrInterleaved)
		violation(h.RSV&^rsv != 0, ErrRSV)
		violation(data && rules.MaxMessage > 0 && size+uint64(h.Length) > uint64(rules.MaxMessage), ErrTooBig)
		if tr.violations != nil {
			return tr
		}
		rest := wire[ref.size:]
		whole := uint64(h.Length) <= uint64(len(rest))
		if control {
			if !whole {
				break
			}
			payload := bytes.Clone(rest[:h.Length])
			if h.Masked {
				maskByByte(h.Key, 0, payload)
			}
			tr.events = append(tr.events, fmt.Sprintf("control %d %s", h.Opcode, payload))
		} else {
			open = !h.Fin
			size += uint64(h.Length)
			tr.events = append(tr.events, fmt.Sprintf("frame %d of %d", h.Opcode, h.Length))
			if !whole {
				tr.left, tr.inside = 0, true
				break
			}
			if h.Fin {
				tr.events = append(tr.events, "message")
			}
		}
		wire = rest[h.Length:]
		tr.left = len(wire)
	}
	tr.violations = []error{nil}
	return tr
}

// chunks are what the scanner is measured with, each as a client would send it.
var chunks = []struct {
	name  string
	wire  []byte
	piece int  // how many bytes come at a time; 0: all
	huge  bool // the scanner stands inside a frame without end
}{
	{name: "message of 64 B", wire: message(64)},
	{name: "64 KiB of messages of 64 B", wire: bytes.Repeat(message(64), 64<<10/(64+6))},
	{name: "64 KiB inside a huge frame", wire: make([]byte, 64<<10), huge: true},
	{name: "hostile: message of 64 B byte by byte", wire: message(64), piece: 1},
	{name: "hostile: close of 125 B byte by byte", wire: AppendControl(nil, Client, Close, ClosePayload(1000, strings.Repeat("x", MaxReason))), piece: 1},
	{name: "hostile: 64 KiB of empty fragments", wire: emptyFragments(64 << 10)},
	{name: "hostile: 64 KiB of empty pings", wire: bytes.Repeat(emptyPing, 64<<10/len(emptyPing))},
}

var emptyPing = Header{Fin: true, Opcode: Ping, Masked: true, Key: testKey}.Append(nil)

func message(size int) []byte {
	h := Header{Fin: true, Opcode: Text, Masked: true, Key: testKey, Length: int64(size)}
	return append(h.Append(nil), make([]byte, size)...)
}

func emptyFragments(size int) []byte {
	b := Header{Opcode: Text, Masked: true, Key: testKey}.Append(nil)
	more := Header{Opcode: Continuation, Masked: true, Key: testKey}
	for len(b) < size {
		b = more.Append(b)
	}
	return b
}

// measure scans a chunk as a relay would: what Next cannot use is shown again with more behind it.
func measure(s *Scanner, rules *Rules, wire []byte, piece int) error {
	if piece == 0 {
		piece = len(wire)
	}
	for from, to := 0, piece; from < len(wire); to = min(to+piece, len(wire)) {
		for from < to {
			part, err := s.Next(wire[from:to], rules)
			if err != nil {
				return err
			}
			if part.Size == 0 {
				break
			}
			from += part.Size
		}
	}
	return nil
}

func TestScannerDoesNotAllocate(t *testing.T) {
	rules := &Rules{From: Client, MaxMessage: 1 << 40}
	for _, c := range chunks {
		n := testing.AllocsPerRun(10, func() {
			s := Scanner{}
			if c.huge {
				s.left = math.MaxInt64
			}
			if err := measure(&s, rules, c.wire, c.piece); err != nil {
				t.Error(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

// BenchmarkScanner measures what following the frames adds to relaying a chunk: without reading, writing or copying it.
func BenchmarkScanner(b *testing.B) {
	rules := &Rules{From: Client, MaxMessage: 1 << 40}
	for _, c := range chunks {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.wire)))
			b.ReportAllocs()
			for b.Loop() {
				s := Scanner{}
				if c.huge {
					s.left = math.MaxInt64
				}
				if err := measure(&s, rules, c.wire, c.piece); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
