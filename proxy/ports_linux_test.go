package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

const (
	// insideVariable is in the environment of a test that runs in a network of its own.
	insideVariable = "PORTCULLIS_TEST_NETWORK"
	// portsOfTest is how many ports one address has there to one target.
	portsOfTest = 200
	// portsFrom is the first of them, below those that a system gives by itself.
	portsFrom = 20000
	noPort    = "no port is left to the upstream; want more addresses in UPSTREAM_SOURCE, more targets, or a wider net.ipv4.ip_local_port_range"
)

// ownNetwork runs the test again in a network namespace of its own, with nothing but a loopback interface, and reports whether this is that
// run. The outer run has the outcome of the inner. Where the system lets nobody make namespaces the test is skipped.
func ownNetwork(t *testing.T) (inside bool) {
	t.Helper()
	if os.Getenv(insideVariable) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
		t.Skipf("this system makes no network namespaces: %v", err)
	}
	if err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()) {
		t.Skipf("this system lets nobody set up a network namespace:\n%s", out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a network of its own: %v\n%s", err, out)
	}
	return false
}

// bringLoopbackUp brings the loopback interface of a new namespace up: all of 127.0.0.0/8 is then this machine.
func bringLoopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_UP)
	err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	if errors.Is(err, unix.EPERM) { // a namespace without its rights
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Two source addresses of 200 ports each carry 400 sessions to one target. Who comes then is told to come again, and the log what to do.
// A session that ends makes room.
func TestPortsUsedUp(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	bringLoopbackUp(t)
	g := newGate(t, newEcho(t), func(c *Config) {
		c.Upstream.Source = []string{"127.0.0.11", "127.0.0.12"}
		c.Auth.Mode, c.Auth.URL = "none", ""
		c.Limits = ratelimit.Config{}
	})
	// What listens has its ports by now, and each client brings its own: they are not of these.
	ports := fmt.Sprint(portsFrom, portsFrom+portsOfTest-1)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(ports), 0); err != nil {
		t.Fatal(err)
	}
	clientPort := portsFrom + portsOfTest
	knock := func() *answer {
		clientPort++
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 21), Port: clientPort}}
		conn, err := d.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(long))
		io.WriteString(conn, handshake("/"))
		return readAnswer(t, conn)
	}
	var last *answer
	for i := range 2 * portsOfTest {
		if last = knock(); last.StatusCode != 101 {
			t.Fatalf("session %d: %d %s", i+1, last.StatusCode, last.body)
		}
	}
	const beyond = 3
	for range beyond {
		if a := knock(); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.body != "this server is overloaded\n" {
			t.Fatalf("session %d: got %d %q, want 503", 2*portsOfTest+1, a.StatusCode, a.body)
		}
	}
	if got := g.refused(t, refusal.Overload); got != beyond {
		t.Errorf("counted %v times as overload, want %d", got, beyond)
	}
	if line := g.journal.next(t, noPort); line["level"] != "WARN" {
		t.Errorf("the log has %v", line)
	}
	if n := g.journal.count(noPort); n != 1 {
		t.Errorf("the log says %d times what to do, want once", n)
	}
	if s := g.targets()[0]; s.Live != 2*portsOfTest || !s.Usable {
		t.Errorf("the target: %+v, want all sessions, and no blame", s)
	}
	io.WriteString(last.conn, "\x88\x82\x00\x00\x00\x00\x03\xe8") // Close 1000
	io.Copy(io.Discard, last.rest)
	for deadline := time.Now().Add(long); knock().StatusCode != 101; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no port is free again")
		}
	}
}
