package relay

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

func TestResumptionCarriesWholeMessages(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.send(client, client.frame(frame.Header{Opcode: frame.Text}, "ab"))
	s.want(upstream)
	s.send(client, client.frame(frame.Header{Fin: true}, "c"), client.whole(frame.Binary, "d"))
	s.want(upstream, "text abc", "binary d")
	s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Binary}, "x"))
	s.want(client)
	s.send(upstream, upstream.frame(frame.Header{Fin: true}, "y"))
	s.want(client, "binary xy")
	s.wantLive()
}

func TestResumptionAnswersPings(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newResumeScript(t, resumeConfig())
		s.send(from, from.ping("a"), from.ping("b"), from.pong("unasked"), from.ping("c"))
		s.send(from, from.ping(""))
		s.want(from.other())
		s.want(from, "pong c", "pong ") // of several the latest
	})
}

func TestAcknowledgements(t *testing.T) {
	t.Run("after a second", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.send(client, client.text("1"))
		s.wait(time.Second - 1)
		s.want(client)
		s.wait(1)
		s.want(client, ours(`{"ack":1}`))
	})
	t.Run("of sixteen", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		for range 16 {
			s.send(client, client.text("x"))
		}
		s.want(client, ours(`{"ack":16}`))
	})
	t.Run("of a quarter of the buffer", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.send(client, client.text(strings.Repeat("x", 1100)))
		s.want(client, ours(`{"ack":1}`))
	})
	t.Run("of what has left alone", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.block(upstream)
		for range 17 {
			s.send(client, client.text("x"))
		}
		s.wait(10 * time.Second)
		s.want(client)
		s.unblock(upstream)
		s.want(client, ours(`{"ack":17}`))
	})
}

func TestFullBufferHoldsTheUpstream(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.ack(0)
	s.reset(client)
	sent := 0
	for ; !s.policy.held(upstream); sent++ {
		s.send(upstream, upstream.text(fmt.Sprint(sent)+strings.Repeat("x", 1000)))
		s.send(upstream, upstream.ping("still"))
	}
	bytes := s.policy.resume.down.bytes
	if least, most := 4<<10+controlRoom, 4<<10+controlRoom+2<<10; bytes < least || bytes > most {
		t.Errorf("%d bytes are kept, want %d to %d", bytes, least, most)
	}
	s.send(upstream, upstream.text("later"), upstream.ping("unread"))
	if got := s.peers[upstream].seen; got[len(got)-1] != "pong still" {
		t.Errorf("the upstream got %q last", got[len(got)-1])
	}
	s.peers[upstream].seen, s.peers[client].seen = nil, nil
	s.mustBack(0)
	got := s.peers[client].seen
	if len(got) != sent+1 {
		t.Fatalf("the client got %d messages, want the first and %d", len(got), sent)
	}
	s.peers[client].seen = nil
	s.ack(uint64(sent))
	s.want(upstream, "pong still", "pong unread")
	s.want(client, "text later")
}

func TestFullBufferHoldsTheClient(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.block(upstream)
	n := 0
	for ; !s.policy.held(client); n++ {
		s.send(client, client.text(strings.Repeat("x", 1000)))
	}
	if n != 4 {
		t.Errorf("held after %d messages, want 4", n)
	}
	s.send(client, client.text("more"))
	s.wait(time.Hour) // it is not silent: nobody listens
	s.wantLive()
	s.unblock(upstream)
	if got := s.peers[upstream].seen; len(got) != n+1 || got[n] != "text more" {
		t.Errorf("the upstream got %q", got)
	}
}

func TestCounts(t *testing.T) {
	t.Run("going back", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.send(upstream, upstream.text("a"), upstream.text("b"))
		s.ack(2)
		s.ack(1)
		s.wantLive()
		s.wantVerdict(s.tokens[0], 1, 1, Unknown)
		s.wantVerdict(s.tokens[0], 2, 1, Accepted)
	})
	t.Run("never sent", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.send(upstream, upstream.text("a"))
		s.ack(2)
		s.want(client, "text a", "close 1002 acknowledgement of what was never sent", "FIN")
		if s.policy.reason != ClientFraming {
			t.Errorf("reason %q", s.policy.reason)
		}
	})
	t.Run("of a message that is still behind others", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.block(client)
		s.send(upstream, upstream.text("a"), upstream.text("b"))
		s.ack(2)
		if s.policy.reason != ClientFraming {
			t.Errorf("reason %q", s.policy.reason)
		}
	})
}

func TestLibraryMessages(t *testing.T) {
	for _, text := range []string{``, `{`, `{}`, `{"ack":-1}`, `{"ack":1.5}`, `{"ack":"1"}`, `{"ack":0,"more":1}`, `{"other":1}`, `{"ack":0}{`, `[0]`, strings.Repeat("x", libraryMax)} {
		s := newResumeScript(t, resumeConfig())
		s.send(client, library(text))
		s.want(client, "close 1002 unknown or malformed message of the client library", "FIN")
		s.want(upstream, "close 1001 ")
	}
	t.Run("binary is none", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.send(client, client.whole(frame.Binary, libraryPrefix+"{"))
		s.want(upstream, "binary "+libraryPrefix+"{")
	})
	t.Run("from the upstream", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Text}, libraryPrefix+`{"ack":1}`)) // and that is not all of it
		s.want(upstream, "close 1002 a message must not begin as the gate's own do")
		s.want(client, "close 1011 the upstream sent a message that begins as the gate's own do")
	})
	t.Run("a flood", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		n := 0
		for ; s.policy.reason == ""; n++ {
			s.ack(0)
		}
		if n < 32 || n > 40 {
			t.Errorf("ended after %d", n)
		}
		s.want(client, "close 1008 too many library messages")
	})
	t.Run("one for each of ours, and two a second", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		for i := range uint64(500) {
			s.send(upstream, upstream.text("x"))
			if i%10 == 9 {
				for n := i - 9; n <= i; n++ {
					s.ack(n + 1)
				}
			}
		}
		for range 100 {
			s.wait(500 * time.Millisecond)
			s.ack(500)
		}
		s.wantLive()
	})
}

func (s *resumeScript) full() (n uint64) {
	s.t.Helper()
	for ; s.policy.resume.down.bytes < 4<<10; n++ {
		s.send(upstream, upstream.text(strings.Repeat("x", 1000)))
	}
	return n
}

func TestPushesToAResumableSession(t *testing.T) {
	withID := func(m, id string) *Push { return NewPush(frame.Text, id, []byte(m), []byte("marker")) }
	t.Run("with their ids", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.policy.push(withID("p1", "h-1"), s.owner, s.clock)
		s.run()
		s.want(client, "text p1", ours(`{"push":"h-1"}`))
		s.ack(1)
		s.reset(client)
		s.policy.push(withID("p2", "h-2"), s.owner, s.clock)
		s.run()
		s.want(client, "gone")
		s.mustBack(1)
		s.want(client, ours("first 2 0 h-1"), "text p2", ours(`{"push":"h-2"}`))
	})
	t.Run("full while attached", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.full()
		if got := s.policy.push(withID("p", ""), s.owner, s.clock); got != (Reach{Full: 1}) {
			t.Errorf("reach %+v", got)
		}
		s.wantLive()
	})
	t.Run("full while detached", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.ack(0)
		s.reset(client)
		s.full()
		if got := s.policy.push(withID("p", ""), s.owner, s.clock); got != (Reach{Full: 1}) {
			t.Errorf("reach %+v", got)
		}
		s.run()
		if s.policy.reason != DetachedEvicted {
			t.Errorf("reason %q", s.policy.reason)
		}
		s.want(upstream, "close 1001 the client did not come back")
	})
	t.Run("what it has missed, piece by piece", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		for i := range 50 {
			s.owner.missed = append(s.owner.missed, withID(fmt.Sprint(i, strings.Repeat("x", 500)), ""))
		}
		s.policy.push(nil, s.owner, s.clock)
		s.run()
		got := uint64(0)
		for got < 50 {
			if s.policy.resume.down.bytes > 5<<10 {
				t.Fatalf("%d bytes are kept", s.policy.resume.down.bytes)
			}
			n := uint64(len(s.peers[client].seen))
			if n == got {
				t.Fatalf("it stands still after %d", got)
			}
			got = n
			s.ack(got)
		}
	})
}

func TestRatesOfAResumableSession(t *testing.T) {
	limited := func(action string) Config {
		c := resumeConfig()
		c.MessageRate, c.MessageBurst, c.LimitAction = 1, 3, action
		return c
	}
	t.Run("close", func(t *testing.T) {
		s := newResumeScript(t, limited("close"))
		for range 10 {
			s.ack(0)
		}
		s.send(client, client.text("1"), client.text("2"), client.text("3"))
		s.wantLive()
		s.send(client, client.text("4"))
		s.want(client, "close 1008 message rate")
		s.want(upstream, "text 1", "text 2", "text 3", "close 1001 ")
	})
	t.Run("throttle", func(t *testing.T) {
		s := newResumeScript(t, limited("throttle"))
		for i := range 6 {
			s.send(client, client.text(fmt.Sprint(i)))
		}
		if n := len(s.peers[upstream].seen); n < 3 || n > 4 {
			t.Errorf("%d messages went on at once", n)
		}
		s.wait(5 * time.Second)
		s.want(upstream, "text 0", "text 1", "text 2", "text 3", "text 4", "text 5")
	})
}
