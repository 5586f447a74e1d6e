package proxy

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Of TestResumeFaults there is a short form for every day; the full one is go test ./proxy -run TestResumeFaults -cuts 10000.
var cuts = flag.Int("cuts", 600, "connections that TestResumeFaults breaks, over all engines and streams")

// fault is what happens to a connection.
type fault struct {
	up, down int           // bytes of each direction that pass; -1: all
	how      faultKind     //
	after    time.Duration // when it happens at the latest
	twice    bool          // the first request is sent again, on a connection of its own, when the connection is over
}

type faultKind int

const (
	faultReset faultKind = iota // both ends see a reset
	faultFIN                    // both ends see the end of the other
	faultStall                  // neither end sees anything
	faultHalf                   // the client sees a reset and the gate sees nothing
	faultKinds
)

// faultProxy stands between a client and a gate.
type faultProxy struct {
	t       testing.TB
	l       net.Listener
	to      string
	plan    func() fault
	cut     atomic.Int64
	running sync.WaitGroup
	copies  chan string // what came back for requests that were sent twice
	stop    chan struct{}
}

func newFaultProxy(t testing.TB, to string, plan func() fault) *faultProxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &faultProxy{t: t, l: l, to: to, plan: plan, copies: make(chan string, 100_000), stop: make(chan struct{})}
	f.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.running.Go(func() { f.serve(conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(f.stop)
		f.running.Wait()
	})
	return f
}

func (f *faultProxy) serve(client *net.TCPConn) {
	defer client.Close()
	conn, err := net.Dial("tcp", f.to)
	if err != nil {
		f.t.Error(err)
		return
	}
	gate := conn.(*net.TCPConn)
	defer gate.Close()
	plan := f.plan()
	broken := make(chan struct{})
	var once sync.Once
	breakNow := func() { once.Do(func() { close(broken) }) }
	var request []byte
	pass := func(to, from *net.TCPConn, most int, seen *[]byte) {
		defer breakNow()
		buf := make([]byte, 4<<10)
		for passed := 0; most < 0 || passed < most; {
			room := len(buf)
			if most >= 0 {
				room = min(room, most-passed)
			}
			n, err := from.Read(buf[:room])
			if seen != nil && len(*seen) < 8<<10 {
				*seen = append(*seen, buf[:n]...)
			}
			if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
				return
			}
			passed += n
		}
	}
	var passing sync.WaitGroup
	passing.Go(func() { pass(gate, client, plan.up, &request) })
	passing.Go(func() { pass(client, gate, plan.down, nil) })
	select {
	case <-broken:
	case <-time.After(plan.after):
	case <-f.stop:
	}
	f.cut.Add(1)
	switch plan.how {
	case faultReset:
		client.SetLinger(0)
		gate.SetLinger(0)
	case faultHalf:
		client.SetLinger(0)
		client.Close()
		f.linger(gate)
	case faultStall:
		client.SetReadDeadline(time.Unix(1, 0)) // nothing passes any more
		gate.SetReadDeadline(time.Unix(1, 0))
		passing.Wait()
		f.linger(client)
	}
	client.Close()
	gate.Close()
	passing.Wait()
	if head, _, whole := strings.Cut(string(request), "\r\n\r\n"); plan.twice && whole && strings.Contains(head, resumeOffer+".") {
		f.copies <- f.again(head + "\r\n\r\n")
	}
}

// linger keeps a connection open, and quiet, until its end or for a while.
func (f *faultProxy) linger(conn *net.TCPConn) {
	conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	io.Copy(io.Discard, conn)
}

// again sends a request, late, and returns what comes back for it at once.
func (f *faultProxy) again(request string) string {
	conn, err := net.Dial("tcp", f.to)
	if err != nil {
		f.t.Error(err)
		return ""
	}
	defer conn.Close()
	io.WriteString(conn, request)
	conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// numbered is an application that counts: it takes "u0", "u1", ... and sends "d0", "d1", ... With echo there are three for each that
// came, and none else.
type numbered struct {
	url      string
	conns    atomic.Int64
	got      atomic.Int64
	wrong    atomic.Pointer[string]
	finished chan struct{} // closed: it sends no more
	sent     atomic.Int64
}

func newNumbered(t testing.TB, echo bool) *numbered {
	n := &numbered{finished: make(chan struct{})}
	upgrader := websocket.Upgrader{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		n.conns.Add(1)
		write := func() error {
			return conn.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, "d%d", n.sent.Add(1)-1))
		}
		if !echo {
			go func() {
				for {
					select {
					case <-n.finished:
						return
					case <-time.After(time.Millisecond):
						if write() != nil {
							return
						}
					}
				}
			}()
		}
		for {
			_, m, err := conn.ReadMessage()
			if err != nil {
				return
			}
			if want := fmt.Sprintf("u%d", n.got.Load()); string(m) != want {
				wrong := fmt.Sprintf("the application got %q, want %q", m, want)
				n.wrong.Store(&wrong)
				return
			}
			n.got.Add(1)
			for range 3 {
				if echo && write() != nil {
					return
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	n.url = "ws" + strings.TrimPrefix(s.URL, "http")
	return n
}

// patienceOfPilot is how long a client of the fault tests waits for anything. It stands for two beats, and for the ten seconds of
// an attempt.
const patienceOfPilot = 150 * time.Millisecond

// fly sends numbered messages and reads numbered messages, and comes back whenever the connection is lost, until enough is true and
// all has arrived.
func (c *resumer) fly(app *numbered, enough func() bool) {
	c.t.Helper()
	next, finishing := 0, false
	deadline := time.Now().Add(3 * time.Minute)
	for time.Now().Before(deadline) {
		for {
			if !finishing && enough() {
				finishing = true
				close(app.finished)
			}
			for !finishing && len(c.unacked) < 8 && c.sent == len(c.unacked) {
				c.send(fmt.Sprintf("u%d", next))
				next++
			}
			if wrong := app.wrong.Load(); wrong != nil {
				c.t.Fatal(*wrong)
			}
			if finishing && int(app.got.Load()) == next && c.count == uint64(app.sent.Load()) && len(c.unacked) == 0 {
				return
			}
			c.conn.SetReadDeadline(time.Now().Add(patienceOfPilot))
			m, err := c.next()
			if err != nil {
				if m != "" || strings.HasPrefix(err.Error(), "acknowledgement") {
					c.t.Fatal(err)
				}
				break
			}
			if want := fmt.Sprintf("d%d", c.count-1); m != want {
				c.t.Fatalf("the client got %q, want %q", m, want)
			}
			if c.count%4 == 0 {
				c.ack()
			}
		}
		c.comeBack()
	}
	c.t.Fatalf("not all has arrived: %d of %d up, %d of %d down, %d not acknowledged", app.got.Load(), next, c.count, app.sent.Load(), len(c.unacked))
}

// comeBack comes back, as often as it takes.
func (c *resumer) comeBack() {
	c.t.Helper()
	id := c.welcome.Session
	old := c.conn
	old.Close()
	stale := 0
	for tries := 0; ; tries++ {
		if tries == 200 {
			c.t.Fatal("it does not get back")
		}
		c.attempt++
		token, attempt := c.welcome.Resume, c.attempt
		kept := c.welcome
		err := c.tryBack()
		if err == nil {
			if !c.welcome.Resumed || c.welcome.Session != id {
				c.t.Fatalf("the session is lost: %+v", c.welcome)
			}
			return
		}
		c.welcome, c.attempt = kept, attempt
		if closed, ok := err.(*websocket.CloseError); ok {
			switch {
			case closed.Code == 1013 && closed.Text == "stale":
				if stale++; stale == 5 {
					c.t.Fatalf("stale five times in a row, with attempt %d of %s", attempt, token)
				}
				continue
			case closed.Code == 1006: // no Close frame
			default:
				c.t.Fatalf("the return is refused: %v", err)
			}
		} else if strings.Contains(err.Error(), "has received") {
			c.t.Fatal(err)
		}
		stale = 0
	}
}

// tryBack is one attempt.
func (c *resumer) tryBack() error {
	conn, _, err := c.dialWithin(patienceOfPilot, c.answer, c.offer())
	if err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(patienceOfPilot))
	c.conn = conn
	return c.first()
}

func TestResumeFaults(t *testing.T) {
	each := *cuts / 6
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		for _, echo := range []bool{false, true} {
			t.Run(map[bool]string{false: "numbered", true: "three for one"}[echo], func(t *testing.T) {
				t.Parallel()
				app := newNumbered(t, echo)
				g := newGate(t, app.url, resuming(edit, func(c *Config) {
					c.Relay.Resume = 20 * time.Second
					c.Relay.ResumeBuffer, c.Relay.MessageMaxBytes, c.API.PushMaxBytes = 2<<10, 1<<10, 2<<10
				}))
				var planned atomic.Int64
				proxy := newFaultProxy(t, g.addr, func() fault {
					n := int(planned.Add(1)) - 1
					if n == 0 || n > each { // the first message of all, or a session would begin anew
						return fault{up: -1, down: -1, after: time.Hour, how: faultFIN}
					}
					plan := fault{up: -1, down: -1, after: 100 * time.Millisecond, twice: secure == nil && n%7 == 0}
					plan.how = faultKind(n % int(faultKinds))
					if plan.how == faultStall && n%3 > 0 {
						plan.how = faultReset // a stall takes time
					}
					span := 1700 // through requests, headers, frames
					if secure != nil {
						span = 5000 // and the handshake before them
					}
					at := n*13%span + rand.IntN(13)
					if n/2%2 == 0 {
						plan.up = at
					} else {
						plan.down = at
					}
					return plan
				})
				c := newResumer(t, g, "/?token=good")
				c.addr, c.secure = proxy.l.Addr().String(), secure
				c.open()
				c.ack()
				first := c.conn.NetConn() // no fault is planned for it
				time.AfterFunc(10*time.Millisecond, func() { first.Close() })
				c.fly(app, func() bool { return proxy.cut.Load() >= int64(each) })
				if n := app.conns.Load(); n != 1 {
					t.Errorf("the application saw %d connections", n)
				}
				t.Logf("%d connections were broken, %d messages went up and %d down", proxy.cut.Load(), app.got.Load(), c.count)
				for len(proxy.copies) > 0 {
					if answer := <-proxy.copies; strings.Contains(answer, `"resumed":true`) && !strings.Contains(answer, "stale") {
						t.Logf("a copy came before the request itself")
					}
				}
			})
		}
	})
}
