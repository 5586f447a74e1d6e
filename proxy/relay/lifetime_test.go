package relay

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

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
	p.start(r.Rules, &r.plain, &script{}, 0, 1)
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
