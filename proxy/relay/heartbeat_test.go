package relay

import (
	"encoding/binary"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// lostTo is what a side gets when the other has been given up, without "gone".
var lostTo = [2][]string{
	client:   {"close 1011 upstream does not answer", "FIN"},
	upstream: {"close 1001 client does not answer"},
}

// chatter returns a script in which the other side alone speaks from time to time, so that only s is ever silent.
// The function it also returns lets time pass.
func chatter(t *testing.T, s side, c Config) (*script, func(time.Duration)) {
	sc := newScript(t, c)
	return sc, func(d time.Duration) {
		t.Helper()
		for d > 0 {
			step := min(d, time.Second)
			sc.send(s.other(), s.other().text("."))
			sc.wait(step)
			d -= step
		}
		sc.peers[s].seen = withoutChatter(sc.peers[s].seen)
	}
}

func withoutChatter(lines []string) (rest []string) {
	for _, l := range lines {
		if l != "text ." {
			rest = append(rest, l)
		}
	}
	return rest
}

func TestPingAfterSilence(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.wait(30*time.Second - 1)
	s.want(client)
	s.want(upstream)
	s.wait(1)
	s.want(client, "our ping")
	s.want(upstream, "our ping")
	s.wait(9 * time.Second)
	s.want(client)
	s.answer(client)
	s.answer(upstream)
	s.wait(30*time.Second - 1)
	s.want(client)
	s.want(upstream)
	s.wait(1)
	s.want(client, "our ping")
	s.want(upstream, "our ping")
	s.wantLive()
}

func TestPingToTheSilentSideAlone(t *testing.T) {
	bothSides(t, func(t *testing.T, dead side) {
		s, chat := chatter(t, dead, scriptConfig())
		chat(30 * time.Second)
		s.want(dead, "our ping")
		s.want(dead.other())
	})
}

func TestNoPongEndsTheSession(t *testing.T) {
	bothSides(t, func(t *testing.T, dead side) {
		s, chat := chatter(t, dead, scriptConfig())
		chat(40*time.Second - 1)
		s.want(dead, "our ping")
		s.wantLive()
		s.wait(1)
		s.want(dead, "close 3008 no pong")
		s.want(dead.other(), lostTo[dead.other()][0])
		s.wait(10 * time.Second)
		s.wantOver(reasonSilent[dead], 3008)
	})
}

// A dead peer may be found while the other end's last words are being written: each is still told in its own way.
func TestBothSidesSilent(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.wait(40 * time.Second)
	s.want(client, "our ping", "close 3008 no pong")
	s.want(upstream, "our ping", "close 1001 client does not answer")
	s.wait(10 * time.Second)
	s.wantOver(ClientSilent, 3008)
}

func TestAnyByteClearsTheDeadline(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bytes func(side) []byte
	}{
		{"message", func(s side) []byte { return s.text("x") }},
		{"ping", func(s side) []byte { return s.ping("x") }},
		{"pong that answers another ping", func(s side) []byte { return s.pong("x") }},
		{"first byte of a header", func(s side) []byte { return s.text("x")[:1] }},
		{"half a control frame", func(s side) []byte { return s.ping("xxxxx")[:8] }},
		{"part of a frame", func(s side) []byte { return s.text("xxxxx")[:8] }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothSides(t, func(t *testing.T, quiet side) {
				s, chat := chatter(t, quiet, scriptConfig())
				chat(39 * time.Second)
				s.want(quiet, "our ping")
				s.send(quiet, tt.bytes(quiet))
				chat(30*time.Second - 1)
				s.want(quiet)
				s.wantLive()
				s.wait(1)
				s.want(quiet, "our ping")
				chat(10*time.Second - 1)
				s.wantLive()
				s.wait(1)
				if s.policy.reason != reasonSilent[quiet] {
					t.Errorf("reason %q", s.policy.reason)
				}
			})
		})
	}
}

func TestDeadlineStartsWhenThePingIsWritten(t *testing.T) {
	bothSides(t, func(t *testing.T, slow side) {
		s := newScript(t, scriptConfig())
		s.block(slow)
		s.wait(30 * time.Second) // both are pinged, and slow does not take it
		s.answer(slow.other())   // not read: what it says has nowhere to go
		s.wait(9 * time.Second)
		s.want(slow)
		s.wantLive()
		s.unblock(slow)
		s.want(slow, "our ping")
		s.wait(10*time.Second - 1)
		s.wantLive()
		s.wait(1)
		if s.policy.reason != reasonSilent[slow] {
			t.Errorf("reason %q", s.policy.reason)
		}
	})
}

func TestDeadlineStandsStillWhileASideIsNotRead(t *testing.T) {
	bothSides(t, func(t *testing.T, unread side) {
		s := newScript(t, scriptConfig())
		s.block(unread.other()) // so unread is not read, once there is something pending
		s.wait(30 * time.Second)
		s.want(unread, "our ping")
		s.wait(9 * time.Second)
		s.wantLive()
		s.unblock(unread.other())
		s.want(unread.other(), "our ping")
		s.answer(unread.other())
		s.wait(10*time.Second - 1)
		s.wantLive()
		s.wait(1)
		if s.policy.reason != reasonSilent[unread] {
			t.Errorf("reason %q", s.policy.reason)
		}
	})
}

// A ping that is written while its side is not read must not have a running deadline either.
func TestDeadlineOfAPingWrittenWhileTheSideIsNotRead(t *testing.T) {
	bothSides(t, func(t *testing.T, unread side) {
		s := newScript(t, scriptConfig())
		s.block(client)
		s.block(upstream)
		s.wait(30 * time.Second) // both pings are pending
		s.unblock(unread)
		s.want(unread, "our ping")
		for taken := range uint64(4) { // not read for longer than PONG_TIMEOUT, since the other is slow
			s.onTheWay(unread.other(), 1+taken, 1<<20)
			s.wait(5 * time.Second)
		}
		s.unblock(unread.other())
		s.answer(unread.other())
		s.wait(5 * time.Second)
		s.wantLive()
		s.answer(unread)
		s.wait(5 * time.Second)
		s.wantLive()
	})
}

// Each side has a silence of its own: that we ping one says nothing about the other.
func TestPingToOneSideDoesNotPutOffTheOthers(t *testing.T) {
	bothSides(t, func(t *testing.T, first side) {
		s := newScript(t, scriptConfig())
		s.wait(5 * time.Second)
		s.send(first.other(), first.other().pong("")) // it is silent from here on
		s.want(first, "pong ")
		s.wait(25 * time.Second)
		s.want(first, "our ping")
		s.answer(first)
		s.wait(5 * time.Second)
		s.want(first.other(), "our ping")
	})
}

// PONG_TIMEOUT may be longer than PING_INTERVAL: no second ping while one is outstanding, and yet one as soon as it is
// due after an answer.
func TestPongTimeoutLongerThanPingInterval(t *testing.T) {
	c := scriptConfig()
	c.PingInterval, c.PongTimeout = 10*time.Second, 60*time.Second
	s := newScript(t, c)
	s.wait(25 * time.Second)
	s.want(client, "our ping")
	s.want(upstream, "our ping")
	s.answer(client)
	s.answer(upstream)
	s.wait(10 * time.Second)
	s.want(client, "our ping")
	s.want(upstream, "our ping")
	s.wait(60*time.Second - 1)
	s.want(client)
	s.want(upstream)
	s.wait(1)
	s.want(client, "close 3008 no pong")
}

func TestHeartbeatOff(t *testing.T) {
	c := scriptConfig()
	c.PingInterval, c.PongTimeout = 0, 0
	s := newScript(t, c)
	s.send(client, client.text("x"))
	s.wait(1000 * time.Hour)
	s.want(client)
	s.want(upstream, "text x")
	if s.policy.wake != never {
		t.Errorf("to be woken at %v, for nothing", s.policy.wake)
	}
}

// Application pings.

func TestApplicationPingPostponesOurs(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s, chat := chatter(t, quiet, scriptConfig())
		chat(25 * time.Second)
		s.send(quiet.other(), quiet.other().ping("app"))
		s.want(quiet, "ping app")
		chat(10*time.Second - 1)
		s.want(quiet)
		s.wait(1) // PONG_TIMEOUT after it
		s.want(quiet, "our ping")
		s.wantLive()
	})
}

// One that lies so far back that it would have been answered long ago postpones nothing.
func TestEarlyApplicationPingPostponesNothing(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s, chat := chatter(t, quiet, scriptConfig())
		s.send(quiet.other(), quiet.other().ping("app"))
		s.want(quiet, "ping app")
		chat(30 * time.Second)
		s.want(quiet, "our ping")
	})
}

func TestAnsweredApplicationPingIsABeat(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s, chat := chatter(t, quiet, scriptConfig())
		chat(25 * time.Second)
		s.send(quiet.other(), quiet.other().ping("app"))
		s.send(quiet, quiet.pong("app"))
		s.want(quiet, "ping app")
		s.want(quiet.other(), "pong app")
		chat(30*time.Second - 1)
		s.want(quiet)
		s.wait(1)
		s.want(quiet, "our ping")
	})
}

// RFC 6455, section 5.5.3: a peer may answer the latest ping alone. So it need not answer ours, and when it does, late,
// nobody else may see it.
func TestApplicationPingCancelsOurs(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s, chat := chatter(t, quiet, scriptConfig())
		chat(35 * time.Second)
		s.want(quiet, "our ping")
		s.send(quiet.other(), quiet.other().ping("app"))
		s.want(quiet, "ping app")
		chat(9 * time.Second) // ours would have had until 40
		s.wantLive()
		late := quiet.pong(string(s.peers[quiet].pings[0]))
		s.send(quiet, late)
		s.want(quiet.other())
		s.send(quiet, quiet.pong("app"))
		s.want(quiet.other(), "pong app")
		chat(30 * time.Second)
		s.want(quiet, "our ping")
		s.wantLive()
	})
}

// Else an application that pings a dead peer often enough would keep it alive for ever.
func TestApplicationPingsDoNotKeepADeadPeer(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 3 * time.Second, 9 * time.Second, 11 * time.Second, 29 * time.Second} {
		for _, begin := range []time.Duration{0, 28 * time.Second, 31 * time.Second, 39 * time.Second} {
			bothSides(t, func(t *testing.T, dead side) {
				s := newScript(t, scriptConfig())
				began := s.clock
				s.send(dead.other(), dead.other().pong("")) // bytes, but no ping
				s.wait(begin)
				for s.policy.reason == "" {
					if s.clock-began > 30*time.Second+3*10*time.Second {
						t.Fatalf("a ping every %v from %v on: not given up after %v", every, begin, s.clock-began)
					}
					s.send(dead.other(), dead.other().ping("app"))
					s.wait(every)
				}
				if s.policy.reason != reasonSilent[dead] {
					t.Errorf("reason %q", s.policy.reason)
				}
			})
		}
	}
}

// Pongs.

func TestPongsOfOursAreSwallowed(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s, chat := chatter(t, quiet, scriptConfig())
		for range 3 { // the nonce wraps around
			chat(30 * time.Second)
			s.want(quiet, "our ping")
			s.answer(quiet)
		}
		for _, p := range s.peers[quiet].pings { // late, and again
			s.send(quiet, quiet.pong(string(p)))
		}
		s.want(quiet.other())
		s.wantLive()
	})
}

func TestForeignPongsPass(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s, chat := chatter(t, from, scriptConfig())
		chat(30 * time.Second)
		s.want(from, "our ping")
		ours := string(s.peers[from].pings[0])
		number := func(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }
		for _, payload := range []string{
			"", "app", ours[:7], ours + "x",
			number(scriptNonce),  // the number before the first
			number(0), number(1), // those after it, which have not been sent
		} {
			s.send(from, from.pong(payload))
			s.want(from.other(), "pong "+payload)
		}
		s.send(from, from.pong(ours))
		s.want(from.other())
	})
}

// What we asked one side is not answered by the other.
func TestPongToTheOtherSidesPingPasses(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s, chat := chatter(t, quiet, scriptConfig())
		chat(30 * time.Second)
		s.want(quiet, "our ping")
		p := string(s.peers[quiet].pings[0])
		s.send(quiet.other(), quiet.other().pong(p))
		s.want(quiet, "pong "+p)
	})
}

// Boundaries.

func TestPingWaitsForTheBoundary(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s := newScript(t, scriptConfig())
		speaker := quiet.other()
		long, next := speaker.text("abcdefgh"), speaker.text("next")
		s.wait(29 * time.Second)
		s.send(speaker, long[:len(long)-4])
		s.wait(15 * time.Second)
		s.want(quiet, "part of a frame")
		s.send(speaker, long[len(long)-4:], next)
		s.want(quiet, "text abcdefgh", "our ping", "text next")
		s.wait(10*time.Second - 1)
		s.wantLive()
		s.wait(1)
		if s.policy.reason != reasonSilent[quiet] {
			t.Errorf("reason %q", s.policy.reason)
		}
	})
}

// Between the fragments of a message is a boundary, too; RFC 6455, section 5.4.
func TestPingBetweenFragments(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s := newScript(t, scriptConfig())
		s.wait(29 * time.Second)
		s.send(quiet.other(), quiet.other().frame(frame.Header{Opcode: frame.Text}, "a"))
		s.wait(time.Second)
		s.want(quiet, "text... a", "our ping")
		s.send(quiet.other(), quiet.other().frame(frame.Header{Fin: true}, "b"))
		s.want(quiet, "continuation b")
	})
}

// A header that has not come whole has not been passed on, so there is a boundary before it.
func TestPingBeforeAHalfHeader(t *testing.T) {
	bothSides(t, func(t *testing.T, quiet side) {
		s := newScript(t, scriptConfig())
		b := quiet.other().text("abc")
		s.wait(29 * time.Second)
		s.send(quiet.other(), b[:1])
		s.wait(time.Second)
		s.want(quiet, "our ping")
		s.send(quiet.other(), b[1:])
		s.want(quiet, "text abc")
	})
}

// A peer that neither sends nor takes anything is as dead as one that does not answer: its ping cannot even be written.
// It is the common way for a client to vanish while its upstream streams to it, or for an attacker to hold a session.
func TestPeerThatTakesNothingIsGivenUp(t *testing.T) {
	bothSides(t, func(t *testing.T, stuck side) {
		s := newScript(t, scriptConfig())
		s.block(stuck)
		s.send(stuck.other(), stuck.other().text("more"))
		s.wait(10 * time.Minute)
		if s.policy.reason == "" {
			t.Errorf("after ten minutes the session is as live as ever")
		}
	})
}
