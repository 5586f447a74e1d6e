package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/ratelimit"
)

// resuming is a gate whose sessions are resumable.
func resuming(edits ...func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Relay.Resume = time.Minute
		c.Relay.MessageMaxBytes = 64 << 10
		c.API.PushMaxBytes = c.Relay.ResumeBuffer
		for _, edit := range edits {
			edit(c)
		}
	}
}

// eachDoor runs a test with every engine that moves resumable sessions.
func eachDoor(t *testing.T, test func(t *testing.T, edit func(*Config), secure *tls.Config)) {
	for _, engine := range []string{"loop", "stream"} {
		t.Run(engine, func(t *testing.T) {
			test(t, func(c *Config) { c.Relay.Engine = engine }, nil)
		})
	}
	t.Run("tls", func(t *testing.T) {
		certFile, keyFile, roots := selfSigned(t)
		test(t, func(c *Config) { c.Front.CertFile, c.Front.KeyFile = certFile, keyFile }, &tls.Config{RootCAs: roots})
	})
}

func TestResume(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit))
		c := newResumer(t, g, "/?token=good")
		c.secure = secure
		c.open()
		if c.answer != resumeOffer || c.welcome.Resumed || !c.welcome.Resumable {
			t.Fatalf("answer %q, first message %+v", c.answer, c.welcome)
		}
		c.send("one")
		c.want("one")
		for i := range 5 {
			c.cut()
			c.send(fmt.Sprint("while away ", i))
			c.mustBack()
			c.want(fmt.Sprint("while away ", i))
		}
		c.send("last")
		c.want("last")
	})
}

// What a client offers and what it is answered with; nothing of resumption reaches the upstream.
func TestResumeAnswers(t *testing.T) {
	for _, tt := range []struct {
		name     string
		edit     func(*Config)
		offers   []string
		target   string
		answer   string
		upstream string
	}{
		{"alone", nil, nil, "/?token=good", resumeOffer, ""},
		{"the upstream's choice", nil, []string{"chat"}, "/?token=good", "chat", "chat"},
		{"none of the upstream's", nil, []string{"other"}, "/?token=good", resumeOffer, "other"},
		{"before bearer", nil, []string{"bearer", "good"}, "/", resumeOffer, ""},
		{"beside bearer", nil, []string{"bearer", "good", "chat"}, "/", "chat", "chat"},
		{"beside a token in the form of Kubernetes", func(c *Config) {
			c.Auth.TokenFrom = []string{"protocol:base64url.bearer.authorization.k8s.io"}
		}, []string{"base64url.bearer.authorization.k8s.io.Z29vZA"}, "/", resumeOffer, ""},
		{"another version is none", nil, []string{"portcullis.resume.v2", "portcullis.resume.v2.x"}, "/?token=good", resumeOffer, ""},
		{"switched off", func(c *Config) { c.Relay.Resume = 0 }, nil, "/?token=good", resumeOffer, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, func(conn net.Conn, r *http.Request) {
				answer := accepted(r)
				if strings.Contains(r.Header.Get("Sec-WebSocket-Protocol"), "chat") {
					answer += "Sec-WebSocket-Protocol: chat\r\n"
				}
				io.WriteString(conn, answer+"\r\n")
				io.Copy(io.Discard, conn)
			})
			g := newGate(t, b.url, resuming(func(c *Config) {
				if tt.edit != nil {
					tt.edit(c)
				}
			}))
			c := newResumer(t, g, tt.target, tt.offers...).open()
			if c.answer != tt.answer {
				t.Errorf("answer %q, want %q", c.answer, tt.answer)
			}
			r := b.next(t)
			if got := r.Header.Get("Sec-WebSocket-Protocol"); got != tt.upstream {
				t.Errorf("the upstream was offered %q, want %q", got, tt.upstream)
			}
			if on := tt.name != "switched off"; c.welcome.Resumable != on || (c.welcome.Resume != "") != on || c.welcome.Session == "" {
				t.Errorf("first message %+v", c.welcome)
			}
		})
	}
}

// Without the offer the session is as it always was, whatever the settings.
func TestNoOfferNoResumption(t *testing.T) {
	g := newGate(t, newEcho(t), resuming())
	conn := g.connect(t, "/?token=good", nil)
	echoes(t, conn, "\x00portcullis {\"ack\":0}")
	conn.NetConn().Close()
	if line := g.journal.next(t, "session ended"); line["reason"] != "client_gone" {
		t.Errorf("line %v", line)
	}
}

// With resumption off, what follows the first message is the application's.
func TestResumptionOff(t *testing.T) {
	g := newGate(t, newEcho(t), nil)
	c := newResumer(t, g, "/?token=good").open()
	echoes(t, c.conn, "\x00portcullis {\"ack\":0}")
	c.cut()
	if line := g.journal.next(t, "session ended"); line["reason"] != "client_gone" {
		t.Errorf("line %v", line)
	}
}

// back returns with an entry of its own, and gives the error of the first read.
func (c *resumer) tries(token string, count uint64, attempt int, beside ...string) error {
	c.t.Helper()
	other := *c
	return other.backWith(fmt.Sprintf("%s.%s.%d.%d", resumeOffer, token, count, attempt), beside...)
}

func TestReturnsThatAreRefused(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit))
		c := newResumer(t, g, "/room?token=good")
		c.secure = secure
		c.open()
		c.send("one")
		c.want("one")
		first := c.welcome.Resume
		c.target = "/room" // a return needs no token
		c.cut()
		c.mustBack()
		c.ack()
		c.send("two")
		c.want("two")
		token := c.welcome.Resume

		changed := func(i int) string {
			other := "A"
			if token[i] == 'A' {
				other = "B"
			}
			return token[:i] + other + token[i+1:]
		}
		unknown := func(name string, err error) {
			t.Helper()
			t.Run(name, func(t *testing.T) { wantClosed(t, err, 3000, "session unknown") })
		}
		unknown("guessed", c.tries(strings.Repeat("A", 43), 1, 1))
		unknown("another handle", c.tries(changed(3), 1, 1))
		unknown("another secret", c.tries(changed(40), 1, 1))
		unknown("a later generation", c.tries(changed(20), 1, 1))
		unknown("no token", c.tries("", 1, 1))
		unknown("no attempt", c.tries(token, 2, 0))
		unknown("a count too high", c.tries(token, 3, 1))
		elsewhere := *c
		elsewhere.target = "/other"
		unknown("another path", elsewhere.tries(token, 2, 1))
		page := *c
		page.header = http.Header{"Origin": {"https://other.example"}}
		unknown("another page", page.tries(token, 2, 1))
		chat := *c
		chat.answer = "chat"
		conn, _, err := chat.dial("chat", resumeOffer+"."+token+".2.1")
		if err == nil {
			_, _, err = conn.ReadMessage()
		}
		unknown("without the first answer", err)
		t.Run("an old token", func(t *testing.T) { wantClosed(t, c.tries(first, 2, 7), 1013, "stale") })
		t.Run("an old token, and a count", func(t *testing.T) { wantClosed(t, c.tries(first, 99, 7), 1013, "stale") })
		t.Run("two returns", func(t *testing.T) {
			if _, resp, err := c.dial(resumeOffer+"."+token+".2.1", resumeOffer+"."+token+".2.2"); err == nil || resp == nil || resp.StatusCode != 400 {
				t.Errorf("got %v, %v", resp, err)
			}
		})
		// Through all of that the session stands.
		c.send("three")
		c.want("three")
		// Beside a credential it begins anew, and the old session stands.
		anew := *c
		if err := anew.backWith(resumeOffer+"."+strings.Repeat("A", 43)+".0.1", "bearer", "good"); err != nil || anew.welcome.Resumed {
			t.Errorf("got %+v, %v", anew.welcome, err)
		}
		anew.send("new")
		anew.want("new")
		c.send("four")
		c.want("four")
		if n := g.sessions.Len(); n != 2 {
			t.Errorf("%d sessions, want 2", n)
		}
	})
}

// opened is a client in a session that has echoed a message.
func opened(t *testing.T, g *testGate, secure *tls.Config) *resumer {
	t.Helper()
	c := newResumer(t, g, "/?token=good")
	c.secure = secure
	c.open()
	c.send("one")
	c.want("one")
	return c
}

// A client may come back as soon as it has its first message.
func TestReturnAtOnce(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit, func(c *Config) { c.Limits.UpgradesPerIP = ratelimit.Rate{} }))
		for range 100 {
			c := newResumer(t, g, "/?token=good")
			c.secure, c.noAnswer = secure, true
			c.open()
			if err := c.back(); err != nil || !c.welcome.Resumed {
				t.Fatalf("got %+v, %v", c.welcome, err)
			}
			c.conn.Close()
		}
	})
}

// A return offers the subprotocol that the session was answered with.
func TestReturnWithoutTheFirstAnswer(t *testing.T) {
	g := newGate(t, newEcho(t), resuming())
	c := newResumer(t, g, "/?token=good", "chat").open()
	if c.answer != "chat" {
		t.Fatalf("answer %q", c.answer)
	}
	c.send("one")
	c.want("one")
	c.target = "/"
	conn, _, err := c.dial(resumeOffer, c.offer()[:len(c.offer())-1]+"1")
	if err == nil {
		_, _, err = conn.ReadMessage()
	}
	wantClosed(t, err, 3000, "session unknown")
	c.send("two")
	c.want("two")
}

func TestTwoTabsWithOneToken(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit))
		c := opened(t, g, secure)
		other := *c
		other.mustBack()
		c.wantClose(1008, "taken over")
		other.send("two")
		other.want("two")
		// The first one's token was shown, and so is the second's: it is worth nothing any more.
		wantClosed(t, c.back(), 1013, "stale")
		other.send("three")
		other.want("three")
	})
}

// One of ten at once has the session in the end, and nothing is lost by the others.
func TestTenReturnsAtOnce(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit))
		c := opened(t, g, secure)
		c.cut()
		var all sync.WaitGroup
		results := make([]error, 10)
		for i := range results {
			all.Go(func() {
				other := *c
				results[i] = other.backWith(fmt.Sprintf("%s.%s.1.%d", resumeOffer, c.welcome.Resume, 1+i/2))
			})
		}
		all.Wait()
		accepted := 0
		for _, err := range results {
			if err == nil {
				accepted++
			} else if !websocket.IsCloseError(err, 1013, 1008) && !errors.Is(err, io.ErrUnexpectedEOF) { // replaced before it was answered
				t.Error(err)
			}
		}
		if accepted < 1 || accepted > 5 {
			t.Errorf("%d were accepted, want 1 to 5", accepted)
		}
		if n := g.sessions.Len(); n != 1 {
			t.Errorf("%d sessions", n)
		}
	})
}

func TestUnknownReturnsAreLimited(t *testing.T) {
	g := newGate(t, newEcho(t), resuming())
	c := newResumer(t, g, "/")
	wantClosed(t, c.tries(strings.Repeat("A", 43), 0, 1), 3000, "session unknown")
	soon := time.Now().Add(time.Minute) // or a slow machine would have tokens back before they are spent
	spent := 0
	for ok := true; ok; spent++ {
		_, ok = g.limits.UnknownReturn(netip.MustParsePrefix("127.0.0.1/32"), soon)
	}
	if spent != 51 {
		t.Errorf("%d at once, want 50", spent-1)
	}
	err := c.tries(strings.Repeat("A", 43), 0, 2)
	if closed, ok := err.(*websocket.CloseError); !ok || closed.Code != 1013 || !strings.Contains(closed.Text, "; retry in ") {
		t.Errorf("got %v, want Close 1013", err)
	}
	newResumer(t, g, "/?token=good").open() // which is another matter
}

func TestDetachedSessionEnds(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		w := newWitness(t)
		g := newGate(t, w.url, resuming(edit, func(c *Config) { c.Relay.Resume = time.Second }))
		c := newResumer(t, g, "/?token=good")
		c.secure = secure
		c.open()
		c.ack()
		c.cut()
		c.target = "/"
		g.journal.next(t, "session detached")
		if n := g.metric(t, "portcullis_sessions_detached", ""); n != 1 {
			t.Errorf("%v are detached", n)
		}
		if line := g.journal.next(t, "session ended"); line["reason"] != "detached_expired" || line["code"] != 1001. {
			t.Errorf("line %v", line)
		}
		if n := g.metric(t, "portcullis_sessions_detached", ""); n != 0 {
			t.Errorf("%v are detached", n)
		}
		wantClosed(t, c.back(), 3000, "session unknown")
		g.nothingHeld(t)
	})
}

// A newer session of the same user or address ends the one that has been away for longest; there is none: it is refused.
func TestCapsEndDetachedSessions(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"address": func(c *Config) { c.Limits.SessionsPerIP = 2 },
		"subject": func(c *Config) { c.Limits.SessionsPerSubject = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, newEcho(t), resuming(edit))
			first, second := newResumer(t, g, "/?token=wonder").open(), newResumer(t, g, "/?token=wonder").open()
			for _, c := range []*resumer{first, second} {
				c.ack()
				c.cut()
				g.journal.next(t, "session detached")
			}
			third := newResumer(t, g, "/?token=wonder").open()
			if line := g.journal.next(t, "session ended"); line["reason"] != "detached_evicted" || line["session"] != first.welcome.Session {
				t.Errorf("line %v", line)
			}
			second.mustBack()
			third.send("x")
			third.want("x")
			err := newResumer(t, g, "/?token=wonder").tryOpen()
			if closed, ok := err.(*websocket.CloseError); !ok || closed.Code != 1013 || !strings.HasPrefix(closed.Text, "too many open connections") {
				t.Errorf("got %v, want Close 1013", err)
			}
		})
	}
}

// A refused credential ends nobody's session.
func TestOnlyTheAuthenticatedMakeRoom(t *testing.T) {
	g := newGate(t, newEcho(t), resuming(func(c *Config) { c.Limits.SessionsPerIP = 1 }))
	c := newResumer(t, g, "/?token=wonder").open()
	c.ack()
	c.cut()
	g.journal.next(t, "session detached")
	if err := newResumer(t, g, "/?token=wrong").tryOpen(); !websocket.IsCloseError(err, 3000) {
		t.Errorf("got %v", err)
	}
	c.mustBack()
}

// A return from another address takes a place there, and the log and the API name it.
func TestReturnFromAnotherAddress(t *testing.T) {
	o := newOperator(t, resuming(func(c *Config) {
		c.Limits.SessionsPerIP = 1
		c.ClientIP.TrustedProxies = []string{"127.0.0.0/8"}
	}))
	from := func(addr string) http.Header { return http.Header{"X-Forwarded-For": {addr}} }
	c := newResumer(t, o.gate, "/?token=wonder")
	c.header = from("192.0.2.1")
	c.open()
	c.ack()
	busy := newResumer(t, o.gate, "/?token=good")
	busy.header = from("192.0.2.2")
	busy.open()
	c.cut()
	c.header = from("192.0.2.2")
	if err := c.back(); !websocket.IsCloseError(err, 1013) {
		t.Errorf("got %v, want Close 1013: the address has no place", err)
	}
	c.header = from("192.0.2.3")
	c.mustBack()
	list := o.call("GET", "/api/sessions?address=192.0.2.3", "")
	if all, _ := list.json["sessions"].([]any); len(all) != 1 {
		t.Errorf("at the new address the API has %s", list.text)
	}
	again := newResumer(t, o.gate, "/?token=good") // the old place is free
	again.header = from("192.0.2.1")
	again.open()
}

func TestPushesWhileAway(t *testing.T) {
	o := newOperator(t, resuming(func(c *Config) { c.Session.History.Pushes, c.Session.History.Age = 100, time.Minute }))
	c := newResumer(t, o.gate, "/?token=wonder").open()
	start := c.welcome.Push
	c.ack()
	o.call("POST", "/api/messages?subject=Alice", "1", asText)
	c.want("1")
	c.ack()
	c.send("sync")
	c.want("sync")
	c.ack()
	c.cut()
	o.gate.journal.next(t, "session detached")
	if list := o.call("GET", "/api/sessions", ""); strings.Contains(list.text, `"detached":null`) {
		t.Errorf("the API has %s", list.text)
	}
	o.call("POST", "/api/messages?subject=Alice", "2", asText)
	o.call("POST", "/api/messages?subject=Alice", "3", asText)
	c.library = nil
	c.mustBack()
	if c.welcome.Push == start || !strings.HasSuffix(c.welcome.Push, "-1") {
		t.Errorf("it has %q, after %q", c.welcome.Push, start)
	}
	c.want("2", "3")
	c.send("sync")
	c.want("sync")
	ids := 0
	for _, m := range c.library {
		if strings.HasPrefix(m, `{"push":"`) {
			ids++
		}
	}
	if ids != 2 {
		t.Errorf("library messages %q", c.library)
	}
	o.want(400, `{"error":"a text message must not begin with U+0000 and \"portcullis \", as the gate's own do"}`, "POST", "/api/messages?all=true", "\x00portcullis {}", asText)
}

// Kick and drain end a session whose client is away, and one whose client is there.
func TestEndsOfDetachedSessions(t *testing.T) {
	t.Run("kick", func(t *testing.T) {
		o := newOperator(t, resuming())
		c := newResumer(t, o.gate, "/?token=wonder").open()
		c.ack()
		c.cut()
		c.target = "/"
		o.gate.journal.next(t, "session detached")
		o.call("DELETE", "/api/sessions?subject=Alice", "")
		if line := o.gate.journal.next(t, "session ended"); line["reason"] != "kicked" {
			t.Errorf("line %v", line)
		}
		wantClosed(t, c.back(), 3000, "session unknown")
	})
	t.Run("drain", func(t *testing.T) {
		g := newGate(t, newEcho(t), resuming())
		away, there := newResumer(t, g, "/?token=good").open(), newResumer(t, g, "/?token=good").open()
		away.ack()
		away.cut()
		g.journal.next(t, "session detached")
		drained := make(chan error)
		go func() { drained <- g.Drain(t.Context()) }()
		there.wantClose(1001, "going away")
		there.conn.Close()
		if err := <-drained; err != nil {
			t.Error(err)
		}
	})
	t.Run("expiry", func(t *testing.T) {
		g := newGate(t, newEcho(t), resuming(byJWT))
		c := newResumer(t, g, "/?token="+g.tokenUntil(t, "Alice", soon())).open()
		if c.welcome.Expires == nil {
			t.Error("the first message does not tell when the credential ends")
		}
		c.ack()
		c.cut()
		if line := g.journal.next(t, "session ended"); line["reason"] != "expired" {
			t.Errorf("line %v", line)
		}
	})
}

// RESUME_TOTAL: who has been away for longest ends first, and then who keeps most is resumable no more.
func TestResumeTotal(t *testing.T) {
	app := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, accepted(r)+"\r\n")
		message := append([]byte{0x82, 126, 0x10, 0}, make([]byte, 4<<10)...)
		for range 30 { // 120 KiB, which nobody acknowledges
			if _, err := conn.Write(message); err != nil {
				return
			}
		}
		io.Copy(io.Discard, conn)
	})
	g := newGate(t, app.url, resuming(func(c *Config) { c.Relay.ResumeTotal = 512 << 10 }))
	var all []*resumer
	for range 8 {
		c := newResumer(t, g, "/?token=good").open()
		c.noAnswer = true
		c.ack()
		c.cut()
		g.journal.next(t, "session detached")
		all = append(all, c)
	}
	for range 4 {
		if line := g.journal.next(t, "session ended"); line["reason"] != "detached_evicted" {
			t.Fatalf("line %v", line)
		}
	}
	all[0].target = "/"
	wantClosed(t, all[0].back(), 3000, "session unknown")
	last := all[len(all)-1]
	last.mustBack()
	for range 30 {
		last.next()
	}
	var attached []*resumer
	for range 10 {
		c := newResumer(t, g, "/?token=good").open()
		c.noAnswer = true
		attached = append(attached, c)
	}
	told := 0
	for _, c := range attached {
		for range 30 {
			if _, err := c.next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range attached {
		c.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		c.next()
		for _, m := range c.library {
			if m == `{"resumable":false}` {
				told++
			}
		}
	}
	if told == 0 {
		t.Error("nobody is told that its session is resumable no more")
	}
	if kept := g.metric(t, "portcullis_resume_kept_bytes", ""); kept > 512<<10 {
		t.Errorf("%v bytes are kept", kept)
	}
}

// The credential and the rates of an upgrade are none of a return's matters.
func TestReturnAsksNobody(t *testing.T) {
	e := newTeller(t, accepts("Alice", 0))
	app := newNumbered(t, true)
	g := newGate(t, app.url, resuming(func(c *Config) {
		c.Auth.URL = e.url
		c.Limits.UpgradesPerIP, c.Limits.UpgradesPerIPBurst = ratelimit.Rate{N: 1, Per: time.Hour}, 1
	}))
	c := newResumer(t, g, "/?token=wonder").open()
	for range 20 {
		c.cut()
		c.mustBack()
	}
	if n := len(e.asked); n != 1 {
		t.Errorf("the endpoint was asked %d times", n)
	}
	if n := app.conns.Load(); n != 1 {
		t.Errorf("the application saw %d connections", n)
	}
}
