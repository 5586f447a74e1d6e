// Package rabbittest starts a RabbitMQ of a test's own, the program of the system, in a folder that the test forgets.
package rabbittest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Server is a RabbitMQ on free ports of 127.0.0.1.
type Server struct {
	Port  string
	t     testing.TB
	env   []string
	epmd  *exec.Cmd
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has
}

const (
	program = "/usr/lib/rabbitmq/bin/rabbitmq-server" // Debian's; that on PATH changes its user
	epmd    = "epmd"
	// startTime is for it to answer. Alone it takes 5 s.
	startTime = 2 * time.Minute
)

// Start starts one, and ends it at the end of the test. Where there is none the test is left out; .ci/run installs it.
func Start(t testing.TB) *Server {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Skip("no rabbitmq-server: install Debian's package of that name")
	}
	dir, err := os.MkdirTemp("", "rabbit") // t.TempDir's path is too long for its files
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ports := freePorts(t, 3)
	s := &Server{Port: ports[0], t: t}
	os.WriteFile(filepath.Join(dir, "enabled_plugins"), []byte("[].\n"), 0o600)
	s.env = append(os.Environ(),
		"HOME="+dir, "RABBITMQ_NODENAME=test"+ports[0]+"@localhost", "RABBITMQ_NODE_PORT="+ports[0], "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_DIST_PORT="+ports[1], "ERL_EPMD_PORT="+ports[2], "ERL_EPMD_ADDRESS=127.0.0.1", "RABBITMQ_MNESIA_BASE="+dir,
		"RABBITMQ_LOG_BASE="+dir, "RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(dir, "enabled_plugins"),
	)
	// Its own epmd would outlive it; this one is ours to end.
	s.epmd = exec.Command(epmd, "-port", ports[2], "-address", "127.0.0.1")
	if err := s.epmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		s.epmd.Process.Kill()
		s.epmd.Wait()
	})
	s.Start()
	return s
}

func freePorts(t testing.TB, n int) (ports []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// URL is that of BUS_URL.
func (s *Server) URL() string { return fmt.Sprintf("amqp://guest:guest@127.0.0.1:%s/", s.Port) }

// Start starts it again, and returns when it answers.
func (s *Server) Start() {
	s.t.Helper()
	var said strings.Builder
	s.cmd = exec.Command(program)
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = s.env, &said, &said
	group(s.cmd)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		cmd.Wait()
		close(ended)
	}(s.cmd, s.ended)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(startTime); ; {
		select {
		case <-s.ended:
			s.t.Fatalf("rabbitmq-server has ended:\n%s", said.String())
		case <-timeout:
			s.t.Fatal("rabbitmq-server does not answer")
		case <-tick.C:
			if conn, err := amqp.Dial(s.URL()); err == nil {
				conn.Close()
				return
			}
		}
	}
}

// Kill ends it. A second call changes nothing.
func (s *Server) Kill() {
	if s.cmd != nil {
		kill(s.cmd)
		<-s.ended
		s.cmd = nil
	}
}
