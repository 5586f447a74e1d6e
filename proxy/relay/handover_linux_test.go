package relay

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"portcullis/proxy/frame"
)

// Every session, however it ends, gives back its descriptors and goroutines.
func TestNothingIsLeft(t *testing.T) {
	ends := map[string]func(*testSession){
		"closed": func(s *testSession) { s.hangUp() },
		"reset":  func(s *testSession) { s.client.reset() },
		"half-closed": func(s *testSession) {
			s.client.closeWrite()
			s.upstream.expectEOF()
		},
		"amid a frame": func(s *testSession) {
			s.client.write(s.client.wire(frame.Header{Fin: true, Opcode: frame.Text}, "amid a frame")[:9])
		},
		"blocked": func(s *testSession) {
			go flood(s.client, appendBulk(nil, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, patternMax)))
			s.upstream.readSome()
		},
		"in violation": func(s *testSession) {
			s.client.write([]byte("nonsense"))
			s.upstream.expect("close 1001")
		},
	}
	eachEngine(t, func(t *testing.T, e engine) {
		goleak.Find() // of loops that linger from the last test
		before, _ := descriptors()
		r := newRig(t, e, e.config())
		for range 3 {
			for _, end := range ends {
				end(r.open())
			}
		}
		r.Cut()
		r.wait()
		for _, s := range r.sessions {
			s.client.conn.Close()
			s.upstream.conn.Close()
		}
		goleak.VerifyNone(t)
		if after, _ := descriptors(); after != before {
			t.Errorf("%d descriptors are open, %d before", after, before)
		}
	})
}

// Deadlines that the gate left on a connection, or that are still to fire, mean
// nothing to a loop: the socket has left Go's poller.
func TestLoopIgnoresDeadlines(t *testing.T) {
	r := newRig(t, engines[0], engines[0].config())
	r.wrap = func(c net.Conn) net.Conn {
		c.SetDeadline(time.Now().Add(20 * time.Millisecond))
		return c
	}
	s := r.open()
	// The other side of this connection is in Go's poller: its deadline has passed after ours has.
	s.client.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := s.client.conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	s.client.conn.SetReadDeadline(time.Now().Add(patience))
	s.client.send(frame.Text, "alive")
	s.upstream.expect("text alive")
	s.hangUp()
}

// A side from which nothing is to be read is not watched either: while a session waits, whatever
// for, it costs no CPU. A peer that resets its connection meanwhile once woke a loop
// 180,000 times in 0.2 s.
func TestWaitingSessionSleeps(t *testing.T) {
	const pause = 300 * time.Millisecond
	throttled := func(c *Config) {
		c.MessageRate, c.MessageBurst, c.LimitAction = 1/pause.Seconds(), 1, "throttle"
	}
	closing := func(c *Config) { c.CloseTimeout = pause }
	two := func(s *testSession) {
		s.client.write(append(s.client.wire(frame.Header{Fin: true, Opcode: frame.Text}, "one"),
			s.client.wire(frame.Header{Fin: true, Opcode: frame.Text}, "two")...))
	}
	for name, test := range map[string]struct {
		configure func(*Config)
		wait      func(*testSession)
	}{
		"for its rate": {throttled, func(s *testSession) {
			two(s)
			s.upstream.expect("text one", "text two")
		}},
		"for its rate, and the client has shut its direction": {throttled, func(s *testSession) {
			two(s)
			s.upstream.expect("text one")
			s.client.closeWrite()
			s.upstream.expect("text two")
			s.upstream.expectEOF()
		}},
		"for the client to answer, and the upstream has shut its direction": {closing, func(s *testSession) {
			s.upstream.closeWrite()
			s.client.expect(gone1011)
			s.client.expectEOF()
			s.ended()
		}},
		"for the client to answer, and the upstream resets": {closing, func(s *testSession) {
			s.upstream.reset()
			s.client.expect(gone1011)
			s.client.expectEOF()
			s.ended()
		}},
		"for the upstream to end, and the client has shut its direction": {closing, func(s *testSession) {
			s.client.closeWrite()
			s.upstream.expectEOF()
			s.ended()
		}},
		"for bytes to be taken, and the sender resets": {closing, func(s *testSession) {
			flooded := make(chan struct{})
			go func() {
				flood(s.client, appendBulk(nil, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, patternMax)))
				close(flooded)
			}()
			s.client.tcp.SetWriteDeadline(time.Now().Add(pause / 2))
			<-flooded
			s.client.reset()
			s.isOverBy(time.Now().Add(pause))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				c := e.config()
				test.configure(&c)
				s := newRig(t, e, c).open()
				before := cpu(t)
				atLeast(t, pause/2, func() { test.wait(s) })
				if used := cpu(t) - before; used > pause*3/4 {
					t.Errorf("%v of CPU in a pause of %v", used, pause)
				}
			})
		})
	}
}

// isOverBy waits for the end of the session, but no longer than until then.
func (s *testSession) isOverBy(t time.Time) bool {
	select {
	case <-s.over:
		return true
	case <-time.After(time.Until(t)):
		return false
	}
}

// cpu is what this process has used so far.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Where descriptors run out a loop cannot take a session over, which then runs on the
// stream engine; those that are live go on; and once there are descriptors again
// all is as before. In a process of its own, for the limit is the process's.
func TestDescriptorExhaustion(t *testing.T) {
	const variable = "PORTCULLIS_TEST_EXHAUSTION"
	if os.Getenv(variable) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		child := exec.Command(exe, "-test.run=^TestDescriptorExhaustion$", "-test.v")
		child.Env = append(os.Environ(), variable+"=1")
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestDescriptorExhaustion/") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	limit := unix.Rlimit{Cur: 128, Max: 128}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	eachEngine(t, func(t *testing.T, e engine) {
		// A hand-over to a loop that runs takes two descriptors for a moment, and
		// to one that does not two more that stay.
		for spare := range 5 {
			for _, running := range []bool{false, true} {
				r := newRig(t, e, e.config())
				var before *testSession
				if running {
					before = r.open()
					works(before)
				}
				s := r.connect()
				release := hoard(t, spare)
				r.start(s, Handover{})
				works(s)
				if running {
					works(before)
				}
				s.hangUp()
				release()
				after := r.open()
				works(after)
				after.hangUp()
			}
		}
	})
}

// works sends a message each way.
func works(s *testSession) {
	s.t.Helper()
	s.client.send(frame.Text, "there")
	s.upstream.expect("text there")
	s.upstream.send(frame.Text, "and back")
	s.client.expect("text and back")
}

// hoard uses up all descriptors but so many.
func hoard(t *testing.T, spare int) (release func()) {
	t.Helper()
	var files []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	for _, f := range files[len(files)-spare:] {
		f.Close()
	}
	files = files[:len(files)-spare]
	return func() {
		for _, f := range files {
			f.Close()
		}
	}
}
