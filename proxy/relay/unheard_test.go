package relay

import (
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// A peer that leaves while it is not read is noticed, and whoever went first is the reason.
func TestPeerLeavesUnheard(t *testing.T) {
	throttled := func() Config {
		c := scriptConfig()
		c.MessageRate, c.MessageBurst, c.LimitAction = 1.0/3600, 1, "throttle"
		return c
	}
	throttle := func(s *script) {
		s.send(client, client.text("one"))
		s.send(client, client.text("two"), client.text("three")) // two waits for an hour
		s.want(upstream, "text one")
	}
	for _, tt := range []struct {
		name   string
		config Config
		do     func(*script)
		reason Reason
		code   int
	}{
		{"a throttled client breaks off", throttled(), func(s *script) {
			throttle(s)
			s.reset(client)
			s.want(upstream, "FIN")
			s.wait(5 * time.Second)
		}, ClientGone, frame.CodeAbnormal},
		{"a throttled client shuts its direction", throttled(), func(s *script) {
			throttle(s)
			s.sendFIN(client)
			s.wait(39 * time.Second) // as long as a silent one: its rate would allow two after an hour
			s.wantLive()
			s.wait(10 * time.Second)
		}, ClientGone, frame.CodeAbnormal},
		{"a client shuts its direction, and the upstream takes nothing", scriptConfig(), func(s *script) {
			s.block(upstream)
			s.send(client, client.text("one"))
			s.sendFIN(client)
			s.wait(30 * time.Second)
		}, ClientGone, frame.CodeAbnormal},
		{"an upstream takes nothing, and its client is there", scriptConfig(), func(s *script) {
			s.block(upstream)
			s.send(client, client.text("one"))
			s.wait(41 * time.Second)
			s.want(client, "close 1011 upstream does not answer")
			s.wait(10 * time.Second)
		}, UpstreamSilent, frame.CodeTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t, tt.config)
			tt.do(s)
			if e := s.policy.summary(s.clock); e.Reason != tt.reason || e.Code != tt.code {
				t.Errorf("it ended as %s, %d; want %s, %d", e.Reason, e.Code, tt.reason, tt.code)
			}
		})
	}
}

// A peer that was told to go and floods is read as far as its Close may stand behind, not as fast as it can send; and what it
// has sent is not left unread before its time is over, for the reset would overtake our Close frame.
func TestFloodAfterTheClose(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, e engine) {
		t.Parallel()
		c := e.config()
		c.MessageMaxBytes, c.CloseTimeout = 4<<20, soon
		s := newRig(t, e, c).open()
		go s.upstream.answerClose()
		fromClient := s.client.reads()
		sent := make(chan int, 1)
		go func() {
			n := 0
			for b := make([]byte, 64<<10); ; { // no frames: the first is a continuation, unmasked
				k, err := s.client.conn.Write(b)
				if n += k; err != nil {
					sent <- n
					return
				}
			}
		}()
		if got := <-fromClient; !strings.HasPrefix(got, "close 1002") {
			t.Errorf("the flooding client got %q, want Close 1002", got)
		}
		if end := s.ended(); end.Reason != ClientFraming {
			t.Errorf("end %+v", end)
		}
		// 1 MiB at once and in each second, and what the kernels hold. Unbounded, it is a gigabyte a second.
		if n := <-sent; n > 64<<20 {
			t.Errorf("%d MiB were taken", n>>20)
		}
	})
}
