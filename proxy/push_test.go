package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
)

const adminToken = "0123456789abcdef"

// withAPI has sessions found and reached.
func withAPI(c *Config) { c.API.AdminToken = adminToken }

// eachRelay runs a test with every way in which a session can be relayed without TLS.
func eachRelay(t *testing.T, test func(t *testing.T, edit func(*Config))) {
	for name, edit := range map[string]func(*Config){
		"auto":      func(*Config) {},
		"stream":    func(c *Config) { c.Relay.Engine = "stream" },
		"terminate": func(c *Config) { c.Relay.Mode = "terminate" },
	} {
		t.Run(name, func(t *testing.T) { test(t, edit) })
	}
}

func (g *testGate) push(f session.Filter, text string) relay.Reach {
	reach, _ := g.sessions.Send(f, session.Message{Body: []byte(text)}, "")
	return reach
}

// Each session that is open before and after a broadcast gets it once, while others come and go at 500 a second, or as quickly as
// the machine can.
func TestBroadcastWhileSessionsComeAndGo(t *testing.T) {
	const perSecond, sessions, stay = 500, 500, 50 * time.Millisecond
	d := websocket.Dialer{HandshakeTimeout: 12 * patience}
	eachRelay(t, func(t *testing.T, edit func(*Config)) {
		g := newGate(t, newEcho(t), func(c *Config) {
			withAPI(c)
			edit(c)
			c.Auth.Mode, c.Auth.URL = "none", ""
			c.Limits.UpgradesPerIP = ratelimit.Rate{}
			c.Relay.CloseTimeout, c.Upstream.HandshakeTimeout = 12*patience, 12*patience // nobody is given up for being slow
		})
		type broadcast struct{ began, ended time.Time }
		var mu sync.Mutex
		var broadcasts []broadcast
		stop := make(chan struct{})
		var senders, clients sync.WaitGroup
		senders.Go(func() {
			for n := 0; ; n++ {
				b := broadcast{began: time.Now()}
				g.push(session.Filter{}, fmt.Sprint(n))
				b.ended = time.Now()
				mu.Lock()
				broadcasts = append(broadcasts, b)
				mu.Unlock()
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
		type seen struct {
			open, closed time.Time
			got          map[string]int
		}
		var all []*seen
		tick := time.NewTicker(time.Second / perSecond)
		defer tick.Stop()
		atOnce := make(chan struct{}, 2*int(perSecond*stay/time.Second))
		for range sessions {
			<-tick.C
			atOnce <- struct{}{}
			s := &seen{got: make(map[string]int)}
			all = append(all, s)
			clients.Go(func() {
				defer func() { <-atOnce }()
				conn, _, err := d.Dial("ws://"+g.addr, nil)
				if err != nil {
					t.Error(err)
					return
				}
				s.open = time.Now()
				defer conn.Close()
				time.AfterFunc(stay, func() {
					s.closed = time.Now()
					conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(patience))
				})
				conn.SetReadDeadline(time.Now().Add(12 * patience))
				for {
					_, message, err := conn.ReadMessage()
					if err != nil {
						wantClose(t, "client", err, 1000, "")
						return
					}
					s.got[string(message)]++
				}
			})
		}
		clients.Wait()
		close(stop)
		senders.Wait()
		if t.Failed() {
			return
		}
		for _, s := range all {
			for n, b := range broadcasts {
				must := s.open.Before(b.began) && b.ended.Before(s.closed)
				if got := s.got[fmt.Sprint(n)]; got > 1 || must && got == 0 {
					t.Fatalf("a session got broadcast %d %d times; it was there for all of it: %t", n, got, must)
				}
			}
		}
	})
}

func TestKickWhileSessionsCome(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) {
		withAPI(c)
		c.Limits = ratelimit.Config{}
		c.Auth.Timeout, c.Relay.CloseTimeout, c.Upstream.HandshakeTimeout = 12*patience, 12*patience, 12*patience // nobody is given up for being slow
	})
	d := websocket.Dialer{HandshakeTimeout: 12 * patience}
	var clients sync.WaitGroup
	kicked, refused := make(chan struct{}, 1000), make(chan struct{}, 1000)
	for range 50 {
		clients.Go(func() {
			for range 3 {
				conn, resp, err := d.Dial("ws://"+g.addr+"/?token=wonder", nil)
				if err != nil {
					if resp == nil || resp.StatusCode != http.StatusForbidden {
						t.Errorf("%v, %v", resp, err)
					}
					refused <- struct{}{}
					return
				}
				conn.SetReadDeadline(time.Now().Add(12 * patience))
				_, _, err = conn.ReadMessage()
				wantClose(t, "client", err, 3003, "kicked")
				conn.Close()
				kicked <- struct{}{}
			}
		})
		if len(kicked)+len(refused) == 0 {
			time.Sleep(time.Millisecond) // some come before the kick, some meanwhile
		}
	}
	for {
		reach, err := g.sessions.Kick(session.Filter{Subject: "Alice"}, session.Kick{Closing: relay.Closing{Code: 3003, Reason: "kicked"}, KeepOut: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if reach.Reached > 0 {
			break
		}
	}
	clients.Wait()
	if len(kicked) == 0 || len(refused) == 0 {
		t.Errorf("%d were kicked and %d refused, want some of both", len(kicked), len(refused))
	}
	if got := g.refused(t, refusal.Kicked); got != float64(len(refused)) {
		t.Errorf("%v refusals are counted, want %d", got, len(refused))
	}
	g.nothingHeld(t)
}

// An application that compresses, and pushes in between: each message is whole, in order, once.
func TestPushBesideCompression(t *testing.T) {
	for _, compressed := range []bool{false, true} {
		t.Run(fmt.Sprint(compressed), func(t *testing.T) {
			eachRelay(t, func(t *testing.T, edit func(*Config)) {
				t.Parallel()
				w := newWitness(t)
				g := newGate(t, w.url, func(c *Config) {
					withAPI(c)
					edit(c)
					c.Relay.PushQueue, c.Relay.CloseTimeout = 1<<20, 12*patience // nobody is given up for being slow
				})
				d := websocket.Dialer{EnableCompression: compressed, HandshakeTimeout: patience}
				conn, _, err := d.Dial("ws://"+g.addr+"/?token=wonder", nil)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				echoes, pushes := 2000, 500
				if compressed {
					echoes, pushes = 300, 100 // the library's compression is slow, above all under the race detector
				}
				text := func(i int) string { return fmt.Sprint("echo ", i, strings.Repeat(" again and again", i%50)) }
				go func() {
					for i := range echoes {
						if conn.WriteMessage(websocket.TextMessage, []byte(text(i))) != nil {
							return
						}
					}
				}()
				go func() {
					for i := range pushes {
						if got := g.push(session.Filter{Subject: "Alice"}, fmt.Sprint("push ", i)); got.Reached != 1 {
							t.Errorf("push %d: reached %+v", i, got)
							return
						}
					}
				}()
				for echoed, pushed := 0, 0; echoed < echoes || pushed < pushes; {
					conn.SetReadDeadline(time.Now().Add(6 * patience))
					_, message, err := conn.ReadMessage()
					switch got := string(message); {
					case err != nil:
						t.Fatalf("after %d echoes and %d pushes: %v", echoed, pushed, err)
					case strings.HasPrefix(got, "push "):
						if want := fmt.Sprint("push ", pushed); got != want {
							t.Fatalf("got %q, want %q", got, want)
						}
						pushed++
					default:
						if want := text(echoed); got != want {
							t.Fatalf("got %q, want %q", got, want)
						}
						echoed++
					}
				}
			})
		})
	}
}

// The hello message says where the history stands, and by its id a client that comes back gets what it has missed.
func TestHistoryOverReconnects(t *testing.T) {
	w := newWitness(t)
	g := newGate(t, w.url, func(c *Config) {
		withAPI(c)
		c.Session.Hello, c.Session.History = true, session.HistorySize{Pushes: 100, Age: time.Hour}
	})
	type hello struct {
		Portcullis struct{ Session, Push string }
	}
	open := func(query string) (*websocket.Conn, hello) {
		conn := g.connect(t, "/?token=wonder"+query, nil)
		var h hello
		if err := conn.ReadJSON(&h); err != nil || h.Portcullis.Session == "" || h.Portcullis.Push == "" {
			t.Fatalf("hello: %+v, %v", h, err)
		}
		return conn, h
	}
	want := func(conn *websocket.Conn, texts ...string) (marker string) {
		for _, text := range texts {
			if _, got, err := conn.ReadMessage(); err != nil || string(got) != text {
				t.Fatalf("got %q, %v, want %q", got, err, text)
			}
			var h hello
			if err := conn.ReadJSON(&h); err != nil || h.Portcullis.Push == "" {
				t.Fatalf("marker: %+v, %v", h, err)
			}
			marker = h.Portcullis.Push
		}
		return marker
	}
	first, h := open("&portcullis_last_push=")
	alice := session.Filter{Subject: "Alice"}
	g.push(alice, "one")
	last := want(first, "one")
	if last == h.Portcullis.Push {
		t.Errorf("a push has the id that was the newest before it: %q", last)
	}
	first.Close()
	g.push(alice, "two")
	g.push(session.Filter{Subject: "Bob"}, "not for her")
	g.push(session.Filter{}, "three")
	second, _ := open("&portcullis_last_push=" + last)
	g.push(alice, "four")
	want(second, "two", "three", "four")
	third, _ := open("&portcullis_last_push=" + h.Portcullis.Push)
	want(third, "one", "two", "three", "four")
}

// The parameter is the gate's where there is a history, and the application's elsewhere.
func TestLastPushParameter(t *testing.T) {
	for _, history := range []bool{false, true} {
		query := make(chan string, 1)
		upgrader := websocket.Upgrader{}
		app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			query <- r.URL.RawQuery
			if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
				conn.Close()
			}
		}))
		defer app.Close()
		g := newGate(t, "ws"+strings.TrimPrefix(app.URL, "http"), func(c *Config) {
			withAPI(c)
			if history {
				c.Session.History = session.HistorySize{Pushes: 1, Age: time.Hour}
			}
		})
		g.connect(t, "/?a=1&portcullis_last_push=&token=good&b=2", nil)
		want := "a=1&portcullis_last_push=&b=2"
		if history {
			want = "a=1&b=2"
		}
		if got := <-query; got != want {
			t.Errorf("with a history %t: the application got %q, want %q", history, got, want)
		}
	}
}

// Groups come from where SESSION_GROUPS says, and what cannot be one is refused: the verifier's as 403, the client's as 400.
func TestGroupsOfASession(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Groups"] = []string{"staff, admins", r.URL.Query().Get("token")}
		fmt.Fprint(w, "1")
	}))
	defer endpoint.Close()
	g := newGate(t, newEcho(t), func(c *Config) {
		withAPI(c)
		c.Auth.URL = endpoint.URL
		c.Session.Groups = []string{"auth:X-Groups", "query:room"}
	})
	g.connect(t, "/?token=editors&room=lobby&room=auth:X-Groups:root", nil)
	page, _ := g.sessions.List(session.Filter{Group: "auth:X-Groups:admins"}, 10, 0)
	if len(page) != 1 {
		t.Fatalf("%d sessions", len(page))
	}
	got, _ := json.Marshal(page[0].Groups)
	if want := `["auth:X-Groups:staff","auth:X-Groups:admins","auth:X-Groups:editors","query:room:lobby","query:room:auth:X-Groups:root"]`; string(got) != want {
		t.Errorf("groups: got %s, want %s", got, want)
	}
	for target, want := range map[string]int{
		"/?token=" + strings.Repeat("x", 129):                                             http.StatusForbidden,
		"/?token=a&room=" + strings.Repeat("x", 129):                                      http.StatusBadRequest,
		"/?token=a" + strings.Repeat("&room=x%00", 1):                                     http.StatusBadRequest,
		"/?token=a&room=" + strings.Join(strings.Split("abcdefghijklmnop", ""), "&room="): http.StatusBadRequest,
	} {
		_, resp, err := g.tryConnect(target, nil)
		if resp == nil || resp.StatusCode != want {
			t.Errorf("%s: got %v, %v, want %d", target, resp, err, want)
		}
	}
	if got := g.refused(t, refusal.Groups); got != 4 {
		t.Errorf("%v refusals, want 4", got)
	}
}

func TestPushesAndCloseFramesAreTold(t *testing.T) {
	g := newGate(t, newEcho(t), withAPI)
	conn := g.connect(t, "/?token=wonder", nil)
	g.push(session.Filter{}, "hello")
	if _, got, err := conn.ReadMessage(); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	if reach, err := g.sessions.Kick(session.Filter{}, session.Kick{Closing: relay.Closing{Code: 4000, Reason: "your own"}}); err != nil || reach.Reached != 1 {
		t.Errorf("%+v, %v", reach, err)
	}
	_, _, err := conn.ReadMessage()
	wantClose(t, "client", err, 4000, "your own")
	line := g.journal.next(t, "session ended")
	if line["reason"] != "kicked" || line["code"] != 4000. {
		t.Errorf("line %v", line)
	}
}

// An application that fragments one message for ever keeps its client, and what was pushed meanwhile is told to have come to nothing.
func TestPushIntoAnEndlessMessage(t *testing.T) {
	eachRelay(t, func(t *testing.T, edit func(*Config)) {
		t.Parallel()
		var c Config
		edit(&c)
		b := newBackend(t, func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, accepted(r)+"\r\n")
			part := []byte{0x01, 1, 'x'} // the beginning of a text message
			for tick := time.Tick(20 * time.Millisecond); ; <-tick {
				if _, err := conn.Write(part); err != nil {
					return
				}
				part[0] = 0x00
			}
		})
		g := newGate(t, b.url, func(c *Config) { withAPI(c); edit(c) })
		conn := g.connect(t, "/?token=wonder", nil)
		if c.Relay.Mode != "terminate" { // the message has begun
			_, r, err := conn.NextReader()
			if err == nil {
				_, err = io.ReadFull(r, make([]byte, 1))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		g.push(session.Filter{}, "hello")
		if c.Relay.Mode == "terminate" { // whole messages alone go on, so this is before the one that never ends
			if _, got, err := conn.ReadMessage(); err != nil || string(got) != "hello" {
				t.Errorf("got %q, %v", got, err)
			}
			return
		}
		for began := time.Now(); g.metric(t, "portcullis_pushes_dropped_total", "no_boundary") == 0; time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > 6*patience {
				t.Fatal("nothing is told of the push")
			}
		}
		if page, _ := g.sessions.List(session.Filter{}, 1, 0); len(page) != 1 {
			t.Error("the session has ended")
		}
	})
}
