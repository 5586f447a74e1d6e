package relay

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// A client that sends more than its limits is told so, and what went beyond
// them does not reach the upstream.
func TestRateClosesSession(t *testing.T) {
	text := func(p *testPeer, n int) (b []byte) {
		for i := range n {
			b = append(b, p.wire(frame.Header{Fin: true, Opcode: frame.Text}, fmt.Sprint(i))...)
		}
		return b
	}
	for name, test := range map[string]struct {
		limit func(*Config)
		wire  func(*testPeer) []byte
		pass  int // frames that reach the upstream
	}{
		"messages": {
			func(c *Config) { c.MessageRate, c.MessageBurst = 0.1, 5 },
			func(p *testPeer) []byte { return text(p, 6) }, 5,
		},
		"control frames count": {
			func(c *Config) { c.MessageRate, c.MessageBurst = 0.1, 5 },
			func(p *testPeer) []byte {
				return bytes.Repeat(p.wire(frame.Header{Fin: true, Opcode: frame.Pong}, ""), 6)
			}, 5,
		},
		"small fragments count": {
			func(c *Config) { c.MessageRate, c.MessageBurst = 0.1, 5 },
			func(p *testPeer) []byte {
				b := p.wire(frame.Header{Opcode: frame.Text}, "")
				return append(b, bytes.Repeat(p.wire(frame.Header{}, "crumb"), 5)...)
			}, 5,
		},
		"large fragments are bytes alone": {
			func(c *Config) { c.MessageRate, c.MessageBurst = 0.1, 2 },
			func(p *testPeer) []byte {
				b := p.wire(frame.Header{Opcode: frame.Binary}, "")
				b = append(b, bytes.Repeat(p.wire(frame.Header{}, string(pattern(0, 126))), 10)...)
				b = append(b, p.wire(frame.Header{Fin: true}, string(pattern(0, 126)))...)
				return append(b, text(p, 2)...)
			}, 13,
		},
		"bytes": {
			func(c *Config) { c.MessageByteRate = 1000 },
			func(p *testPeer) []byte {
				return bytes.Repeat(p.wire(frame.Header{Fin: true, Opcode: frame.Binary}, string(pattern(0, 1001))), 30) // where each takes a while, the second may be allowed
			}, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				c := e.config()
				test.limit(&c)
				s := newRig(t, e, c).open()
				s.upstream.send(frame.Text, "the upstream is not limited")
				s.client.expect("text the upstream is not limited")
				s.client.write(test.wire(s.client))
				s.client.expect("close 1008 message rate")
				if e.terminates() {
					for {
						if f, err := s.upstream.read(); err != nil {
							t.Fatal(err)
						} else if f.Opcode == frame.Close {
							break
						}
					}
				} else {
					for range test.pass {
						if f, err := s.upstream.read(); err != nil || f.Opcode == frame.Close {
							t.Fatalf("upstream reads %q, %v, want %d frames", f.name(), err, test.pass)
						}
					}
					s.upstream.expect("close 1001")
				}
				s.client.conn.Close()
				s.upstream.conn.Close()
				if end := s.ended(); end.Reason != ClientRate || end.Code != frame.CodePolicy {
					t.Errorf("end %+v", end)
				}
			})
		})
	}
}

// A frame without an end is no way around the byte rate.
func TestByteRateInsideFrame(t *testing.T) {
	t.Parallel()
	endless := frame.Header{Fin: true, Opcode: frame.Binary, Masked: true, Length: 1 << 40}
	t.Run("close", func(t *testing.T) {
		eachEngine(t, func(t *testing.T, e engine) {
			if e.terminates() {
				return // the largest message bounds it
			}
			c := e.config()
			c.MessageByteRate, c.CloseTimeout = 10_000, soon
			s := newRig(t, e, c).open()
			go s.upstream.read()
			s.client.write(endless.Append(nil))
			go flood(s.client, pattern(0, 1000))
			s.client.expect("close 1008 message rate")
			s.client.conn.Close()
			if end := s.ended(); end.Reason != ClientRate {
				t.Errorf("end %+v", end)
			}
		})
	})
	t.Run("throttle", func(t *testing.T) {
		eachEngine(t, func(t *testing.T, e engine) {
			if e.terminates() {
				return // the largest message bounds it
			}
			const rate, most = 100_000, 150_000
			c := e.config()
			c.MessageByteRate, c.LimitAction = rate, "throttle"
			s := newRig(t, e, c).open()
			var at int64
			s.upstream.each = func(piece []byte) { at += int64(len(piece)) }
			s.client.write(endless.Append(nil))
			go flood(s.client, pattern(0, 1000))
			atLeast(t, (most-rate)*time.Second/rate*8/10, func() {
				buf := make([]byte, 1000)
				for got := 0; got < most; {
					n, err := s.upstream.conn.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					got += n
				}
			})
		})
	})
}

// A throttled client is read more slowly: nothing is lost, the order is kept, and
// the rate is about what it should be. It is bounded generously from above,
// where a slow machine is not at fault.
func TestThrottle(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		limit          func(*Config)
		messages, size int
		least, most    time.Duration
	}{
		"messages": {
			func(c *Config) { c.MessageRate, c.MessageBurst = 100, 50 },
			80, 10, 200 * time.Millisecond, time.Minute,
		},
		// A loop's clock ticks twenty times a second.
		"messages faster than the clock ticks": {
			func(c *Config) { c.MessageRate, c.MessageBurst = 400, 1 },
			300, 10, 500 * time.Millisecond, time.Minute,
		},
		"bytes in small messages": {
			func(c *Config) { c.MessageByteRate = 100_000 },
			1300, 100, 200 * time.Millisecond, time.Minute,
		},
		"bytes in large messages": {
			func(c *Config) { c.MessageByteRate = 1_000_000 },
			13, 100_000, 200 * time.Millisecond, time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				c := e.config()
				c.LimitAction = "throttle"
				test.limit(&c)
				s := newRig(t, e, c).open()
				began := time.Now()
				sent := make(chan error, 1)
				go func() {
					var b []byte
					for i := range test.messages {
						b = appendFrame(b, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(int64(i), test.size))
					}
					_, err := s.client.conn.Write(b)
					sent <- err
				}()
				for i := range test.messages {
					if i == test.messages/2 { // the other direction is as free as ever
						s.upstream.send(frame.Text, "not limited")
						s.client.expect("text not limited")
					}
					got, err := readMessage(s.upstream)
					if err != nil || !bytes.Equal(got, pattern(int64(i), test.size)) {
						t.Fatalf("message %d: %d bytes, %v", i, len(got), err)
					}
				}
				took := time.Since(began)
				if took < test.least || took > test.most {
					t.Errorf("%d messages took %v, want %v to %v", test.messages, took, test.least, test.most)
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				s.upstream.sendClose(1000, "enough") // reaches a throttled client at once
				s.client.expect("close 1000 enough")
				s.client.sendClose(1000, "enough")
				s.client.expectEOF()
				s.client.conn.Close()
				s.upstream.conn.Close()
				if end := s.ended(); end.FromClient != (Traffic{int64(test.messages), int64(test.messages * test.size)}) {
					t.Errorf("end %+v", end)
				}
			})
		})
	}
}

// A client that is being throttled is heard at once when the session ends: its answer to a Close frame
// must not wait for its rate.
func TestThrottledSessionEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*rig, *testSession){
		"by a drain": func(r *rig, s *testSession) {
			r.Drain(t.Context(), 0)
			s.client.expect(drained)
			s.client.sendClose(1001, "")
			s.client.conn.Close()
			go s.upstream.answerClose()
		},
		"by the upstream": func(r *rig, s *testSession) {
			s.upstream.sendClose(1000, "")
			s.client.expect("close 1000")
			s.client.sendClose(1000, "")
			s.client.conn.Close()
			go s.upstream.answerClose()
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				c := e.config()
				c.MessageRate, c.MessageBurst, c.LimitAction = 0.01, 2, "throttle"
				r := newRig(t, e, c)
				s := r.open()
				s.client.send(frame.Text, "one")
				s.client.send(frame.Text, "two")
				s.client.send(frame.Text, "three")
				s.upstream.expect("text one", "text two")
				end(r, s)
				if end := s.ended(); end.Duration > patience/3 {
					t.Errorf("the session took %v", end.Duration)
				}
			})
		})
	}
}
