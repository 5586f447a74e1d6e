package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/upstream"
)

// Of TestBalance there is a short form for every day; the full one is go test . -run TestBalance -balance 5000 -v.
var balanceSessions = flag.Int("balance", 300, "sessions that TestBalance opens")

const (
	balanceTargets = 5
	// away is how long the target is away that is restarted, and returning over how long its clients come back.
	away      = 500 * time.Millisecond
	returning = 2 * time.Second
	slowStart = time.Second
)

// member is one of the targets. It tells each client which one it is, and then says no more.
type member struct {
	index   byte
	address string
	serving sync.WaitGroup

	mu    sync.Mutex // guards what follows
	l     net.Listener
	conns map[net.Conn]bool
	live  int // sessions
	ended int // sessions that ended while it was there
	dead  bool
}

func (m *member) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", m.address)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.address, m.l, m.dead, m.conns = l.Addr().String(), l, false, make(map[net.Conn]bool)
	m.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			m.serving.Go(func() { m.serve(conn) })
		}
	})
}

// kill ends it with all its sessions.
func (m *member) kill() {
	m.mu.Lock()
	m.dead = true
	m.l.Close()
	for conn := range m.conns {
		conn.Close()
	}
	m.mu.Unlock()
	m.serving.Wait()
}

func (m *member) serve(conn net.Conn) {
	defer conn.Close()
	m.mu.Lock()
	if m.dead {
		m.mu.Unlock()
		return
	}
	m.conns[conn] = true
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.conns, conn)
	}()
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return // a check
	}
	if r.Header.Get("Upgrade") == "" {
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return
	}
	m.mu.Lock()
	m.live++
	m.mu.Unlock()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+
		upstream.Accept(r.Header.Get("Sec-WebSocket-Key"))+"\r\n\r\n\x81\x01"+string('0'+m.index))
	io.Copy(io.Discard, conn)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live--
	if !m.dead {
		m.ended++
	}
}

// group is the targets, what stands before them, and the clients.
type group struct {
	t       *testing.T
	front   string // host:port of what balances
	members [balanceTargets]*member
	clients map[int]*follower // by user
}

// follower is a client that knows its target.
type follower struct {
	net.Conn
	target int
}

func newGroup(t *testing.T) (g *group, addresses []string) {
	t.Helper()
	g = &group{t: t, clients: make(map[int]*follower)}
	for i := range g.members {
		g.members[i] = &member{index: byte(i), address: "127.0.0.1:0"}
		g.members[i].start(t)
		addresses = append(addresses, g.members[i].address)
	}
	t.Cleanup(func() {
		for _, c := range g.clients {
			c.Close()
		}
		for _, m := range g.members {
			m.kill()
		}
	})
	return g, addresses
}

// knock opens a session for a user, who comes again when told to. Nil: it cannot be opened.
func (g *group) knock(user int) *follower {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(rand.N(time.Second)) {
		conn, err := net.Dial("tcp", g.front)
		if err != nil {
			g.t.Error(err)
			return nil
		}
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "GET /?user=%d HTTP/1.1\r\nHost: gate.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", user)
		r := bufio.NewReaderSize(conn, 512)
		resp, err := http.ReadResponse(r, nil)
		if err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
			var hello [3]byte
			if _, err = io.ReadFull(r, hello[:]); err == nil {
				conn.SetDeadline(time.Time{})
				return &follower{conn, int(hello[2] - '0')}
			}
		}
		conn.Close() // the target may just have been killed
	}
	g.t.Errorf("user %d is never served", user)
	return nil
}

// come has users come, a few at once and over that time.
func (g *group) come(users []int, over time.Duration) {
	g.t.Helper()
	var mu sync.Mutex // guards g.clients
	var coming sync.WaitGroup
	places := make(chan struct{}, 50)
	began := time.Now()
	for i, user := range users {
		time.Sleep(time.Until(began.Add(over * time.Duration(i) / time.Duration(len(users)))))
		places <- struct{}{}
		coming.Go(func() {
			defer func() { <-places }()
			if c := g.knock(user); c != nil {
				mu.Lock()
				defer mu.Unlock()
				g.clients[user] = c
			}
		})
	}
	coming.Wait()
}

// restart kills a target and starts it again, and has its clients come back. It returns who they are, and fails the test where anybody else
// lost a session.
func (g *group) restart(target int) (moved []int) {
	g.t.Helper()
	for _, user := range slices.Sorted(maps.Keys(g.clients)) {
		if g.clients[user].target == target {
			moved = append(moved, user)
		}
	}
	g.members[target].kill()
	for _, user := range moved {
		c := g.clients[user]
		c.SetReadDeadline(time.Now().Add(patience))
		io.Copy(io.Discard, c) // whatever it is told
		c.Close()
	}
	started := make(chan struct{})
	go func() {
		defer close(started)
		time.Sleep(away)
		g.members[target].start(g.t)
	}()
	g.come(moved, returning)
	<-started
	for i, m := range g.members {
		m.mu.Lock()
		if m.ended != 0 {
			g.t.Errorf("target %d, which was there all the time, lost %d sessions", i, m.ended)
		}
		m.mu.Unlock()
	}
	return moved
}

// spread is how many clients each target has, and how far the most are from the fewest.
func (g *group) spread(but ...int) (counts [balanceTargets]int, most int) {
	for _, c := range g.clients {
		counts[c.target]++
	}
	var some []int
	for i, n := range counts {
		if !slices.Contains(but, i) {
			some = append(some, n)
		}
	}
	return counts, slices.Max(some) - slices.Min(some)
}

func numbers(from, to int) (all []int) {
	for i := from; i < to; i++ {
		all = append(all, i)
	}
	return all
}

// least opens the sessions, restarts a target, and opens as many again as have the other targets be no more than all. It returns how far
// apart the targets are after each.
func (g *group) least(name string, upAgain func(target int)) (opened, restarted, filled int) {
	g.t.Helper()
	n := *balanceSessions
	g.come(numbers(0, n), 0)
	counts, opened := g.spread()
	g.t.Logf("%s: %d sessions: %v", name, n, counts)
	moved := g.restart(2)
	counts, restarted = g.spread(2)
	g.t.Logf("%s: target 2 restarted, its %d sessions are back: %v", name, len(moved), counts)
	upAgain(2)
	time.Sleep(slowStart) // which is over then
	g.come(numbers(n, n+n/4), 0)
	counts, filled = g.spread()
	g.t.Logf("%s: %d more: %v", name, n/4, counts)
	return opened, restarted, filled
}

// gateBefore starts the program before the targets.
func (g *group) gateBefore(addresses []string, balance string) *process {
	p := startProgram(g.t, "UPSTREAM_URL=ws://"+strings.Join(addresses, " ws://"), "UPSTREAM_BALANCE="+balance, "UPSTREAM_SLOW_START="+slowStart.String(),
		"UPSTREAM_HEALTH_PATH=/health", "UPSTREAM_HEALTH_INTERVAL=200ms", "UPSTREAM_HEALTH_TIMEOUT=20s", "UPSTREAM_HEALTH_FAILURES=2", "UPSTREAM_HEALTH_PASSES=1",
		"AUTH_MODE=none", "PING_INTERVAL=0s", "LOG_LEVEL=info")
	g.front = p.front
	return p
}

// usable waits for a target to be used again.
func (g *group) usable(p *process) func(target int) {
	return func(target int) {
		g.t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			_, body := ask(g.t, "GET", "http://"+p.admin+"/metrics")
			for line := range strings.Lines(body) {
				if strings.HasPrefix(line, "portcullis_upstream_usable{") && strings.Contains(line, g.members[target].address) && strings.HasSuffix(line, " 1\n") {
					return
				}
			}
			if time.Now().After(deadline) {
				g.t.Fatal("the target is not used again")
			}
		}
	}
}

// Over five targets of which one is restarted: with least all have as many sessions, and soon so again; with hash nobody moves who need not,
// and all come back. HAProxy does the same with leastconn, for comparison.
func TestBalance(t *testing.T) {
	t.Run("least", func(t *testing.T) {
		g, addresses := newGroup(t)
		p := g.gateBefore(addresses, "least")
		opened, restarted, filled := g.least("least", g.usable(p))
		if most := 2; opened > most || restarted > most || filled > most {
			t.Errorf("the targets are %d, %d and %d sessions apart, want %d at most", opened, restarted, filled, most)
		}
	})
	t.Run("hash", func(t *testing.T) {
		g, addresses := newGroup(t)
		p := g.gateBefore(addresses, "hash:query:user")
		n := *balanceSessions
		g.come(numbers(0, n), 0)
		counts, _ := g.spread()
		first := make(map[int]int)
		for user, c := range g.clients {
			first[user] = c.target
		}
		t.Logf("hash: %d sessions: %v", n, counts)
		returned := g.restart(2)
		counts, _ = g.spread()
		elsewhere := 0
		for _, user := range returned {
			if g.clients[user].target != 2 {
				elsewhere++
			}
		}
		t.Logf("hash: target 2 restarted, its %d sessions are back, %d of them elsewhere: %v; of the others none moved", len(returned), elsewhere, counts)
		g.usable(p)(2)
		for _, c := range g.clients {
			c.Close()
		}
		g.clients = make(map[int]*follower)
		g.come(numbers(0, n), 0)
		moved := 0
		for user, c := range g.clients {
			if c.target != first[user] {
				moved++
			}
		}
		t.Logf("hash: all come again: %d of %d are elsewhere than at first", moved, n)
		if moved != 0 {
			t.Errorf("%d of %d users are elsewhere, though their targets are there", moved, n)
		}
	})
	t.Run("haproxy", func(t *testing.T) {
		path, err := exec.LookPath("haproxy")
		if err != nil {
			t.Skip("there is no HAProxy to compare with")
		}
		g, addresses := newGroup(t)
		g.haproxyBefore(path, addresses)
		g.least("haproxy", func(int) { time.Sleep(slowStart) }) // its checks have long found it
	})
}

// haproxyBefore starts HAProxy before the targets, with leastconn and checks as often as the gate's.
func (g *group) haproxyBefore(path string, addresses []string) {
	t := g.t
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var config strings.Builder
	fmt.Fprintf(&config, "global\n\tmaxconn %d\ndefaults\n\tmode http\n\ttimeout connect 5s\n\ttimeout client 60s\n\ttimeout server 60s\n\ttimeout tunnel 1h\n"+
		"\tretries 3\n\toption redispatch 1\nfrontend front\n\tbind fd@3\n\tdefault_backend back\nbackend back\n\tbalance leastconn\n"+
		"\tdefault-server check inter 200ms fall 2 rise 1 slowstart %dms\n", *balanceSessions*5/4+500, slowStart.Milliseconds())
	for i, address := range addresses {
		fmt.Fprintf(&config, "\tserver t%d %s\n", i, address)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-db", "-q", "-f", file)
	cmd.ExtraFiles = []*os.File{socket}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.front = l.Addr().String()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("haproxy: %s", &said)
		}
	})
}
