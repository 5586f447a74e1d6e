package upstream

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/proxy/dnstest"
)

// app is a backend that accepts every handshake.
type app struct {
	net.Listener
	conns   sync.WaitGroup
	sick    atomic.Bool  // closes every connection at once
	pause   atomic.Int64 // before it answers, in ns
	at      atomic.Int64 // handshakes at once
	most    atomic.Int64 // there ever were
	checked atomic.Int64 // health checks
	status  atomic.Int64 // of them
}

func newApp(t testing.TB, network, address string) *app {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{Listener: l}
	a.status.Store(200)
	a.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.conns.Go(func() { a.serve(c) })
		}
	})
	t.Cleanup(func() { // before the connections of its clients are closed
		l.Close()
	})
	return a
}

func (a *app) serve(c net.Conn) {
	defer c.Close()
	if a.sick.Load() {
		return
	}
	now := a.at.Add(1)
	for most := a.most.Load(); now > most && !a.most.CompareAndSwap(most, now); most = a.most.Load() {
	}
	r, err := http.ReadRequest(bufio.NewReader(c))
	time.Sleep(time.Duration(a.pause.Load()))
	a.at.Add(-1)
	switch {
	case err != nil:
	case r.URL.Path == "/health":
		a.checked.Add(1)
		fmt.Fprintf(c, "HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n", a.status.Load())
	default:
		io.WriteString(c, switching("")(r.Header.Get("Sec-WebSocket-Key")))
		io.Copy(io.Discard, c)
	}
}

func (a *app) url() string { return "ws://" + a.Addr().String() }

// newApps starts some, and returns the URLs of all.
func newApps(t testing.TB, n int) (all []*app, urls string) {
	t.Helper()
	var list []string
	for range n {
		a := newApp(t, "tcp", "127.0.0.1:0")
		all = append(all, a)
		list = append(list, a.url())
	}
	return all, strings.Join(list, " ")
}

func balance(t testing.TB, text string) (b Balance) {
	t.Helper()
	if err := b.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return b
}

// open is connect for somebody, until the end of the test.
func open(t testing.TB, u *Upstream, req Request) *Conn {
	t.Helper()
	c, err := u.Connect(t.Context(), &req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func live(u *Upstream) map[string]int {
	all := make(map[string]int)
	for _, s := range u.Targets() {
		all[s.Name] = s.Live
	}
	return all
}

func TestLeast(t *testing.T) {
	apps, urls := newApps(t, 5)
	u := newUpstream(t, Config{URL: urls, SlowStart: time.Hour})
	var conns []*Conn
	for range 500 {
		conns = append(conns, open(t, u, Request{}))
	}
	for name, n := range live(u) {
		if n != 100 {
			t.Errorf("%s has %d of 500", name, n)
		}
	}
	// One loses its sessions and comes up again: it does not get everybody who comes now.
	restarted := apps[2].Addr().String()
	for _, c := range conns {
		if c.Target == restarted {
			c.Place.Release()
			c.Place.Release()
		}
	}
	u.servers.mu.Lock()
	for _, e := range u.endpoints {
		if e.name == restarted {
			e.until = time.Now().Add(-1)
		}
	}
	u.servers.mu.Unlock()
	for range 100 {
		open(t, u, Request{})
	}
	if n := live(u)[restarted]; n < 5 || n > 20 {
		t.Errorf("the one that has come up has %d, want a tenth of what the others have", n)
	}
}

// A key has one target; where that is gone only its keys move.
func TestHash(t *testing.T) {
	_, urls := newApps(t, 5)
	four, _, _ := strings.Cut(urls, " ")
	four = strings.TrimSpace(strings.TrimPrefix(urls, four))
	all, some := newUpstream(t, Config{URL: urls, Balance: balance(t, "hash:subject")}), newUpstream(t, Config{URL: four, Balance: balance(t, "hash:subject")})
	const keys = 5000
	moved, of := 0, make(map[string]int)
	for i := range keys {
		req := &Request{Key: fmt.Sprint("user", i)}
		a, _ := all.choose(req, nil)
		b, _ := some.choose(req, nil)
		again, _ := all.choose(req, nil)
		if of[a.name]++; a.name != b.name {
			moved++
			if strings.Contains(four, a.name) {
				t.Fatalf("key %d moved from %s to %s, though that is there", i, a.name, b.name)
			}
		}
		if again != a {
			t.Fatalf("key %d has two targets", i)
		}
	}
	if moved != of[strings.TrimPrefix(strings.Fields(urls)[0], "ws://")] {
		t.Errorf("%d moved", moved)
	}
	for name, n := range of {
		if n < keys/5*8/10 || n > keys/5*12/10 {
			t.Errorf("%s has %d of %d keys", name, n, keys)
		}
	}
	open(t, all, Request{}) // without a key there is a target, too
}

func TestSticky(t *testing.T) {
	_, urls := newApps(t, 4)
	u := newUpstream(t, Config{URL: urls, Balance: balance(t, "sticky")})
	first := open(t, u, Request{})
	for range 10 {
		if c := open(t, u, Request{StickyID: first.TargetID}); c.Target != first.Target {
			t.Errorf("got %s, want %s", c.Target, first.Target)
		}
	}
	if c := open(t, u, Request{StickyID: 12345}); c.Target == first.Target {
		t.Errorf("made up: got %s, which has the most", c.Target)
	}
}

// A target that is not there costs nobody a session: it is left alone for a while, and comes back when it is well.
func TestDeadTarget(t *testing.T) {
	apps, urls := newApps(t, 2)
	u := newUpstream(t, Config{URL: urls})
	sick, well := apps[0], apps[1].Addr().String()
	address := sick.Addr().String()
	sick.Close()
	for range 20 {
		if c := open(t, u, Request{}); c.Target != well {
			t.Fatalf("got %s", c.Target)
		}
	}
	state := func() TargetState {
		i := slices.IndexFunc(u.Targets(), func(s TargetState) bool { return s.Name == address })
		return u.Targets()[i]
	}
	if s := state(); s.Usable || s.Live != 0 {
		t.Errorf("the dead one: %+v", s)
	}
	newApp(t, "tcp", address)
	deadline := time.Now().Add(20 * time.Second)
	for open(t, u, Request{}).Target != address {
		if time.Now().After(deadline) {
			t.Fatal("it does not come back")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if s := state(); !s.Usable {
		t.Errorf("after it has come back: %+v", s)
	}
}

// One that is ejected again waits longer, and the last is never left alone.
func TestEjection(t *testing.T) {
	apps, urls := newApps(t, 2)
	apps[0].sick.Store(true)
	u := newUpstream(t, Config{URL: urls})
	u.servers.mu.Lock()
	sick, well := u.endpoints[0], u.endpoints[1]
	u.servers.mu.Unlock()
	fail := func(e *endpoint) { u.report(e, &HandshakeError{Reason: reasonClosed, Err: io.EOF}, t.Context()) }
	var last time.Duration
	for range 4 {
		for range 2 * ejectAfter {
			fail(sick)
		}
		u.servers.mu.Lock()
		wait := time.Until(sick.until)
		sick.until = time.Now()
		u.servers.mu.Unlock()
		if wait <= last {
			t.Errorf("it waits %v after %v", wait, last)
		}
		last = wait
	}
	for range 10 {
		fail(sick)
		fail(well)
	}
	if s := u.Targets(); !s[0].Usable && !s[1].Usable {
		t.Errorf("none is used: %+v", s)
	}
	// Only one finds out how one is whose time is over.
	u.servers.mu.Lock()
	sick.until, sick.probing, sick.live, well.until, well.live = time.Now().Add(-1), false, 0, time.Time{}, 100
	u.servers.mu.Unlock()
	a, _ := u.choose(&Request{}, nil)
	b, _ := u.choose(&Request{}, nil)
	if a != sick || b != well {
		t.Errorf("chosen %s and %s", a.name, b.name)
	}
}

// A target that takes no connection has half of the time at most; one that answers nothing, and one that refuses, has the client's only try.
func TestWhatIsTriedAgain(t *testing.T) {
	good := newApp(t, "tcp", "127.0.0.1:0")
	for _, tt := range []struct {
		name, url string
		want      string // of the error; empty: it is served by the other
	}{
		{"refuses", "ws://" + startBackend(t, answering(t, fixed("HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"))), "status 503"},
		{"no answer", "ws://" + startBackend(t, func(c net.Conn) { io.Copy(io.Discard, c) }), reasonNoAnswer},
		{"nonsense", "ws://" + startBackend(t, answering(t, fixed("nonsense\r\n"))), reasonNoHTTP},
		{"closed port", "ws://127.0.0.1:1", ""},
		{"no such name", "ws://name.invalid", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, Config{URL: tt.url + " " + good.url(), DialTimeout: 4 * time.Second, HandshakeTimeout: time.Second})
			u.servers.mu.Lock()
			u.endpoints[1].live = 1000 // so that the other comes first
			u.servers.mu.Unlock()
			c, err := u.Connect(t.Context(), &Request{})
			if err == nil {
				c.Close()
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if n := u.Targets()[0].Live; n != 0 {
				t.Errorf("%d are left on it", n)
			}
		})
	}
}

// Of TestStorm there is a short form for every day; the full one is go test ./upstream -run TestStorm -storm 5000.
var storm = flag.Int("storm", 2000, "clients that come at once in TestStorm")

// As many handshakes as may be are under way with a target, never one more; some wait, the others are told and come again, and soon all
// are in.
func TestStorm(t *testing.T) {
	a := newApp(t, "tcp", "127.0.0.1:0")
	a.pause.Store(int64(20 * time.Millisecond))
	const most = 50
	u := newUpstream(t, Config{URL: a.url(), MaxDials: most, DialTimeout: time.Minute})
	var coming sync.WaitGroup
	var busy atomic.Int64 // clients that were told to come again
	conns := make([]*Conn, *storm)
	began := time.Now()
	for i := range conns {
		coming.Go(func() {
			for first := true; ; first = false {
				c, err := u.Connect(t.Context(), &Request{})
				if conns[i] = c; err == nil {
					return
				}
				if err != ErrBusy {
					t.Error(err)
					return
				}
				if first {
					busy.Add(1)
				}
				time.Sleep(time.Second) // as Retry-After says
			}
		})
	}
	coming.Wait()
	t.Logf("%d are in after %v, %d at once", *storm, time.Since(began).Round(time.Millisecond), *storm-int(busy.Load()))
	if at := a.most.Load(); at > most {
		t.Errorf("%d handshakes at once, want %d at most", at, most)
	}
	if *storm > 2*most*(queued+1) && busy.Load() == 0 {
		t.Error("nobody was told to come again")
	}
	for _, c := range conns {
		if c != nil {
			c.Close()
			c.Place.Release()
		}
	}
	if n := live(u)[a.Addr().String()]; n != 0 {
		t.Errorf("%d are left", n)
	}
}

// A name with several addresses is several targets. One that has gone from it keeps its sessions and gets no others.
func TestNames(t *testing.T) {
	first := newApp(t, "tcp", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(first.Addr().String())
	for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
		newApp(t, "tcp", net.JoinHostPort(ip, port))
	}
	zone := dnstest.Start(t, "127.0.0.1", "127.0.0.2")
	u := newUpstream(t, Config{URL: "ws://app.test:" + port, DNSRefresh: 20 * time.Millisecond, Resolver: zone.Resolver(), SlowStart: time.Millisecond})
	names := func() []string { return slices.Sorted(maps.Keys(live(u))) }
	wait := func(want ...string) {
		t.Helper()
		for i, ip := range want {
			want[i] = net.JoinHostPort(ip, port)
		}
		for deadline := time.Now().Add(20 * time.Second); !slices.Equal(names(), want); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("got %s, want %s", names(), want)
			}
		}
	}
	wait("127.0.0.1", "127.0.0.2")
	for range 10 {
		open(t, u, Request{})
	}
	zone.Set("127.0.0.2", "127.0.0.3")
	wait("127.0.0.2", "127.0.0.3")
	var conns []*Conn
	for range 10 {
		c := open(t, u, Request{})
		if strings.HasPrefix(c.Target, "127.0.0.1:") {
			t.Errorf("the one that is gone gets a session")
		}
		conns = append(conns, c)
	}
	zone.Set("127.0.0.3")
	for deadline := time.Now().Add(20 * time.Second); len(names()) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("got %s", names())
		}
	}
	if c := open(t, u, Request{}); c.Target != "app.test:"+port {
		t.Errorf("one address: got %s", c.Target)
	}
	for _, c := range conns {
		c.Place.Release() // of a target that is gone
	}
}

// Two targets of one server have names of their own.
func TestTargetNames(t *testing.T) {
	u := newUpstream(t, Config{URL: "ws://127.0.0.1:1/a ws://127.0.0.1:1/b ws://127.0.0.2:1 unix:/run/app"})
	if got, want := u.Names(), "127.0.0.1:1 127.0.0.1:1#2 127.0.0.2:1 /run/app"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	newApp(t, "unix", path)
	u := newUpstream(t, Config{URL: "unix:" + path})
	if c := open(t, u, Request{Path: "/x"}); c.Target != path {
		t.Errorf("got %s", c.Target)
	} else if _, ok := c.Conn.(*net.UnixConn); !ok {
		t.Errorf("got a %T", c.Conn)
	}
}

// A target whose checks fail gets no new sessions until they are passed again; where all fail there is none.
func TestHealthChecks(t *testing.T) {
	apps, urls := newApps(t, 2)
	u := newUpstream(t, Config{URL: urls, HealthPath: "/health", HealthInterval: 10 * time.Millisecond, HealthFailures: 2, HealthPasses: 2})
	wait := func(want ...bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			s := u.Targets()
			if s[0].Usable == want[0] && s[1].Usable == want[1] {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("got %+v, want %v", s, want)
			}
		}
	}
	wait(true, true)
	apps[0].status.Store(503)
	wait(false, true)
	for range 10 {
		if c := open(t, u, Request{}); c.Target != apps[1].Addr().String() {
			t.Errorf("got %s", c.Target)
		}
	}
	apps[1].sick.Store(true)
	wait(false, false)
	if _, err := u.Connect(t.Context(), &Request{}); err != ErrNone {
		t.Errorf("got %v", err)
	}
	apps[0].status.Store(301)
	wait(true, false)
	open(t, u, Request{})
}

// Connections come from the addresses in turn.
func TestSources(t *testing.T) {
	from := make(chan string, 10)
	u := newUpstream(t, Config{Source: []string{"127.0.0.7", "127.0.0.8"}, URL: "ws://" + startBackend(t, func(c net.Conn) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		from <- host
		answering(t, switching(""))(c)
	})})
	seen := make(map[string]int)
	for range 4 {
		c := open(t, u, Request{})
		seen[<-from]++
		c.Close()
	}
	if seen["127.0.0.7"] != 2 || seen["127.0.0.8"] != 2 {
		t.Errorf("got %v", seen)
	}
}

func TestGroupMistakes(t *testing.T) {
	_, err := New(Config{URL: "ws://a ws://b ws://a unix:x unix: unix:/" + strings.Repeat("x", 103), MaxDials: -1, DNSRefresh: -1, SlowStart: -1, HealthInterval: -1,
		HealthTimeout: -1, HealthFailures: -1, HealthPasses: -1, HealthPath: "x y", Source: []string{"x", "127.0.0.1:1"}, ServerName: "a b", CertFile: "/nowhere",
		DialTimeout: time.Second, HandshakeTimeout: time.Second})
	if err == nil {
		t.Fatal("it is taken")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 16 {
		t.Errorf("%d mistakes, want 16:\n%v", len(lines), err)
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "UPSTREAM_") || !strings.Contains(line, "; want ") {
			t.Errorf("line %s", line)
		}
	}
	for _, text := range []string{"", "most", "hash", "hash:", "hash:subject:x", "hash:cookie", "hash:cookie:", "hash:cookie:a b", "hash:query:", "hash:query:a&b", "sticky:x"} {
		if err := new(Balance).UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "; want least") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{"least": " ", "sticky": " ", "hash:subject": "subject ", "hash:cookie:sid": "cookie sid", "hash:query:room": "query room"} {
		if place, name := balance(t, text).Key(); place+" "+name != want {
			t.Errorf("%s: key %s %s", text, place, name)
		}
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	a := newApp(t, "tcp", "127.0.0.1:0")
	a.pause.Store(int64(time.Second))
	u := newUpstream(t, Config{URL: a.url(), MaxDials: 1})
	first := make(chan error, 1)
	go func() {
		c, err := u.Connect(t.Context(), &Request{})
		if err == nil {
			c.Close()
		}
		first <- err
	}()
	for a.at.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := u.Connect(ctx, &Request{})
	if e, ok := errors.AsType[*DialError](err); !ok || !errors.Is(e, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// BenchmarkChoose is the choice among targets.
func BenchmarkChoose(b *testing.B) {
	_, urls := newApps(b, 5)
	for _, how := range []string{"least", "hash:subject", "sticky"} {
		b.Run(how, func(b *testing.B) {
			u := newUpstream(b, Config{URL: urls, Balance: balance(b, how)})
			req := &Request{Key: "alice", StickyID: u.endpoints[0].id}
			b.ReportAllocs()
			for b.Loop() {
				e, _ := u.choose(req, nil)
				u.leave(e)
			}
		})
	}
}
