package relay

import (
	"testing"
	"unicode/utf8"

	"portcullis/proxy/frame"
)

// textTests also seed FuzzText.
var textTests = []struct {
	name, message string
	valid         bool
}{
	{"empty", "", true},
	{"ASCII", "hello", true},
	{"characters of two, three and four bytes", "é€😀", true},
	{"the first and the last of each length", "\x00\x7f\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff", true},
	{"a byte that is never any", "a\xff", false},
	{"a continuation of nothing", "a\x80b", false},
	{"cut off after one byte", "a\xc3", false},
	{"cut off after two", "a\xe2\x82", false},
	{"cut off after three", "a\xf0\x9f\x98", false},
	{"not continued", "\xe2\x82a", false},
	{"longer than it need be", "\xc0\x80", false},
	{"longer than it need be, by one of three", "\xe0\x80\x80", false},
	{"a surrogate", "\xed\xa0\x80", false},
	{"beyond Unicode", "\xf4\x90\x80\x80", false},
}

// read shows a message to text, as fragments that are cut where size says, each in pieces of that
// many bytes, and reports how many were taken before an error.
func (t *text) read(op frame.Opcode, message []byte, key [4]byte, size int) (taken int, err error) {
	for first := true; first || taken < len(message); first = false {
		fragment := message[taken:min(taken+2*size, len(message))]
		h := frame.Header{Fin: taken+len(fragment) == len(message), Opcode: op, Key: key}
		op = frame.Continuation
		masked := append([]byte(nil), fragment...)
		frame.Mask(key, 0, masked)
		for at := 0; ; {
			end := min(at+size, len(masked))
			part := frame.Part{Header: h, Starts: at == 0, Message: h.Fin && end == len(masked)}
			if err := t.check(part, masked[at:end]); err != nil {
				return taken, err
			}
			taken += end - at
			if at = end; at == len(masked) {
				break
			}
		}
	}
	return taken, nil
}

func TestTextIsUTF8(t *testing.T) {
	for _, tt := range textTests {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size <= len(tt.message)+1; size++ {
				var x text
				for range 2 { // the second message as the first, whatever became of that
					if _, err := x.read(frame.Text, []byte(tt.message), [4]byte{1, 2, 3, 4}, size); (err == nil) != tt.valid {
						t.Errorf("in pieces of %d: %v", size, err)
					}
				}
				if _, err := x.read(frame.Binary, []byte(tt.message), [4]byte{}, size); err != nil {
					t.Errorf("binary in pieces of %d: %v", size, err)
				}
			}
		})
	}
}

// FuzzText checks that a message passes if and only if it is UTF-8, however it is cut, and that no more is taken of
// one that is not than might have become it.
func FuzzText(f *testing.F) {
	for _, tt := range textTests {
		f.Add([]byte(tt.message), uint32(0x01020304), uint16(1))
	}
	f.Fuzz(func(t *testing.T, message []byte, key uint32, size uint16) {
		var x text
		k := [4]byte{byte(key), byte(key >> 8), byte(key >> 16), byte(key >> 24)}
		taken, err := x.read(frame.Text, message, k, max(int(size), 1))
		if (err == nil) != utf8.Valid(message) {
			t.Fatalf("%q in pieces of %d: %v", message, size, err)
		}
		if !isUTF8(message[:taken], false) {
			t.Fatalf("%q in pieces of %d was taken to %d", message, size, taken)
		}
	})
}

// Where messages are taken apart the relay is the endpoint that must refuse text that is not UTF-8 (RFC 6455, section 8.1):
// 1007 to who sent it, 1001 to the other, who gets nothing of that message. Passthrough leaves it to the peers.
func TestTextThatIsNotUTF8(t *testing.T) {
	for name, wire := range map[string]func(*testPeer) []byte{
		"in a frame": func(p *testPeer) []byte {
			return p.wire(frame.Header{Fin: true, Opcode: frame.Text}, "a\xffb")
		},
		"in a fragment": func(p *testPeer) []byte {
			b := p.wire(frame.Header{Opcode: frame.Text}, "a\xc3")
			return append(b, p.wire(frame.Header{Fin: true}, "b")...)
		},
		"in a message without end": func(p *testPeer) []byte {
			return p.wire(frame.Header{Opcode: frame.Text}, "a\xff")
		},
		"cut off": func(p *testPeer) []byte {
			b := p.wire(frame.Header{Opcode: frame.Text}, "a\xe2")
			b = append(b, p.wire(frame.Header{Fin: true, Opcode: frame.Ping}, "")...)
			return append(b, p.wire(frame.Header{Fin: true}, "\x82")...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				r := newRig(t, e, e.config())
				for side := range side(2) {
					s := r.open()
					from, to := s.client, s.upstream
					if side == upstream {
						from, to = to, from
					}
					from.send(frame.Text, "befor\u00e9")
					from.send(frame.Binary, "\xff")
					to.expect("text befor\u00e9", "binary \xff")
					from.write(append(wire(from), from.wire(frame.Header{Fin: true, Opcode: frame.Ping}, "after")...))
					if !e.terminates() {
						for {
							if f, err := to.read(); err != nil {
								t.Fatal(err)
							} else if f.name() == "ping after" {
								break
							}
						}
						continue
					}
					from.expect("close 1007 text is not UTF-8")
					for {
						if f, err := to.read(); err != nil {
							t.Fatal(err)
						} else if got := f.name(); got == "close 1001" {
							break
						} else if got != "ping" {
							t.Fatalf("%s reads %q", to, got)
						}
					}
					to.sendClose(1001, "")
					s.upstream.conn.Close()
					s.client.expectEOF()
					s.client.conn.Close()
					if end := s.ended(); end.Reason != reasonText[side] || end.Code != frame.CodeInvalid {
						t.Errorf("end %+v", end)
					}
				}
			})
		})
	}
}
