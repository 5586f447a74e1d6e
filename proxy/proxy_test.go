package proxy

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/front"
	"portcullis/proxy/gate"
	"portcullis/proxy/origin"
	"portcullis/proxy/relay"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

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

// Check finds what New finds, and leaves nothing behind, as goleak sees.
func TestCheck(t *testing.T) {
	right := defaults(t)
	right.Upstream.URL, right.Upstream.HealthPath = "ws://app.invalid", "/"
	right.Auth.URL = "http://auth.invalid"
	if err := Check(right); err != nil {
		t.Error(err)
	}
	wrong := right
	wrong.Upstream.URL, wrong.DrainTimeout = "ftp://app", 0
	_, err := New(wrong)
	if got := Check(wrong); got == nil || err == nil || got.Error() != err.Error() {
		t.Errorf("got %v, New says %v", got, err)
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
