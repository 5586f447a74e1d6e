package relay

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/frame"
)

// gate stands in front of an upstream as the proxy does, without its checks:
// it passes the handshake on and hands both connections to the relay.
func gate(t *testing.T, r *rig, upstream http.Handler) (url string, dialer *websocket.Dialer) {
	t.Helper()
	back := httptest.NewServer(upstream)
	t.Cleanup(back.Close)
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		up, err := net.Dial("tcp", back.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		if !r.Extensions() {
			q.Header.Del("Sec-WebSocket-Extensions")
		}
		q.Write(up)
		answer := bufio.NewReader(up)
		resp, err := http.ReadResponse(answer, q)
		if err != nil {
			t.Error(err)
			return
		}
		client, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		h := Handover{Client: client, Upstream: up, Extensions: resp.Header.Get("Sec-WebSocket-Extensions"), Ended: func(End) {}}
		h.ClientEarly, _ = buffered.Reader.Peek(buffered.Reader.Buffered())
		h.UpstreamEarly, _ = answer.Peek(answer.Buffered())
		h.ClientEarly, h.UpstreamEarly = bytes.Clone(h.ClientEarly), bytes.Clone(h.UpstreamEarly)
		resp.Write(client)
		r.Start(h)
	}))
	dialer = &websocket.Dialer{HandshakeTimeout: patience}
	if r.engine.tls {
		front.StartTLS()
		dialer.TLSClientConfig = front.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		dialer.TLSClientConfig.NextProtos = nil
	} else {
		front.Start()
	}
	t.Cleanup(front.Close)
	return "ws" + strings.TrimPrefix(front.URL, "http"), dialer
}

// echoServer echoes messages with gorilla/websocket.
func echoServer(t *testing.T, u websocket.Upgrader) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		c, err := u.Upgrade(w, q, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for {
			kind, message, err := c.ReadMessage()
			if err != nil {
				return
			}
			if err := c.WriteMessage(kind, message); err != nil {
				return
			}
		}
	})
}

// An ordinary client and an ordinary server, handshake and all, with and
// without compression.
func TestEcho(t *testing.T) {
	sizes := []int{0, 1, 125, 126, 65535, 65536, 1 << 20}
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("compress=%v", compress), func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				r := newRig(t, e, e.config())
				url, dialer := gate(t, r, echoServer(t, websocket.Upgrader{EnableCompression: compress}))
				dialer.EnableCompression = compress
				c, resp, err := dialer.Dial(url, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetReadDeadline(time.Now().Add(patience))
				if got, want := resp.Header.Get("Sec-WebSocket-Extensions") != "", compress && r.Extensions(); got != want {
					t.Fatalf("an extension was negotiated: %v, want %v", got, want)
				}
				for _, size := range sizes {
					for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
						message := []byte(strings.Repeat("x", size%6) + strings.Repeat("Olá, ", size/6)) // whole characters
						sent := make(chan error, 1)
						go func() { sent <- c.WriteMessage(kind, message) }()
						gotKind, got, err := c.ReadMessage()
						if err != nil {
							t.Fatalf("%d bytes: %v", size, err)
						}
						if gotKind != kind || !bytes.Equal(got, message) {
							t.Fatalf("%d bytes of kind %d came back as %d of %d", size, kind, len(got), gotKind)
						}
						if err := <-sent; err != nil {
							t.Fatal(err)
						}
					}
				}
				c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4001, "enough"), time.Now().Add(patience))
				if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 4001) {
					t.Errorf("the answer to Close 4001 is %v", err)
				}
				c.Close()
				r.wait()
			})
		})
	}
}

// A frame far larger than any buffer, each way.
func TestLargeFrame(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		size := int64(16 << 20)
		if e.terminates() {
			size = 1 << 20 // it is held in memory
		}
		c := e.config()
		c.MessageMaxBytes = size
		s := newRig(t, e, c).open()
		for _, pair := range [][2]*testPeer{{s.client, s.upstream}, {s.upstream, s.client}} {
			from, to := pair[0], pair[1]
			sent := make(chan error, 1)
			go func() {
				h := frame.Header{Fin: true, Opcode: frame.Binary, Masked: from.role == frame.Client, Length: size}
				_, err := from.conn.Write(h.Append(nil)) // with a key of zeros, which changes nothing
				for at := int64(0); at < size && err == nil; at += patternMax {
					_, err = from.conn.Write(pattern(at, patternMax))
				}
				sent <- err
			}()
			var at int64
			to.each = func(piece []byte) {
				if !bytes.Equal(piece, pattern(at, len(piece))) {
					t.Errorf("%s reads something else at byte %d", to, at)
				}
				at += int64(len(piece))
			}
			for at < size {
				if _, err := to.read(); err != nil {
					t.Fatal(err)
				}
			}
			to.each = nil
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
		s.hangUp()
	})
}

// What one strict peer writes, the other reads, frame by frame.
func TestFrames(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		s := r.open()
		for _, pair := range [][2]*testPeer{{s.client, s.upstream}, {s.upstream, s.client}} {
			from, to := pair[0], pair[1]
			from.send(frame.Ping, "")
			to.expect("ping")
			from.send(frame.Ping, "beat")
			to.expect("ping beat")
			to.send(frame.Pong, "beat")
			from.expect("pong beat")
			from.send(frame.Pong, "unasked")
			to.expect("pong unasked")
			from.send(frame.Text, "")
			to.expect("text")

			// A message in fragments, with a ping between them.
			from.write(from.wire(frame.Header{Opcode: frame.Text}, "a"))
			from.write(from.wire(frame.Header{}, ""))
			from.send(frame.Ping, "amid")
			from.write(from.wire(frame.Header{Fin: true}, "b"))
			if e.terminates() {
				// The library makes one frame of what fits into its buffer.
				to.expect("ping amid", "text ab")
			} else {
				to.expect("text part a", "continuation part", "ping amid", "continuation b")
			}
			to.send(frame.Text, "back")
			from.expect("text back")
		}
		s.hangUp()
		s.wantEnd(End{
			Reason: ClientClose, Code: 1000,
			FromClient: Traffic{Messages: 3, Bytes: 6}, FromUpstream: Traffic{Messages: 3, Bytes: 6},
		})
	})
}

// The frames of an extension go through as they are, also of one that is
// not known here.
func TestExtensionFrames(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		if e.terminates() {
			return // no extension is offered when terminating
		}
		for extension, rsv := range map[string]uint8{
			"permessage-deflate; client_no_context_takeover": frame.RSV1,
			"permessage-bogus":                     frame.RSV2 | frame.RSV3,
			"permessage-deflate, permessage-bogus": frame.RSV1 | frame.RSV2,
		} {
			s := newRig(t, e, e.config()).openWith(Handover{Extensions: extension})
			s.client.write(s.client.wire(frame.Header{RSV: rsv, Opcode: frame.Binary}, "x"))
			s.client.write(s.client.wire(frame.Header{Fin: true}, "y"))
			f, err := s.upstream.read()
			if err != nil || f.RSV != rsv || f.name() != "binary part x" {
				t.Errorf("%s: RSV %#x comes out as %q with %#x, %v", extension, rsv, f.name(), f.RSV, err)
			}
			s.upstream.expect("continuation y")
			s.hangUp()
		}
	})
}

// Every boundary of a read can fall anywhere.
func TestByteAtATime(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		s := r.open()
		for _, pair := range [][2]*testPeer{{s.client, s.upstream}, {s.upstream, s.client}} {
			from, to := pair[0], pair[1]
			var b []byte
			b = append(b, from.wire(frame.Header{Fin: true, Opcode: frame.Text}, "tiny")...)
			b = append(b, from.wire(frame.Header{Fin: true, Opcode: frame.Ping}, strings.Repeat("p", 125))...)
			b = append(b, from.wire(frame.Header{Fin: true, Opcode: frame.Binary}, strings.Repeat("m", 300))...)
			b = append(b, from.wire(frame.Header{Fin: true, Opcode: frame.Text}, "ok")...)
			for i := range b {
				from.write(b[i : i+1])
			}
			if e.terminates() {
				seen := map[string]bool{}
				for range 4 { // the ping may be ahead of messages: they are read to their end first
					f, err := to.read()
					if err != nil {
						t.Fatal(err)
					}
					seen[f.name()] = true
				}
				if len(seen) != 4 || !seen["ping "+strings.Repeat("p", 125)] {
					t.Errorf("%s reads %v", to, seen)
				}
				continue
			}
			to.expect("text tiny", "ping "+strings.Repeat("p", 125), "binary "+strings.Repeat("m", 300), "text ok")
		}
		s.hangUp()
	})
}

// Bytes that came with a handshake are the first of the session, wherever they
// end.
func TestEarlyBytes(t *testing.T) {
	for _, test := range []struct {
		name string
		cut  int // how many bytes of the last frame are early
	}{
		{"whole frames", 0},
		{"and a byte", 1},
		{"and half a header", 3},
		{"and half a payload", 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				last := strings.Repeat("last ", 60)
				var early, late [2][]byte
				for i, role := range []frame.Role{frame.Client, frame.Server} {
					b := appendFrame(nil, role, frame.Header{Fin: true, Opcode: frame.Text}, []byte("first"))
					b = appendFrame(b, role, frame.Header{Fin: true, Opcode: frame.Text}, []byte("second"))
					end := appendFrame(nil, role, frame.Header{Fin: true, Opcode: frame.Text}, []byte(last))
					early[i], late[i] = append(b, end[:test.cut]...), end[test.cut:]
				}
				s := newRig(t, e, e.config()).openWith(Handover{ClientEarly: early[0], UpstreamEarly: early[1]})
				s.upstream.expect("text first", "text second")
				s.client.expect("text first", "text second")
				s.client.write(late[0])
				s.upstream.write(late[1])
				s.upstream.expect("text " + last)
				s.client.expect("text " + last)
				s.hangUp()
			})
		})
	}
}

// More early bytes than a read takes, for a peer that does not yet read.
func TestManyEarlyBytes(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		const frames = 16
		var early []byte
		for i := range frames {
			early = appendFrame(early, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(int64(i), 100_000))
		}
		s := newRig(t, e, e.config()).openWith(Handover{ClientEarly: early})
		for i := range frames {
			message, err := readMessage(s.upstream)
			if err != nil || !bytes.Equal(message, pattern(int64(i), 100_000)) {
				t.Fatalf("message %d: %d bytes, %v", i, len(message), err)
			}
		}
		s.hangUp()
	})
}

// readMessage reads a message to its last fragment; there may be no control frames.
func readMessage(p *testPeer) (message []byte, err error) {
	for {
		f, err := p.read()
		if err != nil {
			return nil, err
		}
		if message == nil && f.Fin {
			return f.payload, nil
		}
		message = append(message, f.payload...)
		if f.Fin {
			return message, nil
		}
	}
}

// Close frames pass with their codes and reasons, both ways.
func TestCloseCodes(t *testing.T) {
	type code struct {
		code   int
		reason string
	}
	codes := []code{
		{frame.CodeNoStatus, ""},
		{1000, ""}, {1000, "bye"}, {1001, "tab closed"}, {1011, ""}, {1014, "bad gateway"},
		{3000, "Olá"}, {3999, ""}, {4000, ""}, {4999, strings.Repeat("r", frame.MaxReason)},
	}
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		for _, c := range codes {
			for _, byClient := range []bool{true, false} {
				s := r.open()
				from, to, reason := s.client, s.upstream, ClientClose
				if !byClient {
					from, to, reason = s.upstream, s.client, UpstreamClose
				}
				name := strings.TrimSpace(fmt.Sprintf("close %d %s", c.code, c.reason))
				from.sendClose(c.code, c.reason)
				to.expect(name)
				to.sendClose(c.code, c.reason)
				from.expect(name)
				s.upstream.conn.Close()
				s.client.expectEOF()
				s.client.conn.Close()
				s.wantEnd(End{Reason: reason, Code: c.code})
			}
		}
	})
}

// The answer to a Close frame is the peer's own, and data that was on its way comes first.
func TestCloseAnswered(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		s := newRig(t, e, e.config()).open()
		s.client.sendClose(4000, "mine")
		s.upstream.expect("close 4000 mine")
		s.upstream.send(frame.Text, "on its way")
		s.upstream.sendClose(4001, "yours")
		s.client.expect("text on its way", "close 4001 yours")
		s.client.expectEOF() // the server closes first, and before the upstream has
		s.client.conn.Close()
		s.upstream.conn.Close()
		s.wantEnd(End{Reason: ClientClose, Code: 4000, FromUpstream: Traffic{Messages: 1, Bytes: 10}})
	})
}

// A peer that does not answer a Close frame, or does not close its connection
// after one, is waited for no longer than CLOSE_TIMEOUT.
func TestCloseUnanswered(t *testing.T) {
	t.Parallel()
	const timeout = soon
	for name, test := range map[string]func(*testSession) End{
		"by the upstream": func(s *testSession) End {
			s.client.sendClose(1000, "")
			s.upstream.expect("close 1000")
			return End{Reason: ClientClose, Code: 1000}
		},
		"by the client": func(s *testSession) End {
			s.upstream.sendClose(1000, "")
			s.client.expect("close 1000")
			return End{Reason: UpstreamClose, Code: 1000}
		},
		"and the connections stay open": func(s *testSession) End {
			s.client.sendClose(1000, "")
			s.upstream.expect("close 1000")
			s.upstream.sendClose(1000, "")
			s.client.expect("close 1000")
			return End{Reason: ClientClose, Code: 1000}
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				t.Parallel()
				c := e.config()
				c.CloseTimeout = timeout
				s := newRig(t, e, c).open()
				atLeast(t, timeout, func() { s.wantEnd(test(s)) })
				io.Copy(io.Discard, s.client.conn)
				s.upstream.expectCut()
			})
		})
	}
}
