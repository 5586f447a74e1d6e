package proxy

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// targets are backends, with the URLs of all.
func targets(t *testing.T, n int) (all []*backend, urls string) {
	t.Helper()
	var list []string
	for range n {
		b := newBackend(t, nil)
		all = append(all, b)
		list = append(list, b.url)
	}
	return all, strings.Join(list, " ")
}

func balanced(how string) func(*Config) {
	return func(c *Config) {
		if err := c.Upstream.Balance.UnmarshalText([]byte(how)); err != nil {
			panic(err)
		}
		c.Upstream.SlowStart = time.Millisecond
	}
}

// visit opens a session and ends it, and returns the 101 and where it went.
func (g *testGate) visit(t *testing.T, request string) (a *answer, target string) {
	t.Helper()
	conn := g.dial(t)
	fmt.Fprint(conn, request)
	if a = readAnswer(t, conn); a.StatusCode != 101 {
		t.Fatalf("status %d", a.StatusCode)
	}
	conn.Close()
	return a, g.journal.next(t, "session ended")["upstream"].(string)
}

// A user has one target by hash, whatever the others have.
func TestTargetByHash(t *testing.T) {
	for how, request := range map[string]string{
		"hash:subject":    handshake("/?token=wonder"),
		"hash:address":    handshake("/?token=good"),
		"hash:cookie:sid": handshake("/?token=good", "Cookie: a=1; sid=x"),
		"hash:query:room": handshake("/?token=good&room=lobby"),
	} {
		_, urls := targets(t, 4)
		g := newGate(t, urls, balanced(how))
		_, first := g.visit(t, request)
		for range 5 {
			if _, got := g.visit(t, request); got != first {
				t.Errorf("%s: %s after %s", how, got, first)
			}
		}
	}
}

// With sticky a cookie names the target. It is the gate's: the application sees the others alone, and one that was made up is none.
func TestStickyTarget(t *testing.T) {
	all, urls := targets(t, 3)
	g := newGate(t, urls, balanced("sticky"))
	a, first := g.visit(t, handshake("/?token=good", "Cookie: a=1"))
	set := a.Header.Get("Set-Cookie")
	name, _, _ := strings.Cut(set, ";")
	if !strings.HasPrefix(set, "portcullis_target=") || !strings.HasSuffix(set, "; Path=/; HttpOnly; SameSite=Lax") {
		t.Fatalf("cookie %q", set)
	}
	for range 5 {
		a, got := g.visit(t, handshake("/?token=good", "Cookie: a=1; "+name+"; b=2"))
		if set := a.Header.Get("Set-Cookie"); set != "" || got != first {
			t.Errorf("%s after %s, cookie %q", got, first, set)
		}
	}
	for _, forged := range []string{
		"portcullis_target=0", "portcullis_target=ffffffffffffffff", "portcullis_target=x", "portcullis_target=", "portcullis_target", "portcullis_target=-1",
		name + "0", name + "; portcullis_target=1", "portcullis_target=1; " + name, name + "\r\nCookie: portcullis_target=1",
		name + strings.Repeat("0", 8000), "portcullis_target=" + strings.Repeat("0", 8000) + "1", strings.Repeat("portcullis_target=1; ", 1000) + name,
	} {
		if a, _ := g.visit(t, handshake("/?token=good", "Cookie: "+forged)); a.Header.Get("Set-Cookie") == "" {
			t.Errorf("%s: it gets no cookie", forged)
		}
	}
	for _, b := range all {
		for len(b.requests) > 0 {
			if got := (<-b.requests).Header.Get("Cookie"); strings.Contains(got, "portcullis") {
				t.Errorf("the application sees %q", got)
			}
		}
	}
}

// A cookie of a target that is gone, or does not live, has its client served by another, whose cookie it gets.
func TestStickyTargetIsGone(t *testing.T) {
	all := make(map[string]*instance)
	var urls []string
	for range 3 {
		b := newInstance(t, "127.0.0.1:0")
		all[b.address], urls = b, append(urls, "ws://"+b.address)
	}
	g := newGate(t, strings.Join(urls, " "), balanced("sticky"))
	a, gone := g.visit(t, handshake("/?token=good"))
	cookie, _, _ := strings.Cut(a.Header.Get("Set-Cookie"), ";")
	goesElsewhere := func(g *testGate) {
		t.Helper()
		a, got := g.visit(t, handshake("/?token=good", "Cookie: "+cookie))
		other, _, _ := strings.Cut(a.Header.Get("Set-Cookie"), ";")
		if got == gone || !strings.HasPrefix(other, "portcullis_target=") || other == cookie {
			t.Fatalf("it goes to %s, with %q after %q", got, other, cookie)
		}
		if a, again := g.visit(t, handshake("/?token=good", "Cookie: "+other)); again != got || a.Header.Get("Set-Cookie") != "" {
			t.Errorf("%s after %s, cookie %q", again, got, a.Header.Get("Set-Cookie"))
		}
	}
	urls = slices.DeleteFunc(urls, func(url string) bool { return url == "ws://"+gone })
	goesElsewhere(newGate(t, strings.Join(urls, " "), balanced("sticky"))) // as after a restart with other settings
	all[gone].kill()
	goesElsewhere(g)
}

// Sessions count on their target for as long as they are there, and are relayed from a socket on the event loop, too.
func TestTargetsBehindTheGate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: echoHandler()}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	g := newGate(t, "unix:"+path+" "+newEcho(t), func(c *Config) { c.Relay.Engine = "loop" })
	for range 4 {
		echoes(t, g.connect(t, "/?token=good", nil), "hello")
	}
	for _, s := range g.current.Load().routes[0].Upstream.Targets() {
		if s.Live != 2 || !s.Usable {
			t.Errorf("%+v, want two on each", s)
		}
	}
}

// What no target can take is told in words of its own.
func TestNoTarget(t *testing.T) {
	g := newGate(t, "ws://127.0.0.1:1", func(c *Config) {
		c.Upstream.HealthPath, c.Upstream.HealthInterval, c.Upstream.HealthFailures = "/", time.Millisecond, 1
	})
	for wait := time.Now().Add(patience); g.current.Load().routes[0].Upstream.Targets()[0].Usable; time.Sleep(time.Millisecond) {
		if time.Now().After(wait) {
			t.Fatal("it is never down")
		}
	}
	a := g.send(t, handshake("/?token=good"))
	if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
	if line := g.journal.next(t, "refused"); line["reason"] != "upstream_none" {
		t.Errorf("line %v", line)
	}
}
