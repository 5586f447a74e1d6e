package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/faulttest"
	"portcullis/ratelimit"
)

// long is how long these tests wait for what must happen, on a machine that does much else.
const long = 60 * time.Second

// way is how the gate relays, and where there is TLS.
type way struct {
	name, mode, engine string
	clientTLS, appTLS  bool
}

var ways = []way{
	{"loop", "passthrough", "loop", false, false},
	{"stream", "passthrough", "stream", false, false},
	{"stream, TLS to the client", "passthrough", "auto", true, false},
	{"stream, TLS to the upstream", "passthrough", "auto", false, true},
	{"terminate", "terminate", "auto", false, false},
	{"terminate, TLS to the client", "terminate", "auto", true, false},
	{"terminate, TLS to the upstream", "terminate", "auto", false, true},
}

// faultyNet is a gate with a faulty network on both its legs, and the application behind it.
type faultyNet struct {
	*testGate
	front, back *faulttest.Proxy
	trusted     *x509.CertPool // for the front; nil: without TLS
	dialing     sync.Mutex     // so that each knows its links
	sockets     chan *websocket.Conn
}

func newFaultyNet(t *testing.T, w way, edit func(*Config)) *faultyNet {
	t.Helper()
	n := &faultyNet{sockets: make(chan *websocket.Conn, 100)}
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if conn, err := new(websocket.Upgrader).Upgrade(rw, r, nil); err == nil {
			n.sockets <- conn
		}
	}))
	app.Config.ErrorLog = log.New(io.Discard, "", 0) // it tells of handshakes that do not come to their end
	scheme, certFile, keyFile, caFile := "ws", "", "", ""
	if w.appTLS {
		scheme, caFile = "wss", filepath.Join(t.TempDir(), "ca.pem")
		app.StartTLS()
		block := &pem.Block{Type: "CERTIFICATE", Bytes: app.Certificate().Raw}
		if err := os.WriteFile(caFile, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		app.Start()
	}
	t.Cleanup(func() {
		app.Close()
		for len(n.sockets) > 0 {
			(<-n.sockets).Close() // of whoever did not ask for it
		}
	})
	if w.clientTLS {
		certFile, keyFile, n.trusted = selfSigned(t)
	}
	n.back = faulttest.New(t, app.Listener.Addr().String())
	n.testGate = newGate(t, scheme+"://"+n.back.Addr, func(c *Config) {
		c.Relay.Mode, c.Relay.Engine = w.mode, w.engine
		c.Relay.PingInterval, c.Relay.PongTimeout, c.Relay.CloseTimeout = 300*time.Millisecond, 3*time.Second, 2*time.Second
		if w.mode == "terminate" {
			c.Relay.MessageMaxBytes = 1 << 20
		}
		c.Front.CertFile, c.Front.KeyFile, c.Upstream.CAFile = certFile, keyFile, caFile
		c.Limits = ratelimit.Config{Sessions: sessionsOfFaults}
		c.Auth.Mode, c.Auth.URL = "none", ""
		c.Upstream.DialTimeout, c.Upstream.HandshakeTimeout = long, long
		if edit != nil {
			edit(c)
		}
	})
	n.front = faulttest.New(t, n.addr)
	return n
}

// faultySession is a session with a test at both of its ends, and the links that it goes over.
type faultySession struct {
	client, app     *websocket.Conn
	clientLeg, back *faulttest.Link
}

func (n *faultyNet) open(t *testing.T, path string) *faultySession {
	t.Helper()
	n.dialing.Lock()
	defer n.dialing.Unlock()
	d := websocket.Dialer{HandshakeTimeout: long, TLSClientConfig: &tls.Config{RootCAs: n.trusted}}
	scheme := "ws"
	if n.trusted != nil {
		scheme = "wss"
	}
	client, resp, err := d.Dial(scheme+"://"+n.front.Addr+path, nil)
	if err != nil {
		t.Fatalf("dial: %v (%v)", err, resp)
	}
	s := &faultySession{client: client, app: <-n.sockets, clientLeg: n.front.Next(t), back: n.back.Next(t)}
	for _, conn := range []*websocket.Conn{s.client, s.app} {
		conn.SetReadDeadline(time.Now().Add(long))
		conn.SetWriteDeadline(time.Now().Add(long))
		t.Cleanup(func() { conn.Close() })
	}
	return s
}

// line is the first line with that message about that path.
func (j *journal) line(t *testing.T, message, path string) (line map[string]any) {
	t.Helper()
	for deadline := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
		j.mu.Lock()
		text := j.text.String()
		j.mu.Unlock()
		for entry := range strings.Lines(text) {
			if line = nil; json.Unmarshal([]byte(entry), &line) == nil && line["msg"] == message && line["path"] == path {
				return line
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log has no line %q of %s", message, path)
		}
	}
}

// untilFree waits for the gate to hold no session, on no target.
func (n *faultyNet) untilFree(t *testing.T) {
	t.Helper()
	free := func() bool {
		return n.metric(t, "portcullis_sessions_live", "") == 0 && n.targets()[0].Live == 0
	}
	for deadline := time.Now().Add(long); !free(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("live: %v, on its target: %+v", n.metric(t, "portcullis_sessions_live", ""), n.targets())
		}
	}
}

// leg is one of the two that a session goes over.
type leg struct {
	name, silent, gone string
	goneCode           float64
	told               int    // what the other side is told when this one does not answer
	words              string // in which
	lost               int    // when it has broken off; 1006: nothing
	theirs             faulttest.Direction
}

var legs = []leg{
	{"client", "client_silent", "client_gone", 1006, 1001, "client does not answer", 1006, faulttest.Up},
	{"upstream", "upstream_silent", "upstream_gone", 1011, 1011, "upstream does not answer", 1011, faulttest.Down},
}

// of is the leg of a session, who stands at its end, and who at the end of the other.
func (g leg) of(s *faultySession) (l *faulttest.Link, peer, other *websocket.Conn) {
	if g.name == "client" {
		return s.clientLeg, s.client, s.app
	}
	return s.back, s.app, s.client
}

// faults are what may happen to a leg. Each is made and then watched from the other side of the session; it returns the reason and the code
// of the end.
var faults = map[string]func(t *testing.T, g leg, s *faultySession) (reason string, code float64){
	"reset": func(t *testing.T, g leg, s *faultySession) (string, float64) {
		l, _, other := g.of(s)
		l.Reset()
		wantCode(t, other, g.lost, "upstream connection lost")
		return g.gone, g.goneCode
	},
	"stalled": func(t *testing.T, g leg, s *faultySession) (string, float64) {
		l, _, other := g.of(s)
		l.Stall()
		wantCode(t, other, g.told, g.words)
		return g.silent, 3008
	},
	"stalled, and the other sends on": func(t *testing.T, g leg, s *faultySession) (string, float64) {
		l, _, other := g.of(s)
		other.SetPingHandler(func(string) error { return nil }) // a pong would wait for what it sends
		l.Stall()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for message := make([]byte, 64<<10); other.WriteMessage(websocket.BinaryMessage, message) == nil; {
			}
		}()
		wantCode(t, other, g.told, g.words)
		other.Close()
		<-sent
		return g.silent, 3008
	},
	"stalled, and the other takes its leave": func(t *testing.T, g leg, s *faultySession) (string, float64) {
		l, _, other := g.of(s)
		l.Stall()
		other.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""))
		_, _, err := other.ReadMessage()
		if err == nil || isTimeout(err) {
			t.Errorf("the other sees %v, want an end", err)
		}
		return map[string]string{"client": "upstream_close", "upstream": "client_close"}[g.name], 1000
	},
	"half-open": func(t *testing.T, g leg, s *faultySession) (string, float64) {
		l, peer, other := g.of(s)
		l.HalfOpen(g.theirs)
		peer.Close()
		wantCode(t, other, g.told, g.words)
		return g.silent, 3008
	},
	"half-open, it hears nothing": func(t *testing.T, g leg, s *faultySession) (string, float64) {
		l, _, other := g.of(s)
		l.HalfOpen(1 - g.theirs)
		wantCode(t, other, g.told, g.words)
		return g.silent, 3008
	},
	"slow": func(t *testing.T, g leg, s *faultySession) (string, float64) {
		l, _, _ := g.of(s)
		l.Slow()
		message := bytes.Repeat([]byte("0123456789abcdef"), 2<<10)
		var sent, read, closed sync.WaitGroup
		for _, way := range [][2]*websocket.Conn{{s.client, s.app}, {s.app, s.client}} {
			sent.Go(func() {
				if err := way[0].WriteMessage(websocket.BinaryMessage, message); err != nil {
					t.Error(err)
				}
			})
			read.Add(1)
			closed.Go(func() {
				_, got, err := way[1].ReadMessage()
				if err != nil || !bytes.Equal(got, message) {
					t.Errorf("%d bytes came of %d, %v", len(got), len(message), err)
				}
				read.Done()
				wantCode(t, way[1], 1000, "") // and answers pings meanwhile
			})
		}
		sent.Wait()
		read.Wait()
		s.client.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""))
		closed.Wait()
		return "client_close", 1000
	},
}

// wantCode reads to the end, which is to be a Close frame with that code and that reason; 1006: none.
func wantCode(t *testing.T, conn *websocket.Conn, code int, reason string) {
	t.Helper()
	for {
		_, _, err := conn.ReadMessage()
		if err == nil {
			continue
		}
		closed, framed := errors.AsType[*websocket.CloseError](err)
		framed = framed && closed.Code != websocket.CloseAbnormalClosure
		if isTimeout(err) || framed == (code == 1006) || framed && (closed.Code != code || closed.Text != reason) {
			t.Errorf("the other side sees %v, want %d %s", err, code, reason)
		}
		return
	}
}

// sessionsOfFaults is one for each fault on each leg, and one beside them.
var sessionsOfFaults = len(legs)*len(faults) + 1

// What happens to one leg of a session ends it in the way that docs/responses.md says, or does it no harm. It touches no other session,
// and all that it held is given back.
func TestFaults(t *testing.T) {
	wantDescriptorsBack(t)
	var all sync.WaitGroup
	for _, w := range ways {
		all.Go(func() { t.Run(w.name, func(t *testing.T) { testFaults(t, w) }) })
	}
	all.Wait()
}

func testFaults(t *testing.T, w way) {
	n := newFaultyNet(t, w, nil)
	beside := n.open(t, "/beside")
	var all sync.WaitGroup
	for _, g := range legs {
		for name, fault := range faults {
			all.Go(func() {
				t.Run(g.name+" "+name, func(t *testing.T) {
					path := "/" + g.name + "/" + strings.ReplaceAll(name, " ", "-")
					s := n.open(t, path)
					reason, code := fault(t, g, s)
					if line := n.journal.line(t, "session ended", path); line["reason"] != reason || line["code"] != code {
						t.Errorf("it ends as %v with %v, want %s with %v", line["reason"], line["code"], reason, code)
					}
				})
			})
		}
	}
	over := make(chan struct{})
	go func() {
		all.Wait()
		close(over)
	}()
	for going := true; going; {
		exchange(t, beside)
		select {
		case <-over:
			going = false
		case <-time.After(50 * time.Millisecond):
		}
	}
	beside.client.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""))
	wantCode(t, beside.app, 1000, "")
	if line := n.journal.line(t, "session ended", "/beside"); line["reason"] != "client_close" {
		t.Errorf("the session beside them ends as %v", line["reason"])
	}
	n.untilFree(t)
	for i := range sessionsOfFaults { // every slot is free
		n.open(t, fmt.Sprint("/again/", i))
	}
}

// exchange sends a message each way.
func exchange(t *testing.T, s *faultySession) {
	t.Helper()
	for _, way := range [][2]*websocket.Conn{{s.client, s.app}, {s.app, s.client}} {
		if err := way[0].WriteMessage(websocket.TextMessage, []byte("here")); err != nil {
			t.Fatalf("a session beside the faults: %v", err)
		}
		if _, got, err := way[1].ReadMessage(); err != nil || string(got) != "here" {
			t.Fatalf("a session beside the faults gets %q, %v", got, err)
		}
	}
}

// A fault while the upstream is dialled, or has been asked, is a refusal, and leaves nothing behind.
func TestFaultsInHandshake(t *testing.T) {
	wantDescriptorsBack(t)
	var all sync.WaitGroup
	for _, w := range []way{ways[0], ways[3], ways[4], ways[6]} {
		for _, tt := range []struct {
			name        string
			fault       func(*faulttest.Link)
			status      int
			plain, tls  string // reasons, of which one is to be
			immediately bool
		}{
			{"reset", (*faulttest.Link).Reset, 502, "upstream_handshake upstream_dial", "upstream_dial", true}, // as soon as it is noticed
			{"stalled", (*faulttest.Link).Stall, 504, "upstream_timeout", "upstream_timeout", false},
			{"half-open", func(l *faulttest.Link) { l.HalfOpen(faulttest.Down) }, 504, "upstream_timeout", "upstream_timeout", false},
			{"slow", (*faulttest.Link).Slow, 101, "", "", true},
		} {
			all.Go(func() {
				t.Run(w.name+", "+tt.name, func(t *testing.T) {
					n := newFaultyNet(t, w, func(c *Config) {
						c.Limits = ratelimit.Config{Sessions: 1}
						if !tt.immediately {
							c.Upstream.DialTimeout, c.Upstream.HandshakeTimeout = 500*time.Millisecond, 500*time.Millisecond
						}
					})
					n.back.Begin(tt.fault)
					conn, resp, err := n.tryConnect("/faulty", nil)
					if resp == nil || resp.StatusCode != tt.status || err == nil != (tt.status == 101) {
						t.Fatalf("got %+v (%v), want %d", resp, err, tt.status)
					}
					if err == nil {
						conn.Close()
						n.journal.line(t, "session ended", "/faulty")
					} else {
						want := tt.plain
						if w.appTLS {
							want = tt.tls
						}
						if reason := n.journal.line(t, "refused", "/faulty")["reason"].(string); !slices.Contains(strings.Fields(want), reason) {
							t.Errorf("refused as %s, want %s", reason, want)
						}
					}
					n.untilFree(t)
				})
			})
		}
	}
	all.Wait()
}

// A client that is reset while the upstream is asked leaves nothing behind.
func TestClientResetInHandshake(t *testing.T) {
	wantDescriptorsBack(t)
	for _, w := range []way{ways[0], ways[2], ways[4]} {
		t.Run(w.name, func(t *testing.T) {
			n := newFaultyNet(t, w, func(c *Config) { c.Limits = ratelimit.Config{Sessions: 1} })
			n.back.Begin((*faulttest.Link).Stall)
			var conn net.Conn
			var err error
			if w.clientTLS {
				conn, err = tls.Dial("tcp", n.front.Addr, &tls.Config{RootCAs: n.trusted})
			} else {
				conn, err = net.Dial("tcp", n.front.Addr)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, handshake("/reset"))
			n.back.Next(t) // it has been dialled
			n.front.Next(t).Reset()
			if line := n.journal.line(t, "refused", "/reset"); line["reason"] != "client_gone" {
				t.Errorf("refused as %v, want client_gone", line["reason"])
			}
			n.untilFree(t)
			n.back.Begin(nil)
			exchange(t, n.open(t, "/next"))
		})
	}
}

// wantDescriptorsBack fails a test that ends with more descriptors than are open now. What the event loop forgets to close stays open; what
// package net has is closed at last by the garbage collector, so that of it this finds little.
func wantDescriptorsBack(t *testing.T) {
	t.Helper()
	t.Run("first", func(t *testing.T) { newFaultyNet(t, ways[0], nil).open(t, "/first") }) // whatever a process opens once
	before := openDescriptors()
	t.Cleanup(func() {
		for deadline := time.Now().Add(long); openDescriptors() > before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d descriptors, %d before", openDescriptors(), before)
			}
		}
	})
}

// openDescriptors counts this process's open descriptors; 0 where the system does not tell.
func openDescriptors() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}
