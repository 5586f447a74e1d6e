package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// newCrowdedGate returns a gate in which no more connections may wait than so many.
func newCrowdedGate(t *testing.T, most int) *gate {
	t.Helper()
	g := newGate(t, newEcho(t), nil)
	g.waiting.mu.Lock()
	defer g.waiting.mu.Unlock()
	g.waiting.most = most
	return g
}

// Silent connections beyond the bound make room for others, the oldest first, and keep nobody from a session.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	const most, more = 5, 3
	g := newCrowdedGate(t, most)
	var silent []net.Conn
	for i := range most + more {
		c := g.dial(t)
		silent = append(silent, c)
		g.awaitWaiting(t, min(i+1, most))
	}
	for i, c := range silent {
		if i >= more {
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		}
		if _, err := c.Read(make([]byte, 1)); (err == io.EOF) != (i < more) {
			t.Errorf("connection %d of %d: %v", i+1, most+more, err)
		}
	}
	if line := g.journal.next(t, "too many connections that ask nothing: the oldest are closed"); line["most"] != float64(most) {
		t.Errorf("line: %v", line)
	}
	for range most + more {
		echoes(t, g.connect(t, "/?token=good", nil), "Olá")
	}
	g.awaitWaiting(t, most-1) // the last to be let in found room
	for _, c := range silent {
		c.Close()
	}
	g.awaitWaiting(t, 0)
}

// A session's connection, and one that was refused, wait for nothing any more.
func TestRequestEndsTheWait(t *testing.T) {
	g := newGate(t, newEcho(t), nil)
	client := g.connect(t, "/?token=good", nil)
	g.awaitWaiting(t, 0)
	echoes(t, client, "Olá")

	c := g.dial(t)
	g.awaitWaiting(t, 1)
	io.WriteString(c, request("GET / HTTP/1.1", "Host: a"))
	io.Copy(io.Discard, c)
	g.awaitWaiting(t, 0)

	c = g.dial(t)
	g.awaitWaiting(t, 1)
	c.Close()
	g.awaitWaiting(t, 0)
}

func (g *gate) awaitWaiting(t *testing.T, want int) {
	t.Helper()
	n := -1
	for range 5000 {
		g.waiting.mu.Lock()
		n = g.waiting.conns.Len()
		g.waiting.mu.Unlock()
		if n == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%d connections wait, want %d", n, want)
}

// A request with a body that does not come is answered at once, and lingers: so do many of them, within the bound.
func TestRefusedConnectionsMakeRoom(t *testing.T) {
	const most, more = 5, 3
	g := newCrowdedGate(t, most)
	for range most + more {
		a := g.send(t, request("POST /x HTTP/1.1", "Host: a", "Content-Length: 5"))
		if a.StatusCode != 404 && a.StatusCode != 405 {
			t.Fatalf("status %d", a.StatusCode)
		}
	}
	g.awaitWaiting(t, most)
	g.awaitWaiting(t, 0) // net/http lingers for a second and a half
}

// A connection is evicted or its request is answered, never both.
func TestEvictedConnectionIsNotAnswered(t *testing.T) {
	g := newCrowdedGate(t, 1)
	request := func() (*markedConn, *http.Request) {
		m := g.waiting.add(g.dial(t).(*net.TCPConn))
		return m, (&http.Request{}).WithContext(g.server.ConnContext(t.Context(), m))
	}
	first, late := request()
	_, next := request() // for which the first makes room
	if _, err := first.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the oldest is open: %v", err)
	}
	if reached(late) {
		t.Error("the request of an evicted connection goes on")
	}
	if !reached(next) {
		t.Error("the request of another does not")
	}
	if _, third := request(); !reached(third) {
		t.Error("a request that is being answered was taken for one that waits")
	}
}
