// Package redistest starts a Redis of a test's own, the program of the system, in a folder that the test forgets.
package redistest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a Redis on a free port of 127.0.0.1.
type Server struct {
	Addr  string // host:port
	t     testing.TB
	dir   string
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has
	first string        // a file of settings; empty: none
	more  []string      // further arguments
}

// New finds a port and starts nothing yet. Where there is no redis-server the test is left out; .ci/run installs it.
func New(t testing.TB) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server on PATH: install Debian's package of that name")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return &Server{Addr: l.Addr().String(), t: t, dir: t.TempDir()}
}

// Start starts it, and kills it at the end of the test.
func Start(t testing.TB) *Server {
	t.Helper()
	for range 5 {
		if s := New(t); s.start() {
			return s
		}
	}
	t.Fatal("redis-server does not start")
	return nil
}

// URL is that of REDIS_URL.
func (s *Server) URL() string { return "redis://" + s.Addr }

// Start starts it, and returns when it answers.
func (s *Server) Start() {
	s.t.Helper()
	if !s.start() {
		s.t.Fatal("redis-server does not start; another program may have its port")
	}
}

// Cluster makes it a cluster of one.
func (s *Server) Cluster() {
	s.t.Helper()
	s.more = []string{"--cluster-enabled", "yes"}
	s.Start()
	if got := s.say("CLUSTER ADDSLOTSRANGE 0 16383"); got != "+OK" {
		s.t.Fatal(got)
	}
	for range 2000 {
		if strings.Contains(s.say("CLUSTER COUNTKEYSINSLOT 0"), ":0") && s.say("SET {x}:ready 1") == "+OK" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatal("the cluster is not up")
}

// Sentinel has another server watch it, as "gates".
func (s *Server) Sentinel(master *Server) {
	s.t.Helper()
	conf := filepath.Join(s.dir, "sentinel.conf")
	host, port, _ := net.SplitHostPort(master.Addr)
	if err := os.WriteFile(conf, fmt.Appendf(nil, "sentinel monitor gates %s %s 1\n", host, port), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.first, s.more = conf, []string{"--sentinel"}
	s.Start()
}

// say sends a command, and returns the first line of the answer.
func (s *Server) say(command string) string {
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	io.WriteString(conn, command+"\r\n")
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line)
}

// start reports false where the program has ended at once: somebody else has taken the port.
func (s *Server) start() bool {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.Addr)
	args := []string{"--port", port, "--bind", "127.0.0.1", "--dir", s.dir}
	if s.first == "" {
		args = append(args, "--save", "", "--appendonly", "no")
	} else {
		args = append([]string{s.first}, args...)
	}
	s.cmd = exec.Command("redis-server", append(args, s.more...)...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.Kill)
	s.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		cmd.Wait()
		close(ended)
	}(s.cmd, s.ended)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(20 * time.Second); ; {
		select {
		case <-s.ended:
			s.cmd = nil
			return false
		case <-tick.C:
			if s.answers() {
				select {
				case <-s.ended: // the answer was another's
					s.cmd = nil
					return false
				default:
					return true
				}
			}
		case <-timeout:
			s.t.Fatal("redis-server does not answer")
		}
	}
}

func (s *Server) answers() bool { return s.say("PING") == "+PONG" }

// Stop has it stand still; Continue has it go on.
func (s *Server) Stop()     { s.cmd.Process.Signal(syscall.SIGSTOP) }
func (s *Server) Continue() { s.cmd.Process.Signal(syscall.SIGCONT) }

// Kill ends it. A second call changes nothing.
func (s *Server) Kill() {
	if s.cmd != nil {
		s.Continue()
		s.cmd.Process.Kill()
		<-s.ended
		s.cmd = nil
	}
}
