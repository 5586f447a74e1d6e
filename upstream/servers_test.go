package upstream

import (
	"net"
	"testing"
	"time"
)

// Two upstreams that share servers count together, and one that takes another's place finds what is known of them.
func TestServersAreShared(t *testing.T) {
	shared := NewServers()
	url := "ws://" + startBackend(t, func(c net.Conn) {
		var lean leanBackend
		var request [2 << 10]byte
		if n, _ := c.Read(request[:]); n > 0 {
			c.Write(lean.answer(request[:n]))
			c.Read(request[:1]) // until it is closed
		}
	})
	dead := "ws://127.0.0.1:1"
	a := newUpstream(t, Config{URL: url, Servers: shared})
	b := newUpstream(t, Config{URL: url + " " + dead, Servers: shared})
	conn, err := a.Connect(t.Context(), browserRequest)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := b.Targets(); got[0].Live != 1 || got[1].Live != 0 {
		t.Errorf("beside it: %+v", got)
	}
	shared.mu.Lock()
	for _, e := range b.endpoints {
		e.down = true // as by its health checks
	}
	shared.mu.Unlock()
	next := newUpstream(t, Config{URL: url, Servers: shared})
	a.Close()
	b.Close()
	if got := next.Targets(); got[0].Live != 1 || got[0].Usable {
		t.Errorf("in its place: %+v", got)
	}
	if n := len(shared.all); n != 1 {
		t.Errorf("%d servers are known, want the one that somebody has", n)
	}
	next.Close()
	if n := len(shared.all); n != 1 {
		t.Errorf("%d servers are known, want the one with a session", n)
	}
	conn.Place.Release()
	if n := len(shared.all); n != 0 {
		t.Errorf("%d servers are known, want none", n)
	}
}

// A server that one route has ejected is the last of another, and still serves it.
func TestEjectedServerIsTheLastOfAnotherRoute(t *testing.T) {
	shared := NewServers()
	const first, second = "ws://192.0.2.1:1", "ws://192.0.2.2:1"
	both := newUpstream(t, Config{URL: first + " " + second, Servers: shared})
	one := newUpstream(t, Config{URL: first, Servers: shared})
	shared.mu.Lock()
	both.endpoints[0].until = time.Now().Add(time.Hour)
	shared.mu.Unlock()
	if e, _ := both.choose(&Request{}, nil); e.name != "192.0.2.2:1" {
		t.Errorf("chosen is %s, which is ejected", e.name)
	}
	if e, _ := one.choose(&Request{}, nil); e == nil {
		t.Error("a route is without a target since another has ejected its only one")
	}
	shared.mu.Lock()
	both.endpoints[0].down = true
	shared.mu.Unlock()
	if e, _ := one.choose(&Request{}, nil); e != nil {
		t.Error("a target that is down by its health checks is chosen")
	}
}

// Handshakes that are under way end in the bound in which they began.
func TestBoundOfHandshakesChanges(t *testing.T) {
	shared := NewServers()
	before := newUpstream(t, Config{URL: "ws://192.0.2.1:1", Servers: shared, MaxDials: 1})
	dials, err := before.endpoints[0].enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := newUpstream(t, Config{URL: "ws://192.0.2.1:1", Servers: shared, MaxDials: 2})
	for range 2 {
		if _, err := after.endpoints[0].enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	<-dials // which must not be one of the two
	if got := len(*after.endpoints[0].dials.Load()); got != 2 {
		t.Errorf("%d handshakes are counted, want 2", got)
	}
}
