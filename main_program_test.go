package main

// These tests drive the real program, built once, as a process of its own on ports that the system chooses. They learn
// the ports from its start line, and what it does from its sockets, its log and its exit code.

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"portcullis/proxy"
	"portcullis/proxy/config"
	"portcullis/proxy/leaktest"
	"portcullis/proxy/settings"
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

// shown is what the program must not repeat: every credential, query and secret setting that these tests show to it. The token of
// the bundled endpoint is public, for it is in the greeting.
var shown = leaktest.Secrets{Public: []string{"token"}}

// leaks returns what the output of the program repeats of it.
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

// list is every setting that the program reads.
var list, _ = settings.Read(new(config.Config), nil)

func isSecret(name string) bool {
	return slices.ContainsFunc(list, func(s settings.Setting) bool { return s.Name == name && s.Secret })
}

// command is the program with nothing but environ in its environment.
func command(t *testing.T, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range environ {
		if name, value, _ := strings.Cut(variable, "="); isSecret(name) {
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

// process is the program, serving.
type process struct {
	t            *testing.T
	cmd          *exec.Cmd
	front, admin string // host:port

	mu   sync.Mutex
	log  []string
	more chan struct{} // closed and replaced when log grows or ends
	done chan struct{} // closed when the process has ended

	metrics string // all that readMetrics has read
}

// startProgram starts the program and waits until it listens. Without settings of its own it is the bundled demonstration. At the
// end of the test neither its log, at any level, nor its metrics may repeat what it was shown.
func startProgram(t *testing.T, environ ...string) *process {
	t.Helper()
	return startProgramWith(t, nil, environ...)
}

// systemd has a command start as systemd starts a service that it passes sockets to: the process has to find its own number in LISTEN_PID.
func systemd(cmd *exec.Cmd, passed ...*os.File) *exec.Cmd {
	if len(passed) > 0 {
		program := cmd.Path
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, program}
		cmd.ExtraFiles = passed
	}
	return cmd
}

// startProgramWith is startProgram with sockets from systemd.
func startProgramWith(t *testing.T, passed []*os.File, environ ...string) *process {
	t.Helper()
	p := &process{t: t, more: make(chan struct{}), done: make(chan struct{})}
	environ = append([]string{"LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0", "RATE_UPGRADES_PER_IP=0", "LOG_LEVEL=debug"}, environ...)
	p.cmd = systemd(command(t, environ), passed...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			p.note(lines.Text())
		}
		p.cmd.Wait()
		close(p.done)
		p.note("(end)")
	}()
	t.Cleanup(func() {
		p.readMetrics()
		p.cmd.Process.Kill()
		<-p.done
		noLeaks(t, p.text()+"\n"+p.metrics)
		if log := p.text(); t.Failed() || strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			t.Errorf("the program's log:\n%s", log)
		}
	})
	line := p.await(`"msg":"listening"`)
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
	p.front, p.admin = start.Addr, start.Admin
	return p
}

func (p *process) note(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, line)
	close(p.more)
	p.more = make(chan struct{})
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.log, "\n")
}

// await returns the first line of the log that contains text.
func (p *process) await(text string) string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		lines, more := p.log, p.more
		p.mu.Unlock()
		if i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, text) }); i >= 0 {
			return lines[i]
		}
		select {
		case <-more:
		case <-p.done:
			p.t.Fatalf("the program ended without a line that has %s", text)
		case <-deadline:
			p.t.Fatalf("no line that has %s", text)
		}
	}
}

// readMetrics keeps the metrics as they are now. Once the operator's listener is closed it does nothing.
func (p *process) readMetrics() {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + p.admin + "/metrics")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	p.metrics += string(body)
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	p.readMetrics()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// exit waits for the end of the process and checks its exit code.
func (p *process) exit(want int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatal("the program does not end")
	}
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		p.t.Errorf("exit code %d, want %d", got, want)
	}
}

func (p *process) dial(target string) (*websocket.Conn, *http.Response, error) {
	shown.Request(target, nil)
	dialer := websocket.Dialer{HandshakeTimeout: patience, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return dialer.Dial(target, nil)
}

// open opens a session.
func (p *process) open(pathAndQuery string) *websocket.Conn {
	p.t.Helper()
	conn, resp, err := p.dial("ws://" + p.front + pathAndQuery)
	if err != nil {
		p.t.Fatalf("dial: %v (%+v)", err, resp)
	}
	p.t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(patience))
	return conn
}

// mainJob is what the program is for: a message through the gate and back.
func (p *process) mainJob() {
	p.t.Helper()
	conn := p.open("/?token=token")
	if err := conn.WriteMessage(websocket.TextMessage, []byte("Olá")); err != nil {
		p.t.Fatal(err)
	}
	kind, got, err := conn.ReadMessage()
	if want := `MENSAGEM: Você enviou "Olá"`; err != nil || kind != websocket.TextMessage || string(got) != want {
		p.t.Fatalf("got %q (%d, %v), want %q", got, kind, err, want)
	}
	if err := conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "")); err != nil {
		p.t.Fatal(err)
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 1000) {
		p.t.Fatalf("after Close 1000 got %v, want Close 1000", err)
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

// The check at the end of every run of the program must be able to fail.
func TestLeaksAreFound(t *testing.T) {
	p := startProgram(t)
	p.dial("ws://" + p.front + "/?token=rogers&x=1")
	p.await("token_refused")
	p.open("/?token=token").Close() // whatever other tests have shown before
	for _, line := range []string{
		`{"msg":"refused","error":"nobody knows rogers"}`, `{"msg":"refused","path":"/?x=1"}`, `{"path":"/?token=token"}`, "panic: rogers",
		`portcullis_upgrades_total{reason="rogers"} 1`,
	} {
		if said := p.text() + "\n"; leaks(said) != nil || leaks(said+line) == nil {
			t.Errorf("found %q, and then %q, want nothing before %s", leaks(said), leaks(said+line), line)
		}
	}
}
