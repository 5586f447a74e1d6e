package main

// These tests drive the real program, built once, as a process of its own on ports that the system chooses. Its start lines
// say which; what it does is read from its sockets, its log and its exit code.

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"portcullis/proxy"
	"portcullis/proxy/leaktest"
)

// patience bounds every wait of these tests; it is long because the machines that run them may be slow.
const patience = 30 * time.Second

var binaryDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "portcullis")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaryDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// binary builds the program when the first test asks for it, with the race detector if the tests have it.
var binary = sync.OnceValues(func() (string, error) {
	args := []string{"build", "-o", filepath.Join(binaryDir, "portcullis")}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return args[2], nil
})

// shown is what these tests show to the program and it must not tell: every credential, query and secret setting. The bundled
// endpoint's token is in the greeting.
var shown = leaktest.Secrets{Public: []string{"token"}}

// leaks are the lines of what the program said that tell some of it.
func leaks(said string) []string {
	var lines strings.Builder
	for line := range strings.Lines(said) {
		if !strings.HasPrefix(line, "{") {
			line = strings.ReplaceAll(line, "?token=token", "") // of the greeting
		}
		lines.WriteString(line)
	}
	return shown.Leaks(lines.String())
}

func noLeaks(t *testing.T, said string) {
	t.Helper()
	for _, leak := range leaks(said) {
		t.Errorf("the program tells %s", leak)
	}
}

// command is the program with nothing but environ in its environment.
func command(t *testing.T, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range environ {
		if name, value, _ := strings.Cut(variable, "="); matches(secrets, name) {
			shown.Token(value)
		}
	}
	for _, arg := range args {
		shown.Request(arg, nil) // the probe's URL
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append([]string{"GORACE=halt_on_error=1"}, environ...)
	return cmd
}

// execute runs the program to its end.
func execute(t *testing.T, environ []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := command(t, environ, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait()
	noLeaks(t, out.String()+errs.String())
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// gate is the program, serving.
type gate struct {
	t            *testing.T
	cmd          *exec.Cmd
	front, admin string // host:port

	mu   sync.Mutex
	log  []string
	more chan struct{} // closed and replaced when log grows or ends
	done chan struct{} // closed when the process has ended

	metrics string // all that readMetrics has got
}

// startGate starts the program and waits until it listens. Without settings of its own it is the bundled demonstration. At the
// end of the test neither its log, of whatever level, nor its metrics may tell what it was shown.
func startGate(t *testing.T, environ ...string) *gate {
	t.Helper()
	g := &gate{t: t, more: make(chan struct{}), done: make(chan struct{})}
	environ = append([]string{"LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", "RATE_UPGRADES_PER_IP=0", "LOG_LEVEL=debug"}, environ...)
	g.cmd = command(t, environ)
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			g.note(lines.Text())
		}
		g.cmd.Wait()
		close(g.done)
		g.note("(end)")
	}()
	t.Cleanup(func() {
		g.readMetrics()
		g.cmd.Process.Kill()
		<-g.done
		noLeaks(t, g.text()+"\n"+g.metrics)
		if log := g.text(); t.Failed() || strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			t.Errorf("the program's log:\n%s", log)
		}
	})
	line := g.await(`"msg":"listening"`)
	var start struct {
		Addr, Admin string
		Descriptors int
	}
	if err := json.Unmarshal([]byte(line), &start); err != nil {
		t.Fatalf("start line %s: %v", line, err)
	}
	if want := proxy.Descriptors(); start.Descriptors != want {
		t.Errorf("descriptors: the start line has %d, want the %d in force", start.Descriptors, want)
	}
	g.front, g.admin = start.Addr, start.Admin
	return g
}

func (g *gate) note(line string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.log = append(g.log, line)
	close(g.more)
	g.more = make(chan struct{})
}

func (g *gate) text() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.log, "\n")
}

// await returns the first line of the log that contains text.
func (g *gate) await(text string) string {
	g.t.Helper()
	deadline := time.After(patience)
	for {
		g.mu.Lock()
		lines, more := g.log, g.more
		g.mu.Unlock()
		if i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, text) }); i >= 0 {
			return lines[i]
		}
		select {
		case <-more:
		case <-g.done:
			g.t.Fatalf("the program ended without a line that has %s", text)
		case <-deadline:
			g.t.Fatalf("no line that has %s", text)
		}
	}
}

// readMetrics notes what the metrics are by now, unless there are none any more.
func (g *gate) readMetrics() {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + g.admin + "/metrics")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	g.metrics += string(body)
}

func (g *gate) signal(s os.Signal) {
	g.t.Helper()
	g.readMetrics()
	if err := g.cmd.Process.Signal(s); err != nil {
		g.t.Fatal(err)
	}
}

// exit waits for the end of the process and checks its exit code.
func (g *gate) exit(want int) {
	g.t.Helper()
	select {
	case <-g.done:
	case <-time.After(patience):
		g.t.Fatal("the program does not end")
	}
	if got := g.cmd.ProcessState.ExitCode(); got != want {
		g.t.Errorf("exit code %d, want %d", got, want)
	}
}

func (g *gate) dial(target string) (*websocket.Conn, *http.Response, error) {
	shown.Request(target, nil)
	dialer := websocket.Dialer{HandshakeTimeout: patience, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return dialer.Dial(target, nil)
}

// open opens a session.
func (g *gate) open(pathAndQuery string) *websocket.Conn {
	g.t.Helper()
	conn, resp, err := g.dial("ws://" + g.front + pathAndQuery)
	if err != nil {
		g.t.Fatalf("dial: %v (%+v)", err, resp)
	}
	g.t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(patience))
	return conn
}

// mainJob is what the program is for: a message through the gate and back.
func (g *gate) mainJob() {
	g.t.Helper()
	conn := g.open("/?token=token")
	if err := conn.WriteMessage(websocket.TextMessage, []byte("Olá")); err != nil {
		g.t.Fatal(err)
	}
	kind, got, err := conn.ReadMessage()
	if want := `MENSAGEM: Você enviou "Olá"`; err != nil || kind != websocket.TextMessage || string(got) != want {
		g.t.Fatalf("got %q (%d, %v), want %q", got, kind, err, want)
	}
	if err := conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "")); err != nil {
		g.t.Fatal(err)
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 1000) {
		g.t.Fatalf("after Close 1000 got %v, want Close 1000", err)
	}
	conn.Close()
}

// ask sends one HTTP request and returns the answer with its body.
func ask(t *testing.T, method, target string) (*http.Response, string) {
	t.Helper()
	shown.Request(target, nil)
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestMainJob(t *testing.T) {
	g := startGate(t)
	g.mainJob()

	for _, test := range []struct {
		name, target string
		status       int
	}{
		{"wrong token", "/?token=rogers", 401},
		{"no token", "/", 401},
		{"another path", "/chat?token=token", 404},
		{"two tokens", "/?token=token&token=rogers", 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, resp, err := g.dial("ws://" + g.front + test.target)
			if err == nil {
				conn.Close()
				t.Fatal("got a socket")
			}
			if resp == nil || resp.StatusCode != test.status {
				t.Fatalf("got %+v (%v), want %d", resp, err, test.status)
			}
			body, _ := io.ReadAll(resp.Body)
			if strings.Count(string(body), "\n") != 1 {
				t.Errorf("body %q, want one line", body)
			}
			if got := resp.Header.Get("WWW-Authenticate"); test.status == 401 && !strings.HasPrefix(got, "Bearer ") {
				t.Errorf("WWW-Authenticate: %q, want a Bearer challenge", got)
			}
		})
	}

	for _, test := range []struct {
		name, method, target string
		status               int
		body                 string
	}{
		{"token accepted", "GET", "/token?token=token", 200, "1"},
		{"token refused", "GET", "/token?token=x", 400, "0"},
		{"preflight", "OPTIONS", "/token?token=token", 204, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := ask(t, test.method, "http://"+g.front+test.target)
			if resp.StatusCode != test.status || body != test.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, test.status, test.body)
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("Access-Control-Allow-Origin: %q, want *", got)
			}
		})
	}

	g.signal(syscall.SIGTERM)
	g.exit(exitDrained)
}

// The check that every run of the program ends with must be one that can fail.
func TestLeaksAreFound(t *testing.T) {
	g := startGate(t)
	g.dial("ws://" + g.front + "/?token=rogers&x=1")
	g.await("token_refused")
	g.open("/?token=token").Close() // whatever other tests have shown before
	for _, line := range []string{
		`{"msg":"refused","error":"nobody knows rogers"}`, `{"msg":"refused","path":"/?x=1"}`, `{"path":"/?token=token"}`, "panic: rogers",
		`portcullis_upgrades_total{reason="rogers"} 1`,
	} {
		if said := g.text() + "\n"; leaks(said) != nil || leaks(said+line) == nil {
			t.Errorf("found %q, and then %q, want nothing before %s", leaks(said), leaks(said+line), line)
		}
	}
}

func TestGuessingAtTokenEndpointIsLimited(t *testing.T) {
	g := startGate(t, "RATE_AUTH_FAILURES_PER_IP=2/h")
	for i, want := range []int{400, 400, 429} {
		resp, _ := ask(t, "GET", "http://"+g.front+"/token?token=guess")
		if resp.StatusCode != want {
			t.Errorf("guess %d: %d, want %d", i, resp.StatusCode, want)
		}
		if (want == 429) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("guess %d: Retry-After: %q", i, resp.Header.Get("Retry-After"))
		}
	}
}

// backend is an application behind the gate, which tells what it saw.
type backend struct {
	*httptest.Server
	requests chan *http.Request
	closes   chan error
}

func newBackend(t *testing.T) *backend {
	b := &backend{requests: make(chan *http.Request, 16), closes: make(chan error, 16)}
	upgrader := websocket.Upgrader{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.requests <- r
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, message, err := conn.ReadMessage()
			if err != nil {
				b.closes <- err
				return
			}
			conn.WriteMessage(kind, message)
		}
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) wsURL() string { return "ws" + strings.TrimPrefix(b.URL, "http") }

// newTokenEndpoint serves AUTH_URL.
func newTokenEndpoint(t *testing.T, handler http.HandlerFunc) string {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL + "/check?app=1"
}

// acceptOpenSesame accepts a token that arrives whole only if it was escaped.
func acceptOpenSesame(w http.ResponseWriter, r *http.Request) {
	if q := r.URL.Query(); q.Get("app") != "1" || q.Get("token") != "open+sesame" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	w.Header().Set("X-Auth-Subject", "ali")
	io.WriteString(w, "1\n")
}

func TestOwnUpstreamSeesTheClientsCloseAndNoToken(t *testing.T) {
	b := newBackend(t)
	for _, mode := range []string{"passthrough", "terminate"} {
		t.Run(mode, func(t *testing.T) {
			g := startGate(t, "UPSTREAM_URL="+b.wsURL()+"/app?v=2", "AUTH_URL="+newTokenEndpoint(t, acceptOpenSesame), "RELAY_MODE="+mode)
			conn := g.open("/chat?room=a%2Fb&token=open%2Bsesame")
			r := <-b.requests
			if want := "/app/chat?v=2&room=a%2Fb"; r.RequestURI != want {
				t.Errorf("the upstream was asked for %s, want %s", r.RequestURI, want)
			}
			if got := r.Header.Get("X-Auth-Subject"); got != "ali" {
				t.Errorf("X-Auth-Subject: %q, want ali", got)
			}
			if got := r.Header.Get("X-Forwarded-For"); got != "127.0.0.1" {
				t.Errorf("X-Forwarded-For: %q, want 127.0.0.1", got)
			}
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4321, "bye"))
			want := &websocket.CloseError{Code: 4321, Text: "bye"}
			if got := <-b.closes; !reflect.DeepEqual(got, want) {
				t.Errorf("the upstream saw %v, want %v", got, want)
			}
			conn.Close()
			g.signal(syscall.SIGINT)
			g.exit(exitDrained)
		})
	}
}

func TestDrain(t *testing.T) {
	for _, mode := range []string{"passthrough", "terminate"} {
		t.Run("sessions are told, "+mode, func(t *testing.T) {
			g := startGate(t, "DRAIN_TIMEOUT=10s", "RELAY_MODE="+mode)
			conns := []*websocket.Conn{g.open("/?token=token"), g.open("/?token=token")}
			g.signal(syscall.SIGTERM)
			for _, conn := range conns {
				if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
					t.Errorf("got %v, want Close 1001", err)
				}
				conn.Close()
			}
			g.exit(exitDrained)
			if conn, err := net.Dial("tcp", g.front); err == nil {
				conn.Close()
				t.Error("the port is still open")
			}
		})
	}
	t.Run("DRAIN_DELAY goes on accepting", func(t *testing.T) {
		g := startGate(t, "DRAIN_DELAY=1h")
		g.signal(syscall.SIGTERM)
		g.await(`"msg":"draining"`)
		if resp, _ := ask(t, "GET", "http://"+g.admin+"/readyz"); resp.StatusCode != 503 {
			t.Errorf("/readyz: %d, want 503", resp.StatusCode)
		}
		g.mainJob()
		g.signal(syscall.SIGTERM)
		g.exit(exitFailed)
	})
	t.Run("DRAIN_DELAY is over", func(t *testing.T) {
		g := startGate(t, "DRAIN_DELAY=10ms")
		g.signal(syscall.SIGTERM)
		g.exit(exitDrained)
	})

	// silent opens a session whose client will not answer a Close, for it does not read.
	silent := func(t *testing.T, environ ...string) *gate {
		g := startGate(t, environ...)
		g.open("/?token=token")
		g.signal(syscall.SIGTERM)
		g.await(`"msg":"draining"`)
		return g
	}
	t.Run("DRAIN_TIMEOUT runs out", func(t *testing.T) {
		g := silent(t, "DRAIN_TIMEOUT=300ms")
		g.exit(exitFailed)
	})
	t.Run("a second signal cuts", func(t *testing.T) {
		g := silent(t, "DRAIN_TIMEOUT=1h", "CLOSE_TIMEOUT=1h")
		g.signal(syscall.SIGTERM)
		g.exit(exitFailed)
	})
}

func TestMessageRate(t *testing.T) {
	g := startGate(t, "MESSAGE_RATE=2/h")
	conn := g.open("/?token=token")
	for range 2 {
		conn.WriteMessage(websocket.TextMessage, []byte("Olá"))
		if _, _, err := conn.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	conn.WriteMessage(websocket.TextMessage, []byte("Olá"))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) {
		t.Errorf("after the third message: %v, want Close 1008", err)
	}
}

func TestOperatorsListener(t *testing.T) {
	g := startGate(t)
	g.mainJob()
	if _, resp, _ := g.dial("ws://" + g.front + "/?token=rogers"); resp == nil {
		t.Fatal("no answer")
	}
	g.await(`"reason":"client_close"`)
	for page, want := range map[string]string{"/healthz": "ok", "/readyz": "ready"} {
		if resp, body := ask(t, "GET", "http://"+g.admin+page); resp.StatusCode != 200 || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %q, want 200 %q", page, resp.StatusCode, body, want)
		}
	}
	_, metrics := ask(t, "GET", "http://"+g.admin+"/metrics")
	for _, want := range []string{
		`portcullis_upgrades_total{reason="",result="accepted"} 1`,
		`portcullis_upgrades_total{reason="token_refused",result="refused"} 1`,
		`portcullis_sessions_ended_total{code="1000",reason="client_close"} 1`,
		`portcullis_sessions_live 0`,
		`portcullis_messages_total{direction="from_client"} 1`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func TestNoOperatorsListener(t *testing.T) {
	g := startGate(t, "ADMIN_ADDR=")
	if g.admin != "" {
		t.Errorf("the operator's listener is at %s, want none", g.admin)
	}
	g.mainJob()
}

func TestProbe(t *testing.T) {
	g := startGate(t)
	for _, test := range []struct {
		name string
		args []string
		env  []string
		code int
	}{
		{"a session", []string{"probe", "ws://" + g.front + "/?token=token"}, nil, 0},
		{"a refusal", []string{"probe", "ws://" + g.front + "/?token=rogers"}, nil, 1},
		{"readiness", []string{"probe"}, []string{"ADMIN_ADDR=" + g.admin}, 0},
		{"nobody there", []string{"probe"}, []string{"ADMIN_ADDR=127.0.0.1:1"}, 1},
		{"no listener to ask", []string{"probe"}, []string{"ADMIN_ADDR="}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := execute(t, test.env, test.args...)
			if code != test.code {
				t.Errorf("exit code %d, want %d; it says %s%s", code, test.code, stdout, stderr)
			}
			if stdout+stderr == "" || (test.code != 0) != (stderr != "") {
				t.Errorf("standard output %q, standard error %q", stdout, stderr)
			}
			if strings.Contains(stdout+stderr, "token=") {
				t.Errorf("the query is shown: %s%s", stdout, stderr)
			}
		})
	}
}

func TestCommands(t *testing.T) {
	for _, test := range []struct {
		args           []string
		stdout, stderr string // a part
		code           int
	}{
		{[]string{"version"}, "portcullis ", "", 0},
		{[]string{"--version"}, "portcullis ", "", 0},
		{[]string{"-v"}, "portcullis ", "", 0},
		{[]string{"help"}, "portcullis probe [URL]", "", 0},
		{[]string{"--help"}, "config.example.env", "", 0},
		{[]string{"-h"}, "config.example.env", "", 0},
		{[]string{"serv"}, "", `unknown command "serv"`, 2},
		{[]string{"version", "2"}, "", "usage:", 2},
		{[]string{"probe", "a", "b"}, "", "usage:", 2},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			stdout, stderr, code := execute(t, nil, test.args...)
			if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("got %d %q %q, want %d %q %q", code, stdout, stderr, test.code, test.stdout, test.stderr)
			}
		})
	}
}

func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, name := range []string{"LISTEN_ADDR", "ADMIN_ADDR"} {
		environ := map[string]string{"LISTEN_ADDR": "127.0.0.1:0", "ADMIN_ADDR": "127.0.0.1:0"}
		environ[name] = taken.Addr().String()
		_, stderr, code := execute(t, []string{"LISTEN_ADDR=" + environ["LISTEN_ADDR"], "ADMIN_ADDR=" + environ["ADMIN_ADDR"]})
		if code != exitFailed || !strings.Contains(stderr, name) || !strings.Contains(stderr, "address already in use; another process") {
			t.Errorf("%s: got %d %s, want %d, its name and why", name, code, stderr, exitFailed)
		}
	}
}

func TestRemedy(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{syscall.EADDRINUSE, "want a port that is free"},
		{syscall.EACCES, "ports below 1024 are privileged"},
		{syscall.EADDRNOTAVAIL, "want an address of this machine"},
		{&net.DNSError{Err: "no such host", Name: "nowhere"}, "want an address of this machine"},
	} {
		if got := remedy(&net.OpError{Op: "listen", Err: tt.err}); !strings.Contains(got, tt.want) {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestMistakesInSettings(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		environ []string
		want    []string // the beginning of each line, in any order
	}{
		{"all at once", []string{
			"LISTEN_ADDR=3000", "ADMIN_ADDR=nowhere", "LOG_LEVEL=loud", "LOG_FORMAT=xml", "PING_INTERVAL=30", "LIMIT_SESSIONS=many",
			"AUTH_TOKEN_PASS=maybe", "RATE_UPGRADES=fast", "TRUSTED_PROXIES=10.0.0.0/8,proxy", "ORIGINS=example.com", "PATHS=chat",
			"UPSTREAM_URL=ftp://backend", "AUTH_TIMEOUT=-1s", "DRAIN_TIMEOUT=0s", "RELAY_MODE=opaque", "TLS_CERT_FILE=/nowhere.pem",
		}, []string{
			`LISTEN_ADDR: "3000" `, `ADMIN_ADDR: "nowhere" `, `LOG_LEVEL: "loud" `, `LOG_FORMAT: "xml" `, `PING_INTERVAL: "30" `,
			`LIMIT_SESSIONS: "many" `, `AUTH_TOKEN_PASS: "maybe" `, `RATE_UPGRADES: "fast" `, `TRUSTED_PROXIES: "proxy" `,
			`ORIGINS: "example.com" `, `PATHS: "chat" `, `UPSTREAM_URL: "ftp://backend" `, `AUTH_TIMEOUT: "-1s" `, `AUTH_URL: "" `,
			`DRAIN_TIMEOUT: "0s" `, `RELAY_MODE: "opaque" `, `TLS_KEY_FILE: "" `,
		}},
		{"an upstream without authentication is no open door", []string{"UPSTREAM_URL=ws://127.0.0.1:1"},
			[]string{`AUTH_URL: "" would leave UPSTREAM_URL open`}},
		{"names of later versions", []string{"PROXY_PROTOCOL=true"}, []string{`PROXY_PROTOCOL: "true" `}},
		{"a first message that nobody asks for", []string{"AUTH_MODE=none", "AUTH_FIRST_MESSAGE=true", "AUTH_FIRST_MESSAGE_FORMAT=json"},
			[]string{`AUTH_FIRST_MESSAGE: "true" `, `AUTH_FIRST_MESSAGE_FORMAT: "json" `}},
		{"renewal without subjects", []string{"AUTH_MODE=none", "RENEWAL=true"}, []string{`RENEWAL: "true" `}},
		{"names that were meant for others", []string{"TLS_CERT=/cert.pem", "TLS_KEY=hunter2", "auth_mode=jwt", "LISTEN_ADDRESS=:80", "LIMIT_SESSION="},
			[]string{"TLS_CERT: is no setting; want TLS_CERT_FILE, ", "TLS_KEY: is no setting", "auth_mode: is no setting"}},
		{"two listeners on one port", []string{"LISTEN_ADDR=127.0.0.1:9090"}, []string{`ADMIN_ADDR: "127.0.0.1:9090" has the port of LISTEN_ADDR`}},
		{"two listeners on one port of every address", []string{"LISTEN_ADDR=[::1]:3000", "ADMIN_ADDR=:3000"}, []string{`ADMIN_ADDR: ":3000" has the port`}},
		{"lists with a hole", []string{"PATHS=/a,,/b", "AUTH_AUDIENCE=a, ", "TRUSTED_PROXIES=,", "ORIGINS=https://a.example,"},
			[]string{`PATHS: "/a,,/b" has an empty entry`, `AUTH_AUDIENCE: "a, " has`, `TRUSTED_PROXIES: "," has`, `ORIGINS: "https://a.example," has`}},
		{"quotes of a file for Docker", []string{`UPSTREAM_URL="ws://app"`, "PING_INTERVAL='30s'", `LIMIT_SESSIONS="5"`, `PATHS="`},
			[]string{`UPSTREAM_URL: "\"ws://app\"" has quotes`, `PING_INTERVAL: "'30s'" has quotes`, `LIMIT_SESSIONS: "\"5\"" has quotes`, `PATHS: "\"" `}},
		{"every page", []string{"ORIGINS=*"}, []string{`ORIGINS: "*" would allow every web page; want `}},
		{"a greeting of no use", []string{"SESSION_HELLO=true"}, []string{`SESSION_HELLO: "true" `}},
		{"no such mode", []string{"AUTH_MODE=saml"}, []string{`AUTH_MODE: "saml" `}},
		{"secret of another mode", []string{"AUTH_JWT_SECRET=hunter2"}, []string{`AUTH_JWT_SECRET: "***" `}},
		{"secret that is too short", []string{"AUTH_MODE=jwt", "AUTH_JWT_SECRET_FILE=" + secret}, []string{`AUTH_JWT_SECRET: "***" `}},
		{"cookie without origins", []string{"AUTH_TOKEN_FROM=cookie:session"}, []string{`ORIGINS: `}},
		{"per-subject limit without subjects", []string{"AUTH_MODE=none", "LIMIT_SESSIONS_PER_SUBJECT=5"}, []string{`AUTH_MODE: "none" `}},
		{"the loop engine cannot terminate", []string{"RELAY_MODE=terminate", "RELAY_ENGINE=loop"}, []string{`RELAY_ENGINE: "loop" `}},
		{"the loop engine has no TLS", []string{"RELAY_ENGINE=loop", "UPSTREAM_URL=wss://backend", "AUTH_MODE=none"}, []string{`RELAY_ENGINE: "loop" `}},
		{"secret that is no token", []string{"DEMO_TOKEN=hunter2 hunter2"}, []string{`DEMO_TOKEN: "***" `}},
		{"secret twice", []string{"DEMO_TOKEN=hunter2", "DEMO_TOKEN_FILE=" + secret}, []string{`DEMO_TOKEN_FILE: "` + secret + `" is set beside DEMO_TOKEN`}},
		{"secret in no file", []string{"DEMO_TOKEN_FILE=/nowhere/token"}, []string{`DEMO_TOKEN_FILE: "/nowhere/token" cannot be used: no such file`}},
		{"more than there can be", []string{"LIMIT_SESSIONS=99999999999999999999"}, []string{`LIMIT_SESSIONS: "99999999999999999999" is too large; `}},
		{"secret in an empty file", []string{"DEMO_TOKEN_FILE=" + empty}, []string{`DEMO_TOKEN_FILE: "` + empty + `" `}},
		{"password in a URL", []string{"UPSTREAM_URL=ws://ali:hunter2@backend", "AUTH_URL=http://ali:hunter2@auth"},
			[]string{`UPSTREAM_URL: `, `AUTH_URL: `}},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := execute(t, test.environ)
			if code != exitSettings || stdout != "" {
				t.Errorf("exit code %d, standard output %q, want %d and none", code, stdout, exitSettings)
			}
			lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
			for _, want := range test.want {
				i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, want) })
				if i < 0 {
					t.Errorf("no line begins with %s", want)
					continue
				}
				if !strings.Contains(lines[i], "; want ") {
					t.Errorf("this line does not say what is allowed: %s", lines[i])
				}
				lines = slices.Delete(lines, i, i+1)
			}
			if len(lines) > 0 {
				t.Errorf("further lines: %q", lines)
			}
			if strings.Contains(stderr, "hunter2") {
				t.Errorf("the secret is shown:\n%s", stderr)
			}
		})
	}
}

func TestMisspeltVariables(t *testing.T) {
	g := startGate(t, "UPSTREAM_ULR=ws://127.0.0.1:1", "AUTH_CLIENT_SECRET_FILE=", "UPSTREAM_SERVICE_HOST=10.0.0.1", "AUTH_PORT=tcp://10.0.0.1:80", "AUTHOR=me")
	const warning = "a variable looks like a setting and is none"
	if line := g.await(warning); !strings.Contains(line, `"level":"WARN"`) || !strings.Contains(line, `"variable":"UPSTREAM_ULR","meant":"UPSTREAM_URL"`) {
		t.Errorf("the line: %s", line)
	}
	g.open("/?token=token").Close()
	if n := strings.Count(g.text(), warning); n != 1 {
		t.Errorf("%d lines, want one", n)
	}
}

func TestSecretFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGate(t, "DEMO_TOKEN_FILE="+file)
	g.open("/?token=hunter2")
	g.await("Try")
	if strings.Contains(g.text(), "hunter2") {
		t.Error("the greeting shows the secret")
	}
}

func TestEmptyVariables(t *testing.T) {
	for _, test := range []struct {
		name, want string
		got        func(settings) string
	}{
		{"ADMIN_ADDR", "", func(s settings) string { return s.Admin.Addr }},
		{"AUTH_FORWARD", "0", func(s settings) string { return fmt.Sprint(len(s.Proxy.Auth.Forward)) }},
		{"RATE_UPGRADES_PER_IP", "0", func(s settings) string { return cmp.Or(s.Proxy.Limits.UpgradesPerIP.String(), "0") }},
		{"PING_INTERVAL", "30s", func(s settings) string { return s.Proxy.Relay.PingInterval.String() }},
		{"DEMO_TOKEN", "token", func(s settings) string { return s.Demo.Token }},
	} {
		s, err := readSettings(map[string]string{test.name: ""})
		if got := test.got(s); err != nil || got != test.want {
			t.Errorf("%s set but empty: got %q (%v), want %q", test.name, got, err, test.want)
		}
	}
}

// writeCertificate replaces the pair of files as tools that renew certificates do: by renaming over them.
func writeCertificate(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		temporary := filepath.Join(dir, name+".new")
		if err := os.WriteFile(temporary, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTLSAtTheFrontFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir, 1)
	g := startGate(t, "TLS_CERT_FILE="+filepath.Join(dir, "cert.pem"), "TLS_KEY_FILE="+filepath.Join(dir, "key.pem"))

	if line := g.await("TLS_CERT_FILE"); !strings.Contains(line, `"level":"WARN"`) || !strings.Contains(line, "expires soon") {
		t.Errorf("of a certificate that ends within an hour the log says %s", line)
	}

	// present returns the serial number of the certificate that a session gets to see.
	present := func() int64 {
		conn, _, err := g.dial("wss://" + g.front + "/?token=token")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		state := conn.NetConn().(*tls.Conn).ConnectionState()
		if state.Version < tls.VersionTLS12 {
			t.Errorf("TLS version %x", state.Version)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	if got := present(); got != 1 {
		t.Fatalf("certificate %d, want 1", got)
	}
	writeCertificate(t, dir, 2)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for deadline := time.After(patience); present() != 2; {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal("the new certificate is not picked up")
		}
	}
	// An HTTP/2 connection cannot be hijacked, so it must not come about.
	conn, err := tls.Dial("tcp", g.front, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("ALPN chose %q, want http/1.1", got)
	}
}

func TestBadInputGetsABoundedAnswer(t *testing.T) {
	g := startGate(t, "RATE_AUTH_FAILURES_PER_IP=0")
	const upgrade = "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, test := range []struct {
		name, sent string
		end        bool   // the client closes its direction
		want       string // the beginning of the answer; "" is none
	}{
		{"garbage", "\x16\x03\x01\x00\xff\x00garbage\r\n\r\n", false, "HTTP/1.1 400 "},
		{"half a request", "GET /?token=token HTTP/1.1\r\nHost: loc", true, ""},
		{"a client that sends nothing", "", false, ""},
		{"1 MiB of header", "GET /?token=token HTTP/1.1\r\n" + upgrade + "X-Pad: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", false, "HTTP/1.1 431 "},
		{"a token of 1 MiB", "GET /?token=" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\n" + upgrade + "\r\n", false, "HTTP/1.1 431 "},
		{"a token of 9,000 bytes", "GET /?token=" + strings.Repeat("a", 9000) + " HTTP/1.1\r\n" + upgrade + "\r\n", false, "HTTP/1.1 401 "},
		{"a token with a control character", "GET /?token=tok%00en HTTP/1.1\r\n" + upgrade + "\r\n", false, "HTTP/1.1 401 "},
		{"a body", "GET /?token=token HTTP/1.1\r\n" + upgrade + "Content-Length: 5\r\n\r\nhello", false, "HTTP/1.1 400 "},
		{"another version", "GET /?token=token HTTP/1.1\r\n" + strings.Replace(upgrade, "13", "8", 1) + "\r\n", false, "HTTP/1.1 426 "},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", g.front)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			_, target, _ := strings.Cut(test.sent, " ")
			target, _, _ = strings.Cut(target, " ")
			shown.Request(target, nil)
			go func() {
				io.WriteString(conn, test.sent) // the answer may come before all is written
				if test.end {
					conn.(*net.TCPConn).CloseWrite()
				}
			}()
			answer, err := io.ReadAll(io.LimitReader(conn, 1<<16))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection stays open")
			}
			if test.want == "" && len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) || !bytes.HasPrefix(answer, []byte(test.want)) {
				t.Errorf("got %q (%v), want %q", answer, err, test.want)
			}
		})
	}
	g.mainJob()
}

func TestBrokenTokenEndpointIsNotTheClientsFault(t *testing.T) {
	b := newBackend(t)
	for name, endpoint := range map[string]http.HandlerFunc{
		"hangs":     func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"fails":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"streams for ever": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write(make([]byte, 4096))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, "UPSTREAM_URL="+b.wsURL(), "AUTH_URL="+newTokenEndpoint(t, endpoint), "AUTH_TIMEOUT=300ms")
			_, resp, err := g.dial("ws://" + g.front + "/?token=open%2Bsesame")
			if resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
				t.Errorf("got %+v (%v), want 503 with Retry-After", resp, err)
			}
			if line := g.await("auth_unavailable"); !strings.Contains(line, `"level":"WARN"`) || strings.Contains(line, "sesame") {
				t.Errorf("the log says %s", line)
			}
		})
	}
}

var exampleLine = regexp.MustCompile(`(?m)^#([A-Z][A-Z0-9_]*)=(.*)$`)

// TestSettingsAreDescribed keeps the settings, config.example.env and the README's table in agreement.
func TestSettingsAreDescribed(t *testing.T) {
	variables, err := env.GetFieldParams(&settings{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{} // name to default
	for _, v := range variables {
		want[v.Key] = v.DefaultValue
		if matches(secrets, v.Key) {
			want[v.Key+"_FILE"] = ""
		}
	}
	compare := func(where string, got map[string]string) {
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if value, ok := got[name]; !ok || value != want[name] {
				t.Errorf("%s: %s is %q (there: %t), want %q", where, name, value, ok, want[name])
			}
		}
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if _, ok := want[name]; !ok {
				t.Errorf("%s: %s is no setting", where, name)
			}
		}
	}
	example := map[string]string{}
	for _, m := range exampleLine.FindAllStringSubmatch(readFile(t, "config.example.env"), -1) {
		example[m[1]] = m[2]
	}
	compare("config.example.env", example)

	table := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z][A-Z0-9_]*)` \\| (?:`([^`]*)`)? *\\| [^|]+ \\|$").FindAllStringSubmatch(readFile(t, "README.md"), -1) {
		table[m[1]] = m[2]
	}
	compare("README.md", table)

	if _, err := readSettings(example); err != nil {
		t.Errorf("config.example.env with every line in force: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if matches(reserved, name) {
			t.Errorf("%s is a setting and reserved for a later version", name)
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestExamplesOfModes starts the program by each example that the README has for a mode, and wants one for each.
func TestExamplesOfModes(t *testing.T) {
	_, section, _ := strings.Cut(readFile(t, "README.md"), "## Choosing how to authenticate\n")
	section, _, _ = strings.Cut(section, "\n## ")
	missing := []string{"endpoint", "jwt", "introspect", "forward", "none"}
	for _, block := range regexp.MustCompile("(?s)```(?:console|yaml)\n(.*?)```").FindAllStringSubmatch(section, -1) {
		var environ []string
		for _, m := range regexp.MustCompile(`(?m)^\$ export (.*)$`).FindAllStringSubmatch(block[1], -1) {
			environ = append(environ, strings.Fields(m[1])...)
		}
		_, service, _ := strings.Cut(block[1], "\n  portcullis:\n")
		for _, m := range regexp.MustCompile(`(?m)^ +([A-Z_]+): (.*)$`).FindAllStringSubmatch(service, -1) {
			environ = append(environ, m[1]+"="+m[2])
		}
		if environ == nil {
			continue // it shows something else
		}
		mode := cmp.Or(env.ToMap(environ)["AUTH_MODE"], "endpoint")
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == mode })
		t.Run(mode, func(t *testing.T) { startGate(t, environ...) })
	}
	if len(missing) > 0 {
		t.Errorf("README.md has no example of %q", missing)
	}
}

// TestReasonsAreDescribed keeps the README's tables of refusals and ends in agreement with the program.
func TestReasonsAreDescribed(t *testing.T) {
	readme := readFile(t, "README.md")
	known := proxy.KnownReasons()
	for heading, want := range map[string][]string{"## Refusals\n": known.RefusalReasons, "## How sessions end\n": slices.Collect(maps.Keys(known.EndReasons))} {
		_, section, _ := strings.Cut(readme, heading)
		section, _, _ = strings.Cut(section, "\n## ")
		var got []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(section, -1) {
			got = append(got, m[1])
		}
		slices.Sort(got)
		if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
			t.Errorf("README.md, %s: it has\n%q, the program\n%q", strings.TrimSpace(heading), got, want)
		}
	}
}

// TestDockerfile reads the Dockerfile as far as it can be checked without an engine, and runs the build line that it contains.
func TestDockerfile(t *testing.T) {
	type instruction struct{ name, rest string }
	var stages [][]instruction
	for line := range strings.Lines(readFile(t, "Dockerfile")) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name == "" || strings.HasPrefix(name, "#"):
			continue
		case name == "FROM":
			stages = append(stages, nil)
		case len(stages) == 0:
			t.Fatalf("%s before the first FROM", name)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{name, rest})
	}
	if len(stages) != 2 {
		t.Fatalf("%d stages, want 2", len(stages))
	}
	find := func(stage int, name string) string {
		t.Helper()
		for _, i := range stages[stage] {
			if i.name == name && (name != "RUN" || strings.Contains(i.rest, "go build")) {
				return i.rest
			}
		}
		t.Fatalf("stage %d has no %s", stage+1, name)
		return ""
	}
	for _, want := range []struct {
		stage      int
		name, rest string
	}{
		{0, "FROM", `golang:1\.26 AS build`}, {1, "FROM", `scratch`}, {1, "USER", `[1-9]\d*:[1-9]\d*`}, {1, "EXPOSE", `3000`},
		{1, "HEALTHCHECK", `(--\S+ )*CMD \["/portcullis", "probe"\]`}, {1, "ENTRYPOINT", `\["/portcullis"\]`},
	} {
		if got := find(want.stage, want.name); !regexp.MustCompile("^" + want.rest + "$").MatchString(got) {
			t.Errorf("%s %s, want %s", want.name, got, want.rest)
		}
	}
	for _, i := range stages[1] {
		if i.name == "RUN" || i.name == "SHELL" || i.name == "CMD" && !strings.HasPrefix(i.rest, "[") {
			t.Errorf("%s %s needs a shell, and the image has none", i.name, i.rest)
		}
	}

	// The build line, in a copy of what COPY . . would bring.
	dir := t.TempDir()
	if err := copySources(dir); err != nil {
		t.Fatal(err)
	}
	built := filepath.Join(dir, "image", "portcullis")
	line := strings.ReplaceAll(find(0, "RUN"), "-o /portcullis ", "-o "+built+" ")
	build := exec.Command("sh", "-c", line)
	build.Dir = dir
	// Flags of this test run, such as -race, are not the image's: without cgo there is no race detector.
	build.Env = append(os.Environ(), "VERSION=v9.8.7", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	program, err := elf.Open(built)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if libraries, err := program.ImportedLibraries(); err != nil || len(libraries) > 0 || program.Section(".interp") != nil {
		t.Errorf("the binary is not static: it needs %q (%v)", libraries, err)
	}
	out, err := exec.Command(built, "version").CombinedOutput()
	if got := string(out); err != nil || got != "portcullis v9.8.7\n" {
		t.Errorf("version: %q (%v)", got, err)
	}
}

// copySources copies the files that .dockerignore lets through.
func copySources(dir string) error {
	return filepath.WalkDir(".", func(path string, entry os.DirEntry, err error) error {
		top, _, _ := strings.Cut(path, "/")
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			if path != "." && !slices.Contains([]string{"proxy", "ratelimit", "upstream"}, top) {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, path), 0o755)
		case strings.HasSuffix(path, "_test.go"), !strings.HasSuffix(path, ".go") && path != "go.mod" && path != "go.sum":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), text, 0o644)
	})
}

// TestFirstScreen does what the README's first screen shows, and wants to see what it shows.
func TestFirstScreen(t *testing.T) {
	g := startGate(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	readme := readFile(t, "README.md")
	sessions := regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(readme, 2)
	if len(sessions) < 2 || !strings.HasPrefix(sessions[0][1], "$ go run .\n") {
		t.Fatal("the first screen does not begin with go run .")
	}
	here := strings.NewReplacer("localhost:3000", g.front, "[::]:3000", g.front, "127.0.0.1:9090", g.admin, "localhost:9090", g.admin)
	greeting := strings.Split(here.Replace(sessions[0][1]), "\n")[1:]
	for _, line := range greeting {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "{") {
			g.await(strings.ReplaceAll(line, "go run .", path))
		}
	}
	for _, part := range strings.Split(here.Replace(sessions[1][1]), "$ ")[1:] {
		line, want, _ := strings.Cut(part, "\n")
		target := regexp.MustCompile(`'(.*)'`).FindStringSubmatch(line)
		if target == nil {
			t.Fatalf("no URL in %q", line)
		}
		var got string
		switch {
		case strings.HasPrefix(line, "go run . probe "):
			stdout, stderr, _ := execute(t, nil, "probe", target[1])
			got = stdout + stderr
		case strings.HasPrefix(line, "curl "):
			resp, body := ask(t, "GET", "http://"+target[1])
			var header strings.Builder
			resp.Header.Write(&header)
			got = resp.Proto + " " + resp.Status + "\n" + header.String() + body
		case strings.HasPrefix(line, "npx wscat -c "):
			conn := g.open(strings.TrimPrefix(target[1], "ws://"+g.front))
			got = "Connected (press CTRL+C to quit)\n" // wscat's own words
			for said := range strings.Lines(want) {
				if message, ok := strings.CutPrefix(strings.TrimSpace(said), "> "); ok {
					conn.WriteMessage(websocket.TextMessage, []byte(message))
					_, answer, _ := conn.ReadMessage()
					got += fmt.Sprintf("> %s\n< %s\n", message, answer)
				}
			}
		default:
			t.Fatalf("%q: not known to this test", line)
		}
		durations := regexp.MustCompile(`[0-9.]+(ms|µs|s)\b`)
		for shown := range strings.Lines(want) {
			shown = durations.ReplaceAllString(strings.TrimSpace(shown), "0s")
			if !strings.Contains(durations.ReplaceAllString(got, "0s"), shown) {
				t.Errorf("%s: the README shows %q, but it says\n%s", line, shown, got)
			}
		}
	}
}
