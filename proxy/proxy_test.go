package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/front"
	"portcullis/proxy/gate"
	"portcullis/proxy/leaktest"
	"portcullis/proxy/origin"
	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
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
	g.Proxy, g.metrics, g.log, g.limits = p, c.Metrics, c.Logger, p.gate.Limits
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
	var c Config
	_, err := settings.Read(&c, map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	return c
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
func newEcho(t testing.TB) string {
	t.Helper()
	upgrader := websocket.Upgrader{
		Subprotocols: []string{"chat"},
		CheckOrigin:  func(*http.Request) bool { return true },
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	}))
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
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

func TestSession(t *testing.T) {
	target := newEcho(t)
	g := newGate(t, target, nil)
	conn, resp, err := g.tryConnect("/room?token=wonder", nil, "chat")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := resp.Header["Set-Cookie"]; !slices.Equal(got, []string{"a=1", "b=2"}) {
		t.Errorf("Set-Cookie: got %q, want both of the upstream's", got)
	}
	if got := resp.Header.Get("X-Backend"); got != "yes" {
		t.Errorf("X-Backend: got %q, want the upstream's", got)
	}
	if got := conn.Subprotocol(); got != "chat" {
		t.Errorf("subprotocol: got %q, want the upstream's choice", got)
	}
	echoes(t, conn, "Olá")
	if got := g.metric(t, "portcullis_sessions_live", ""); got != 1 {
		t.Errorf("live sessions: got %v, want 1", got)
	}
	conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4000, "bye"))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 4000) {
		t.Errorf("close: got %v, want the answer 4000", err)
	}
	conn.Close()

	line := g.journal.next(t, "session ended")
	delete(line, "time")
	delete(line, "duration")
	if id, _ := line["session"].(string); len(id) != 26 {
		t.Errorf("session id: got %q, want 26 characters", id)
	}
	delete(line, "session")
	want := map[string]any{
		"level": "INFO", "msg": "session ended", "subject": "Alice", "client": "127.0.0.1", "path": "/room", "upstream": strings.TrimPrefix(target, "ws://"),
		"reason": "client_close", "code": 4000.0,
		"client_messages": 1.0, "client_bytes": 4.0, "upstream_messages": 1.0, "upstream_bytes": 4.0,
	}
	if got, want := fmt.Sprint(line), fmt.Sprint(want); got != want {
		t.Errorf("line of the session:\ngot  %s\nwant %s", got, want)
	}
	if g.journal.contains("token") || g.journal.contains("wonder") {
		t.Error("the log has the query")
	}
	if got := g.metric(t, "portcullis_sessions_live", ""); got != 0 {
		t.Errorf("live sessions at the end: got %v, want 0", got)
	}
}

func TestTokenInSubprotocol(t *testing.T) {
	for _, tt := range []struct {
		name  string
		offer []string
		want  string // chosen
		sees  []string
	}{
		{"alone: bearer is answered", []string{"bearer", "good"}, "bearer", nil},
		{"beside one that the upstream chooses", []string{"bearer", "good", "chat"}, "chat", []string{"chat"}},
		{"beside one that it does not choose", []string{"other", "bearer", "good"}, "bearer", []string{"other"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, func(conn net.Conn, r *http.Request) {
				answer := accepted(r)
				if slices.Contains(websocket.Subprotocols(r), "chat") {
					answer += "Sec-WebSocket-Protocol: chat\r\n"
				}
				io.WriteString(conn, answer+"\r\n")
			})
			g := newGate(t, b.url, nil)
			conn := g.connect(t, "/", nil, tt.offer...)
			if got := conn.Subprotocol(); got != tt.want {
				t.Errorf("chosen: got %q, want %q", got, tt.want)
			}
			if got := websocket.Subprotocols(b.next(t)); !slices.Equal(got, tt.sees) {
				t.Errorf("the upstream was offered %q, want %q", got, tt.sees)
			}
		})
	}
}

func TestNewTellsAllMistakes(t *testing.T) {
	_, err := New(Config{
		Gate:       gate.Config{Paths: []string{"chat"}},
		DrainDelay: -1,
		Front:      front.Config{CertFile: "cert.pem"},
		ClientIP:   clientip.Config{TrustedProxies: []string{"everyone"}},
		Origin:     origin.Config{Origins: []string{"*"}},
		Limits:     ratelimit.Config{Sessions: -1},
		Auth:       auth.Config{Mode: "magic"},
		Upstream:   upstream.Config{URL: "ftp://x"},
		Relay:      relay.Config{Mode: "teleport"},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{
		"PATHS", "DRAIN_DELAY", "DRAIN_TIMEOUT", "TLS_KEY_FILE", "TRUSTED_PROXIES", "ORIGINS", "LIMIT_SESSIONS", "AUTH_MODE",
		"UPSTREAM_URL", "RELAY_MODE",
	} {
		if !strings.Contains("\n"+err.Error(), "\n"+name) {
			t.Errorf("no line for %s in:\n%v", name, err)
		}
	}
}

func TestNewCrossChecks(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Config)
		want string // how the only line begins; "" for none
	}{
		{"cookie without ORIGINS", func(c *Config) { c.Auth.TokenFrom = []string{"cookie:sid"} }, `ORIGINS: ""`},
		{"cookie with ORIGINS", func(c *Config) {
			c.Auth.TokenFrom = []string{"cookie:sid"}
			c.Origin.Origins = []string{"https://app.example"}
		}, ""},
		{"subject limit without subjects", func(c *Config) {
			c.Auth.Mode, c.Auth.URL = "none", ""
			c.Limits.SessionsPerSubject = 1
		}, `AUTH_MODE: "none"`},
		{"subject limit with subjects", func(c *Config) { c.Limits.SessionsPerSubject = 1 }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := defaults(t)
			c.Auth.URL, c.Upstream.URL = "http://127.0.0.1", "ws://127.0.0.1"
			tt.edit(&c)
			_, err := New(c)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("got %v, want one line that begins %s", err, tt.want)
			}
		})
	}
}

// explosive is a ResponseWriter that panics where a session would begin, the last moment at which the gate holds everything.
type explosive struct {
	http.ResponseWriter
	value any
}

func (e explosive) Hijack() (net.Conn, *bufio.ReadWriter, error) { panic(e.value) }

func TestPanicReleasesEverything(t *testing.T) {
	for _, tt := range []struct {
		name   string
		value  any
		again  bool // the panic goes on to net/http
		status int
	}{
		{"any", errors.New("boom"), false, http.StatusInternalServerError},
		{"http.ErrAbortHandler", http.ErrAbortHandler, true, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hungUp := make(chan error, 1)
			b := newBackend(t, func(conn net.Conn, r *http.Request) {
				io.WriteString(conn, accepted(r)+"\r\n")
				_, err := conn.Read(make([]byte, 1))
				hungUp <- err
			})
			g := newGate(t, b.url, func(c *Config) { c.Limits.Sessions = 1 })
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(handshake("/?token=good"))))
			if err != nil {
				t.Fatal(err)
			}
			r.RemoteAddr = "192.0.2.1:1"
			w := httptest.NewRecorder()
			func() {
				defer func() {
					if got := recover(); (got != nil) != tt.again {
						t.Errorf("panic of ServeHTTP: got %v", got)
					}
				}()
				g.ServeHTTP(explosive{w, tt.value}, r)
			}()
			if w.Code != tt.status {
				t.Errorf("status: got %d, want %d", w.Code, tt.status)
			}
			if err := <-hungUp; err != io.EOF {
				t.Errorf("the upstream's connection: got %v, want EOF", err)
			}
			if scope := g.limits.SessionsFull(ratelimit.AddressKey(netip.MustParseAddr("192.0.2.1"))); scope != "" {
				t.Errorf("the slot is still taken (%s)", scope)
			}
		})
	}
}

// TestClientGoneDuringDial has the client break off while the upstream's handshake runs.
func TestClientGoneDuringDial(t *testing.T) {
	asked, hungUp := make(chan struct{}), make(chan error, 1)
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		close(asked)
		_, err := conn.Read(make([]byte, 1))
		hungUp <- err
	})
	g := newGate(t, b.url, func(c *Config) { c.Limits.Sessions = 1 })
	conn := g.dial(t)
	io.WriteString(conn, handshake("/?token=good"))
	<-asked
	conn.Close()
	if err := <-hungUp; err == nil || isTimeout(err) {
		t.Errorf("the upstream's connection: got %v, want its end", err)
	}
	if line := g.journal.next(t, "refused"); line["reason"] != "client_gone" {
		t.Errorf("reason: got %v, want client_gone", line["reason"])
	}
	if err := g.waitAllReleased(); err != nil {
		t.Error(err)
	}
}

// waitAllReleased closes the gate and waits for its requests; then no slot may be taken.
func (g *testGate) waitAllReleased() error {
	g.close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := cmp.Or(g.requests.wait(ctx), g.sessions.Wait(ctx)); err != nil {
		return err
	}
	if scope := g.limits.SessionsFull(netip.Prefix{}); scope != "" {
		return fmt.Errorf("a slot is still taken (%s)", scope)
	}
	return nil
}

// awaitPending waits until so many connections have no request.
func (g *testGate) awaitPending(t *testing.T, want int) {
	t.Helper()
	n := -1
	for range 5000 {
		if n = g.front.Pending(); n == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%d connections are pending, want %d", n, want)
}
