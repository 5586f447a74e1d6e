//go:build unix

package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"
)

// dialAt opens a session at an address as the start line has it.
func (p *process) dialAt(addr, query string, header http.Header) error {
	network, where := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, where = "unix", path
	}
	shown.Request(query, header)
	dialer := websocket.Dialer{HandshakeTimeout: patience, NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, where)
	}}
	conn, _, err := dialer.Dial("ws://gate.example/"+query, header)
	if err == nil {
		p.t.Cleanup(func() { conn.Close() })
	}
	return err
}

// The program listens at all that LISTEN_ADDR names: a port, a unix socket that an earlier one has left, and a socket from systemd.
func TestListenersOfAllKinds(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "front.sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	passed, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()

	p := startProgramWith(t, []*os.File{passed}, "LISTEN_ADDR=127.0.0.1:0, unix:"+path+", fd:web", "LISTEN_FDS=1", "LISTEN_FDNAMES=web")
	addrs := strings.Split(p.front, ",")
	if len(addrs) != 3 || addrs[1] != "unix:"+path || addrs[2] != l.Addr().String() {
		t.Fatalf("the start line has the addresses %q", addrs)
	}
	p.await("?token=token") // the greeting is for the port
	if said := p.text(); !strings.Contains(said, "ws://"+addrs[0]+"/?token=token") {
		t.Errorf("the greeting does not name %s", addrs[0])
	}
	for _, addr := range addrs {
		if err := p.dialAt(addr, "?token=token", http.Header{"X-Forwarded-For": {"203.0.113.9"}}); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := p.dialAt(addrs[1], "?token=token", nil); !errors.Is(err, websocket.ErrBadHandshake) {
		t.Errorf("a client on the unix socket whose address nobody says: %v", err)
	}
	if line := p.await("client_unknown"); !strings.Contains(line, `"client":"unix"`) {
		t.Errorf("line: %s", line)
	}

	// A second one finds the socket in use, and leaves it alone.
	_, stderr, code := execute(t, []string{"LISTEN_ADDR=unix:" + path, "ADMIN_ADDR=127.0.0.1:0"})
	if code != exitFailed || !strings.Contains(stderr, "LISTEN_ADDR") || !strings.Contains(stderr, path) || !strings.Contains(stderr, "want another path") {
		t.Errorf("at a path in use: %d %s", code, stderr)
	}

	p.signal(syscall.SIGTERM)
	p.exit(exitDrained)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the end the socket is there: %v", err)
	}
}

func TestSocketsThatWereNotPassed(t *testing.T) {
	_, stderr, code := execute(t, []string{"LISTEN_ADDR=fd:web", "ADMIN_ADDR=127.0.0.1:0"})
	if code != exitFailed || !strings.Contains(stderr, `LISTEN_ADDR: \"fd:web\": no socket was passed to this process; want a socket unit of systemd`) {
		t.Errorf("got %d %s", code, stderr)
	}
}

// Whether a socket from systemd is one of TCP is known only when it is there.
func TestProxyProtocolOfAPassedSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	passed, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	cmd := systemd(command(t, []string{"LISTEN_ADDR=fd:web", "ADMIN_ADDR=127.0.0.1:0", "PROXY_PROTOCOL=true", "LISTEN_FDS=1", "LISTEN_FDNAMES=web"}), passed)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), `PROXY_PROTOCOL: \"true\" believes nobody without TRUSTED_PROXIES`) {
		t.Errorf("got %v, %s", err, out)
	}
}
