package relay

import (
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

func TestDrainBothAnswer(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.end(Drained, goingAway)
	s.want(client, "close 1001 going away")
	s.want(upstream, "close 1001 going away")
	s.send(client, client.text("dropped"), client.close(1001, ""))
	s.want(client, "FIN")
	s.send(upstream, upstream.close(1001, ""))
	s.want(upstream) // no Close frame twice, and it closes first
	s.sendFIN(client)
	s.want(client, "gone")
	s.sendFIN(upstream)
	s.want(upstream, "gone")
	s.wantOver(Drained, 1001)
}

// Who does not answer within CLOSE_TIMEOUT is cut, whatever else it sends.
func TestDrainUnanswered(t *testing.T) {
	for _, c := range []Config{scriptConfig(), terminateConfig()} {
		t.Run(c.Mode, func(t *testing.T) {
			s := newScript(t, c)
			s.end(Drained, goingAway)
			for range 5 {
				s.send(client, client.ping("p"), client.text("x"))
				s.send(upstream, upstream.ping("p"), upstream.text("x"))
				s.wait(time.Second)
			}
			s.want(client, "close 1001 going away", "gone")
			s.want(upstream, "close 1001 going away", "gone")
			s.wantOver(Drained, 1001)
		})
	}
}

// A side that closes while our own Close frame to it waits for a boundary gets ours, not the other's.
func TestDrainMeetsClose(t *testing.T) {
	for _, c := range []Config{scriptConfig(), terminateConfig()} {
		t.Run(c.Mode, func(t *testing.T) {
			bothSides(t, func(t *testing.T, from side) {
				s := newScript(t, c)
				s.block(from.other())
				s.send(from, from.text("x"))
				s.end(Drained, goingAway)
				s.send(from, from.close(4001, "bye"))
				s.unblock(from.other())
				s.want(from.other(), "text x", "close 1001 going away")
				for range 3 { // ours is not waited for longer because of it
					s.wait(4 * time.Second)
					s.send(from.other(), from.other().ping("la la la"))
				}
				s.wait(10 * time.Second)
				s.wantOver(Drained, 1001)
			})
		})
	}
}

func TestDrainTwice(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.end(Drained, goingAway)
	s.wait(4 * time.Second)
	s.end(Drained, goingAway) // gives nobody more time
	s.wait(time.Second)
	s.want(client, "close 1001 going away", "gone")
	s.wantOver(Drained, 1001)
}

func TestFirstCauseCounts(t *testing.T) {
	c := scriptConfig()
	c.SessionMax = 32 * time.Second
	s := newScript(t, c)
	s.wait(31 * time.Second)
	s.end(Drained, goingAway)
	s.send(client, client.whole(0x7, ""))
	s.reset(upstream)
	s.wait(time.Minute)
	s.wantOver(Drained, 1001)
}

func TestCutIsAtOnce(t *testing.T) {
	for name, before := range map[string]func(*script){
		"live": func(*script) {},
		"inside frames": func(s *script) {
			s.send(client, client.text("abcdef")[:8])
			s.send(upstream, upstream.text("abcdef")[:5])
		},
		"stuck": func(s *script) { s.block(client); s.send(upstream, upstream.text("x")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, scriptConfig())
			before(s)
			s.cut()
			for to := range side(2) {
				if got := strings.Join(s.peers[to].seen, ","); got != "gone" {
					t.Errorf("%v got %q", to, got)
				}
			}
			s.wantOver(Forced, 1006)
			s.cut()
			s.send(client, client.text("late"))
			s.end(Drained, goingAway)
			s.wait(time.Hour)
			s.wantOver(Forced, 1006)
		})
	}
}

func TestCutWhileClosing(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(client, client.close(4001, "bye"))
	s.cut()
	s.wantOver(ClientClose, 4001)
}

// No reason that we send tells anything internal, or fails to fit.
func TestCloseReasons(t *testing.T) {
	reasons := []string{goingAway.Reason, peerLost[client].Reason, peerLost[upstream].Reason}
	for _, v := range violations {
		reasons = append(reasons, v.want.Error())
	}
	for _, r := range reasons {
		if len(r) > frame.MaxReason || strings.ContainsAny(r, "0123456789.:/") {
			t.Errorf("%q", r)
		}
	}
}
