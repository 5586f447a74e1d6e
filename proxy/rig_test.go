package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"portcullis/proxy/admin"
	"portcullis/proxy/leaktest"
	"portcullis/proxy/refusal"
	"portcullis/proxy/settings"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 5 * time.Second

// gate is a Proxy that serves, with all that stands around it.
type testGate struct {
	*Proxy
	metrics *admin.Metrics
	limits  *ratelimit.Limits
	log     *slog.Logger
	addr    string
	journal *journal
	served  chan error
	secrets leaktest.Secrets // all that its clients have shown
}

// itself as the target of newGate is the gate's own address.
const itself = "itself"

// newGate starts a Proxy in front of target. Its endpoint knows the tokens good (nobody's), wonder (Alice's) and down (its own
// failure). At the end of the test nothing that clients have shown may be in the log or the metrics.
func newGate(t testing.TB, target string, edit func(*Config)) *testGate {
	t.Helper()
	g := &testGate{journal: newJournal(), served: make(chan error, 1)}
	g.secrets.Public = []string{"other"} // is a label of the metrics too
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.URL.Query().Get("token")
		g.secrets.Token(token) // also one that came as a first message
		switch token {
		case "good":
			io.WriteString(w, "1")
		case "wonder":
			w.Header().Set("X-Auth-Subject", "Alice")
			io.WriteString(w, "1")
		case "down":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(endpoint.Close)

	c := defaults(t)
	c.DrainTimeout = patience
	c.Auth.URL = endpoint.URL
	c.Auth.TokenFrom = append(c.Auth.TokenFrom, "protocol:bearer")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	if c.Upstream.URL = target; target == itself {
		c.Upstream.URL = "ws://" + g.addr
	}
	c.Front.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.secrets.Request(r.RequestURI, r.Header)
		g.ServeHTTP(w, r)
	})
	c.Relay.CloseTimeout = time.Second
	c.Logger = slog.New(slog.NewJSONHandler(g.journal, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.Metrics = admin.NewMetrics(KnownReasons())
	if edit != nil {
		edit(&c)
	}
	if c.Auth.Mode == "none" {
		c.Auth.TokenFrom = nil
	}
	p, err := New(c)
	if err != nil {
		l.Close()
		t.Fatal(err)
	}
	g.Proxy, g.metrics, g.log, g.limits = p, c.Metrics, c.Logger, p.current.Load().limits
	go func() { g.served <- p.Serve(l) }()
	t.Cleanup(func() {
		p.Cut()
		if err := <-g.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		for _, leak := range g.leaks(t) {
			t.Errorf("the gate tells %s", leak)
		}
	})
	return g
}

// leaks are the lines of the log and the metrics that have something in them which a client has shown.
func (g *testGate) leaks(t testing.TB) []string {
	t.Helper()
	families, err := g.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, label := range m.GetLabel() {
				fmt.Fprintln(&said, f.GetName(), label.GetName(), label.GetValue())
			}
		}
	}
	g.journal.mu.Lock()
	defer g.journal.mu.Unlock()
	return g.secrets.Leaks(g.journal.text.String() + said.String())
}

// The check that every test ends with must be one that can fail.
func TestLeaksAreFound(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, firstMessages())
	g.send(t, handshake("/room?token=wonder&x=1"))
	g.upgraded(t, handshake("/", "Cookie: a=crumbs")).write(text("tellnobody"))
	g.journal.next(t, "refused")
	if got := g.leaks(t); got != nil {
		t.Errorf("before anything leaks: got %q", got)
	}
	metric := prometheus.NewGauge(prometheus.GaugeOpts{Name: "leak", ConstLabels: prometheus.Labels{"reason": "wonder"}})
	for name, leak := range map[string]func(){
		"token":            func() { g.log.Info("accepted", "token", "wonder") },
		"first message":    func() { g.log.Debug("got tellnobody") },
		"query":            func() { g.log.Info("refused", "path", "/room?x=1") },
		"cookie in base64": func() { g.log.Error("odd", "error", errors.New("Y3J1bWJz")) },
		"metric":           func() { g.metrics.Registry().MustRegister(metric) },
	} {
		leak()
		if got := g.leaks(t); len(got) != 1 {
			t.Errorf("%s: got %q, want one leak", name, got)
		}
		g.metrics.Registry().Unregister(metric)
		g.journal.clear()
	}
}

// defaults are the settings of an empty environment.
func defaults(t testing.TB) Config {
	t.Helper()
	var c struct {
		Proxy Config
		Admin admin.Config
	}
	_, err := settings.Read(&c, map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	return c.Proxy
}

// journal is a log that tests can wait on.
type journal struct {
	mu    sync.Mutex
	text  bytes.Buffer // all of it; guarded by mu
	lines chan map[string]any
}

func newJournal() *journal { return &journal{lines: make(chan map[string]any, 10_000)} }

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Write(b)
	var line map[string]any
	if err := json.Unmarshal(b, &line); err != nil {
		return 0, err
	}
	j.lines <- line
	return len(b), nil
}

// next waits for the next line with that message; lines before it are skipped.
func (j *journal) next(t *testing.T, message string) map[string]any {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line := <-j.lines:
			if line["msg"] == message {
				return line
			}
		case <-timeout:
			t.Fatalf("the log has no line %q", message)
		}
	}
}

// count is how many lines with that message are in the log so far.
func (j *journal) count(message string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), `"msg":"`+message+`"`)
}

// clear forgets the text so far.
func (j *journal) clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Reset()
}

func (j *journal) contains(s string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.text.String(), s)
}

// refused is how often the metric has counted a reason.
func (g *testGate) refused(t *testing.T, why refusal.Reason) float64 {
	t.Helper()
	return g.metric(t, "portcullis_upgrades_total", string(why))
}

// metric is the value of a series, found by its family and the value of its label reason.
func (g *testGate) metric(t *testing.T, family, reason string) float64 {
	t.Helper()
	families, err := g.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != family {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := m.GetLabel()
			if len(labels) == 0 && reason == "" {
				return m.GetGauge().GetValue()
			}
			for _, label := range labels {
				if label.GetName() == "reason" && label.GetValue() == reason {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	t.Fatalf("no series of %s with reason %q", family, reason)
	return 0
}

// dial opens a TCP connection to the gate.
func (g *testGate) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// answer is what came back for a raw request.
type answer struct {
	*http.Response
	body string
	wire bytes.Buffer // what has been read of the answer, as it came
	conn net.Conn
	rest *bufio.Reader // what follows the answer
}

// send sends a raw request on a connection of its own and reads the answer.
func (g *testGate) send(t testing.TB, raw string) *answer {
	t.Helper()
	conn := g.dial(t)
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, conn)
}

func readAnswer(t testing.TB, conn net.Conn) *answer {
	t.Helper()
	a := &answer{conn: conn}
	a.rest = bufio.NewReader(io.TeeReader(conn, &a.wire))
	resp, err := http.ReadResponse(a.rest, nil)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	a.Response = resp
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("read the body: %v", err)
		}
		a.body = string(body)
	}
	return a
}

// closed fails the test unless the connection has ended behind the answer.
func (a *answer) closed(t *testing.T) {
	t.Helper()
	if b, err := a.rest.ReadByte(); err == nil {
		t.Errorf("after the answer came %q, want the end of the connection", b)
	} else if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Error("the connection is still open after the answer")
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// handshake is a raw upgrade request for a target, with further header lines.
func handshake(target string, lines ...string) string {
	return request(append([]string{
		"GET " + target + " HTTP/1.1", "Host: gate.example", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, lines...)...)
}

// request is a raw request of these lines.
func request(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

func without(raw, line string) string { return strings.Replace(raw, line+"\r\n", "", 1) }

// backend is an upstream that notes each request and then runs its script on the connection.
type backend struct {
	url      string
	requests chan *http.Request
}

// newBackend starts a backend. An empty script answers a proper 101 and echoes bytes.
func newBackend(t testing.TB, script func(conn net.Conn, r *http.Request)) *backend {
	t.Helper()
	if script == nil {
		script = func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, accepted(r)+"\r\n")
			io.Copy(conn, conn)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{url: "ws://" + l.Addr().String(), requests: make(chan *http.Request, 100)}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(2 * patience))
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				select {
				case b.requests <- r:
				default: // a benchmark looks at none
				}
				script(conn, r)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return b
}

// next is the next request that the backend got.
func (b *backend) next(t *testing.T) *http.Request {
	t.Helper()
	select {
	case r := <-b.requests:
		return r
	case <-time.After(patience):
		t.Fatal("no request came upstream")
		return nil
	}
}

// untouched fails the test if a request came upstream.
func (b *backend) untouched(t *testing.T) {
	t.Helper()
	select {
	case r := <-b.requests:
		t.Errorf("upstream was asked for %s", r.RequestURI)
	default:
	}
}

// accepted is the head of a proper 101, without the line that ends it.
func accepted(r *http.Request) string {
	return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + upstream.Accept(r.Header.Get("Sec-WebSocket-Key")) + "\r\n"
}

// newEcho starts a WebSocket server that echoes messages, and chooses the subprotocol chat where it is offered.
func newEcho(t testing.TB) string { return newServer(t, echoHandler()) }

// newServer starts a server and returns its URL, as an upstream's.
func newServer(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

func echoHandler() http.Handler {
	upgrader := websocket.Upgrader{
		Subprotocols: []string{"chat"},
		CheckOrigin:  func(*http.Request) bool { return true },
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, http.Header{"Set-Cookie": {"a=1", "b=2"}, "X-Backend": {"yes"}})
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, message, err := conn.ReadMessage()
			if err != nil || conn.WriteMessage(kind, message) != nil {
				return
			}
		}
	})
}

func (g *testGate) connect(t testing.TB, target string, header http.Header, protocols ...string) *websocket.Conn {
	t.Helper()
	conn, resp, err := g.tryConnect(target, header, protocols...)
	if err != nil {
		t.Fatalf("dial: %v (%v)", err, resp)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(patience))
	return conn
}

func (g *testGate) tryConnect(target string, header http.Header, protocols ...string) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{Subprotocols: protocols, HandshakeTimeout: patience}
	return d.Dial("ws://"+g.addr+target, header)
}

func echoes(t *testing.T, conn *websocket.Conn, message string) {
	t.Helper()
	if err := conn.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
		t.Fatal(err)
	}
	if _, got, err := conn.ReadMessage(); err != nil || string(got) != message {
		t.Fatalf("echo of %q: got %q, %v", message, got, err)
	}
}
