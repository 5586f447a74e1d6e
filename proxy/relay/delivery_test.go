package relay

import (
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// pinged returns a script in which side s has just been pinged; with ping 30 s, pong 10 s.
func pinged(t *testing.T, s side) (*script, func(time.Duration)) {
	t.Helper()
	sc, chat := chatter(t, s, scriptConfig())
	chat(30 * time.Second)
	sc.want(s, "our ping")
	return sc, chat
}

// A ping behind a full queue has not been delivered while the queue drains, however long that takes; from then on it is
// to be answered in time, whatever else is queued behind it.
func TestPingOnASlowLink(t *testing.T) {
	bothSides(t, func(t *testing.T, slow side) {
		s, chat := pinged(t, slow)
		const ping = 4 << 20
		for acked := uint64(0); acked < ping; acked += 256 << 10 {
			s.onTheWay(slow, acked, ping-acked)
			chat(4 * time.Second)
		}
		s.want(slow)
		s.onTheWay(slow, ping, 1<<20)
		chat(7 * time.Second)
		s.onTheWay(slow, ping+1<<10, 1<<20)
		chat(3*time.Second - 1)
		s.want(slow)
		s.wantLive()
		s.onTheWay(slow, ping+2<<10, 1<<20)
		chat(1)
		s.want(slow, "close 3008 no pong")
	})
}

// The same, answered in the end: the next ping has its time from the start.
func TestPingAnsweredOnASlowLink(t *testing.T) {
	bothSides(t, func(t *testing.T, slow side) {
		s, chat := pinged(t, slow)
		for round := range uint64(3) {
			const ping = 1 << 20
			for acked := uint64(0); acked <= ping; acked += 128 << 10 {
				s.onTheWay(slow, round*ping+acked, ping-acked)
				chat(4 * time.Second)
			}
			s.want(slow)
			s.answer(slow)
			s.onTheWay(slow, (round+1)*ping, ping)
			chat(30 * time.Second)
			s.want(slow, "our ping")
			s.wantLive()
		}
	})
}

// The peer has ten seconds from what it took last, be that the ping or what is queued before it.
func TestPingWithoutAnAnswer(t *testing.T) {
	for _, tt := range []struct {
		name          string
		after         time.Duration // the ping, the peer's kernel last acknowledged something
		acked, queued uint64
	}{
		{"it takes nothing", 0, 1 << 20, 1 << 20},
		{"it takes something, and then nothing any more", 8 * time.Second, 1 << 20, 1 << 20},
		{"it takes the ping", time.Second, 1 << 20, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothSides(t, func(t *testing.T, dead side) {
				s, chat := pinged(t, dead)
				chat(tt.after)
				s.onTheWay(dead, tt.acked, tt.queued)
				chat(10*time.Second - 1)
				s.want(dead)
				s.wantLive()
				chat(1)
				s.want(dead, "close 3008 no pong")
			})
		})
	}
}

// A side whose socket takes nothing more, since what it holds is long in going out.
func TestFullSocketOnASlowLink(t *testing.T) {
	bothSides(t, func(t *testing.T, slow side) {
		s := newScript(t, scriptConfig())
		s.block(slow)
		s.send(slow.other(), slow.other().text("x"))
		beat := func(d time.Duration) {
			for ; d > 0; d -= time.Second {
				s.send(slow, slow.text("."))
				s.wait(time.Second)
			}
		}
		for acked := uint64(1); acked < 10; acked++ {
			s.onTheWay(slow, acked, 1<<20)
			beat(20 * time.Second)
			s.wantLive()
		}
		beat(19 * time.Second)
		s.wantLive()
		beat(time.Second)
		if e := s.policy.summary(s.clock); e.Reason != reasonSilent[slow] || e.Code != frame.CodeTimeout {
			t.Errorf("it ends as %s, %d", e.Reason, e.Code)
		}
	})
}
