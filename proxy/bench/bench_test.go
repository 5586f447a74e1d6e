//go:build linux

package main

import (
	"bytes"
	"errors"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startEcho runs an echo server until the test ends.
func startEcho(t *testing.T) netip.AddrPort {
	t.Helper()
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newEchoServer(addr)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.serve() }()
	t.Cleanup(func() {
		if err := errors.Join(s.stop(), <-served); err != nil {
			t.Error("serve:", err)
		}
	})
	return addr
}

func connect(t *testing.T, to netip.AddrPort, conns int) *load {
	t.Helper()
	l, err := newLoad(to, "/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	if err := l.open(t.Context(), conns); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestPingPong(t *testing.T) {
	tests := []struct {
		name           string
		payload, conns int
	}{
		{"empty", 0, 3},
		{"one", 64, 1},
		{"more than are opened at once", 64, 100},
		{"16-bit length", 4096, 8},
		{"64-bit length, more than a socket takes", 1 << 20, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := connect(t, startEcho(t), tt.conns)
			marks := 0
			p := pingPong{
				message: newMessage(tt.payload),
				window:  50 * time.Millisecond,
				mark:    func() error { marks++; return nil },
			}
			if err := p.run(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if marks != 2 {
				t.Errorf("the window was marked %d times, want at its begin and its end", marks)
			}
			if len(p.latency) == 0 || slices.Min(p.latency) <= 0 {
				t.Errorf("got %d echoes, some of no time at all; want more than 0, each of some", len(p.latency))
			}
		})
	}
}

func TestPingPongEndsWithMarksError(t *testing.T) {
	l := connect(t, startEcho(t), 1)
	broken := errors.New("no such process")
	p := pingPong{message: newMessage(64), mark: func() error { return broken }}
	if err := p.run(t.Context(), l); !errors.Is(err, broken) {
		t.Errorf("got error %v, want %v", err, broken)
	}
}

func TestChurn(t *testing.T) {
	l := connect(t, startEcho(t), 0)
	for _, n := range []int{1, 200} {
		if err := l.churn(t.Context(), n); err != nil {
			t.Errorf("%d upgrades: %v", n, err)
		}
	}
}

func TestOnce(t *testing.T) {
	l := connect(t, startEcho(t), 50)
	if err := l.echoOnce(t.Context(), newMessage(64)); err != nil {
		t.Error(err)
	}
}

func TestLoadTellsWhatWentWrong(t *testing.T) {
	tests := []struct {
		name, answer, want string
	}{
		{"refusal", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "upgrade refused: HTTP/1.1 403 Forbidden"},
		{"another's accept", "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n", "without the right Sec-WebSocket-Accept"},
		{"cut short", "HTTP/1.1 101 Swit", "connection was closed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(conn, tt.answer)
				conn.Close()
			}))
			defer s.Close()
			l, err := newLoad(netip.MustParseAddrPort(s.Listener.Addr().String()), "/")
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			if err := l.open(t.Context(), 1); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestEchoIsAWebSocketServer(t *testing.T) {
	conn, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+startEcho(t).String()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var pong string
	conn.SetPongHandler(func(s string) error { pong = s; return nil })

	deadline := time.Now().Add(5 * time.Second)
	conn.SetReadDeadline(deadline)
	if err := conn.WriteControl(websocket.PongMessage, []byte("unasked"), deadline); err != nil {
		t.Fatal(err)
	}
	if err := conn.WriteControl(websocket.PingMessage, []byte("ping"), deadline); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("message ", 50_000)
	if err := conn.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
		t.Fatal(err)
	}
	kind, got, err := conn.ReadMessage()
	if err != nil || kind != websocket.TextMessage || string(got) != want {
		t.Errorf("got message of type %d, %d bytes, error %v; want the echo of %d bytes of text", kind, len(got), err, len(want))
	}
	if pong != "ping" {
		t.Errorf("got pong %q, want %q", pong, "ping")
	}
	if err := conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "bye"), deadline); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 1000) {
		t.Errorf("got %v, want the Close echoed", err)
	}
}

func TestTokenEndpoint(t *testing.T) {
	addr := startEcho(t)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for _, tt := range []struct {
		token, body string
		status      int
	}{
		{token, "1", 200},
		{"other", "0", 400},
		{token + "x", "0", 400},
		{token, "1", 200},
	} {
		resp, err := (&http.Client{Transport: transport}).Get("http://" + addr.String() + "/token?token=" + tt.token)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != tt.body || resp.StatusCode != tt.status {
			t.Errorf("token %q: got %d %q, error %v; want %d %q", tt.token, resp.StatusCode, body, err, tt.status, tt.body)
		}
	}
}

func TestPeers(t *testing.T) {
	log.SetOutput(io.Discard) // both tell every reset
	defer log.SetOutput(os.Stderr)
	for name, handler := range libraries {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(handler(startEcho(t)))
			defer s.Close()
			l := connect(t, netip.MustParseAddrPort(s.Listener.Addr().String()), 2)
			if err := l.echoOnce(t.Context(), newMessage(100_000)); err != nil {
				t.Error(err)
			}
		})
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestUsage(t *testing.T) {
	u, err := usageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	before, err := u.cpu()
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < 5*time.Millisecond; { // on a processor, not asleep
	}
	after, err := u.cpu()
	if err != nil || after <= before {
		t.Errorf("got CPU time %v, then %v, error %v; want more", before, after, err)
	}
	if pss, err := u.memory(); err != nil || pss < 1<<20 {
		t.Errorf("got %d bytes of memory, error %v; want a MiB at least", pss, err)
	}
	if _, err := (usage{1 << 22}).cpu(); err == nil { // beyond the kernel's largest process id
		t.Error("got no error for a process that does not exist")
	}
}

// FuzzFrameEcho: whatever a client sends, and however it is cut, the echo is the same, and never longer.
func FuzzFrameEcho(f *testing.F) {
	ping := []byte{0x89, 0x81, 1, 2, 3, 4, 'a' ^ 1}
	pong := []byte{0x8a, 0x81, 1, 2, 3, 4, 'a' ^ 1}
	for _, seed := range [][]byte{
		newMessage(0).sent, newMessage(3).sent, newMessage(126).sent, newMessage(1 << 16).sent,
		slices.Concat(pong, newMessage(64).sent, ping, pong, newMessage(64).sent),
	} {
		for _, cut := range []uint16{1, 2, 7, 1000} {
			f.Add(seed, cut)
		}
	}
	f.Fuzz(func(t *testing.T, sent []byte, cut uint16) {
		whole, _ := new(frameEcho).echo(slices.Clone(sent))
		var pieces, rest []byte
		var e frameEcho
		for chunk := range slices.Chunk(sent, max(1, int(cut))) {
			var out []byte
			out, rest = e.echo(slices.Concat(rest, chunk))
			rest = slices.Clone(rest)
			pieces = append(pieces, out...)
		}
		if !bytes.Equal(whole, pieces) {
			t.Errorf("in pieces of %d bytes the echo is % x, want % x", cut, pieces, whole)
		}
		if len(whole) > len(sent) {
			t.Errorf("%d bytes came back for %d", len(whole), len(sent))
		}
	})
}

func TestEchoOfFrames(t *testing.T) {
	for _, payload := range []int{0, 1, 125, 126, 65535, 65536} {
		m := newMessage(payload)
		got, rest := new(frameEcho).echo(slices.Concat(m.sent, m.sent, m.sent[:1]))
		if want := slices.Concat(m.echoed, m.echoed); !bytes.Equal(got, want) || len(rest) != 1 {
			t.Errorf("payload of %d bytes: the echo is not what was sent, or %d bytes were kept and not 1", payload, len(rest))
		}
	}
}

func TestMedian(t *testing.T) {
	nan := math.NaN()
	tests := []struct {
		name    string
		figures []float64
		want    float64
	}{
		{"none", nil, nan},
		{"no numbers", []float64{nan}, nan},
		{"one", []float64{3}, 3},
		{"odd", []float64{9, 1, 5}, 5},
		{"even", []float64{9, 1, 5, 7}, 6},
		{"a round without a figure", []float64{9, nan, 1, 5}, 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := median(tt.figures); got != tt.want && !(math.IsNaN(got) && math.IsNaN(tt.want)) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	tests := []struct {
		name   string
		sorted []int
		q      float64
		want   int
	}{
		{"one", []int{7}, 0.99, 7},
		{"least", hundred, 0, 1},
		{"p50", hundred, 0.50, 50},
		{"p99", hundred, 0.99, 99},
		{"most", hundred, 1, 100},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := quantile(tt.sorted, tt.q); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// A round in which the machine was slow for everyone must not change a ratio.
func TestRatioIsWithinRounds(t *testing.T) {
	r := make(results)
	for round, slowness := range []float64{1, 10, 2} {
		r.add("row", "ours", round, 3*slowness)
		r.add("row", "theirs", round, 4*slowness)
	}
	r.add("row", "ours", 4, 1000) // failed in round 3, and theirs in both
	if got := r.ratio("row", "ours", "theirs"); got != 0.75 {
		t.Errorf("got ratio %v, want 0.75", got)
	}
	if got := r.ratio("row", "ours", "nobody"); !math.IsNaN(got) {
		t.Errorf("got ratio %v to nothing, want none", got)
	}
}

func TestReport(t *testing.T) {
	r := make(results)
	for name, figures := range map[string][2]float64{"loop": {1.25, 120}, "nginx": {17.7, 100}, "haproxy": {5, 80}} {
		r.add(rowIdle, name, 0, figures[0])
		r.add(rowUpgrade, name, 0, figures[1])
	}
	r.add(rowUpgrade, "cached", 0, 60)
	var out strings.Builder
	report{
		out: &out, results: r, setting: []string{"2 cores", "Linux 6"}, rows: []string{rowUpgrade, rowIdle},
		columns: slices.DeleteFunc(slices.Clone(targets), func(c target) bool {
			return !slices.Contains([]string{"loop", "cached", "nginx", "haproxy"}, c.name)
		}),
	}.print()

	want := `Measured on 2 cores, Linux 6.

| Medians                            | Portcullis, loop | nginx | HAProxy |
| ---------------------------------- | ---------------: | ----: | ------: |
| CPU per authenticated upgrade (µs) |              120 |   100 |  80.0 * |
| Memory per idle session (KiB)      |             1.25 |  17.7 |    5.00 |

CPU per authenticated upgrade (µs), Portcullis, loop, answers cached: 60.0.
\* not authenticated: it has no means to ask a token endpoint.

| Ratios                             | loop / nginx | loop / HAProxy |
| ---------------------------------- | -----------: | -------------: |
| CPU per authenticated upgrade (µs) |         1.20 |         1.50 * |
| Memory per idle session (KiB)      |         0.07 |           0.25 |

| Goals of the loop engine                           | at most | measured | reached |
| -------------------------------------------------- | ------: | -------: | ------: |
| CPU per authenticated upgrade (µs), ratio to nginx |    1.00 |     1.20 |      no |
| Memory per idle session (KiB)                      |    2.00 |     1.25 |     yes |
| Memory per idle session (KiB), ratio to haproxy    |    0.50 |     0.25 |     yes |
`
	got, _, _ := strings.Cut(out.String(), "\nCPU is that of")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestChoose(t *testing.T) {
	tests := []struct {
		name, list, want, err string
	}{
		{name: "all", want: "loop,stream,cached,nginx,haproxy,reverseproxy,koding,direct,push,nchan,write"},
		{name: "some, in the order of the table", list: "nginx,loop", want: "loop,nginx"},
		{name: "unknown", list: "loop,caddy", err: `-only: "caddy" is none of loop,stream,`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := choose("-only", tt.list, targets, target.key)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err)) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
			if list := names(got, target.key); list != tt.want {
				t.Errorf("got %s, want %s", list, tt.want)
			}
		})
	}
}
