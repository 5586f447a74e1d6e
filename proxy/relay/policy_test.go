package relay

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

func terminateConfig() Config {
	c := scriptConfig()
	c.Mode, c.Engine = "terminate", "auto"
	return c
}

// Passing on.

func TestFramesPassAsTheyAre(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		wire := slices.Concat(
			from.text("hello"), from.text(""), from.whole(frame.Binary, strings.Repeat("x", 70_000)),
			from.frame(frame.Header{Opcode: frame.Text}, "a"), from.ping("p"), from.frame(frame.Header{}, ""),
			from.pong("q"), from.frame(frame.Header{Fin: true}, "b"),
		)
		s.send(from, wire)
		if got := s.peers[from.other()].raw; !slices.Equal(got, wire) {
			t.Errorf("%d bytes became %d, or others", len(wire), len(got))
		}
		s.want(from.other(), "text hello", "text ", "binary of 70000", "text... a", "ping p", "continuation... ", "pong q", "continuation b")
		s.want(from)
		s.wantLive()
	})
}

func TestBytesPassOneByOne(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		wire := slices.Concat(from.text("hello"), from.ping("p"), from.whole(frame.Binary, strings.Repeat("x", 300)), from.close(4001, "bye"))
		for i := range wire {
			s.send(from, wire[i:i+1])
		}
		if got := s.peers[from.other()].raw; !slices.Equal(got, wire) {
			t.Errorf("got %x, want %x", got, wire)
		}
	})
}

// What has come of a frame goes on at once: it may never end.
func TestPartOfAFramePasses(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		h := frame.Header{Fin: true, Opcode: frame.Binary, Length: math.MaxInt64, Masked: from == client}
		s.send(from, h.Append(nil), []byte("abc"))
		if got, want := len(s.peers[from.other()].wire), len(h.Append(nil))+3; got != want {
			t.Errorf("%d bytes went on, want %d", got, want)
		}
		s.wantLive()
	})
}

// takePartial promises no more than frame.MaxControl bytes to the engine, which leaves room for that much.
func TestCarryIsBounded(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		b := from.ping(strings.Repeat("x", frame.MaxControlPayload))
		s.send(from, b[:len(b)-1])
		if n := len(s.policy.peers[from].reading.partial); n >= frame.MaxControl {
			t.Errorf("%d bytes are carried", n)
		}
		s.want(from.other())
		s.send(from, b[len(b)-1:])
		s.want(from.other(), "ping of 125")
	})
}

func TestTraffic(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(client, client.text("hello"), client.ping("not data"), client.frame(frame.Header{Opcode: frame.Text}, "ab"))
	s.send(client, client.frame(frame.Header{Fin: true}, "c"), client.text("begun")[:8])
	s.send(upstream, upstream.text(""), upstream.close(1000, "not data"))
	s.wait(time.Minute)
	e := s.policy.summary(s.clock)
	if want := (Traffic{Messages: 2, Bytes: 10}); e.FromClient != want {
		t.Errorf("from the client %+v, want %+v", e.FromClient, want)
	}
	if want := (Traffic{Messages: 1}); e.FromUpstream != want {
		t.Errorf("from the upstream %+v, want %+v", e.FromUpstream, want)
	}
	if e.Duration != time.Minute {
		t.Errorf("duration %v", e.Duration)
	}
}

func TestExtensions(t *testing.T) {
	for _, tt := range []struct {
		name, extensions string
		rsv              uint8
		continued        bool // RSV on a continuation
		want             string
	}{
		{"none", "", frame.RSV1, false, ""},
		{"permessage-deflate", "permessage-deflate", frame.RSV1, false, "RSV 0x40 binary x"},
		{"permessage-deflate with parameters", "permessage-deflate; client_max_window_bits=15", frame.RSV1, false, "RSV 0x40 binary x"},
		{"permessage-deflate, other bit", "permessage-deflate", frame.RSV2, false, ""},
		{"permessage-deflate, continuation", "permessage-deflate", frame.RSV1, true, ""},
		{"unknown", "x-unknown", frame.RSV3, false, "RSV 0x10 binary x"},
		{"unknown beside permessage-deflate", "permessage-deflate, x-unknown", frame.RSV2, true, "RSV 0x20 continuation x"},
		{"permessage-deflate twice", "permessage-deflate; a, permessage-deflate; b", frame.RSV2, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothSides(t, func(t *testing.T, from side) {
				s := newScriptWith(t, scriptConfig(), tt.extensions)
				h := frame.Header{Fin: true, Opcode: frame.Binary, RSV: tt.rsv}
				if tt.continued {
					s.send(from, from.frame(frame.Header{Opcode: frame.Binary}, ""))
					s.want(from.other(), "binary... ")
					h.Opcode = frame.Continuation
				}
				s.send(from, from.frame(h, "x"))
				if tt.want != "" {
					s.want(from.other(), tt.want)
					s.wantLive()
				} else if s.policy.reason != reasonFraming[from] {
					t.Errorf("reason %q", s.policy.reason)
				}
			})
		})
	}
}

// Violations.

// violations are frames that a side may not send, as frame's own tests have them, too, and what it is told.
var violations = []struct {
	name string
	wire func(side) []byte
	want frame.Error
}{
	{"reserved opcode", func(s side) []byte { return s.whole(0x3, "") }, frame.ErrOpcode},
	{"reserved control opcode", func(s side) []byte { return s.whole(0xb, "") }, frame.ErrOpcode},
	{"fragmented control frame", func(s side) []byte { return s.frame(frame.Header{Opcode: frame.Ping}, "") }, frame.ErrControl},
	{"long control frame", func(s side) []byte { return s.ping(strings.Repeat("x", 126)) }, frame.ErrControl},
	{"wrong masking", func(s side) []byte { return s.other().text("x") }, frame.ErrMask},
	{"length with its top bit", func(s side) []byte {
		h := frame.Header{Fin: true, Opcode: frame.Binary, Masked: s == client, Length: math.MaxInt64}
		b := h.Append(nil)
		b[2] |= 0x80
		return b
	}, frame.ErrLength},
	{"length not in its shortest form", func(s side) []byte {
		b := s.text("hello")
		return slices.Concat([]byte{b[0], b[1] - 5 + 126, 0, 5}, b[2:])
	}, frame.ErrLengthForm},
	{"continuation without a message", func(s side) []byte { return s.frame(frame.Header{Fin: true}, "x") }, frame.ErrContinuation},
	{"message inside another", func(s side) []byte {
		return slices.Concat(s.frame(frame.Header{Opcode: frame.Text}, "begun"), s.text("x"))
	}, frame.ErrInterleaved},
	{"RSV without an extension", func(s side) []byte { return s.frame(frame.Header{Fin: true, RSV: frame.RSV1, Opcode: frame.Text}, "x") }, frame.ErrRSV},
	{"half a close code", func(s side) []byte { return s.whole(frame.Close, "\x03") }, frame.ErrClose},
	{"close 1005", func(s side) []byte { return s.whole(frame.Close, "\x03\xed") }, frame.ErrClose},
	{"close 999", func(s side) []byte { return s.whole(frame.Close, "\x03\xe7") }, frame.ErrClose},
	{"close reason not UTF-8", func(s side) []byte { return s.whole(frame.Close, "\x03\xe8\xff") }, frame.ErrClose},
}

func TestViolations(t *testing.T) {
	for _, c := range []Config{scriptConfig(), terminateConfig()} {
		for _, tt := range violations {
			t.Run(c.Mode+"/"+tt.name, func(t *testing.T) {
				bothSides(t, func(t *testing.T, from side) {
					s := newScript(t, c)
					s.send(from, from.text("before"))
					s.want(from.other(), "text before")
					s.send(from, tt.wire(from), from.text("after"))
					got := s.peers[from.other()].seen
					if len(got) == 0 || got[len(got)-1] != "close 1001 " || slices.Contains(got, "text after") {
						t.Errorf("%v got %q", from.other(), got)
					}
					var then []string
					if from == client {
						then = []string{"FIN"} // its own Close can no longer be told from the rest
					}
					s.want(from, append([]string{"close 1002 " + tt.want.Error()}, then...)...)
					s.send(from, from.close(1000, ""), from.text("after")) // no longer of interest
					s.wait(15 * time.Second)
					s.wantOver(reasonFraming[from], 1002)
				})
			})
		}
	}
}

// What was well-formed is delivered, however many bytes came in one read.
func TestMessageBeforeAViolationIsDelivered(t *testing.T) {
	for _, c := range []Config{scriptConfig(), terminateConfig()} {
		c.MessageMaxBytes = 10
		for name, wire := range map[string]func(side) []byte{
			"framing":         func(s side) []byte { return s.whole(0x7, "") },
			"malformed close": func(s side) []byte { return s.whole(frame.Close, "\x03") },
			"too big":         func(s side) []byte { return s.text("0123456789a") },
			"not UTF-8":       func(s side) []byte { return s.text("\xff") },
		} {
			if name == "not UTF-8" && c.Mode == "passthrough" {
				continue // where it is for the peers to judge
			}
			t.Run(c.Mode+"/"+name, func(t *testing.T) {
				bothSides(t, func(t *testing.T, from side) {
					s := newScript(t, c)
					s.send(from, from.text("before"), wire(from))
					s.want(from.other(), "text before", "close 1001 ")
				})
			})
		}
	}
}

// The other side is told at a boundary of its own, and its Close frame is waited for.
func TestViolationInsideTheOthersFrame(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		b := from.other().text("abcdef")
		s.send(from.other(), b[:len(b)-1])
		s.send(from, from.whole(0x7, ""))
		s.want(from, "part of a frame")
		s.want(from.other(), "close 1001 ")
		s.send(from.other(), b[len(b)-1:], from.other().close(1001, ""))
		s.wait(0)
		got := s.peers[from].seen
		if len(got) < 2 || got[0] != "text abcdef" || got[1] != "close 1002 reserved opcode" {
			t.Errorf("%v got %q", from, got)
		}
		s.wait(15 * time.Second)
		s.wantOver(reasonFraming[from], 1002)
	})
}

// Size.

func TestTooBig(t *testing.T) {
	for _, c := range []Config{scriptConfig(), terminateConfig()} {
		c.MessageMaxBytes = 10
		for _, tt := range []struct {
			name   string
			frames func(side) [][]byte
			fits   bool
		}{
			{"just fits", func(s side) [][]byte { return [][]byte{s.text("0123456789"), s.text("0123456789")} }, true},
			{"one frame", func(s side) [][]byte { return [][]byte{s.text("0123456789a")} }, false},
			{"fragments just fit", func(s side) [][]byte {
				return [][]byte{s.frame(frame.Header{Opcode: frame.Text}, "01234"), s.ping("between them"), s.frame(frame.Header{Fin: true}, "56789")}
			}, true},
			{"fragments", func(s side) [][]byte {
				return [][]byte{s.frame(frame.Header{Opcode: frame.Text}, "01234"), s.frame(frame.Header{}, ""), s.frame(frame.Header{Fin: true}, "56789a")}
			}, false},
			{"fragment whose length overflows", func(s side) [][]byte {
				h := frame.Header{Fin: true, Masked: s == client, Length: math.MaxInt64}
				return [][]byte{s.frame(frame.Header{Opcode: frame.Text}, "01234"), h.Append(nil)}
			}, false},
		} {
			t.Run(c.Mode+"/"+tt.name, func(t *testing.T) {
				bothSides(t, func(t *testing.T, from side) {
					s := newScript(t, c)
					s.send(from, tt.frames(from)...)
					if tt.fits {
						s.wantLive()
						return
					}
					if got := s.peers[from].seen; len(got) == 0 || got[0] != "close 1009 message exceeds the largest one accepted" {
						t.Errorf("%v got %q", from, got)
					}
					if got := s.peers[from.other()].seen; len(got) == 0 || got[len(got)-1] != "close 1001 " {
						t.Errorf("%v got %q", from.other(), got)
					}
					s.wait(15 * time.Second)
					s.wantOver(reasonTooBig[from], 1009)
				})
			})
		}
	}
}

// Without the setting there is no limit in passthrough, and one of 1 MiB when terminating.
func TestDefaultLargestMessage(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		size int
		live bool
	}{
		{scriptConfig(), 1<<20 + 1, true},
		{terminateConfig(), 1 << 20, true},
		{terminateConfig(), 1<<20 + 1, false},
	} {
		s := newScript(t, tt.c)
		s.send(client, client.whole(frame.Binary, strings.Repeat("x", tt.size)))
		if live := s.policy.reason == ""; live != tt.live {
			t.Errorf("%s, %d bytes: live is %v", tt.c.Mode, tt.size, live)
		}
	}
}

// Lifetime.
