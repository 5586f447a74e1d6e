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
			t.Skip("little but stream's engine")
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
		err = playRelay(args[1], args[2], orders)
	case "clients":
		var n int
		fmt.Sscan(args[2], &n)
		err = playClients(args[1], n)
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

func playRelay(engineName, backend string, orders <-chan string) error {
	var relay *Relay
	for _, e := range engines {
		if e.name == engineName {
			var err error
			if relay, err = New(e.config()); err != nil {
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
