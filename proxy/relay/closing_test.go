package relay

import (
	"slices"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// The closing handshake.

// RFC 6455, section 7.1.1: the server closes the connection first. Towards the client that is us.
func TestClientCloses(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(client, client.text("last"), client.close(4001, "bye"))
	s.want(upstream, "text last", "close 4001 bye")
	s.want(client)
	s.send(upstream, upstream.text("mine"), upstream.close(4002, "yes"))
	s.want(client, "text mine", "close 4002 yes", "FIN")
	s.want(upstream) // it is to close first
	s.sendFIN(client)
	s.want(client, "gone")
	s.sendFIN(upstream)
	s.want(upstream, "gone")
	s.wantOver(ClientClose, 4001)
}

func TestUpstreamCloses(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(upstream, upstream.close(4001, "bye"))
	s.want(client, "close 4001 bye")
	s.send(client, client.text("on its way"), client.close(4001, "bye"))
	s.want(upstream, "text on its way", "close 4001 bye")
	s.want(client, "FIN")
	s.sendFIN(upstream)
	s.want(upstream, "gone")
	s.sendFIN(client)
	s.want(client, "gone")
	s.wantOver(UpstreamClose, 4001)
}

func TestCloseWithoutCode(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		s.send(from, from.whole(frame.Close, ""))
		s.want(from.other(), "close 1005 ")
		s.wait(time.Minute)
		s.wantOver(reasonClosed[from], 1005)
	})
}

func TestCloseInsideAFragmentedMessage(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		s.send(from, from.frame(frame.Header{Opcode: frame.Text}, "begun"), from.close(1000, ""))
		s.want(from.other(), "text... begun", "close 1000 ")
	})
}

// RFC 6455, section 5.5.1: what comes after a Close frame is not even looked at, however malformed.
func TestNothingFollowsAClose(t *testing.T) {
	for name, after := range map[string]func(side) []byte{
		"messages":          func(s side) []byte { return slices.Concat(s.text("x"), s.ping("x"), s.pong("x")) },
		"another close":     func(s side) []byte { return s.close(4002, "again") },
		"malformed frame":   func(s side) []byte { return s.whole(0x7, "") },
		"no frames at all":  func(side) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") },
		"part of a message": func(s side) []byte { return s.text("xxxxxx")[:7] },
	} {
		t.Run(name, func(t *testing.T) {
			bothSides(t, func(t *testing.T, from side) {
				s := newScript(t, scriptConfig())
				s.send(from, from.close(4001, "bye"), after(from))
				s.send(from, after(from))
				s.want(from.other(), "close 4001 bye")
				s.want(from)
				s.send(from.other(), from.other().close(4001, "bye"), after(from.other()))
				if got := s.peers[from].seen; len(got) == 0 || got[0] != "close 4001 bye" {
					t.Errorf("%v got %q", from, got)
				}
				s.wait(time.Minute)
				s.wantOver(reasonClosed[from], 4001)
			})
		})
	}
}

func TestCloseWithoutAnswer(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		s.send(from, from.close(1000, ""))
		s.want(from.other(), "close 1000 ")
		s.wait(5*time.Second - 1)
		s.want(from.other())
		s.want(from)
		s.wait(1)
		s.want(from.other(), "gone")
		s.wait(10 * time.Second)
		s.wantOver(reasonClosed[from], 1000)
	})
}

// A peer may finish the message that it is sending before it answers; RFC 6455, section 5.5.1.
func TestCloseAnsweredAfterALongMessage(t *testing.T) {
	bothSides(t, func(t *testing.T, from side) {
		s := newScript(t, scriptConfig())
		long := from.other().text("0123456789")
		s.send(from.other(), long[:8])
		s.send(from, from.close(1000, ""))
		for _, c := range long[8:] {
			s.wait(4 * time.Second)
			s.send(from.other(), []byte{c})
		}
		s.wait(4 * time.Second)
		s.send(from.other(), from.other().close(1000, "done"))
		if got := s.peers[from].seen; len(got) < 2 || got[0] != "text 0123456789" || got[1] != "close 1000 done" {
			t.Errorf("%v got %q", from, got)
		}
		s.wait(time.Minute)
		s.wantOver(reasonClosed[from], 1000)
	})
}

// But it is not waited for as long as it pleases: the other end has closed, and CLOSE_TIMEOUT is for that.
func TestPeerThatIgnoresACloseIsNotWaitedForForEver(t *testing.T) {
	bothSides(t, func(t *testing.T, deaf side) {
		s := newScript(t, scriptConfig())
		s.send(deaf.other(), deaf.other().close(1008, "go away"))
		for range 1000 {
			s.send(deaf, deaf.ping("la la la"))
			s.wait(4 * time.Second)
		}
		if !s.policy.over() {
			t.Errorf("over an hour after the Close frame, the session is as live as ever")
		}
	})
}

func TestBothCloseAtOnce(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.block(upstream)
	s.send(client, client.close(4001, "bye"))
	s.send(upstream, upstream.close(4002, "bye"))
	s.unblock(upstream)
	s.want(client, "close 4002 bye", "FIN")
	s.want(upstream, "close 4001 bye")
	s.sendFIN(client)
	s.sendFIN(upstream)
	s.wantOver(ClientClose, 4001)
}

// A client that closes and is gone: most do not wait for the answer.
func TestClientClosesAndLeaves(t *testing.T) {
	for name, leave := range map[string]func(*script, side){
		"FIN":   (*script).sendFIN,
		"reset": (*script).reset,
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, scriptConfig())
			s.send(client, client.close(1001, "page closed"))
			leave(s, client)
			s.want(upstream, "close 1001 page closed")
			s.send(upstream, upstream.close(1001, ""))
			s.sendFIN(upstream)
			s.wantOver(ClientClose, 1001)
		})
	}
}

// An upstream that closes and shuts at once: the client is told what it said, not that it was lost.
func TestUpstreamClosesAndLeaves(t *testing.T) {
	for name, leave := range map[string]func(*script, side){
		"FIN":   (*script).sendFIN,
		"reset": (*script).reset,
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, scriptConfig())
			s.send(upstream, upstream.close(1013, "try later"))
			leave(s, upstream)
			if got := s.peers[client].seen; len(got) == 0 || got[0] != "close 1013 try later" {
				t.Errorf("client got %q", got)
			}
			s.send(client, client.close(1013, ""))
			s.sendFIN(client)
			s.wantOver(UpstreamClose, 1013)
		})
	}
}

// After the handshake neither side is waited for longer than CLOSE_TIMEOUT, whatever it sends.
func TestLingerEnds(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(client, client.close(1000, ""))
	s.send(upstream, upstream.close(1000, ""))
	s.want(client, "close 1000 ", "FIN")
	for range 4 {
		s.wait(time.Second)
		s.send(client, []byte("more and more"))
		s.send(upstream, []byte("more and more"))
	}
	s.wait(time.Second)
	s.want(client, "gone")
	s.wantOver(ClientClose, 1000)
}

// FIN without Close.

func TestFINFromUpstream(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(upstream, upstream.text("last"))
	s.sendFIN(upstream)
	s.want(client, "text last", "close 1011 upstream connection lost", "FIN")
	s.send(client, client.close(1011, ""))
	s.want(upstream, "close 1011 ", "gone")
	s.sendFIN(client)
	s.want(client, "gone")
	s.wantOver(UpstreamGone, 1011)
}

func TestFINFromUpstreamWhenTheClientSaysNothing(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.sendFIN(upstream)
	s.want(client, "close 1011 upstream connection lost", "FIN")
	s.wait(5 * time.Second)
	s.want(client, "gone")
	s.want(upstream, "FIN", "gone")
	s.wantOver(UpstreamGone, 1011)
}

func TestFINFromUpstreamInsideAFrame(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(upstream, upstream.text("abcdef")[:5])
	s.sendFIN(upstream)
	s.want(client, "FIN", "part of a frame") // a Close frame would be taken for the rest of it
	s.wait(10 * time.Second)
	s.wantOver(UpstreamGone, 1011)
}

// The part of a header that has come has not been passed on, so there is a boundary.
func TestFINFromUpstreamInsideAHeader(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(upstream, upstream.text("abc")[:1])
	s.sendFIN(upstream)
	s.want(client, "close 1011 upstream connection lost", "FIN")
}

func TestFINFromUpstreamBetweenFragments(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(upstream, upstream.frame(frame.Header{Opcode: frame.Text}, "begun"))
	s.sendFIN(upstream)
	s.want(client, "text... begun", "close 1011 upstream connection lost", "FIN")
}

func TestFINFromClient(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(client, client.text("last"))
	s.sendFIN(client)
	s.want(upstream, "text last", "FIN")
	s.want(client)
	for range 30 { // the other direction runs on, and the client is not pinged
		s.wait(5*time.Second - 1)
		s.send(upstream, upstream.text("more"))
		s.want(client, "text more")
	}
	s.wait(5*time.Second - 1)
	s.want(client)
	s.wait(1)
	s.want(upstream, "gone")
	s.wait(10 * time.Second)
	s.wantOver(ClientGone, 1006)
}

func TestFINFromClientThenCloseFromUpstream(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.sendFIN(client)
	s.want(upstream, "FIN")
	s.send(upstream, upstream.text("the answer"), upstream.close(1000, "done"))
	s.want(client, "text the answer", "close 1000 done", "gone")
	s.sendFIN(upstream)
	s.want(upstream, "gone")
	s.wantOver(ClientGone, 1006)
}

func TestFINFromClientInsideAFrame(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(client, client.text("abcdef")[:8])
	s.sendFIN(client)
	s.want(upstream, "FIN", "part of a frame")
	s.sendFIN(upstream)
	s.wantOver(ClientGone, 1006)
}

// What the client sent before its FIN is taken first.
func TestFINFromClientWaitsForItsBytes(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.block(upstream)
	s.send(client, client.text("last"))
	s.sendFIN(client)
	s.wait(4 * time.Second)
	s.want(upstream)
	s.unblock(upstream)
	s.want(upstream, "text last", "FIN")
}

func TestFINFromBoth(t *testing.T) {
	for _, first := range []side{client, upstream} {
		s := newScript(t, scriptConfig())
		s.sendFIN(first)
		s.sendFIN(first.other())
		s.wait(10 * time.Second)
		s.wantOver(reasonGone[first], [2]int{1006, 1011}[first])
	}
}

// A client that has shut its direction is still a session like any other: it may not outlive its limit or a drain. It is
// the cheapest way to try, since a subscriber has nothing more to say.
func TestHalfClosedSessionEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		half func(*script)
	}{
		{"after a FIN", func(s *script) { s.sendFIN(client) }},
		{"after a Close that the upstream ignores", func(s *script) { s.send(client, client.close(1000, "")) }},
	} {
		stream := func(s *script) {
			for range 100 {
				s.send(upstream, upstream.text("more"))
				s.wait(time.Second)
			}
		}
		t.Run(tt.name+"/session limit", func(t *testing.T) {
			c := scriptConfig()
			c.SessionMax = time.Minute
			s := newScript(t, c)
			tt.half(s)
			stream(s)
			if !s.policy.over() {
				t.Errorf("it has outlived SESSION_MAX")
			}
		})
		t.Run(tt.name+"/drain", func(t *testing.T) {
			s := newScript(t, scriptConfig())
			tt.half(s)
			stream(s)
			if s.policy.over() {
				return
			}
			s.end(Drained, goingAway)
			if got := s.peers[client].seen; len(got) == 0 || !slices.Contains(got, "close 1001 going away") {
				t.Errorf("the client was not told of the drain")
			}
			stream(s)
			if !s.policy.over() {
				t.Errorf("it has outlived the drain")
			}
		})
	}
}

// Breaking off.

func TestResetByUpstream(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.reset(upstream)
	s.want(upstream, "gone")
	s.want(client, "close 1011 upstream connection lost", "FIN")
	s.sendFIN(client)
	s.want(client, "gone")
	s.wantOver(UpstreamGone, 1011)
}

func TestResetByUpstreamInsideAFrame(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.send(upstream, upstream.text("abcdef")[:5])
	s.reset(upstream)
	s.want(client, "FIN", "part of a frame")
	s.wait(5 * time.Second)
	s.wantOver(UpstreamGone, 1011)
}

func TestResetByClient(t *testing.T) {
	s := newScript(t, scriptConfig())
	s.reset(client)
	s.want(client, "gone")
	s.want(upstream, "FIN")
	for range 4 { // what it says has nowhere to go, and buys no time
		s.wait(time.Second)
		s.send(upstream, upstream.text("more"))
	}
	s.wait(time.Second)
	s.want(upstream, "gone")
	s.wantOver(ClientGone, 1006)
}

// What a peer sent before writing to it failed is still read, its Close frame above all.
func TestCloseIsReadAfterWritingFailed(t *testing.T) {
	bothSides(t, func(t *testing.T, deaf side) {
		s := newScript(t, scriptConfig())
		s.peers[deaf].broken = true
		s.send(deaf.other(), deaf.other().text("lost"))
		s.send(deaf, deaf.text("said before"), deaf.close(4001, "bye"))
		s.want(deaf.other(), "text said before", "close 4001 bye")
		s.wait(time.Minute)
		s.wantOver(reasonClosed[deaf], 4001)
	})
}

func TestDeafPeerIsGivenUp(t *testing.T) {
	bothSides(t, func(t *testing.T, deaf side) {
		s := newScript(t, scriptConfig())
		s.peers[deaf].broken = true
		s.send(deaf.other(), deaf.other().text("lost"))
		for range 10 {
			s.send(deaf, deaf.ping("still here"))
			s.wait(time.Second)
		}
		s.want(deaf, "gone")
		s.wait(time.Minute)
		s.wantOver(reasonGone[deaf], [2]int{1006, 1011}[deaf])
	})
}

// Where a Close frame of ours goes.

func TestCloseInsideAChunk(t *testing.T) {
	bothSides(t, func(t *testing.T, to side) {
		s := newScript(t, scriptConfig())
		from := to.other()
		long := from.text("abcdef")
		s.send(from, long[:len(long)-2])
		s.end(Drained, goingAway)
		s.want(to, "part of a frame")
		s.send(from, long[len(long)-2:], from.text("too late"), from.ping("too late"))
		s.want(to, "text abcdef", "close 1001 going away")
	})
}

// No boundary comes: a peer that stalls inside a frame, or one whose frame has no end.
func TestNoBoundary(t *testing.T) {
	for name, step := range map[string][]byte{"stalls": nil, "goes on": []byte("payload")} {
		t.Run(name, func(t *testing.T) {
			bothSides(t, func(t *testing.T, to side) {
				s := newScript(t, scriptConfig())
				from := to.other()
				s.send(from, frame.Header{Fin: true, Opcode: frame.Binary, Length: 1 << 40, Masked: from == client}.Append(nil))
				s.end(Drained, goingAway)
				s.want(from, "close 1001 going away")
				for range 5 {
					s.want(to, "part of a frame")
					if step != nil {
						s.send(from, step)
					}
					s.wait(time.Second)
				}
				s.want(to, "gone", "part of a frame")
				s.wait(10 * time.Second)
				s.wantOver(Drained, 1001)
			})
		})
	}
}

func TestCloseIsNotTaken(t *testing.T) {
	bothSides(t, func(t *testing.T, stuck side) {
		s := newScript(t, scriptConfig())
		s.block(stuck)
		s.end(Drained, goingAway)
		s.wait(5 * time.Second)
		s.want(stuck, "gone")
		s.wait(10 * time.Second)
		s.wantOver(Drained, 1001)
	})
}

func TestBytesBeforeTheCloseAreNotTaken(t *testing.T) {
	bothSides(t, func(t *testing.T, stuck side) {
		s := newScript(t, scriptConfig())
		s.block(stuck)
		s.send(stuck.other(), stuck.other().text("never taken"))
		s.end(Drained, goingAway)
		s.wait(5 * time.Second)
		s.want(stuck, "gone")
		s.wait(10 * time.Second)
		s.wantOver(Drained, 1001)
	})
}

// The time to answer a Close frame starts when it has been taken.
func TestCloseTakenLate(t *testing.T) {
	bothSides(t, func(t *testing.T, slow side) {
		s := newScript(t, scriptConfig())
		s.block(slow)
		s.end(Drained, goingAway)
		s.wait(4 * time.Second)
		s.unblock(slow)
		s.want(slow, "close 1001 going away")
		s.wait(5*time.Second - 1)
		s.want(slow)
		s.wait(1)
		s.want(slow, "gone")
	})
}

// The end that we decide on.
