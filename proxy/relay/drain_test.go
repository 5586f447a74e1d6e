package relay

import (
	"context"
	"errors"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

const drained = "close 1001 going away"

// readToClose reads up to a Close frame, whatever comes before it.
func (p *testPeer) readToClose() (name string, err error) {
	for {
		f, err := p.read()
		if err != nil {
			return "", err
		}
		if f.Opcode == frame.Close {
			return f.name(), nil
		}
	}
}

// answerClose does so, answers it and leaves.
func (p *testPeer) answerClose() (name string, err error) {
	if name, err = p.readToClose(); err != nil {
		return "", err
	}
	_, err = p.conn.Write(p.wire(frame.Header{Fin: true, Opcode: frame.Close}, string(p.payload)))
	p.conn.Close()
	return name, err
}

// Drain tells both sides of every session, spread over the time it is given.
func TestDrain(t *testing.T) {
	t.Parallel()
	const sessions, spread = 10, 500 * time.Millisecond
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		type told struct {
			name string
			err  error
			at   time.Time
		}
		all := make(chan told, 2*sessions)
		for range sessions {
			s := r.open()
			for _, p := range []*testPeer{s.client, s.upstream} {
				go func() {
					name, err := p.answerClose()
					all <- told{name, err, time.Now()}
				}()
			}
		}
		began := time.Now()
		r.Drain(t.Context(), spread)
		if took := time.Since(began); took < spread*(sessions-1)/sessions {
			t.Errorf("Drain took %v, want about %v", took, spread)
		}
		soon := 0
		for range 2 * sessions {
			c := <-all
			if c.err != nil || c.name != drained {
				t.Fatalf("a peer reads %q, %v", c.name, c.err)
			}
			if c.at.Sub(began) < spread/4 {
				soon++
			}
		}
		if soon > sessions { // of 2*sessions; a quarter is due
			t.Errorf("%d of %d Close frames came in the first quarter of the time", soon, 2*sessions)
		}
		r.wait()
		for _, s := range r.sessions {
			s.wantEnd(End{Reason: Drained, Code: frame.CodeGoingAway})
		}
	})
}

// A session that is started after Drain, or during it, is told at once.
func TestStartAfterDrain(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		r.Drain(t.Context(), time.Hour)
		early := appendFrame(nil, frame.Client, frame.Header{Fin: true, Opcode: frame.Text}, []byte("early"))
		s := r.openWith(Handover{ClientEarly: early})
		s.client.expect(drained)
		if name, err := s.upstream.answerClose(); err != nil || name != drained {
			t.Errorf("upstream reads %q, %v", name, err)
		}
		s.client.conn.Close()
		s.ended()
	})
}

// Drain returns when its context ends, and has then told only some.
func TestDrainInterrupted(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		for range 3 {
			r.open()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		r.Drain(ctx, time.Hour)
		if n := r.Len(); n != 3 {
			t.Errorf("%d sessions are live, want 3: none has been answered", n)
		}
	})
}

// A Close frame waits for the end of the frame that is on its way.
func TestDrainAmidFrame(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		s := r.open()
		fromClient := s.client.wire(frame.Header{Fin: true, Opcode: frame.Binary}, string(pattern(0, 5000)))
		fromUpstream := s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Binary}, string(pattern(0, 5000)))
		s.client.write(fromClient[:2500])
		s.upstream.write(fromUpstream[:2500])
		// Each side has seen half a frame of the other when the drain begins.
		if !e.terminates() {
			s.upstream.readSome()
			s.client.readSome()
		}
		r.Drain(t.Context(), 0)
		s.client.write(fromClient[2500:])
		s.upstream.write(fromUpstream[2500:])
		for _, p := range []*testPeer{s.client, s.upstream} {
			if !e.terminates() { // where half a frame is none, and is not waited for
				p.expect("binary " + string(pattern(0, 5000)))
			}
			p.expect(drained)
			p.sendClose(1001, "")
			p.conn.Close()
		}
		s.ended()
	})
}

// readSome has at least one byte wait in the peer's buffer.
func (p *testPeer) readSome() {
	p.t.Helper()
	n, err := p.conn.Read(p.buf[p.to:])
	if err != nil {
		p.t.Fatal(err)
	}
	p.to += n
}

// A peer that does not answer, or takes nothing, or never ends its frame, does
// not hold a drain up for longer than CLOSE_TIMEOUT.
func TestDrainIsNotHeldUp(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testSession){
		"nobody answers": func(*testSession) {},
		"frames without an end": func(s *testSession) {
			h := frame.Header{Fin: true, Opcode: frame.Binary, Length: 1 << 20}
			s.upstream.write(append(h.Append(nil), "never more"...))
			h.Masked = true
			s.client.write(append(h.Append(nil), "never more"...))
		},
		"nobody reads": func(s *testSession) {
			b := string(pattern(0, patternMax))
			go flood(s.client, s.client.wire(frame.Header{Fin: true, Opcode: frame.Binary}, b))
			go flood(s.upstream, s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Binary}, b))
		},
		"the client has gone and the upstream speaks on": func(s *testSession) {
			s.client.closeWrite()
			s.upstream.expectEOF()
			go flood(s.upstream, s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Binary}, "on and on"))
			go s.client.answerClose()
		},
		"the upstream ignores the client's Close and speaks on": func(s *testSession) {
			s.client.sendClose(1000, "")
			s.upstream.expect("close 1000")
			go flood(s.upstream, s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Binary}, "on and on"))
			go s.client.answerClose()
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				c := e.config()
				c.CloseTimeout = 300 * time.Millisecond
				r := newRig(t, e, c)
				s := r.open()
				test(s)
				r.Drain(t.Context(), 0)
				r.wait()
				s.ended()
			})
		})
	}
}

// Cut ends everything at once, whatever state it is in.
func TestCutEndsEverySession(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		idle := r.open()
		amid := r.open()
		amid.client.write(amid.client.wire(frame.Header{Fin: true, Opcode: frame.Text}, "amid")[:7])
		blocked := r.open()
		go flood(blocked.client, blocked.client.wire(frame.Header{Fin: true, Opcode: frame.Binary}, string(pattern(0, patternMax))))
		if _, err := blocked.upstream.read(); err != nil {
			t.Fatal(err)
		}
		closing := r.open()
		closing.client.sendClose(1000, "")
		closing.upstream.expect("close 1000")

		if got := r.Len(); got != 4 {
			t.Errorf("Len is %d, want 4", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait with sessions and a cancelled context: %v", err)
		}
		r.Cut()
		r.wait()
		idle.client.expectCut()
		idle.upstream.expectCut()
		for _, s := range []*testSession{idle, amid, blocked} {
			if end := s.ended(); end.Reason != Forced || end.Code != frame.CodeAbnormal {
				t.Errorf("end %+v", end)
			}
		}
		if end := closing.ended(); end.Reason != ClientClose {
			t.Errorf("end of the one that was closing %+v", end)
		}
		if err := r.Wait(ctx); err != nil {
			t.Errorf("Wait without sessions: %v", err)
		}
	})
}

// Wait returns only after the last Ended has: what it logs and releases is part
// of the session, and the process may end next.
func TestWaitIncludesEnded(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		relay, err := New(e.config())
		if err != nil {
			t.Fatal(err)
		}
		farClient, client := tcpPair(t)
		farUpstream, upstream := tcpPair(t)
		defer farClient.Close()
		defer farUpstream.Close()
		called, release := make(chan struct{}), make(chan struct{})
		returned := false
		relay.Start(Handover{Client: client, Upstream: upstream, Ended: func(End) {
			close(called)
			<-release
			returned = true
		}})
		relay.Cut()
		<-called
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := relay.Wait(ctx); err == nil {
			t.Error("Wait returned while Ended had not")
		}
		close(release)
		if err := relay.Wait(t.Context()); err != nil || !returned {
			t.Errorf("Wait: %v, and Ended had returned: %v", err, returned)
		}
	})
}
