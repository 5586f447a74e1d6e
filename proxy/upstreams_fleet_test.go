package proxy

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/dnstest"
	"portcullis/proxy/faulttest"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

// instance is one of several of an application. It echoes, and can be killed and started again at its address.
type instance struct {
	address string
	server  *http.Server
	serving sync.WaitGroup

	mu      sync.Mutex // guards what follows
	refuses bool
	sockets map[*websocket.Conn]bool
}

func newInstance(t *testing.T, address string) *instance {
	t.Helper()
	b := &instance{address: address, sockets: make(map[*websocket.Conn]bool)}
	b.start(t)
	t.Cleanup(b.kill)
	return b
}

func (b *instance) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", b.address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: b}
	b.address, b.server = l.Addr().String(), server
	b.serving.Go(func() { server.Serve(l) })
}

// kill ends it as the end of a process does.
func (b *instance) kill() {
	b.server.Close()
	b.mu.Lock()
	for conn := range b.sockets {
		conn.Close()
	}
	b.mu.Unlock()
	b.serving.Wait()
}

// refuse has it answer 503, or not any more.
func (b *instance) refuse(yes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuses = yes
}

func (b *instance) sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sockets)
}

func (b *instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	refuses := b.refuses
	b.mu.Unlock()
	if refuses {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	b.mu.Lock()
	b.sockets[conn] = true
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.sockets, conn)
	}()
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil || conn.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// fleetGate is a gate before several instances, without limits.
func fleetGate(t *testing.T, urls string, edit func(*Config)) *testGate {
	t.Helper()
	return newGate(t, urls, func(c *Config) {
		c.Auth.Mode, c.Auth.URL = "none", ""
		c.Limits = ratelimit.Config{}
		c.Upstream.SlowStart = time.Millisecond
		edit(c)
	})
}

// come has n clients come, all at once or one after the other, and returns how many got which status.
func (g *testGate) come(t *testing.T, n int, atOnce bool) map[int]int {
	t.Helper()
	var mu sync.Mutex // guards statuses
	statuses := make(map[int]int)
	var coming sync.WaitGroup
	for range n {
		knock := func() {
			conn, resp, err := g.tryConnect("/", nil)
			if err == nil {
				t.Cleanup(func() { conn.Close() })
			} else if resp == nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			statuses[resp.StatusCode]++
		}
		if atOnce {
			coming.Go(knock)
		} else {
			knock()
		}
	}
	coming.Wait()
	return statuses
}

// wantLive waits for the targets to have so many sessions.
func (g *testGate) wantLive(t *testing.T, want ...int) {
	t.Helper()
	for deadline := time.Now().Add(long); ; time.Sleep(5 * time.Millisecond) {
		var got []int
		for _, s := range g.targets() {
			got = append(got, s.Live)
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sessions of each: %v, want %v", got, want)
		}
	}
}

// usedAgain has clients come until a target has a session more.
func (g *testGate) usedAgain(t *testing.T, target int) {
	t.Helper()
	before := g.targets()[target].Live
	for deadline := time.Now().Add(long); g.targets()[target].Live <= before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("target %d gets no session any more: %+v", target, g.targets())
		}
		g.come(t, 1, false)
	}
}

// Of three instances one is killed. Its sessions end, the others' do not, and everybody who comes is served by these, evenly. When it is
// back it is used again.
func TestInstanceKilled(t *testing.T) {
	var all []*instance
	var urls []string
	for range 3 {
		b := newInstance(t, "127.0.0.1:0")
		all, urls = append(all, b), append(urls, "ws://"+b.address)
	}
	g := fleetGate(t, strings.Join(urls, " "), func(*Config) {})
	if got := g.come(t, 30, true); got[101] != 30 {
		t.Fatalf("all are well: statuses %v", got)
	}
	g.wantLive(t, 10, 10, 10)
	all[1].kill()
	g.wantLive(t, 10, 0, 10)
	for range 10 {
		if line := g.journal.next(t, "session ended"); line["reason"] != "upstream_gone" || line["upstream"] != all[1].address {
			t.Errorf("it ends: %v", line)
		}
	}
	if got := g.come(t, 40, true); got[101] != 40 {
		t.Errorf("one is killed: statuses %v, want every client served", got)
	}
	g.wantLive(t, 30, 0, 30)
	all[1].start(t)
	g.usedAgain(t, 1)
	if got := g.come(t, 59, false); got[101] != 59 {
		t.Errorf("it is back: statuses %v", got)
	}
	if s := g.targets(); s[1].Live < 30 || !s[1].Usable {
		t.Errorf("it is back: %+v", s)
	}
}

// Of three instances one stalls, or refuses: a client that it was asked for is lost, for it may have begun with that. After three of them it
// is left alone, and costs one more each time that it is found out whether it is well. All others are served.
func TestInstanceStallsOrRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		begin  func(*instance, *faulttest.Proxy)
		end    func(*instance, *faulttest.Proxy)
	}{
		{"stalls", 504,
			func(_ *instance, network *faulttest.Proxy) { network.Begin((*faulttest.Link).Stall) },
			func(_ *instance, network *faulttest.Proxy) { network.Begin(nil) }},
		{"refuses", 503,
			func(b *instance, _ *faulttest.Proxy) { b.refuse(true) },
			func(b *instance, _ *faulttest.Proxy) { b.refuse(false) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var urls []string
			var ill *instance
			var network *faulttest.Proxy
			for i := range 3 {
				b := newInstance(t, "127.0.0.1:0")
				address := b.address
				if i == 1 {
					ill, network = b, faulttest.New(t, address)
					address = network.Addr
				}
				urls = append(urls, "ws://"+address)
			}
			g := fleetGate(t, strings.Join(urls, " "), func(c *Config) { c.Upstream.HandshakeTimeout = 2 * time.Second })
			g.come(t, 6, true)
			g.wantLive(t, 2, 2, 2)
			tt.begin(ill, network)
			got := g.come(t, 60, false)
			tries := g.journal.count("a target of the upstream is left alone")
			if lost := got[tt.status]; tries == 0 || lost > 3+tries || got[101] != 60-lost {
				t.Errorf("statuses %v, and it was left alone %d times", got, tries)
			}
			s := g.targets()
			if s[1].Live != 2 || s[0].Live+s[2].Live != 4+got[101] || max(s[0].Live, s[2].Live)-min(s[0].Live, s[2].Live) > 1 {
				t.Errorf("sessions: %+v", s)
			}
			tt.end(ill, network)
			g.usedAgain(t, 1)
		})
	}
}

// One instance comes to the name and one leaves it: the new one gets sessions, and the other keeps those that it has, and gets none.
func TestInstancesByName(t *testing.T) {
	first := newInstance(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(first.address)
	for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
		newInstance(t, net.JoinHostPort(ip, port))
	}
	zone := dnstest.Start(t, "127.0.0.1", "127.0.0.2")
	g := fleetGate(t, "ws://app.test:"+port, func(c *Config) {
		c.Upstream.Resolver, c.Upstream.DNSRefresh = zone.Resolver(), 20*time.Millisecond
	})
	g.wantLive(t, 0, 0)
	var old []*websocket.Conn
	for range 10 {
		old = append(old, g.connect(t, "/", nil))
	}
	g.wantLive(t, 5, 5)
	zone.Set("127.0.0.2", "127.0.0.3")
	g.wantLive(t, 5, 0) // 127.0.0.2 and 127.0.0.3
	if got := g.come(t, 15, false); got[101] != 15 {
		t.Errorf("statuses %v", got)
	}
	g.wantLive(t, 10, 10)
	if n := first.sessions(); n != 5 {
		t.Errorf("the one that has left has %d sessions, want the 5 that it had", n)
	}
	for _, conn := range old {
		conn.SetReadDeadline(time.Now().Add(long))
		echoes(t, conn, "as before")
	}
}

// targets are those of the only route.
func (g *testGate) targets() []upstream.TargetState {
	return g.current.Load().routes[0].Upstream.Targets()
}
