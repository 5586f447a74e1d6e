package relay

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// resumeScript plays a session whose client may come back.
type resumeScript struct {
	*script
	owner  *scriptOwner
	tokens []Token // that the client has got, the oldest first
}

// scriptOwner notes what it is told.
type scriptOwner struct {
	scriptRecipient
	told []string
}

func (o *scriptOwner) Detached() { o.told = append(o.told, "detached") }
func (o *scriptOwner) Attached() { o.told = append(o.told, "attached") }

// apart is a copy that may be played on without a trace.
func (r *resumption) apart(old *Rules) (*Rules, *resumption) {
	newRules, copied := *old, *r
	newRules.budget = &budget{limit: old.budget.limit}
	copied.owner = &scriptOwner{}
	copied.down.kept, copied.up.queue = slices.Clone(r.down.kept), slices.Clone(r.up.queue)
	if r.transient != nil {
		held := *r.transient
		copied.transient = &held
	}
	if r.closings != nil {
		closings := *r.closings
		copied.closings = &closings
	}
	return &newRules, &copied
}

// resumeConfig: a window of 60 s and so a beat of 15 s, a buffer of 4 KiB, no heartbeat.
func resumeConfig() Config {
	c := scriptConfig()
	c.PingInterval = 0
	c.Resume, c.ResumeBuffer, c.ResumeTotal, c.MessageMaxBytes = time.Minute, 4<<10, 1<<20, 2<<10
	return c
}

// secretOf is the secret of a script's token.
func secretOf(generation uint32) (secret [16]byte) {
	return [16]byte{byte(generation), 1, 2, 3}
}

func newResumeScript(t testing.TB, c Config) *resumeScript {
	t.Helper()
	s := &resumeScript{script: newScript(t, c), owner: &scriptOwner{scriptRecipient: scriptRecipient{markers: true}}}
	s.policy.startResumption(&Resumable{Owner: s.owner, Secret: secretOf(1)}, s.clock)
	s.tokens = []Token{{1, secretOf(1)}}
	t.Cleanup(func() {
		if held := s.policy.budget.bytes.Load(); s.policy.over() && held != 0 {
			t.Errorf("%d bytes are counted of a session that is over", held)
		}
	})
	return s
}

// library is a message of the client's library.
func library(text string) []byte { return client.text(libraryPrefix + text) }

func (s *resumeScript) ack(n uint64) {
	s.t.Helper()
	s.send(client, library(fmt.Sprintf(`{"ack":%d}`, n)))
}

// comeBack is a return by a token, with a count and the number of an attempt.
func (s *resumeScript) comeBack(token Token, count, attempt uint64) Verdict {
	s.t.Helper()
	next := token.Generation
	v := s.policy.attach(Return{token, count, attempt}, Arrival{Secret: secretOf(s.policy.resume.tokens.issuedAt + 1), First: func(st Standing) []byte {
		next = st.Generation
		return libraryFrame(fmt.Sprintf("first %d %d %s", st.Generation, st.Received, st.Pushed))
	}}, s.clock)
	if v == Accepted {
		s.tokens = append(s.tokens, Token{next, secretOf(next)})
		s.peers[client] = scriptPeer{}
	}
	s.run()
	return v
}

// mustBack is a return by the newest token that is accepted.
func (s *resumeScript) mustBack(count uint64) {
	s.t.Helper()
	if v := s.comeBack(s.tokens[len(s.tokens)-1], count, 1); v != Accepted {
		s.t.Fatalf("verdict %d", v)
	}
}

func (s *resumeScript) wantVerdict(token Token, count, attempt uint64, want Verdict) {
	s.t.Helper()
	if v := s.comeBack(token, count, attempt); v != want {
		s.t.Fatalf("verdict %d, want %d", v, want)
	}
}

// ours is a library message as a script's peer gets it.
func ours(text string) string { return "text " + libraryPrefix + text }

// What the client has not acknowledged comes again, and what the gate has not taken is asked for.
func TestResumptionAfterACut(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.send(client, client.text("1"), client.text("2"))
	s.send(upstream, upstream.text("a"), upstream.text("b"), upstream.text("c"))
	s.ack(1)
	s.send(client, client.text("cut off")[:7])
	s.want(client, "text a", "text b", "text c")
	s.reset(client)
	s.want(client, "gone")
	s.send(upstream, upstream.text("d"))
	s.want(upstream, "text 1", "text 2")
	s.wait(59 * time.Second)
	s.mustBack(2)
	s.want(client, ours("first 2 2 "), ours(`{"ack":2}`), "text c", "text d")
	s.send(client, client.text("3"))
	s.want(upstream, "text 3")
	s.wantLive()
	if want := []string{"detached", "attached"}; !slices.Equal(s.owner.told, want) {
		t.Errorf("the owner was told %q, want %q", s.owner.told, want)
	}
}

func TestEveryLossDetaches(t *testing.T) {
	for name, lose := range map[string]func(*resumeScript){
		"reset": func(s *resumeScript) { s.reset(client) },
		"FIN":   func(s *resumeScript) { s.sendFIN(client) },
		"write error": func(s *resumeScript) {
			s.peers[client].broken = true
			s.send(upstream, upstream.text("x"))
			s.reset(client)
		},
		"write error and silence": func(s *resumeScript) {
			s.peers[client].broken = true
			s.send(upstream, upstream.text("x"))
			s.wait(5 * time.Second)
		},
		"a client that takes nothing": func(s *resumeScript) {
			s.ack(0)
			s.block(client)
			s.send(upstream, upstream.text("x"))
			s.wait(30 * time.Second)
		},
		"silence": func(s *resumeScript) { s.ack(0); s.wait(45 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newResumeScript(t, resumeConfig())
			s.ack(0)
			lose(s)
			s.wantLive()
			if !s.policy.detached() {
				t.Fatal("the session does not wait for its client")
			}
			s.peers[client].seen = nil
			s.wait(time.Minute - 1)
			s.wantLive()
			s.wait(1)
			s.want(upstream, "close 1001 the client did not come back")
			s.sendFIN(upstream)
			s.wait(10 * time.Second)
			s.wantOver(DetachedExpired, 1001)
		})
	}
}

// A session whose client has shown no token is not kept for a minute.
func TestUnshownSessionIsKeptForTenSeconds(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.reset(client)
	s.want(client, "gone")
	s.wait(10*time.Second - 1)
	s.wantLive()
	s.wait(1)
	if s.policy.reason != DetachedExpired {
		t.Errorf("reason %q", s.policy.reason)
	}
}

func TestResumptionBeats(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.ack(0)
	for range 3 {
		s.wait(15*time.Second - 1)
		s.want(client)
		s.wait(1)
		s.want(client, ours(`{"ack":0}`))
		s.send(client, client.pong("of a browser"), library(`{"ack":0}`))
	}
	s.wait(15 * time.Second) // from here on it owes an answer
	s.want(client, ours(`{"ack":0}`))
	s.send(client, client.pong("alone"))
	s.wait(15 * time.Second)
	s.want(client, ours(`{"ack":0}`))
	s.send(client, client.pong("alone"))
	s.wait(15*time.Second - 1)
	s.wantLive()
	s.want(client)
	s.wait(1)
	s.want(client, "gone")
	// Without a message in between, it has twice as long the next time.
	s.mustBack(0)
	s.want(client, ours("first 2 0 "))
	s.wait(60*time.Second - 1)
	s.want(client, ours(`{"ack":0}`), ours(`{"ack":0}`), ours(`{"ack":0}`))
	s.wait(1)
	s.want(client, "gone")
}

// A part of a message is a sign of life.
func TestSlowMessageIsNoSilence(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	wire := client.text(strings.Repeat("x", 10))
	const header = 6
	s.send(client, wire[:header])
	for i := range wire[header:] {
		s.send(client, wire[header+i:][:1])
		s.wait(25 * time.Second)
	}
	s.wantLive()
	if s.policy.detached() {
		t.Error("its client was given up")
	}
}

// A full buffer stops the upstream, but for 64 KiB; nothing is dropped, and the client's direction goes on.
// The client is held where it does not keep to its window.
func TestTokens(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	first := s.tokens[0]
	s.send(client, client.text("1")) // which shows the first
	s.reset(client)
	s.wantVerdict(first, 0, 2, Accepted)
	second := s.tokens[1]
	s.wantVerdict(first, 0, 2, Stale) // the same attempt, maybe a copy
	s.wantVerdict(first, 0, 1, Stale) // a late one
	s.wantVerdict(first, 0, 3, Accepted)
	s.wantVerdict(second, 0, 1, Unknown) // void: it was never shown
	third := s.tokens[2]
	s.ack(0) // which shows the third
	s.wantVerdict(first, 0, 4, Stale)
	s.wantVerdict(first, 99, 4, Stale) // before its count is looked at
	s.wantVerdict(third, 0, 1, Accepted)
	s.wantVerdict(third, 0, 1, Stale)
	s.wantVerdict(Token{third.Generation, secretOf(99)}, 0, 9, Unknown)
	s.wantVerdict(Token{99, third.Secret}, 0, 9, Unknown)
	s.wantVerdict(third, 1, 2, Unknown) // nothing was sent
	s.send(client, client.text("2"))
	s.want(upstream, "text 1", "text 2")
	s.wantLive()
}

// A pong shows no token: a browser answers pings while its script stands still.
func TestPongShowsNoToken(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.ack(0)
	s.mustBack(0)
	s.send(client, client.pong("x"))
	s.wantVerdict(s.tokens[0], 0, 2, Accepted)
}

// Nothing that the old connection still holds is taken.
func TestTakeover(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.send(client, client.text("1"), client.text("half")[:8])
	s.send(upstream, upstream.text("a"))
	s.peers[client].inbox = append(s.peers[client].inbox, arrival{b: client.text("late")})
	s.mustBack(0)
	s.want(client, ours("first 2 1 "), ours(`{"ack":1}`), "text a")
	s.want(upstream, "text 1")
	if want := []string{"attached"}; !slices.Equal(s.owner.told, want) {
		t.Errorf("the owner was told %q, want %q", s.owner.told, want)
	}
}

// The client's Close goes upstream behind what it sent before, connection alive or not.
func TestClientCloseFlushes(t *testing.T) {
	for _, alive := range []bool{true, false} {
		t.Run(fmt.Sprintf("alive %v", alive), func(t *testing.T) {
			s := newResumeScript(t, resumeConfig())
			s.block(upstream)
			s.send(client, client.text("1"), client.text("2"), client.close(4001, "bye"))
			s.want(client)
			if !alive {
				s.reset(client)
				s.want(client, "gone")
			}
			s.send(upstream, upstream.text("thrown away"))
			s.wait(9 * time.Second)
			s.unblock(upstream)
			s.want(upstream, "text 1", "text 2", "close 4001 bye")
			if alive {
				s.want(client, "close 4001 bye", "FIN")
				s.sendFIN(client)
			}
			s.send(upstream, upstream.close(4001, "bye"))
			s.sendFIN(upstream)
			s.wait(5 * time.Second)
			s.wantOver(ClientClose, 4001)
		})
	}
	t.Run("for ten seconds", func(t *testing.T) {
		s := newResumeScript(t, resumeConfig())
		s.block(upstream)
		s.send(client, client.text("1"), client.text("2"), client.close(4001, "bye"))
		s.wait(10*time.Second - 1)
		s.want(client)
		s.wait(1)
		s.want(client, "close 4001 bye", "FIN")
		s.unblock(upstream)
		s.want(upstream, "text 1", "close 4001 bye")
	})
}

// The upstream's Close is kept behind its messages, and told at each return until the client answers.
func TestUpstreamCloseIsKept(t *testing.T) {
	for name, end := range map[string]struct {
		do     func(*resumeScript)
		want   string
		reason Reason
		code   int
	}{
		"Close": {func(s *resumeScript) { s.send(upstream, upstream.close(4002, "done")); s.sendFIN(upstream) }, "close 4002 done", UpstreamClose, 4002},
		"FIN":   {func(s *resumeScript) { s.sendFIN(upstream) }, "close 1011 upstream connection lost", UpstreamGone, 1011},
		"reset": {func(s *resumeScript) { s.reset(upstream) }, "close 1011 upstream connection lost", UpstreamGone, 1011},
	} {
		t.Run(name, func(t *testing.T) {
			s := newResumeScript(t, resumeConfig())
			s.ack(0)
			s.reset(client)
			s.send(upstream, upstream.text("last"))
			end.do(s)
			s.wait(10 * time.Second)
			s.want(client, "gone")
			s.mustBack(0)
			wantEnd := []string{end.want}
			if end.code == 1011 {
				wantEnd = append(wantEnd, "FIN") // there is no more to wait for
			}
			s.want(client, append([]string{ours("first 2 0 "), "text last"}, wantEnd...)...)
			s.send(client, client.text("thrown away"))
			s.reset(client) // the answer is lost
			s.want(client, "gone")
			s.mustBack(1)
			s.want(client, append([]string{ours("first 3 0 ")}, wantEnd...)...)
			s.send(client, client.close(end.code, ""))
			s.sendFIN(client)
			s.wait(5 * time.Second)
			s.wantOver(end.reason, end.code)
		})
	}
}

// Without resumability: what was written is unresumable, what was not is still sent, and the session ends with the connection.
func TestForget(t *testing.T) {
	s := newResumeScript(t, resumeConfig())
	s.send(upstream, upstream.text("a"))
	s.block(client)
	s.send(upstream, upstream.text("b"), upstream.text("c"))
	if !s.policy.loseResumability(s.clock) {
		t.Fatal("it was not resumable")
	}
	s.unblock(client)
	s.want(client, "text a", "text b", ours(`{"resumable":false}`), "text c")
	if n := s.policy.budget.bytes.Load(); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
	s.wantVerdict(s.tokens[0], 1, 1, Unknown)
	s.ack(1)
	s.send(client, client.text("1"))
	s.want(upstream, "text 1")
	s.reset(client)
	s.want(upstream, "close 1001 client connection lost")
	s.sendFIN(upstream)
	s.wait(5 * time.Second)
	s.wantOver(ClientGone, 1006)
}

// An end of ours ends the session, whether its client is there or away.
func TestEndsOfOurs(t *testing.T) {
	for _, away := range []bool{false, true} {
		s := newResumeScript(t, resumeConfig())
		s.send(upstream, upstream.text("a"))
		s.ack(0)
		if away {
			s.reset(client)
		}
		s.peers[client].seen = nil
		s.end(Kicked, Closing{3003, "out"})
		s.want(upstream, "close 3003 out")
		if !away {
			s.want(client, "close 3003 out")
			s.send(client, client.text("dropped"), client.close(3003, ""))
			s.want(client, "FIN")
			s.sendFIN(client)
		}
		s.wantVerdict(s.tokens[0], 0, 1, Unknown)
		s.want(upstream)
		s.send(upstream, upstream.close(3003, ""))
		s.sendFIN(upstream)
		s.wait(5 * time.Second)
		s.wantOver(Kicked, 3003)
	}
}

// A message is charged when it is taken, and library messages are not.
