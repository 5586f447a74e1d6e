package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis/proxy/frame"
)

// TestFleet opens a great many sessions, echoes over each, and drains them. Clients, relay and
// backend are processes of their own, as in life, and so that each has its own descriptors: the
// relay has two to a session. Afterwards it must have as many, and as many goroutines, as before.
func TestFleet(t *testing.T) {
	t.Parallel()
	sessions := 500
	if large {
		sessions = 9000
	}
	eachEngine(t, func(t *testing.T, e engine) {
		if e.tls || e.terminates() && !large {
			return // little but stream's engine
		}
		backend := startRole(t, "backend")
		relay := startRole(t, "relay", e.name, backend.says("listening"))
		clients := startRole(t, "clients", relay.says("listening"), fmt.Sprint(sessions))
		before := relay.says("idle")

		clients.says("echoed")
		relay.hears("report")
		if got, want := relay.says("live"), fmt.Sprint(sessions); got != want {
			t.Errorf("%s sessions are live, want %s", got, want)
		}
		relay.hears("drain")
		if got, want := clients.says("drained"), fmt.Sprint(sessions); got != want {
			t.Errorf("%s clients were drained as they should be, want %s", got, want)
		}
		if got, want := relay.says("ended"), fmt.Sprintf("%d drain", sessions); got != want {
			t.Errorf("ended: %s, want %s", got, want)
		}
		if after := relay.says("idle"); after != before {
			t.Errorf("the relay has %s, and had %s before", after, before)
		}
	})
}

const (
	pushBytes = 64 << 10
	// pushBuffer bounds what the kernel takes for a client that does not read, so that the rest is the relay's to keep.
	pushBuffer = 16 << 10
)

// TestBroadcastFleet pushes a large message to a great many sessions, of which some or all take nothing. Those that read get
// every push once and are kept waiting by nobody; those that do not are ended when their queue is full. What they do not take is
// kept once for all.
func TestBroadcastFleet(t *testing.T) {
	sessions, stalled := 400, 40
	if large {
		sessions, stalled = 8000, 500
	}
	for _, test := range []struct {
		name            string
		reading, pushes int
	}{
		{"some take nothing", sessions - stalled, 8},
		{"nobody takes anything", 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				if e.tls || e.terminates() {
					return // little but stream's engine
				}
				backend := startRole(t, "backend")
				relay := startRole(t, "relay", e.name, backend.says("listening"), soon.String())
				clients := startRole(t, "pushed", relay.says("listening"), fmt.Sprint(sessions, test.reading, test.pushes))
				relay.says("idle")
				clients.says("ready")
				for range test.pushes {
					relay.hears("push")
					var reached, tooSlow, megabytes int
					fmt.Sscan(relay.says("pushed"), &reached, &tooSlow, &megabytes)
					t.Logf("%d reached, %d too slow, %d MiB more in use", reached, tooSlow, megabytes)
					if reached < test.reading {
						t.Errorf("%d were reached, want at least the %d that read", reached, test.reading)
					}
					if most := 64; megabytes > most {
						t.Errorf("%d MiB are in use for one push of 64 KiB, want at most %d", megabytes, most)
					}
					if got, want := clients.says("got"), fmt.Sprint(test.reading); got != want {
						t.Fatalf("it came to %s, want %s", got, want)
					}
				}
				if test.pushes == 1 {
					return
				}
				var reasons string
				for range 600 { // the end of a session that is too slow waits for its Close frame, which is not taken
					relay.hears("report")
					live := relay.says("live")
					relay.hears("reasons")
					if reasons = relay.says("reasons"); live == fmt.Sprint(test.reading) {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				if want := fmt.Sprintf("map[too_slow:%d]", stalled); reasons != want {
					t.Errorf("ended: %s, want %s", reasons, want)
				}
			})
		})
	}
}

// nobody is a recipient that has missed nothing.
type nobody struct{ _ int }

func (*nobody) NextPush() *Push  { return nil }
func (*nobody) Markers() bool    { return false }
func (*nobody) PushDropped(Drop) {}

func heapInUse() int {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return int(s.HeapInuse + s.StackInuse)
}

// playPushed opens sessions, of which some read and count what is pushed to them; the others take nothing any more.
func playPushed(relay string, n, reading, pushes int) error {
	failed := make(chan error, n)
	peers := make([]*testPeer, n)
	opening := make(chan struct{}, 100)
	var open sync.WaitGroup
	for i := range n {
		opening <- struct{}{}
		open.Go(func() {
			p, err := openAndEcho(relay)
			<-opening
			if err != nil {
				failed <- err
				return
			}
			if i >= reading {
				p.conn.(*net.TCPConn).SetReadBuffer(pushBuffer)
			}
			peers[i] = p
		})
	}
	open.Wait()
	select {
	case err := <-failed:
		return err
	default:
		fmt.Println("ready")
	}
	for range pushes {
		var got atomic.Int64
		var all sync.WaitGroup
		for _, p := range peers[:reading] {
			all.Go(func() {
				f, err := p.read()
				if err != nil || f.Opcode != frame.Binary || string(f.payload) != string(pattern(0, pushBytes)) {
					fmt.Fprintf(os.Stderr, "reads %.100q, %v\n", f.name(), err)
					return
				}
				got.Add(1)
			})
		}
		all.Wait()
		fmt.Println("got", got.Load())
	}
	return nil
}

// roleVariable names the part that a process plays in TestFleet, and its arguments.
const roleVariable = "PORTCULLIS_TEST_ROLE"

// role is such a process. Parent and child talk in lines: the child says a
// word and what belongs to it, the parent gives orders.
type role struct {
	t     *testing.T
	name  string
	in    io.Writer
	lines chan string
}

func startRole(t *testing.T, name string, args ...string) *role {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(exe)
	child.Env = append(os.Environ(), roleVariable+"="+strings.Join(append([]string{name}, args...), " "))
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	r := &role{t: t, name: name, in: in, lines: make(chan string, 10)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(r.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		in.Close() // which ends it
		for range r.lines {
		}
		<-read
		if err := child.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	return r
}

// says waits for a word of the child and returns what comes with it.
func (r *role) says(word string) string {
	r.t.Helper()
	select {
	case line, ok := <-r.lines:
		got, rest, _ := strings.Cut(line, " ")
		if !ok || got != word {
			r.t.Fatalf("%s says %q, want %q", r.name, line, word)
		}
		return rest
	case <-time.After(10 * patience):
		r.t.Fatalf("%s says nothing, want %q", r.name, word)
	}
	return ""
}

func (r *role) hears(order string) {
	r.t.Helper()
	if _, err := fmt.Fprintln(r.in, order); err != nil {
		r.t.Fatal(err)
	}
}

// playRole is the child. It ends when the parent has nothing more to say.
func playRole(play string) (exit int) {
	args := strings.Fields(play)
	orders := make(chan string)
	go func() {
		defer close(orders)
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			orders <- s.Text()
		}
	}()
	var err error
	switch args[0] {
	case "backend":
		err = playBackend()
	case "relay":
		err = playRelay(args[1], args[2], args[3:], orders)
	case "clients":
		var n int
		fmt.Sscan(args[2], &n)
		err = playClients(args[1], n)
	case "pushed":
		var n, reading, pushes int
		fmt.Sscan(strings.Join(args[2:], " "), &n, &reading, &pushes)
		err = playPushed(args[1], n, reading, pushes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, args[0]+":", err)
		return 1
	}
	for range orders {
	}
	return 0
}

// leanPeer is a peer of which there may be thousands.
func leanPeer(role frame.Role, conn net.Conn) *testPeer {
	p := newPeer(nil, role, conn, nil)
	p.buf = make([]byte, 256)
	conn.SetDeadline(time.Now().Add(10 * patience))
	return p
}

func playBackend() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("listening", l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go leanPeer(frame.Server, c).echo()
		}
	}()
	return nil
}

func playRelay(engineName, backend string, closeTimeout []string, orders <-chan string) error {
	var relay *Relay
	for _, e := range engines {
		if e.name == engineName {
			var err error
			c := e.config()
			c.PushQueue = 256 << 10
			if len(closeTimeout) > 0 {
				c.CloseTimeout, _ = time.ParseDuration(closeTimeout[0])
			}
			if relay, err = New(c); err != nil {
				return err
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("listening", l.Addr())
	ours := goleak.IgnoreCurrent()
	idle := func() {
		for began := time.Now(); goleak.Find(ours) != nil && time.Since(began) < patience; { // waits for what is about to end
		}
		n, _ := descriptors()
		fmt.Println("idle", n, "descriptors and", runtime.NumGoroutine(), "goroutines")
	}

	var mu sync.Mutex
	ended := map[Reason]int{}
	accept := func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u, err := net.Dial("tcp", backend)
			if err != nil {
				c.Close()
				continue
			}
			c.(*net.TCPConn).SetWriteBuffer(pushBuffer)
			relay.Start(Handover{Client: c, Upstream: u, Ended: func(e End) {
				mu.Lock()
				defer mu.Unlock()
				ended[e.Reason]++
			}})
		}
	}
	idle()
	go accept()
	for order := range orders {
		switch order {
		case "push":
			before := heapInUse()
			all := relay.sessions()
			to := make([]Recipient, len(all))
			for i := range to {
				to[i] = new(nobody)
			}
			reach := relay.Push(NewPush(frame.Binary, "", pattern(0, pushBytes), nil), all, to)()
			fmt.Printf("pushed %d %d %d\n", reach.Reached, reach.TooSlow, max(heapInUse()-before, 0)>>20)
		case "reasons":
			mu.Lock()
			fmt.Println("reasons", ended)
			mu.Unlock()
		case "report":
			fmt.Println("live", relay.Len())
		case "drain":
			l.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
			defer cancel()
			relay.Drain(ctx, 200*time.Millisecond)
			if err := relay.Wait(ctx); err != nil {
				return err
			}
			mu.Lock()
			for reason, n := range ended {
				fmt.Println("ended", n, reason)
			}
			mu.Unlock()
			l, err = net.Listen("tcp", "127.0.0.1:0") // as before
			if err != nil {
				return err
			}
			idle()
		}
	}
	return nil
}

// playClients opens sessions, a hundred at a time, echoes over each, and then
// waits for all to be drained.
func playClients(relay string, n int) error {
	var echoed sync.WaitGroup
	var drainedWell atomic.Int64
	var drainedAll sync.WaitGroup
	failed := make(chan error, n)
	opening := make(chan struct{}, 100)
	for range n {
		opening <- struct{}{}
		echoed.Add(1)
		drainedAll.Go(func() {
			p, err := openAndEcho(relay)
			<-opening
			echoed.Done()
			if err != nil {
				failed <- err
				return
			}
			if name, err := p.answerClose(); err != nil || name != drained {
				failed <- fmt.Errorf("reads %q, %w", name, err)
				return
			}
			drainedWell.Add(1)
		})
	}
	echoed.Wait()
	select {
	case err := <-failed:
		return err
	default:
		fmt.Println("echoed", n)
	}
	drainedAll.Wait()
	fmt.Println("drained", drainedWell.Load())
	return nil
}

func openAndEcho(relay string) (*testPeer, error) {
	c, err := net.Dial("tcp", relay)
	if err != nil {
		return nil, err
	}
	p := leanPeer(frame.Client, c)
	if _, err := c.Write(p.wire(frame.Header{Fin: true, Opcode: frame.Text}, "hello")); err != nil {
		return nil, err
	}
	f, err := p.read()
	if err == nil && f.name() != "text hello" {
		err = fmt.Errorf("echoes %q", f.name())
	}
	return p, err
}
