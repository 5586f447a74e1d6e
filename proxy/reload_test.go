package proxy

import (
	"flag"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

var reloads = flag.Int("reloads", 40, "how often settings are reloaded under load; there are five times as many sessions")

// reload has g go by its settings as edit changes them.
func (g *testGate) reload(t *testing.T, edit func(*Config)) error {
	t.Helper()
	c := g.current.Load().config
	c.Routes = slices.Clone(c.Routes)
	edit(&c)
	return g.Reload(c)
}

func (g *testGate) mustReload(t *testing.T, edit func(*Config)) {
	t.Helper()
	if err := g.reload(t, edit); err != nil {
		t.Fatal(err)
	}
}

// What a reload changes holds for new requests; a live session keeps to what it began with.
func TestReload(t *testing.T) {
	first, second := newEcho(t), newEcho(t)
	g := newGate(t, first, func(c *Config) { c.Relay.MessageMaxBytes = 100 })
	conn := g.connect(t, "/?token=good", nil)
	g.mustReload(t, func(c *Config) {
		c.Upstream.URL = second
		c.Gate.Paths = []string{"/new/*"}
		c.Relay.MessageMaxBytes = 10
		c.Limits.Sessions = 2
		c.Origin.Origins = []string{"https://app.example"}
		c.Auth.Forward = []string{"sub:X-User"}
	})
	long := strings.Repeat("x", 50)
	echoes(t, conn, long)
	for request, want := range map[string]int{
		handshake("/?token=good"):                                     404,
		handshake("/new/?token=good", "Origin: https://evil.example"): 403,
		handshake("/new/?token=bad"):                                  401,
	} {
		if a := g.send(t, request); a.StatusCode != want {
			t.Errorf("%q: got %d, want %d", request, a.StatusCode, want)
		}
	}
	next := g.connect(t, "/new/1?token=good", nil)
	if a := g.send(t, handshake("/new/2?token=good")); a.StatusCode != 503 {
		t.Errorf("beyond the cap of all: got %d, want 503", a.StatusCode)
	}
	next.WriteMessage(websocket.TextMessage, []byte(long))
	if _, _, err := next.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseMessageTooBig) {
		t.Errorf("a message beyond the new limit: %v", err)
	}
	if got := "ws://" + g.journal.next(t, "session ended")["upstream"].(string); got != second {
		t.Errorf("the new session was with %s, want %s", got, second)
	}
	echoes(t, conn, long)
}

// A mistake changes nothing, and leaves nothing behind.
func TestReloadWithAMistake(t *testing.T) {
	g := newGate(t, newEcho(t), nil)
	before := g.current.Load()
	err := g.reload(t, func(c *Config) {
		c.Upstream.URL, c.Relay.Mode, c.Limits.Sessions = "ftp://x", "opaque", -1
		c.Auth.JWKSURL = "http://127.0.0.1:1/"
	})
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("got %v, want four lines", err)
	}
	if g.current.Load() != before {
		t.Error("the settings are others now")
	}
	echoes(t, g.connect(t, "/?token=good", nil), "x")
}

// A rate that is as it was goes on: to reload is no way to get tokens back.
func TestReloadKeepsRates(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) {
		c.Limits.UpgradesPerIP, c.Limits.UpgradesPerIPBurst = ratelimit.Rate{N: 1, Per: time.Hour}, 2
	})
	g.connect(t, "/?token=good", nil)
	g.connect(t, "/?token=good", nil)
	g.mustReload(t, func(c *Config) { c.Limits.Sessions = 100 })
	if a := g.send(t, handshake("/?token=good")); a.StatusCode != 429 {
		t.Errorf("got %d, want 429", a.StatusCode)
	}
	g.mustReload(t, func(c *Config) { c.Limits.UpgradesPerIPBurst = 3 })
	g.connect(t, "/?token=good", nil)
}

// A cap counts the sessions from before, as far as they were counted.
func TestReloadKeepsCounts(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) { c.Limits.SessionsPerIP = 5 })
	conns := []*websocket.Conn{g.connect(t, "/?token=good", nil), g.connect(t, "/?token=good", nil)}
	g.mustReload(t, func(c *Config) { c.Limits.SessionsPerIP, c.Limits.SessionsPerSubject = 2, 1 })
	if a := g.send(t, handshake("/?token=good")); a.StatusCode != 429 {
		t.Errorf("got %d, want 429", a.StatusCode)
	}
	for _, conn := range conns {
		conn.Close()
		g.journal.next(t, "session ended")
	}
	g.mustReload(t, func(c *Config) { c.Limits.SessionsPerIP = 0 })
	g.connect(t, "/?token=wonder", nil)
	if a := g.send(t, handshake("/?token=wonder")); a.StatusCode != 429 {
		t.Errorf("a cap by subject that is new: got %d, want 429", a.StatusCode)
	}
}

// The sessions of a target that is taken out end with what drain says, and none before; those of others, and of routes without drain,
// stay.
func TestTargetRemoved(t *testing.T) {
	gone, stays := newEcho(t), newEcho(t)
	g := newGate(t, "", routed(func(c *Config, routes map[string]*Route) {
		routes["CHAT"].Upstream.Drain = upstream.Drain{Code: 1012, Over: 300 * time.Millisecond}
	}, "CHAT=/chat "+gone+" "+stays, "NEWS=/news "+gone, "LEFT=/left "+gone))
	var conns []*websocket.Conn
	for range 10 {
		conns = append(conns, g.connect(t, "/chat?token=good", nil))
	}
	news := g.connect(t, "/news?token=good", nil)
	left := g.connect(t, "/left?token=good", nil)
	before := map[string]int{}
	for _, target := range g.current.Load().targets() {
		before[target.Name] = target.Live
	}
	g.mustReload(t, func(c *Config) {
		c.Routes[0].Upstream.URL = stays
		c.Routes[1].Upstream.URL = stays
		c.Routes = c.Routes[:2]
	})
	ended := 0
	var mu sync.Mutex
	var reading sync.WaitGroup
	for _, conn := range conns {
		reading.Go(func() {
			conn.SetReadDeadline(time.Now().Add(time.Second))
			_, _, err := conn.ReadMessage()
			if websocket.IsCloseError(err, websocket.CloseServiceRestart) {
				mu.Lock()
				ended++
				mu.Unlock()
			} else if !isTimeout(err) {
				t.Errorf("a session ended with %v", err)
			}
		})
	}
	reading.Wait()
	name := strings.TrimPrefix(gone, "ws://")
	if want := before[name] - 2; ended != want || want == 0 {
		t.Errorf("%d sessions were told to go, want %d", ended, want)
	}
	for range ended {
		if line := g.journal.next(t, "session ended"); line["reason"] != "target_removed" || line["code"] != 1012. || line["upstream"] != name {
			t.Errorf("logged as %v", line)
		}
	}
	echoes(t, news, "x")
	echoes(t, left, "x")
	for range 4 {
		_, target := g.visit(t, handshake("/chat?token=good"))
		if target == name {
			t.Error("a new session is with the target that was taken out")
		}
	}
	if a := g.send(t, handshake("/left?token=good")); a.StatusCode != 404 {
		t.Errorf("a route that is gone: got %d, want 404", a.StatusCode)
	}
}

// A target that is taken out while an upgrade is on its way to it ends that session, too.
func TestTargetRemovedMeanwhile(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	echo := echoHandler()
	slow := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-answer
		echo.ServeHTTP(w, r)
	}))
	g := newGate(t, slow, func(c *Config) { c.Upstream.Drain = upstream.Drain{Code: 1012} })
	opened := make(chan *websocket.Conn, 1)
	go func() {
		conn, _, err := g.tryConnect("/?token=good", nil)
		if err != nil {
			t.Error(err)
		}
		opened <- conn
	}()
	<-arrived
	g.mustReload(t, func(c *Config) { c.Upstream.URL = newEcho(t) })
	close(answer)
	conn := <-opened
	if conn == nil {
		return
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
		t.Errorf("got %v, want Close 1012", err)
	}
}

// Reloads under load: no session ends, no upgrade fails, memory does not grow.
func TestReloadUnderLoad(t *testing.T) {
	urls := []string{newEcho(t), newEcho(t), newEcho(t)}
	g := newGate(t, strings.Join(urls, " "), func(c *Config) { c.Limits = ratelimit.Config{AuthFailuresPerIP: c.Limits.AuthFailuresPerIP} })
	var conns []*websocket.Conn
	for range 5 * *reloads {
		conn := g.connect(t, "/?token=good", nil)
		conn.SetReadDeadline(time.Time{})
		conns = append(conns, conn)
	}
	var stop atomic.Bool
	var upgrades, failed atomic.Int64
	var running sync.WaitGroup
	running.Go(func() {
		for !stop.Load() {
			conn, _, err := g.tryConnect("/?token=wonder", nil)
			if err != nil {
				failed.Add(1)
				continue
			}
			upgrades.Add(1)
			conn.Close()
			time.Sleep(10 * time.Millisecond) // some 100 a second
		}
	})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	began, goroutines := heap(), runtime.NumGoroutine()
	for i := range *reloads {
		g.mustReload(t, func(c *Config) {
			c.Upstream.URL = strings.Join(urls[:1+i%3], " ")
			c.Relay.MessageMaxBytes = int64(1000 + i)
			c.Gate.Paths = []string{"/", fmt.Sprint("/", i)}
			c.Auth.Forward = []string{fmt.Sprint("sub:X-User-", i)} // another verifier each time
			c.Limits.Sessions = 10*len(conns) + i
		})
		echoes(t, conns[i%len(conns)], "x")
		for so, deadline := upgrades.Load(), time.Now().Add(patience); upgrades.Load() < so+2 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	stop.Store(true)
	running.Wait()
	ended, grown := heap(), runtime.NumGoroutine()
	t.Logf("%d reloads over %d sessions: %d upgrades meanwhile, %d of them failed; heap %d KiB before, %d KiB after; goroutines %d, %d",
		*reloads, len(conns), upgrades.Load(), failed.Load(), began>>10, ended>>10, goroutines, grown)
	if failed.Load() > 0 || upgrades.Load() == 0 {
		t.Errorf("%d upgrades failed, of %d", failed.Load(), upgrades.Load()+failed.Load())
	}
	for _, conn := range conns {
		echoes(t, conn, "x")
	}
	if ended > began+8<<20 {
		t.Errorf("the heap has grown from %d to %d KiB", began>>10, ended>>10)
	}
	if got := g.refused(t, refusal.Draining); got != 0 {
		t.Errorf("%v upgrades were told of a shutdown", got)
	}
}

// Another key verifies what comes from now on. A session that an old one opened lives until its token ends.
func TestReloadOfKeysAndGroups(t *testing.T) {
	g := newGate(t, newEcho(t), func(c *Config) {
		byJWT(c)
		c.API.AdminToken = "a-token-of-the-admin"
	})
	old := g.tokenUntil(t, "Alice", time.Now().Add(time.Hour))
	conn := g.connect(t, "/?token="+old, nil)
	g.mustReload(t, func(c *Config) {
		c.Auth.JWTSecret = strings.Repeat("n", 32)
		c.Session.Groups = []string{"query:room"}
	})
	if a := g.send(t, handshake("/?token="+old)); a.StatusCode != 401 {
		t.Errorf("a token by the old key: got %d, want 401", a.StatusCode)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "Bob", "exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(strings.Repeat("n", 32)))
	if err != nil {
		t.Fatal(err)
	}
	g.secrets.Token(token)
	g.connect(t, "/?room=lobby&token="+token, nil)
	page, _ := g.sessions.List(session.Filter{Group: "query:room:lobby"}, 10, 0)
	if len(page) != 1 || page[0].Subject != "Bob" {
		t.Errorf("in the group: %+v", page)
	}
	echoes(t, conn, "x")
}
