package relay

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// scriptRecipient is a recipient whose misses the test chooses.
type scriptRecipient struct {
	missed  []*Push
	markers bool
	dropped []Drop
}

func (r *scriptRecipient) NextPush() *Push {
	if len(r.missed) == 0 {
		return nil
	}
	next := r.missed[0]
	r.missed = r.missed[1:]
	return next
}

func (r *scriptRecipient) Markers() bool      { return r.markers }
func (r *scriptRecipient) PushDropped(d Drop) { r.dropped = append(r.dropped, d) }

func textPush(m string) *Push { return NewPush(frame.Text, "", []byte(m), []byte("after "+m)) }

// push pushes messages to a script's client, one after the other.
func (s *script) push(to *scriptRecipient, messages ...string) (reach []Reach) {
	s.t.Helper()
	for _, m := range messages {
		reach = append(reach, s.policy.push(textPush(m), to, s.clock))
		s.run()
	}
	return reach
}

func wantReach(t *testing.T, got []Reach, want ...Reach) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("reach: got %+v, want %+v", got, want)
	}
}

var reached = Reach{Reached: 1}

// pushConfig is that of scripts about pushes, in both modes. No ping comes in between.
func pushConfig(terminate bool) Config {
	c := scriptConfig()
	c.PingInterval, c.PushQueue = 0, 100
	if terminate {
		c.Mode, c.Engine = "terminate", "auto"
	}
	return c
}

func bothModes(t *testing.T, test func(*testing.T, Config)) {
	for _, terminate := range []bool{false, true} {
		c := pushConfig(terminate)
		t.Run(c.Mode, func(t *testing.T) { test(t, c) })
	}
}

func TestPushBetweenMessages(t *testing.T) {
	bothModes(t, func(t *testing.T, c Config) {
		s, to := newScript(t, c), &scriptRecipient{}
		wantReach(t, s.push(to, "one", "two"), reached, reached)
		s.want(client, "text one", "text two")
		s.want(upstream)
		s.send(upstream, upstream.text("hello"))
		s.push(to, "three")
		s.want(client, "text hello", "text three")
		if s.policy.pushes != nil {
			t.Error("something is kept of pushes that have been written")
		}
	})
}

// A message of the application's stays whole, whatever it is made of; so does each of its frames.
func TestPushWaitsForTheEndOfAMessage(t *testing.T) {
	s, to := newScript(t, pushConfig(false)), &scriptRecipient{}
	s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Text}, "begun,"))
	wantReach(t, s.push(to, "one", "two"), reached, reached)
	s.want(client, "text... begun,")
	s.send(upstream, upstream.ping("a ping in between"), upstream.frame(frame.Header{Opcode: frame.Continuation}, " goes on"))
	s.want(client, "ping a ping in between", "continuation...  goes on")
	last := upstream.frame(frame.Header{Fin: true, Opcode: frame.Continuation}, " and ends")
	s.send(upstream, last[:5])
	s.want(client, "part of a frame")
	s.send(upstream, last[5:], upstream.text("next"))
	s.want(client, "continuation  and ends", "text one", "text two", "text next")
}

func TestPushBesideAPing(t *testing.T) {
	c := pushConfig(false)
	c.PingInterval = time.Second
	s, to := newScript(t, c), &scriptRecipient{}
	s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Binary}, "begun,"))
	s.wait(time.Second)
	s.push(to, "push")
	s.want(client, "binary... begun,", "our ping")
	s.send(upstream, upstream.frame(frame.Header{Fin: true, Opcode: frame.Continuation}, "ended"))
	s.want(client, "continuation ended", "text push")
}

// What waits for a client is bounded, but for the first.
func TestPushQueue(t *testing.T) {
	bothModes(t, func(t *testing.T, c Config) {
		s, to := newScript(t, c), &scriptRecipient{}
		s.block(client)
		large, small := strings.Repeat("x", 1000), strings.Repeat("y", 30)
		// The first is being written, the second finds an empty queue, the third does not fit behind it.
		wantReach(t, s.push(to, large, large), reached, reached)
		s.want(client)
		wantReach(t, s.push(to, small), Reach{TooSlow: 1})
		s.unblock(client)
		s.want(client, "text of 1000", "close 1013 too slow")
		s.want(upstream, "close 1013 too slow")
		if want := []Drop{Ended}; !slices.Equal(to.dropped, want) {
			t.Errorf("dropped %q, want %q: the second", to.dropped, want)
		}
		wantReach(t, s.push(to, small), Reach{Ending: 1})
		s.send(client, client.close(1013, ""))
		s.send(upstream, upstream.close(1013, ""))
		s.sendFIN(upstream)
		s.sendFIN(client)
		s.wantOver(TooSlow, frame.CodeTryAgain)
	})
}

// What waits for the end of a message counts as being written: the client is not to blame.
func TestPushQueueBehindAMessage(t *testing.T) {
	s, to := newScript(t, pushConfig(false)), &scriptRecipient{}
	s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Text}, "begun,"))
	large, small := strings.Repeat("x", 1000), strings.Repeat("y", 30)
	wantReach(t, s.push(to, large, small), reached, reached)
	wantReach(t, s.push(to, small), Reach{TooSlow: 1})
}

func TestPushQueueThatEmpties(t *testing.T) {
	s, to := newScript(t, pushConfig(false)), &scriptRecipient{}
	for range 100 {
		s.block(client)
		s.push(to, "one", "two", "three")
		s.unblock(client)
		s.want(client, "text one", "text two", "text three")
	}
	s.wantLive()
}

// A client that takes nothing of a push is given up, unless its kernel says that it does.
func TestStalledPush(t *testing.T) {
	c := pushConfig(false)
	s, to := newScript(t, c), &scriptRecipient{}
	s.block(client)
	s.push(to, "push")
	s.wait(c.CloseTimeout - time.Second)
	s.onTheWay(client, 10, 100)
	s.wait(c.CloseTimeout - time.Second)
	s.wantLive()
	s.wait(time.Second)
	s.want(upstream, "close 1013 too slow")
	s.wait(c.CloseTimeout)
	s.want(client, "gone")
}

// A client that takes what is pushed to it, but slowly, is looked at now and then, and not all the time.
func TestSlowPush(t *testing.T) {
	c := pushConfig(false)
	c.PushQueue = 1 << 20
	s, to := newScript(t, c), &scriptRecipient{}
	s.block(client)
	s.push(to, "being written", "waits", "waits too")
	for i := range uint64(10) {
		s.onTheWay(client, 10+i, 100)
		s.wait(c.CloseTimeout/2 + time.Millisecond)
		if next := s.policy.wake - s.clock; next < time.Second/2 {
			t.Fatalf("after %v it wants to be woken again in %v", s.clock, next)
		}
	}
	s.wantLive()
	s.unblock(client)
	s.want(client, "text being written", "text waits", "text waits too")
}

// An application whose message never ends keeps its client, and the push is told to have come to nothing.
func TestPushWithoutABoundary(t *testing.T) {
	c := pushConfig(false)
	s, to := newScript(t, c), &scriptRecipient{}
	s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Text}, "begun,"))
	s.push(to, "one")
	s.wait(c.CloseTimeout / 2)
	s.push(to, "two")
	s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Continuation}, "on"))
	s.wait(c.CloseTimeout / 2)
	if want := []Drop{NoBoundary}; !slices.Equal(to.dropped, want) {
		t.Errorf("dropped %q, want %q", to.dropped, want)
	}
	s.send(upstream, upstream.frame(frame.Header{Fin: true, Opcode: frame.Continuation}, "end"))
	s.want(client, "text... begun,", "continuation... on", "continuation end", "text two")
	s.wantLive()
}

func TestPushToASessionThatEnds(t *testing.T) {
	for name, end := range map[string]func(*script){
		"the client has closed":             func(s *script) { s.send(client, client.close(1000, "")) },
		"the upstream has closed":           func(s *script) { s.send(upstream, upstream.close(1000, "")) },
		"the client has shut its side":      func(s *script) { s.sendFIN(client) },
		"the upstream has broken off":       func(s *script) { s.reset(upstream) },
		"the upstream violated the framing": func(s *script) { s.send(upstream, []byte{0xff, 0}) },
	} {
		t.Run(name, func(t *testing.T) {
			bothModes(t, func(t *testing.T, c Config) {
				s, to := newScript(t, c), &scriptRecipient{}
				end(s)
				wantReach(t, s.push(to, "late"), Reach{Ending: 1})
				if got := strings.Join(s.peers[client].seen, ";"); strings.Contains(got, "late") {
					t.Errorf("client got %q", got)
				}
			})
		})
	}
}

func TestQueuedPushesOfASessionThatEnds(t *testing.T) {
	bothModes(t, func(t *testing.T, c Config) {
		s, to := newScript(t, c), &scriptRecipient{}
		s.block(client)
		s.push(to, "being written", "waits")
		s.end(Kicked, Closing{frame.CodeForbidden, "kicked"})
		wantReach(t, s.push(to, "late"), Reach{Ending: 1})
		s.unblock(client)
		s.want(client, "text being written", "text waits", "close 3003 kicked")

		s, to = newScript(t, c), &scriptRecipient{}
		s.block(client)
		s.push(to, "being written", "waits")
		s.end(Kicked, Closing{frame.CodeForbidden, "kicked"})
		s.wait(c.CloseTimeout)
		s.want(client, "gone")
		if want := []Drop{Ended}; !slices.Equal(to.dropped, want) {
			t.Errorf("dropped %q, want %q", to.dropped, want)
		}
	})
}

// A frame of ours need not be compressed where messages may be, and must not go out where we do not know what a frame is.
func TestPushBesideExtensions(t *testing.T) {
	for extensions, want := range map[string]Reach{"permessage-deflate; client_max_window_bits=10": reached, "x-unknown": {Extension: 1}} {
		s, to := newScriptWith(t, pushConfig(false), extensions), &scriptRecipient{}
		s.send(upstream, upstream.frame(frame.Header{Fin: true, RSV: frame.RSV1, Opcode: frame.Text}, "small"))
		wantReach(t, s.push(to, "push"), want)
		s.send(upstream, upstream.frame(frame.Header{Fin: true, RSV: frame.RSV1, Opcode: frame.Text}, "small"))
		lines := []string{"RSV 0x40 text small", "text push", "RSV 0x40 text small"}
		if want.Extension > 0 {
			lines = slices.Delete(lines, 1, 2)
		}
		s.want(client, lines...)
	}
}

func TestMissedPushesComeFirst(t *testing.T) {
	bothModes(t, func(t *testing.T, c Config) {
		s, to := newScript(t, c), &scriptRecipient{markers: true}
		for i := range 5 {
			to.missed = append(to.missed, textPush(fmt.Sprint("missed ", i)))
		}
		s.block(client)
		if got := s.policy.push(nil, to, s.clock); got != reached {
			t.Errorf("reach: got %+v", got)
		}
		s.run()
		if len(to.missed) != 4 {
			t.Errorf("%d are not asked for yet, want 4: one at a time", len(to.missed))
		}
		s.unblock(client)
		s.push(to, "new")
		s.want(client,
			"text missed 0", "text after missed 0", "text missed 1", "text after missed 1", "text missed 2", "text after missed 2",
			"text missed 3", "text after missed 3", "text missed 4", "text after missed 4", "text new", "text after new")
	})
}

// Pushes between the messages of an application that echoes, on real sockets: nothing is lost, doubled or split, on either way.
func TestPushesBetweenEchoes(t *testing.T) {
	const echoes, pushes = 2000, 500
	eachEngine(t, func(t *testing.T, e engine) {
		t.Parallel()
		c := e.config()
		c.PushQueue = 1 << 20
		r := newRig(t, e, c)
		s := r.open()
		live := r.live1()
		go s.upstream.echo()
		go func() {
			for i := range echoes {
				n := i % 3000
				h := frame.Header{Opcode: frame.Binary}
				if _, err := s.client.conn.Write(s.client.wire(h, string(pattern(int64(i), n)))); err != nil {
					return
				}
				h = frame.Header{Fin: true, Opcode: frame.Continuation}
				if _, err := s.client.conn.Write(s.client.wire(h, fmt.Sprint(" echo ", i))); err != nil {
					return
				}
			}
		}()
		go func() {
			to := &scriptRecipient{}
			for i := range pushes {
				r.Push(textPush(fmt.Sprint(i)), []Session{live}, []Recipient{to})()
			}
		}()
		var message []byte
		for echoed, pushed := 0, 0; echoed < echoes || pushed < pushes; {
			f, err := s.client.read()
			if err != nil {
				t.Fatalf("after %d echoes and %d pushes: %v", echoed, pushed, err)
			}
			switch {
			case f.Opcode == frame.Text:
				if got, want := string(f.payload), fmt.Sprint(pushed); got != want || len(message) > 0 {
					t.Fatalf("got push %q inside %d bytes of a message, want %q between messages", got, len(message), want)
				}
				pushed++
			case !f.Fin:
				message = append(message, f.payload...)
			default:
				message = append(message, f.payload...)
				if want := string(pattern(int64(echoed), echoed%3000)) + fmt.Sprint(" echo ", echoed); string(message) != want {
					t.Fatalf("echo %d: got %d bytes, want %d, or others", echoed, len(message), len(want))
				}
				message = message[:0]
				echoed++
			}
		}
	})
}

// live1 is the relay's only session.
func (r *rig) live1() Session {
	r.t.Helper()
	all := r.Relay.sessions()
	if len(all) != 1 {
		r.t.Fatalf("%d sessions, want one", len(all))
	}
	return all[0]
}
