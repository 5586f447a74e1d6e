package relay

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"portcullis/proxy/frame"
)

// A violation ends the session on both sides: 1002 to the offender, 1001 to
// the other, who has had every message before it.
func TestViolationsEndSession(t *testing.T) {
	masked := func(p *testPeer) byte {
		if p.role == frame.Client {
			return 0x80
		}
		return 0
	}
	for name, test := range map[string]struct {
		wire func(*testPeer) []byte
		want frame.Error
	}{
		"reserved data opcode": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: 0x3}, "x") }, frame.ErrOpcode,
		},
		"reserved control opcode": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: 0xB}, "x") }, frame.ErrOpcode,
		},
		"last reserved opcode, empty": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: 0xF}, "") }, frame.ErrOpcode,
		},
		"fragmented ping": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Opcode: frame.Ping}, "x") }, frame.ErrControl,
		},
		"long ping": {
			func(p *testPeer) []byte {
				return p.wire(frame.Header{Fin: true, Opcode: frame.Ping}, strings.Repeat("x", 126))
			}, frame.ErrControl,
		},
		"long pong": {
			func(p *testPeer) []byte {
				return p.wire(frame.Header{Fin: true, Opcode: frame.Pong}, strings.Repeat("x", 126))
			}, frame.ErrControl,
		},
		"wrong masking": {
			func(p *testPeer) []byte {
				return appendFrame(nil, 1-p.role, frame.Header{Fin: true, Opcode: frame.Text}, []byte("x"))
			}, frame.ErrMask,
		},
		"64-bit length with its top bit set": {
			func(p *testPeer) []byte {
				return append([]byte{0x82, masked(p) | 127, 0x80, 0, 0, 0, 0, 0, 0, 0}, 1, 2, 3, 4)
			}, frame.ErrLength,
		},
		"length of 16 bits that needs 7": {
			func(p *testPeer) []byte { return append([]byte{0x82, masked(p) | 126, 0, 5, 1, 2, 3, 4}, "hello"...) }, frame.ErrLengthForm,
		},
		"length of 64 bits that needs 16": {
			func(p *testPeer) []byte {
				return append([]byte{0x82, masked(p) | 127, 0, 0, 0, 0, 0, 0, 1, 0}, pattern(0, 260)...)
			}, frame.ErrLengthForm,
		},
		"continuation of nothing": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true}, "x") }, frame.ErrContinuation,
		},
		"message inside a message": {
			func(p *testPeer) []byte {
				b := p.wire(frame.Header{Opcode: frame.Text}, "x")
				return append(b, p.wire(frame.Header{Fin: true, Opcode: frame.Text}, "y")...)
			}, frame.ErrInterleaved,
		},
		"RSV without an extension": {
			func(p *testPeer) []byte {
				return p.wire(frame.Header{Fin: true, RSV: frame.RSV1, Opcode: frame.Text}, "x")
			}, frame.ErrRSV,
		},
		"RSV2": {
			func(p *testPeer) []byte {
				return p.wire(frame.Header{Fin: true, RSV: frame.RSV2, Opcode: frame.Binary}, "x")
			}, frame.ErrRSV,
		},
		"RSV3 on a ping": {
			func(p *testPeer) []byte {
				return p.wire(frame.Header{Fin: true, RSV: frame.RSV3, Opcode: frame.Ping}, "x")
			}, frame.ErrRSV,
		},
		"Close with half a code": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x03") }, frame.ErrClose,
		},
		"Close with a code that may not be sent": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x03\xee") }, frame.ErrClose,
		},
		"Close with code 0": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x00\x00") }, frame.ErrClose,
		},
		"Close with code 5000": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x13\x88") }, frame.ErrClose,
		},
		"Close with code 65535": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\xff\xff") }, frame.ErrClose,
		},
		"Close whose reason is not text": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x03\xe8\xff") }, frame.ErrClose,
		},
		"an HTTP request": {
			func(p *testPeer) []byte { return []byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n") }, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				r := newRig(t, e, e.config())
				for side := range side(2) {
					s := r.open()
					from, to := s.client, s.upstream
					if side == upstream {
						from, to = to, from
					}
					from.send(frame.Text, "before")
					from.write(append(test.wire(from), from.wire(frame.Header{Fin: true, Opcode: frame.Text}, "after")...))

					to.expect("text before")
					for {
						f, err := to.read()
						if err != nil {
							t.Fatal(err)
						}
						if got := f.name(); got == "close 1001" {
							break
						} else if got != "text part x" {
							t.Fatalf("%s reads %q", to, got)
						}
					}
					f, err := from.read()
					if err != nil {
						t.Fatal(err)
					}
					if got, want := f.name(), "close 1002 "+string(test.want); !strings.HasPrefix(got, want) {
						t.Errorf("%s reads %q, want %q", from, got, want)
					}
					to.sendClose(1001, "")
					s.upstream.conn.Close()
					s.client.expectEOF()
					s.client.conn.Close()
					end := s.ended()
					if end.Reason != reasonFraming[side] || end.Code != frame.CodeProtocol {
						t.Errorf("end %+v", end)
					}
				}
			})
		})
	}
}

// The largest length there is may be announced: in passthrough no limit is set by default, and nothing is kept of what it is
// the length of. A terminating relay, which keeps messages whole, refuses it.
func TestLargestLength(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		for side := range side(2) {
			s := r.open()
			from, to := s.client, s.upstream
			if side == upstream {
				from, to = to, from
			}
			h := frame.Header{Fin: true, Opcode: frame.Binary, Masked: from.role == frame.Client, Length: math.MaxInt64}
			wire := append(h.Append(nil), pattern(0, 1000)...)
			from.write(wire)
			if e.terminates() {
				from.expect("close 1009 " + string(frame.ErrTooBig))
				to.expect("close 1001")
				continue
			}
			got := make([]byte, len(wire))
			if _, err := io.ReadFull(to.conn, got); err != nil || !bytes.Equal(got, wire) {
				t.Errorf("%s reads %.20q, %v; want what was written", to, got, err)
			}
			from.reset()
			to.expectCut()
		}
	})
}

// GHSA-w67g-5rqw-f597: keys that a client could foresee would let it choose the bytes on the wire to the upstream, where the
// relay does the masking. In passthrough the client's own keys go on.
func TestTerminatingRelayMasksAfresh(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		if !e.terminates() {
			return // the client masks
		}
		s := newRig(t, e, e.config()).open()
		const messages = 64
		seen := make(map[[4]byte]bool)
		for range messages {
			s.client.write(appendBulk(nil, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, []byte("x"))) // its key is zero
			f, err := s.upstream.read()
			if err != nil {
				t.Fatal(err)
			}
			seen[f.Key] = true
		}
		if len(seen) < messages-4 { // two alike among so many: once in two million runs
			t.Errorf("%d different keys in %d messages", len(seen), messages)
		}
		s.hangUp()
	})
}

// What comes behind a Close frame, in the same segment, is nobody's: neither a message, nor a violation, nor a request.
func TestNothingPassesBehindAClose(t *testing.T) {
	for name, behind := range map[string]func(*testPeer) []byte{
		"a message":       func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Text}, "x") },
		"another Close":   func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x0f\xa0") },
		"a violation":     func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: 0x3}, "x") },
		"an HTTP request": func(*testPeer) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				r := newRig(t, e, e.config())
				for side := range side(2) {
					s := r.open()
					from, to := s.client, s.upstream
					if side == upstream {
						from, to = to, from
					}
					from.write(append(from.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x03\xe8"), behind(from)...))
					to.expect("close 1000")
					to.sendClose(1000, "")
					from.expect("close 1000")
					s.upstream.conn.Close()
					s.client.expectEOF()
					s.client.conn.Close()
					s.wantEnd(End{Reason: reasonClosed[side], Code: 1000})
				}
			})
		})
	}
}

// The largest message counts over its fragments, in both directions, and by
// what its headers announce: a message is refused before it has come.
func TestLargestMessage(t *testing.T) {
	const largest = 1000
	for name, test := range map[string]struct {
		within, beyond func(*testPeer) []byte
	}{
		"one frame": {
			func(p *testPeer) []byte {
				return p.wire(frame.Header{Fin: true, Opcode: frame.Binary}, strings.Repeat("x", largest))
			},
			func(p *testPeer) []byte {
				return p.wire(frame.Header{Fin: true, Opcode: frame.Binary}, strings.Repeat("x", largest+1))[:14]
			},
		},
		"over its fragments": {
			func(p *testPeer) []byte {
				b := p.wire(frame.Header{Opcode: frame.Binary}, strings.Repeat("x", largest-1))
				b = append(b, p.wire(frame.Header{Fin: true, Opcode: frame.Ping}, "not of the message")...)
				return append(b, p.wire(frame.Header{Fin: true}, "x")...)
			},
			func(p *testPeer) []byte {
				b := p.wire(frame.Header{Opcode: frame.Binary}, strings.Repeat("x", largest-1))
				return append(b, p.wire(frame.Header{Fin: true}, "xx")...)
			},
		},
		"length near the largest number": {
			func(p *testPeer) []byte { return p.wire(frame.Header{Fin: true, Opcode: frame.Binary}, "") },
			func(p *testPeer) []byte {
				b := p.wire(frame.Header{Opcode: frame.Binary}, "x")
				h := frame.Header{Fin: true, Masked: p.role == frame.Client, Length: 1<<63 - 1}
				return h.Append(b)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				c := e.config()
				c.MessageMaxBytes = largest
				r := newRig(t, e, c)
				for side := range side(2) {
					s := r.open()
					from, to := s.client, s.upstream
					if side == upstream {
						from, to = to, from
					}
					from.write(test.within(from))
					for data := 0; ; {
						f, err := to.read()
						if err != nil {
							t.Fatal(err)
						}
						if !f.Opcode.Control() {
							data += len(f.payload)
							if f.Fin && data <= largest {
								break
							}
						}
					}
					from.write(test.beyond(from))
					from.expect("close 1009 " + string(frame.ErrTooBig))
					for {
						f, err := to.read()
						if err != nil {
							t.Fatal(err)
						}
						if got := f.name(); got == "close 1001" {
							break
						} else if f.Fin {
							t.Fatalf("%s reads %.100q", to, got)
						}
					}
					to.sendClose(1001, "")
					s.upstream.conn.Close()
					s.client.conn.Close()
					if end := s.ended(); end.Reason != reasonTooBig[side] || end.Code != frame.CodeTooBig {
						t.Errorf("end %+v", end)
					}
				}
			})
		})
	}
}

// A flood of control frames ends the session of who sends it, without any setting.
func TestFloodOfControlFrames(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		for side := range side(2) {
			s := r.open()
			from, to := s.client, s.upstream
			if side == upstream {
				from, to = to, from
			}
			ping := from.wire(frame.Header{Fin: true, Opcode: frame.Ping}, "")
			go flood(from, bytes.Repeat(ping, 100))
			for {
				f, err := to.read()
				if err != nil {
					t.Fatal(err)
				}
				if f.Opcode != frame.Ping {
					if got := f.name(); got != "close 1001" {
						t.Errorf("%s reads %q", to, got)
					}
					break
				}
			}
			from.expect("close 1008 too many control or empty frames")
			s.client.conn.Close()
			s.upstream.conn.Close()
			if end := s.ended(); end.Reason != reasonRate[side] || end.Code != frame.CodePolicy {
				t.Errorf("end %+v", end)
			}
		}
	})
}

// A client of a hundred does what it can to disturb the others.
func TestHostileNeighbour(t *testing.T) {
	pings := func(s *testSession) []byte {
		return bytes.Repeat(s.client.wire(frame.Header{Fin: true, Opcode: frame.Ping}, string(pattern(0, frame.MaxControlPayload))), 100)
	}
	hostile := []struct {
		name string
		act  func(*testSession)
	}{
		{"garbage", func(s *testSession) { s.client.conn.Write(pattern(0, patternMax)) }},
		{"a reset amid a frame", func(s *testSession) {
			s.client.write(s.client.wire(frame.Header{Fin: true, Opcode: frame.Text}, "amid")[:7])
			s.client.reset()
		}},
		{"a flood that its upstream does not read", func(s *testSession) {
			go flood(s.client, appendBulk(nil, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, patternMax)))
		}},
		{"a flood whose echo it does not read", func(s *testSession) {
			go s.upstream.echo()
			go flood(s.client, appendBulk(nil, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, patternMax)))
		}},
		{"pings whose pongs it does not read", func(s *testSession) {
			go s.upstream.echo()
			go flood(s.client, pings(s))
		}},
	}
	const others, messages = 99, 3
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		sessions := make([]*testSession, others)
		for i := range sessions {
			sessions[i] = r.open()
			go sessions[i].upstream.echo()
		}
		for _, h := range hostile {
			h.act(r.open())
			echoed := make(chan error, others)
			for _, s := range sessions {
				go func() { echoed <- exchange(s.client, messages) }()
			}
			for range sessions {
				if err := <-echoed; err != nil {
					t.Fatalf("beside %s: %v", h.name, err)
				}
			}
		}
	})
}

// exchange sends messages and reads them back.
func exchange(p *testPeer, messages int) error {
	for i := range messages {
		want := pattern(int64(i), 1000+i)
		if _, err := p.conn.Write(appendBulk(nil, p.role, frame.Header{Fin: true, Opcode: frame.Binary}, want)); err != nil {
			return err
		}
		got, err := readMessage(p)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("the echo differs from what was sent")
		}
	}
	return nil
}

// flood writes the same again and again until that fails.
func flood(p *testPeer, b []byte) {
	for {
		if _, err := p.conn.Write(b); err != nil {
			return
		}
	}
}
