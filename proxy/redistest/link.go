package redistest

import (
	"net"
	"sync"
	"testing"
)

// Link is a way to a server on which bytes can be held back.
type Link struct {
	Addr     string // host:port
	to, from gate   // the server
}

// gate lets bytes pass, or not yet.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed: they pass; guarded by mu
}

// shut holds back what comes from now on, until open is called.
func (g *gate) shut() (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	held := make(chan struct{})
	g.open = held
	return sync.OnceFunc(func() {
		close(held)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.open == held {
			g.open = passing
		}
	})
}

// pass returns what is to be waited for by bytes that are here now.
func (g *gate) pass() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// reopen lets what comes from now on pass; what is held back stays so.
func (g *gate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = passing
}

var passing = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// NewLink makes a link to the server, until the end of the test.
func (s *Server) NewLink(t testing.TB) *Link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &Link{Addr: l.Addr().String(), to: gate{open: passing}, from: gate{open: passing}}
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", s.Addr)
			if err != nil {
				c.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, c, server)
			mu.Unlock()
			go carry(server, c, &k.to)
			go carry(c, server, &k.from)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
	})
	return k
}

func carry(to, from net.Conn, g *gate) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		<-g.pass()
		if _, wrong := to.Write(b[:n]); err != nil || wrong != nil {
			return
		}
	}
}

// URL is that of REDIS_URL.
func (k *Link) URL() string { return "redis://" + k.Addr }

// HoldCalls holds back what comes for the server from now on, until release is called. After reopen what comes then passes it.
func (k *Link) HoldCalls() (release, reopen func()) { return k.to.shut(), k.to.reopen }

// HoldAnswers is the same for what the server says.
func (k *Link) HoldAnswers() (release, reopen func()) { return k.from.shut(), k.from.reopen }
