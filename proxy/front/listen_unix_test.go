//go:build unix

package front

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestParseAddr(t *testing.T) {
	for entry, want := range map[string]Addr{
		":3000":                    {Network: "tcp", Port: "3000"},
		"[::1]:0":                  {Network: "tcp", Host: "::1", Port: "0"},
		"gate.example:65535":       {Network: "tcp", Host: "gate.example", Port: "65535"},
		"unix:/run/front.sock":     {Network: "unix", Path: "/run/front.sock"},
		"unix:/run/a:b.sock":       {Network: "unix", Path: "/run/a:b.sock"},
		"fd:web":                   {Network: "fd", Name: "web"},
		"fd:portcullis.socket":     {Network: "fd", Name: "portcullis.socket"},
		"unix:/" + dotted(106, ""): {Network: "unix", Path: "/" + dotted(106, "")},
	} {
		if got, err := ParseAddr(entry); err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", entry, got, err, want)
		}
	}
}

func dotted(n int, end string) string { return strings.Repeat("a", n) + end }

func TestWrongAddresses(t *testing.T) {
	for _, entry := range []string{
		"", "3000", "localhost", ":http", ":65536", ":-1", ":", "::1:3000", "[::1]", "a b:3000", "http://a:3000", "tcp:127.0.0.1:3000",
		"unix:", "unix:front.sock", "unix:@abstract", "unix:/", "unix:/run/", "unix://", "unix:/" + dotted(107, ""), "/run/front.sock", "UNIX:/run/front.sock",
		"fd:", "fd:a:b", "fd:a b", "fd:\x01", "fd:ç", "fd:" + dotted(256, ""),
	} {
		a, err := ParseAddr(entry)
		if err == nil {
			t.Errorf("%q is %+v", entry, a)
			continue
		}
		if line := err.Error(); !strings.HasPrefix(line, `LISTEN_ADDR: "`) || !strings.Contains(line, "; want ") || strings.Contains(line, "\n") {
			t.Errorf("%q: %s", entry, line)
		}
	}
}

func TestClashes(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{":3000", ":3000", true},
		{":3000", "127.0.0.1:3000", true},
		{"[::1]:3000", ":3000", true},
		{"0.0.0.0:3000", "[::1]:3000", false},
		{"127.0.0.1:3000", "127.0.0.2:3000", false},
		{":3000", ":3001", false},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{"unix:/a", "unix:/a", true},
		{"unix:/a", "unix:/b", false},
		{"fd:a", "fd:a", true},
		{"fd:a", ":3000", false},
	} {
		a, _ := ParseAddr(tt.a)
		b, _ := ParseAddr(tt.b)
		if got := a.Clashes(b); got != tt.want || b.Clashes(a) != got {
			t.Errorf("%s and %s: %t", tt.a, tt.b, got)
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
		if got := Remedy(&net.OpError{Op: "listen", Err: tt.err}); !strings.Contains(got, tt.want) {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

// listen opens addresses until the end of the test.
func listen(t *testing.T, addrs ...string) []net.Listener {
	t.Helper()
	all, err := Listen(Listening{Addrs: addrs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(all) })
	return all
}

// knock connects and has the connection accepted.
func knock(t *testing.T, l net.Listener) {
	t.Helper()
	client, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestUnixSocketIsPrivateAndRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "front.sock")
	l := listen(t, "unix:"+path)[0]
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Fatalf("the socket's mode is %v, %v", info.Mode(), err)
	}
	knock(t, l)
	if got := AddrOf(l); got != "unix:"+path {
		t.Errorf("it is called %s", got)
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the end the socket is there: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "front.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a process ends that is killed
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	knock(t, listen(t, "unix:"+path)[0])
}

func TestTakenPaths(t *testing.T) {
	dir := t.TempDir()
	live, file, link := filepath.Join(dir, "live"), filepath.Join(dir, "file"), filepath.Join(dir, "link")
	l := listen(t, "unix:"+live)[0]
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(live, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		live:                              "address already in use; another process listens there",
		file:                              "there is something that is no socket; want a path at which nothing is yet",
		link:                              "there is something that is no socket",
		filepath.Join(dir, "none", "sub"): "no such file or directory; want a directory that is there",
	} {
		// An address before it is let go of.
		first := filepath.Join(dir, "first")
		_, err := Listen(Listening{Addrs: []string{"unix:" + first, "unix:" + path}})
		if err == nil || !strings.HasPrefix(err.Error(), `LISTEN_ADDR: "unix:`+path+`": `) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
		if _, err := os.Lstat(first); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the address before it is open", path)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "mine" {
		t.Errorf("the file in the way: %q, %v", text, err)
	}
	if c, err := l.Accept(); err != nil { // of the question whether it lives
		t.Error(err)
	} else {
		c.Close()
	}
	knock(t, l)
}

// passed is a listening socket as systemd passes it.
func passed(t *testing.T, name string, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func TestSocketsFromSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "front.sock")
	tcp, unix := listen(t, "127.0.0.1:0")[0], listen(t, "unix:"+path)[0]
	var log bytes.Buffer
	all, err := Listen(Listening{
		Addrs:  []string{"fd:web", "fd:local"},
		Passed: []*os.File{passed(t, "web", tcp.(*net.TCPListener)), passed(t, "local", unix.(*net.UnixListener)), passed(t, "web", tcp.(*net.TCPListener)), passed(t, "other", tcp.(*net.TCPListener))},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(all)
	if len(all) != 3 || AddrOf(all[0]) != tcp.Addr().String() || AddrOf(all[1]) != tcp.Addr().String() || AddrOf(all[2]) != "unix:"+path {
		t.Fatalf("got %d listeners, want two of web and then one of local", len(all))
	}
	knock(t, all[0])
	knock(t, all[2])
	if said := log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "want=fd:other") {
		t.Errorf("log: %s", said)
	}
	closeAll(all)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of systemd is gone: %v", err)
	}
}

func TestWrongSocketsFromSystemd(t *testing.T) {
	l := listen(t, "127.0.0.1:0")[0].(*net.TCPListener)
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	const unit = "; want a socket unit of systemd with FileDescriptorName=web, ListenStream= and Accept=no"
	for name, tt := range map[string]struct {
		passed []*os.File
		want   string
	}{
		"nothing":      {nil, "no socket was passed to this process"},
		"another name": {[]*os.File{passed(t, "b", l), passed(t, "a", l)}, `the sockets that were passed are named ["a" "b"]`},
		"a connection": {[]*os.File{passed(t, "web", conn.(*net.TCPConn))}, "accepts no connections"},
		"datagrams":    {[]*os.File{passed(t, "web", datagrams.(*net.UDPConn))}, ""},
	} {
		all, err := Listen(Listening{Addrs: []string{"fd:web"}, Passed: tt.passed})
		if err == nil || !strings.HasPrefix(err.Error(), `LISTEN_ADDR: "fd:web": `) || !strings.Contains(err.Error(), tt.want) || !strings.HasSuffix(err.Error(), unit) {
			t.Errorf("%s: got %v, %v", name, all, err)
		}
		for _, f := range tt.passed {
			if err := f.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s: a passed socket is open", name)
			}
		}
	}
}
