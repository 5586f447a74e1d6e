package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"portcullis/proxy/rabbittest"
	"portcullis/proxy/redistest"
)

// Of TestFleetOfProcesses there is a short form for every day; the full one is go test . -run TestFleetOfProcesses -fleet 6000.
var (
	fleetSessions = flag.Int("fleet", 300, "sessions that TestFleetOfProcesses opens")
	withRabbit    = flag.Bool("rabbitmq", false, "start RabbitMQ, too")
)

const (
	fleetToken  = "an-operator's-token-for-the-fleet"
	patiently   = "REDIS_TIMEOUT=20s" // a crowded machine may be late, and is then as one whose Redis is
	fleetFailed = `portcullis_redis_call_duration_seconds_count{result="failed"}`
)

// fleet is some programs behind one Redis. Whoever shows the token key-NAME is NAME.
type fleet struct {
	t      *testing.T
	redis  *redistest.Server
	delay  *delayer // between them and Redis
	auth   string
	common []string
	all    []*process
}

// newFleet starts programs a, b and so on.
func newFleet(t *testing.T, n int, environ ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, redis: redistest.Start(t)}
	f.delay = newDelayer(t, f.redis.Addr)
	f.auth = newTokenEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(r.URL.Query().Get("token"), "key-")
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("X-Auth-Subject", name)
		io.WriteString(w, "1")
	})
	f.common = append([]string{"AUTH_URL=" + f.auth, "REDIS_URL=redis://" + f.delay.addr, "ADMIN_TOKEN=" + fleetToken, "LIMIT_SESSIONS_PER_SUBJECT=3",
		"RATE_AUTH_FAILURES_PER_IP=0", "LOG_LEVEL=info"}, environ...)
	for i := range n {
		f.all = append(f.all, f.start(string(rune('a'+i))))
	}
	for _, p := range f.all {
		f.until("it is on the bus", func() bool { return f.call(p, "POST", "/api/messages?subject=nobody", "x").StatusCode == 200 })
	}
	return f
}

func (f *fleet) start(name string) *process {
	f.t.Helper()
	return startProgram(f.t, append(slices.Clone(f.common), "INSTANCE="+name)...)
}

// until waits for something to become so, and returns how long that took.
func (f *fleet) until(what string, so func() bool) time.Duration {
	f.t.Helper()
	began := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(2 * patience); !so(); {
		select {
		case <-tick.C:
		case <-timeout:
			f.t.Fatalf("not in time: %s", what)
		}
	}
	return time.Since(began)
}

// called is the answer of an API.
type called struct {
	*http.Response
	text string
	json map[string]any
}

func (f *fleet) call(p *process, method, target, body string) called {
	f.t.Helper()
	r, err := http.NewRequest(method, "http://"+p.admin+target, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+fleetToken)
	r.Header.Set("Content-Type", "text/plain")
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	c := called{Response: resp, text: string(text)}
	json.Unmarshal(text, &c.json)
	return c
}

// count is how often the log has text.
func (p *process) count(text string) int { return strings.Count(p.text(), text) }

// client is one of thousands: a connection, and nothing else.
type client struct {
	net.Conn
	r *bufio.Reader
}

// knock asks for a session, and returns the status, and how long the answer took.
func (f *fleet) knock(p *process, subject string) (c *client, status int, took time.Duration) {
	f.t.Helper()
	shown.Token("key-" + subject)
	conn, err := net.Dial("tcp", p.front)
	if err != nil {
		f.t.Error(err)
		return nil, 0, 0
	}
	conn.SetDeadline(time.Now().Add(2 * patience))
	began := time.Now()
	fmt.Fprintf(conn, "GET /?token=key-%s HTTP/1.1\r\nHost: gate.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", subject)
	r := bufio.NewReaderSize(conn, 1<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		f.t.Error(err)
		conn.Close()
		return nil, 0, 0
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		conn.Close()
		return nil, resp.StatusCode, time.Since(began)
	}
	return &client{conn, r}, resp.StatusCode, time.Since(began)
}

// open is knock that is let in.
func (f *fleet) open(p *process, subject string) *client {
	f.t.Helper()
	c, status, _ := f.knock(p, subject)
	if status != http.StatusSwitchingProtocols {
		f.t.Fatalf("%s: status %d", subject, status)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// tries reports whether somebody is let in, who leaves at once.
func (f *fleet) tries(p *process, subject string) bool {
	f.t.Helper()
	c, status, _ := f.knock(p, subject)
	if c != nil {
		c.Close()
	}
	return status == http.StatusSwitchingProtocols
}

// read returns the next frame's first byte and payload, which is short.
func (c *client) read() (first byte, payload string, err error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(c.r, head); err != nil {
		return 0, "", err
	}
	body := make([]byte, head[1])
	_, err = io.ReadFull(c.r, body)
	return head[0], string(body), err
}

// delayer passes what programs say to Redis, and what it answers after a delay.
type delayer struct {
	addr  string
	delay atomic.Int64 // ns
}

func newDelayer(t *testing.T, target string) *delayer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &delayer{addr: l.Addr().String()}
	var running sync.WaitGroup
	pipe := func(to, from net.Conn, slow bool) {
		defer to.Close()
		defer from.Close()
		buffer := make([]byte, 1<<16)
		for {
			n, err := from.Read(buffer)
			if slow {
				time.Sleep(time.Duration(d.delay.Load()))
			}
			if _, wrong := to.Write(buffer[:n]); err != nil || wrong != nil {
				return
			}
		}
	}
	running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			running.Go(func() { pipe(out, in, false) })
			running.Go(func() { pipe(in, out, true) })
		}
	})
	t.Cleanup(func() { // after the programs have ended
		l.Close()
		running.Wait()
	})
	return d
}

// Thousands of sessions over three instances: a message reaches each once, a kick ends all of a user, and a fourth session of a user
// with three is refused wherever it knocks, also when thirty try at once.
func TestFleetOfProcesses(t *testing.T) {
	f := newFleet(t, 3, patiently)
	clients := make([]*client, *fleetSessions)
	places := make(chan struct{}, 64)
	var opening sync.WaitGroup
	for i := range clients {
		places <- struct{}{}
		opening.Go(func() {
			defer func() { <-places }()
			c, status, _ := f.knock(f.all[i%3], fmt.Sprint("user", i/3))
			if clients[i] = c; status != http.StatusSwitchingProtocols {
				t.Errorf("session %d: status %d", i, status)
			}
		})
	}
	opening.Wait()
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.Close()
			}
		}
	}()
	if t.Failed() {
		t.FailNow()
	}
	f.settled()

	refused := func(subject string, want int) {
		t.Helper()
		var in atomic.Int64
		var knocking sync.WaitGroup
		for i := range 30 {
			knocking.Go(func() {
				if c, status, _ := f.knock(f.all[i%3], subject); status == http.StatusSwitchingProtocols {
					in.Add(1)
					t.Cleanup(func() { c.Close() })
				} else if status != http.StatusTooManyRequests {
					t.Errorf("%s: status %d", subject, status)
				}
			})
		}
		knocking.Wait()
		if in.Load() != int64(want) {
			t.Errorf("%s: %d of 30 are in, want %d", subject, in.Load(), want)
		}
	}
	refused("user0", 0)
	refused("thirty", 3)

	began := time.Now()
	for i, message := range []string{"to all", "again"} {
		a := f.call(f.all[i], "POST", "/api/messages?all=true", message)
		if want := float64(*fleetSessions + 3); a.StatusCode != 200 || a.json["reached"] != want || a.json["unanswered"] != nil {
			t.Errorf("%d %s, want %v reached", a.StatusCode, a.text, want)
		}
	}
	took := time.Since(began)
	for i, c := range clients {
		for _, want := range []string{"to all", "again"} {
			if first, got, err := c.read(); first != 0x81 || got != want || err != nil {
				t.Fatalf("session %d: %x %q, %v; want %q", i, first, got, err, want)
			}
		}
	}
	t.Logf("two messages to %d sessions: the API has answered after %v", *fleetSessions, took.Round(time.Millisecond))
	if a := f.call(f.all[2], "DELETE", "/api/sessions?subject=user0&code=4000", ""); a.json["reached"] != 3.0 {
		t.Errorf("kicked: %s", a.text)
	}
	for i, c := range clients[:4] {
		if i == 3 { // of another user
			break
		}
		if first, got, err := c.read(); first != 0x88 || !strings.HasPrefix(got, "\x0f\xa0") || err != nil {
			t.Errorf("session %d: %x %q, %v; want Close 4000", i, first, got, err)
		}
		c.Close()
	}
	f.until("his places are free", func() bool { return f.tries(f.all[0], "user0") })
	list := f.call(f.all[1], "GET", "/api/sessions?subject=user1", "")
	sessions, _ := list.json["sessions"].([]any)
	var instances []string
	for _, one := range sessions {
		instances = append(instances, one.(map[string]any)["instance"].(string))
	}
	if slices.Sort(instances); strings.Join(instances, " ") != "a b c" {
		t.Errorf("user1 has %s", list.text)
	}
}

// settled waits until each knows all others, and Redis has all counts: an instance for which it was late writes them when it has a moment.
func (f *fleet) settled() {
	f.t.Helper()
	for _, p := range f.all {
		f.until("it counts with the others", func() bool {
			p.metrics = ""
			p.readMetrics()
			return metricLine(p.metrics, "\nportcullis_fleet_alone") == "0" && metricLine(p.metrics, "\nportcullis_fleet_instances") == fmt.Sprint(len(f.all))
		})
	}
}

// What an instance held that was killed is free in 15 s. One that is started with its name at once waits for that, and says so.
func TestFleetMemberIsKilled(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, patiently)
	f.settled()
	for range 3 {
		f.open(f.all[1], "alice")
	}
	if f.tries(f.all[0], "alice") {
		t.Error("a fourth is let in")
	}
	f.all[1].signal(syscall.SIGKILL)
	<-f.all[1].done
	second := f.start("b")
	if resp, _ := ask(t, "GET", "http://"+second.admin+"/readyz"); resp.StatusCode != 503 {
		t.Errorf("the second of one name: /readyz says %d", resp.StatusCode)
	}
	took := f.until("her places are free", func() bool { return f.tries(f.all[0], "alice") })
	if t.Logf("after %v", took.Round(time.Millisecond)); took > 15*time.Second {
		t.Errorf("after %v, want 15s at most", took)
	}
	f.until("the second is ready", func() bool {
		resp, _ := ask(t, "GET", "http://"+second.admin+"/readyz")
		return resp.StatusCode == 200
	})
	f.open(second, "bob")
}

// The second of two that live has to end.
func TestFleetNameTwice(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	began := time.Now()
	second := f.start("a")
	second.exit(exitFailed)
	if took := time.Since(began); took < 15*time.Second || !strings.Contains(second.text(), `INSTANCE: \"a\" is the name of another instance`) {
		t.Errorf("after %v: %s", took, second.text())
	}
	f.open(f.all[0], "alice")
}

// Redis stands still, is slow, has lost everything: upgrades go on, no limit is given up, nothing is said twice, and all is as before
// when Redis is.
func TestFleetWithoutItsRedis(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	a := f.all[0]
	for _, p := range f.all {
		f.open(p, "alice") // each a third of what she may have
	}
	quick := func(why string) {
		t.Helper()
		for i, p := range f.all {
			c, status, took := f.knock(p, strings.ReplaceAll(fmt.Sprint("new ", why, i), " ", "-"))
			if status != http.StatusSwitchingProtocols || took > 2*time.Second { // the budget is 50 ms; the machine may be crowded
				t.Errorf("%s: status %d after %v", why, status, took)
			}
			if c != nil {
				t.Cleanup(func() { c.Close() })
			}
			if f.tries(p, "alice") {
				t.Errorf("%s: a fourth is let in", why)
			}
			if resp, _ := ask(t, "GET", "http://"+p.admin+"/readyz"); resp.StatusCode != 200 {
				t.Errorf("%s: /readyz says %d", why, resp.StatusCode)
			}
		}
	}
	back := func(why string) {
		t.Helper()
		f.until("a message reaches all after "+why, func() bool {
			sent := f.call(a, "POST", "/api/messages?subject=alice", why)
			return sent.StatusCode == 200 && sent.json["reached"] == 3.0
		})
		f.settled()
		for _, p := range f.all {
			if f.tries(p, "alice") {
				t.Errorf("%s: a fourth is let in", why)
			}
		}
	}
	back("the start")

	f.redis.Stop()
	quick("standing")
	if sent := f.call(a, "POST", "/api/messages?all=true", "lost"); sent.StatusCode != 503 {
		t.Errorf("without Redis: %d %s", sent.StatusCode, sent.text)
	}
	quick("still standing")
	for _, p := range f.all {
		if n := p.count("Redis does not answer"); n < 1 || n > 2 { // twice where the machine was crowded before
			t.Errorf("%d lines about it", n)
		}
		p.metrics = ""
		p.readMetrics()
		if metricLine(p.metrics, fleetFailed) == "0" {
			t.Error("no failure is counted")
		}
	}
	f.redis.Continue()
	back("standing")

	f.delay.delay.Store(int64(200 * time.Millisecond))
	quick("slow")
	quick("still slow")
	f.delay.delay.Store(0)
	back("slow")

	f.flush()
	back("the flush")
}

// flush is FLUSHALL.
func (f *fleet) flush() {
	f.t.Helper()
	conn, err := net.Dial("tcp", f.redis.Addr)
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "FLUSHALL\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "+OK\r\n" {
		f.t.Fatalf("%q, %v", line, err)
	}
}

// An instance that stands still is dead for the others; when it goes on it counts again.
func TestFleetMemberStandsStill(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, patiently)
	f.settled()
	for range 3 {
		f.open(f.all[1], "alice")
	}
	f.all[1].cmd.Process.Signal(syscall.SIGSTOP)
	sent := f.call(f.all[0], "POST", "/api/messages?subject=alice", "x")
	if sent.StatusCode != 200 || fmt.Sprint(sent.json["unanswered"]) != "[b]" {
		t.Errorf("%d %s, want that b has not answered", sent.StatusCode, sent.text)
	}
	var fourth *client
	f.until("her places are free", func() (in bool) {
		c, status, _ := f.knock(f.all[0], "alice")
		if status == http.StatusSwitchingProtocols {
			fourth = c
		}
		return fourth != nil
	})
	f.all[1].cmd.Process.Signal(syscall.SIGCONT)
	f.until("it counts again", func() bool { return !f.tries(f.all[2], "alice") })
	fourth.Close()
	f.settled()
	if f.tries(f.all[0], "alice") || f.tries(f.all[1], "alice") {
		t.Error("beside her three another is let in")
	}
}

// Messages and kicks go over the engine that BUS_URL names. While it is away nobody is reached, and when it is back all are.
func TestFleetOverAnEngine(t *testing.T) {
	t.Run("kafka", func(t *testing.T) {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "gates"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		f := newFleet(t, 2, "BUS_URL=kafka://"+cluster.ListenAddrs()[0]+"/gates")
		f.reached(f.open(f.all[0], "alice"), f.open(f.all[1], "alice"))
	})
	t.Run("rabbitmq", func(t *testing.T) {
		if !*withRabbit {
			t.Skip("without -rabbitmq")
		}
		r := rabbittest.Start(t)
		f := newFleet(t, 3, "BUS_URL="+r.URL())
		clients := []*client{f.open(f.all[0], "alice"), f.open(f.all[1], "alice"), f.open(f.all[2], "alice")}
		f.reached(clients...)
		r.Kill()
		if sent := f.call(f.all[0], "POST", "/api/messages?all=true", "lost"); sent.StatusCode != 503 {
			t.Errorf("without RabbitMQ: %d %s", sent.StatusCode, sent.text)
		}
		f.open(f.all[1], "bob").Close()
		r.Start()
		for _, p := range f.all {
			f.until("it is on the bus again", func() bool {
				sent := f.call(p, "POST", "/api/messages?subject=nobody", "x")
				return sent.StatusCode == 200 && sent.json["unanswered"] == nil
			})
		}
		f.reached(clients...)
	})
}

// reached sends to all, and sees that each gets it once, and nothing else.
func (f *fleet) reached(clients ...*client) {
	f.t.Helper()
	for i, p := range f.all {
		text := fmt.Sprint("message ", i)
		if sent := f.call(p, "POST", "/api/messages?all=true", text); sent.StatusCode != 200 || sent.json["reached"] != float64(len(clients)) {
			f.t.Errorf("%d %s", sent.StatusCode, sent.text)
		}
		for _, c := range clients {
			if _, got, err := c.read(); got != text || err != nil {
				f.t.Fatalf("got %q, %v; want %q", got, err, text)
			}
		}
	}
}
