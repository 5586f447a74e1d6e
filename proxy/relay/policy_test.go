package relay

import (
	"bytes"
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

func TestIdle(t *testing.T) {
	c := scriptConfig()
	c.IdleTimeout = time.Minute
	s := newScript(t, c)
	for range 3 { // what is no message does not count
		s.wait(20*time.Second - 1)
		s.wantLive()
		s.send(client, client.ping("p"))
		s.send(upstream, upstream.pong("p"))
		s.wait(1)
	}
	s.want(client, "pong p", "pong p", "pong p", "close 3008 idle")
	s.want(upstream, "ping p", "ping p", "ping p", "close 3008 idle")
	s.wait(10 * time.Second)
	s.wantOver(Idle, 3008)
}

// What is activity: with IDLE_TIMEOUT=1m, a session in which only that comes, every twenty seconds, is as live as ever.
func TestActivity(t *testing.T) {
	endless := func(from side) []byte {
		return frame.Header{Fin: true, Opcode: frame.Binary, Length: 1 << 40, Masked: from == client}.Append(nil)
	}
	pieces := func(size int) func(side, int) []byte {
		return func(from side, i int) []byte {
			if i == 0 {
				return endless(from)
			}
			return make([]byte, size)
		}
	}
	fragments := func(size int) func(side, int) []byte {
		return func(from side, i int) []byte {
			h := frame.Header{Opcode: frame.Continuation}
			if i == 0 {
				h.Opcode = frame.Binary
			}
			return from.frame(h, strings.Repeat("x", size))
		}
	}
	for _, tt := range []struct {
		name string
		next func(from side, i int) []byte
		live bool
	}{
		{"messages", func(from side, i int) []byte { return from.text("abc") }, true},
		{"empty messages", func(from side, i int) []byte { return from.text("") }, true},
		{"frame that drips", pieces(1), false},
		{"frame that comes on too slowly", pieces((activeBytes - 1) / 3), false},
		{"frame that comes on", pieces((activeBytes + 1) / 2), true},
		{"fragments that drip", fragments(1), false},
		{"fragments that come on", fragments((activeBytes + 1) / 2), true},
		{"empty fragments", fragments(0), false},
		{"pings", func(from side, i int) []byte { return from.ping("p") }, false},
		{"pongs", func(from side, i int) []byte { return from.pong("p") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothSides(t, func(t *testing.T, from side) {
				c := scriptConfig()
				c.IdleTimeout, c.PingInterval = time.Minute, 0
				s := newScript(t, c)
				for i := range 100 {
					if s.policy.reason != "" {
						break
					}
					s.send(from, tt.next(from, i))
					s.wait(20 * time.Second)
				}
				if tt.live {
					s.wantLive()
				}
				s.wait(2 * time.Minute)
				s.wantOver(Idle, 3008)
				if took := s.clock - time.Hour; !tt.live && took > 4*time.Minute {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// The clock of IDLE_TIMEOUT starts with the end of a message, whenever that began.
func TestIdleCountsFromTheEndOfAMessage(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		c := scriptConfig()
		c.IdleTimeout, c.PingInterval = time.Minute, 0
		s := newScript(t, c)
		b := from.text("abc")
		s.send(from, b[:len(b)-1])
		s.wait(59 * time.Second)
		s.send(from, b[len(b)-1:])
		s.wait(60*time.Second - 1)
		s.wantLive()
		s.wait(1)
		s.want(from, "close 3008 idle")
		s.want(from.other(), "text abc", "close 3008 idle")
	})
}

// Hollow frames: a flood of them ends the session without any setting, and what an honest peer sends does not.
func TestHollowFrames(t *testing.T) {
	const burst = int(hollowBurst / hollowEvery)
	empty := func(from side, h frame.Header) []byte { return from.frame(h, "") }
	begun := func(from side) []byte { return from.frame(frame.Header{Opcode: frame.Binary}, "begun") }
	for _, tt := range []struct {
		name   string
		before func(side) []byte
		frames func(side) []byte
		hollow bool
	}{
		{"pings", nil, func(s side) []byte { return s.ping("p") }, true},
		{"pongs", nil, func(s side) []byte { return s.pong(strings.Repeat("p", 125)) }, true},
		{"empty messages", nil, func(s side) []byte { return s.text("") }, true},
		{"empty fragments", begun, func(s side) []byte { return empty(s, frame.Header{}) }, true},
		{"messages of two empty fragments", nil, func(s side) []byte {
			return append(empty(s, frame.Header{Opcode: frame.Text}), empty(s, frame.Header{Fin: true})...)
		}, true},
		{"small messages", nil, func(s side) []byte { return s.text("x") }, false},
		{"small fragments", begun, func(s side) []byte { return s.frame(frame.Header{}, "x") }, false},
		{"messages with an empty last fragment", nil, func(s side) []byte {
			return append(s.frame(frame.Header{Opcode: frame.Text}, "x"), empty(s, frame.Header{Fin: true})...)
		}, false},
	} {
		for _, mode := range []string{"passthrough", "terminate"} {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				bothSides(t, func(t *testing.T, from side) {
					c := scriptConfig()
					if mode == "terminate" {
						c = terminateConfig()
					}
					s := newScript(t, c)
					if tt.before != nil {
						s.send(from, tt.before(from))
					}
					s.send(from, bytes.Repeat(tt.frames(from), burst))
					s.wantLive()
					for range 10 { // the sustained rate
						s.wait(time.Second)
						s.send(from, bytes.Repeat(tt.frames(from), int(time.Second/hollowEvery)))
					}
					s.wantLive()
					s.peers[from].seen = nil
					s.send(from, bytes.Repeat(tt.frames(from), 2))
					if !tt.hollow {
						s.wantLive()
						return
					}
					s.want(from, "close 1008 too many control or empty frames")
					got := s.peers[from.other()].seen
					if len(got) == 0 || got[len(got)-1] != "close 1001 " {
						t.Errorf("%v got %.200q", from.other(), got)
					}
					s.wait(time.Minute)
					s.wantOver(reasonRate[from], 1008)
				})
			})
		}
	}
}

// An upstream whose client has shut its direction can be told nothing, and is bounded all the same.
func TestHollowFramesAfterTheClientsFIN(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.sendFIN(client)
	for range 60 {
		s.send(upstream, bytes.Repeat(upstream.ping(""), 1000))
		s.wait(time.Second)
	}
	s.wantOver(ClientGone, 1006)
}

// MESSAGE_LIMIT_ACTION=throttle has a client wait, and its pings with it: what is not read is no flood.
func TestHollowFramesOfAThrottledClient(t *testing.T) {
	c := scriptConfig()
	c.MessageRate, c.MessageBurst, c.LimitAction, c.PingInterval = 100, 1, "throttle", 0
	s := newScript(t, c)
	s.send(client, bytes.Repeat(client.ping(""), 8000))
	s.wait(40 * time.Second)
	s.wantLive()
}

func TestSessionLimit(t *testing.T) {
	c := scriptConfig()
	c.SessionMax, c.PingInterval = time.Hour, 0
	s := newScript(t, c)
	s.wait(time.Hour - 1)
	s.send(client, client.text("busy"))
	s.want(upstream, "text busy")
	s.want(client)
	s.wait(1)
	s.want(client, "close 1001 session limit")
	s.want(upstream, "close 1001 session limit")
	s.wait(10 * time.Second)
	s.wantOver(SessionLimit, 1001)
}

// A session that has lived for longer than any limit when the clock is first looked at again.
func TestLateTick(t *testing.T) {
	c := scriptConfig()
	c.SessionMax, c.IdleTimeout = 2*time.Hour, time.Hour
	s := newScript(t, c)
	s.clock += 24 * time.Hour
	s.policy.tick(s.clock)
	s.run()
	s.want(client, "close 1001 session limit")
	s.wait(10 * time.Second)
	s.wantOver(SessionLimit, 1001)
}

// Terminating.

func TestTerminateCarriesMessages(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, terminateConfig())
		s.send(from, from.text("whole"), from.frame(frame.Header{Opcode: frame.Binary}, "a"))
		s.want(from.other(), "text whole")
		s.send(from, from.ping("p"), from.frame(frame.Header{}, ""), from.pong("q"), from.frame(frame.Header{Fin: true}, "b"))
		s.want(from.other(), "ping p", "pong q", "binary ab")
		s.want(from)
		s.wantLive()
	})
}

func TestTerminateForwardsClose(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, terminateConfig())
		s.send(from, from.text("last"), from.close(4001, "bye"), from.text("too late"))
		s.want(from.other(), "text last", "close 4001 bye")
		s.send(from.other(), from.other().close(4002, "yes"))
		s.wait(10 * time.Second)
		if got := s.peers[from].seen; len(got) == 0 || got[0] != "close 4002 yes" {
			t.Errorf("%v got %q", from, got)
		}
		s.wantOver(reasonClosed[from], 4001)
	})
}

func TestTerminateForwardsCloseWithoutCode(t *testing.T) {
	s := newScript(t, terminateConfig())
	s.send(client, client.whole(frame.Close, ""))
	s.want(upstream, "close 1005 ") // an empty payload, as it came
}

// The library has an opinion on pings, pongs and the end. None of it reaches a peer.
func TestTerminateDropsTheLibrarysControlFrames(t *testing.T) {
	bothSides(t, func(t *testing.T, to side) {
		s := newScript(t, terminateConfig())
		from := to.other()
		s.libraryWrites(to, slices.Concat(from.pong(""), from.text("a"), from.ping("x"), from.text("b"), from.close(1006-6, "x"), from.pong("")))
		s.want(to, "text a", "text b")
		s.wantLive()
	})
}

func TestTerminateInsertsBetweenTheLibrarysFrames(t *testing.T) {
	bothSides(t, func(t *testing.T, to side) {
		s := newScript(t, terminateConfig())
		abc, def := to.other().text("abc"), to.other().text("def")
		n := len(abc) - 1 // it writes a header whole, and may write a payload in pieces
		s.libraryWrites(to, abc[:n])
		s.send(to.other(), to.other().ping("p"))
		s.want(to, "part of a frame")
		s.libraryWrites(to, slices.Concat(abc[n:], def))
		s.want(to, "text abc", "ping p", "text def")
	})
}

func TestTerminateWritesNothingAfterClose(t *testing.T) {
	bothSides(t, func(t *testing.T, to side) {
		s := newScript(t, terminateConfig())
		s.end(Drained, goingAway)
		s.want(to, "close 1001 going away")
		s.libraryWrites(to, to.other().text("too late"))
		s.send(to.other(), to.other().ping("too late"), to.other().text("too late"))
		s.want(to)
	})
}

// What is no whole frame, and nothing that a library should write, is dropped rather than sent.
func TestTerminateDropsNonsenseOfTheLibrary(t *testing.T) {
	s := newScript(t, terminateConfig())
	s.libraryWrites(client, []byte("HTTP/1.1 500 Internal Server Error\r\n\r\n"))
	s.libraryWrites(client, upstream.text("x")[:1])
	s.want(client)
}

// A peer that floods another with pings costs bounded memory; RFC 6455, section 5.5.3, owes it no answer to each.
func TestTerminateBoundsWaitingControlFrames(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, terminateConfig())
		b := from.text("abc")
		s.libraryWrites(from.other(), b[:len(b)-1]) // inside a frame: nothing can be inserted
		flood := from.ping(strings.Repeat("x", frame.MaxControlPayload))
		for range 1000 {
			s.send(from, flood)
		}
		if n := len(s.policy.peers[from.other()].writing.library.queue); n > maxQueue+frame.MaxControl {
			t.Errorf("%d bytes wait", n)
		}
		s.wantLive()
	})
}

// A frame without an end, of a client that is over its byte rate: the rest of it is not let through while a boundary is waited for.
func TestByteRateEndsInsideAFrame(t *testing.T) {
	r, err := New(Config{Mode: "passthrough", Engine: "stream", CloseTimeout: time.Second, LimitAction: "close", MessageByteRate: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var p policy
	p.start(r.rules, &r.plain, &script{}, 0, 1)
	header := frame.Header{Fin: true, Opcode: frame.Binary, Masked: true, Length: 1 << 40}.Append(nil)
	passed := 0
	for range 100 {
		for rest := append(header, make([]byte, 10_000)...); len(rest) > 0; {
			var out []byte
			out, rest = p.receive(client, rest, 1)
			passed += len(out)
			p.endWrite(upstream, 1)
			p.insertion(upstream, 1)
		}
		header = nil
	}
	if passed > 20_000 {
		t.Errorf("%d bytes passed, want no more than were read before the limit was", passed)
	}
	if !p.takeFIN(upstream, 1) {
		t.Error("the upstream is not shut")
	}
}
