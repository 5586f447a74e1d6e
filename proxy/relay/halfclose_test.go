package relay

import (
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// gone1011 is what a client is told when its upstream breaks off.
const gone1011 = "close 1011 upstream connection lost"

// TestHalfClose lets either side shut its direction, or break off, before, after
// and amid frames. Each entry plays both peers up to the end of what they have to say,
// and returns what becomes of the session.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	amid := func(p *testPeer) []byte { // half of a frame of ten bytes
		b := p.wire(frame.Header{Fin: true, Opcode: frame.Text}, "0123456789")
		return b[:len(b)-5]
	}
	for name, test := range map[string]func(*testSession, engine) End{
		"client FIN before any frame": func(s *testSession, e engine) End {
			s.client.closeWrite()
			s.upstream.expectEOF()
			s.upstream.sendClose(1000, "")
			s.client.expect("close 1000")
			s.client.expectEOF()
			s.upstream.conn.Close()
			return End{Reason: ClientGone, Code: 1006}
		},
		"client FIN after a frame, and the upstream goes on": func(s *testSession, e engine) End {
			s.client.send(frame.Text, "last")
			s.client.closeWrite()
			s.upstream.expect("text last")
			s.upstream.expectEOF()
			s.upstream.send(frame.Text, "answer")
			s.client.expect("text answer")
			s.upstream.conn.Close()
			s.client.expect(gone1011)
			s.client.expectEOF()
			return End{Reason: ClientGone, Code: 1006, FromClient: Traffic{1, 4}, FromUpstream: Traffic{1, 6}}
		},
		"client FIN amid a header": func(s *testSession, e engine) End {
			s.client.write(amid(s.client)[:4])
			s.client.closeWrite()
			s.upstream.expectEOF() // no piece of a header is passed on
			s.upstream.conn.Close()
			s.client.expect(gone1011)
			return End{Reason: ClientGone, Code: 1006}
		},
		"client FIN amid a frame": func(s *testSession, e engine) End {
			s.client.write(amid(s.client))
			s.client.closeWrite()
			if e.terminates() {
				s.upstream.expectEOF() // not a message, so it never came
			} else {
				s.upstream.expectCut()
			}
			s.upstream.conn.Close()
			s.client.expect(gone1011)
			return End{Reason: ClientGone, Code: 1006, FromClient: Traffic{0, 5}}
		},
		"client FIN amid a message": func(s *testSession, e engine) End {
			s.client.write(s.client.wire(frame.Header{Opcode: frame.Text}, "part"))
			s.client.closeWrite()
			if !e.terminates() {
				s.upstream.expect("text part part")
			}
			s.upstream.expectEOF()
			s.upstream.conn.Close()
			s.client.expect(gone1011)
			return End{Reason: ClientGone, Code: 1006, FromClient: Traffic{0, 4}}
		},
		"client Close and FIN at once": func(s *testSession, e engine) End {
			s.client.sendClose(4000, "going")
			s.client.closeWrite()
			s.upstream.expect("close 4000 going")
			s.upstream.sendClose(4000, "")
			s.client.expect("close 4000")
			s.client.expectEOF()
			s.upstream.conn.Close()
			return End{Reason: ClientClose, Code: 4000}
		},
		"client Close and gone": func(s *testSession, e engine) End {
			s.client.sendClose(4000, "going")
			s.client.conn.Close()
			s.upstream.expect("close 4000 going")
			s.upstream.conn.Close()
			return End{Reason: ClientClose, Code: 4000}
		},
		"upstream FIN before any frame": func(s *testSession, e engine) End {
			s.upstream.closeWrite()
			s.client.expect(gone1011)
			s.client.expectEOF()
			s.client.conn.Close()
			s.upstream.expectEOF()
			return End{Reason: UpstreamGone, Code: 1011}
		},
		"upstream FIN after a frame, and the client answers the Close": func(s *testSession, e engine) End {
			s.upstream.send(frame.Text, "last")
			s.upstream.closeWrite()
			s.client.expect("text last", gone1011)
			s.client.expectEOF()
			s.client.sendClose(1011, "")
			s.client.conn.Close()
			s.upstream.expect("close 1011")
			s.upstream.expectEOF()
			return End{Reason: UpstreamGone, Code: 1011, FromUpstream: Traffic{1, 4}}
		},
		"upstream FIN amid a header": func(s *testSession, e engine) End {
			s.upstream.write(amid(s.upstream)[:1])
			s.upstream.closeWrite()
			s.client.expect(gone1011)
			s.client.expectEOF()
			s.client.conn.Close()
			return End{Reason: UpstreamGone, Code: 1011}
		},
		"upstream FIN amid a frame": func(s *testSession, e engine) End {
			s.upstream.write(amid(s.upstream))
			s.upstream.closeWrite()
			if e.terminates() {
				s.client.expect(gone1011)
				s.client.expectEOF()
			} else {
				s.client.expectCut() // inside a frame nothing can be said
			}
			s.client.conn.Close()
			return End{Reason: UpstreamGone, Code: 1011, FromUpstream: Traffic{0, 5}}
		},
		"upstream FIN amid a message": func(s *testSession, e engine) End {
			s.upstream.write(s.upstream.wire(frame.Header{Opcode: frame.Text}, "part"))
			s.upstream.closeWrite()
			if !e.terminates() {
				s.client.expect("text part part")
			}
			s.client.expect(gone1011)
			s.client.expectEOF()
			s.client.conn.Close()
			return End{Reason: UpstreamGone, Code: 1011, FromUpstream: Traffic{0, 4}}
		},
		"upstream Close and FIN at once": func(s *testSession, e engine) End {
			s.upstream.sendClose(1000, "served")
			s.upstream.closeWrite()
			s.client.expect("close 1000 served")
			s.client.sendClose(1000, "thanks")
			s.client.expectEOF()
			s.upstream.expect("close 1000 thanks")
			s.upstream.expectEOF()
			s.client.conn.Close()
			return End{Reason: UpstreamClose, Code: 1000}
		},
		"upstream Close and gone": func(s *testSession, e engine) End {
			s.upstream.sendClose(1000, "served")
			s.upstream.conn.Close()
			s.client.expect("close 1000 served")
			s.client.sendClose(1000, "")
			s.client.expectEOF()
			s.client.conn.Close()
			return End{Reason: UpstreamClose, Code: 1000}
		},
		"client reset at a boundary": func(s *testSession, e engine) End {
			s.client.send(frame.Text, "last")
			s.upstream.expect("text last")
			s.client.reset()
			s.upstream.expectEOF()
			s.upstream.conn.Close()
			return End{Reason: ClientGone, Code: 1006, FromClient: Traffic{1, 4}}
		},
		"client reset amid a frame": func(s *testSession, e engine) End {
			s.client.send(frame.Text, "last")
			s.client.write(amid(s.client))
			s.upstream.expect("text last")
			s.client.reset()
			if e.terminates() {
				s.upstream.expectEOF()
			} else {
				s.upstream.expectCut()
			}
			s.upstream.conn.Close()
			return End{Reason: ClientGone, Code: 1006}
		},
		"upstream reset at a boundary": func(s *testSession, e engine) End {
			s.upstream.send(frame.Text, "last")
			s.client.expect("text last")
			s.upstream.reset()
			s.client.expect(gone1011)
			s.client.expectEOF()
			s.client.conn.Close()
			return End{Reason: UpstreamGone, Code: 1011, FromUpstream: Traffic{1, 4}}
		},
		"upstream reset amid a frame": func(s *testSession, e engine) End {
			s.upstream.send(frame.Text, "last")
			s.upstream.write(amid(s.upstream))
			s.client.expect("text last")
			s.upstream.reset()
			if e.terminates() {
				s.client.expect(gone1011)
				s.client.expectEOF()
			} else {
				s.client.expectCut()
			}
			s.client.conn.Close()
			return End{Reason: UpstreamGone, Code: 1011}
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				s := newRig(t, e, e.config()).open()
				want := test(s, e)
				got := s.ended()
				got.Duration = 0
				if want.FromClient == (Traffic{}) && want.FromUpstream == (Traffic{}) {
					want.FromClient, want.FromUpstream = got.FromClient, got.FromUpstream
				}
				if got != want {
					t.Errorf("end %+v, want %+v", got, want)
				}
			})
		})
	}
}

// An upstream that speaks on when its client has gone is cut after CLOSE_TIMEOUT.
func TestClientResetsWhileUpstreamSpeaks(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, e engine) {
		c := e.config()
		c.CloseTimeout = 300 * time.Millisecond
		s := newRig(t, e, c).open()
		s.upstream.send(frame.Text, "one")
		s.client.expect("text one")
		s.client.reset()
		flood(s.upstream, appendBulk(nil, frame.Server, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, patternMax)))
		s.upstream.conn.Close()
		if end := s.ended(); end.Reason != ClientGone || end.Code != frame.CodeAbnormal {
			t.Errorf("end %+v", end)
		}
	})
}
