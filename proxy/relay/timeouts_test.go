package relay

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// soon is how long a peer of a test may take for what has a limit, and is then to be there in time, even on a
// crowded machine.
const soon = 4 * time.Second

// answerPings answers pings until something else comes, and returns that and
// how many there were.
func (p *testPeer) answerPings() (f received, pings int, err error) {
	for {
		if f, err = p.read(); err != nil || f.Opcode != frame.Ping {
			return f, pings, err
		}
		pings++
		if _, err = p.conn.Write(p.wire(frame.Header{Fin: true, Opcode: frame.Pong}, string(f.payload))); err != nil {
			return f, pings, err
		}
	}
}

// reads tells what a peer reads in the background, pings aside, which it answers.
func (p *testPeer) reads() <-chan string {
	return namesOf(func() (received, error) {
		f, _, err := p.answerPings()
		return f, err
	})
}

// readsOnly is reads of a peer that answers no ping: one whose other writes never end is
// alive without, and its pong might wait behind them for ever.
func (p *testPeer) readsOnly() <-chan string {
	return namesOf(func() (f received, err error) {
		for f.Opcode = frame.Ping; err == nil && f.Opcode == frame.Ping; {
			f, err = p.read()
		}
		return f, err
	})
}

func namesOf(read func() (received, error)) <-chan string {
	names := make(chan string, 100)
	go func() {
		defer close(names)
		for {
			f, err := read()
			if err != nil {
				return
			}
			names <- f.name()
		}
	}()
	return names
}

func wantNext(t *testing.T, names <-chan string, want ...string) {
	t.Helper()
	for _, want := range want {
		select {
		case got := <-names:
			if got != want {
				t.Fatalf("reads %.200q, want %.200q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("reads nothing, want %q", want)
		}
	}
}

// Our pings and their pongs stay between us and the peer that is pinged; those
// of the application pass.
func TestPongsToOurPingsAreSwallowed(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, e engine) {
		c := e.config()
		c.PingInterval = 50 * time.Millisecond
		s := newRig(t, e, c).open()
		atUpstream := s.upstream.reads()

		var payloads []string
		for range 3 {
			f, err := s.client.read()
			if err != nil || f.Opcode != frame.Ping || len(f.payload) != 8 {
				t.Fatalf("client reads %q, %v, want a ping of ours", f.name(), err)
			}
			payloads = append(payloads, string(f.payload))
			s.client.send(frame.Pong, string(f.payload))
		}
		if payloads[0] == payloads[1] || payloads[1] == payloads[2] {
			t.Errorf("the same ping twice: %q", payloads)
		}
		s.client.send(frame.Pong, payloads[0]) // late, and ours all the same
		s.client.send(frame.Pong, "unasked")
		s.client.send(frame.Ping, "application")
		s.client.send(frame.Text, "hello")
		select {
		case got := <-atUpstream:
			if got != "pong unasked" {
				t.Errorf("upstream reads %q, want the application's pong", got)
			}
		case <-time.After(patience):
			t.Fatal("upstream reads nothing")
		}
		wantNext(t, atUpstream, "text hello") // the ping between them was answered by reads
		if f, _, err := s.client.answerPings(); err != nil || f.name() != "pong application" {
			t.Errorf("client reads %q, %v, want the application's pong", f.name(), err)
		}
	})
}

// A side that answers no ping is given up after PONG_TIMEOUT, even while
// the other speaks to it without a pause, or pings it itself.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	const interval = 50 * time.Millisecond
	for name, meanwhile := range map[string]func(other *testPeer) (reads <-chan string){
		"and the other only answers": (*testPeer).reads,
		"and the other speaks without a pause": func(other *testPeer) <-chan string {
			b := other.wire(frame.Header{Fin: true, Opcode: frame.Binary}, string(pattern(0, 5000)))
			go flood(other, b)
			return other.readsOnly()
		},
		"and the other pings it": func(other *testPeer) <-chan string {
			b := other.wire(frame.Header{Fin: true, Opcode: frame.Ping}, "anybody there?")
			go func() { // often, and yet no flood
				for every := time.Tick(5 * time.Millisecond); ; <-every {
					if _, err := other.conn.Write(b); err != nil {
						return
					}
				}
			}()
			return other.reads()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachEngine(t, func(t *testing.T, e engine) {
				t.Parallel()
				c := e.config()
				c.PingInterval, c.PongTimeout = interval, soon
				r := newRig(t, e, c)
				for silent := range side(2) {
					began := time.Now()
					s := r.open()
					mute, other, farewell := s.client, s.upstream, "close 1001 client does not answer"
					if silent == upstream {
						mute, other, farewell = other, mute, "close 1011 upstream does not answer"
					}
					fromMute := meanwhile(other)
					for {
						f, err := mute.read()
						if err != nil {
							t.Fatal(err)
						}
						if f.Opcode == frame.Close {
							if got := f.name(); got != "close 3008 no pong" {
								t.Errorf("%s reads %q", mute, got)
							}
							break
						}
					}
					if took := time.Since(began); took < interval+soon {
						t.Errorf("given up after %v, want at least %v", took, interval+soon)
					}
					wantNext(t, fromMute, farewell)
					mute.conn.Close()
					other.conn.Close()
					if end := s.ended(); end.Reason != reasonSilent[silent] || end.Code != frame.CodeTimeout {
						t.Errorf("end %+v", end)
					}
				}
			})
		})
	}
}

// A side that says anything at all is alive.
func TestBusyPeerIsNotPinged(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, e engine) {
		c := e.config()
		c.PingInterval = 300 * time.Millisecond
		s := newRig(t, e, c).open()
		atUpstream := s.upstream.reads()
		began, last, pause := time.Now(), time.Now(), time.Duration(0)
		for last.Sub(began) < 2*c.PingInterval {
			s.client.send(frame.Text, "busy")
			wantNext(t, atUpstream, "text busy")
			now := time.Now()
			pause, last = max(pause, now.Sub(last)), now
		}
		s.client.sendClose(1000, "")
		wantNext(t, atUpstream, "close 1000")
		s.upstream.sendClose(1000, "")
		if f, err := s.client.read(); err != nil || f.name() != "close 1000" && pause < c.PingInterval/2 {
			t.Errorf("client reads %q, %v, and was never silent for more than %v", f.name(), err, pause)
		}
	})
}

// IDLE_TIMEOUT is about messages: heartbeats, ours and the application's, do
// not keep a session open.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	const idle = soon
	eachEngine(t, func(t *testing.T, e engine) {
		t.Parallel()
		c := e.config()
		c.IdleTimeout, c.PingInterval = idle, 50*time.Millisecond
		s := newRig(t, e, c).open()
		atClient, atUpstream := s.client.reads(), s.upstream.reads()
		atLeast(t, idle, func() {
			s.client.send(frame.Text, "active")
			wantNext(t, atUpstream, "text active")
			s.upstream.send(frame.Pong, "unasked")
			wantNext(t, atClient, "pong unasked", "close 3008 idle")
		})
		wantNext(t, atUpstream, "close 3008 idle")
		s.client.conn.Close()
		s.upstream.conn.Close()
		s.wantEnd(End{Reason: Idle, Code: frame.CodeTimeout, FromClient: Traffic{1, 6}})
	})
}

// SESSION_MAX is final: for an idle session, for a busy one, and for one whose client has
// shut its direction and listens on.
func TestSessionMax(t *testing.T) {
	t.Parallel()
	const limit = 300 * time.Millisecond
	const told = "close 1001 session limit"
	for name, meanwhile := range map[string]func(*testSession){
		"idle": func(*testSession) {},
		"busy": func(s *testSession) {
			go flood(s.client, s.client.wire(frame.Header{Fin: true, Opcode: frame.Binary}, "busy"))
			go flood(s.upstream, s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Binary}, "busy"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				c := e.config()
				c.SessionMax = limit
				r := newRig(t, e, c)
				s := r.open()
				meanwhile(s)
				// At once: small frames for a side that is not read fill the kernel's queue of the sender beyond
				// its measure, and with what it then drops go the sender's ACKs of what is told it.
				var reading sync.WaitGroup
				for _, p := range []*testPeer{s.client, s.upstream} {
					reading.Go(func() {
						if got, err := p.readToClose(); err != nil || got != told {
							t.Errorf("%s reads %q, %v, want %q", p, got, err, told)
						}
					})
				}
				reading.Wait()
				s.client.conn.Close()
				s.upstream.conn.Close()
				if end := s.ended(); end.Reason != SessionLimit || end.Code != frame.CodeGoingAway || end.Duration < limit {
					t.Errorf("end %+v", end)
				}
			})
		})
	}
	t.Run("half-closed", func(t *testing.T) {
		eachEngine(t, func(t *testing.T, e engine) {
			t.Parallel()
			const limit = soon
			c := e.config()
			c.SessionMax, c.CloseTimeout = limit, limit
			s := newRig(t, e, c).open()
			s.client.closeWrite()
			s.upstream.expectEOF()
			// Without a pause, so CLOSE_TIMEOUT never passes without bytes.
			go flood(s.upstream, s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Text}, strings.Repeat("on and on ", 500)))
			for {
				if _, err := s.client.read(); err != nil {
					break
				}
			}
			if end := s.ended(); end.Reason != ClientGone || end.Duration < limit {
				t.Errorf("end %+v", end)
			}
		})
	})
}

// slowReturn is a connection whose Write returns only when it is told to: what
// it wrote may be answered by then.
type slowReturn struct {
	net.Conn
	once    sync.Once
	release chan struct{}
}

func (c *slowReturn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.once.Do(func() { <-c.release })
	return n, err
}

// A pong can be here before the write of its ping returns. It was taken for
// none, and a healthy client was closed for its silence.
func TestPongBeforePingIsWritten(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"passthrough", "terminate"} {
		t.Run(mode, func(t *testing.T) {
			e := engine{mode: mode, engine: "auto"}
			c := e.config()
			c.PingInterval, c.PongTimeout = 100*time.Millisecond, soon
			r := newRig(t, e, c)
			release := make(chan struct{})
			r.wrap = func(client net.Conn) net.Conn { return &slowReturn{Conn: client, release: release} }
			s := r.open()
			atUpstream := s.upstream.reads()
			f, err := s.client.read()
			if err != nil || f.Opcode != frame.Ping {
				t.Fatalf("client reads %q, %v, want a ping", f.name(), err)
			}
			s.client.send(frame.Pong, string(f.payload))
			s.client.send(frame.Text, "after the pong")
			wantNext(t, atUpstream, "text after the pong")
			close(release)
			if f, err := s.client.read(); err != nil || f.Opcode != frame.Ping {
				t.Errorf("client reads %q, %v, want the next ping", f.name(), err)
			}
		})
	}
}
