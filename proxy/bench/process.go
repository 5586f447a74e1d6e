//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	startTimeout = 15 * time.Second // from exec to the first connection taken
	stopTimeout  = 5 * time.Second  // from SIGTERM to SIGKILL
)

// command is a program to be started, and the address that shows when it is ready.
type command struct {
	path string
	args []string
	env  []string       // all of its environment: nothing set in the caller's shell may change what is measured
	addr netip.AddrPort // where it will take connections
}

// process is a running program of this benchmark, with whatever children it has.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once it has been waited for
}

// exitError says that a program ended instead of taking connections.
type exitError struct {
	code   int
	output string
}

func (e *exitError) Error() string {
	return fmt.Sprintf("exit status %d at start: %s", e.code, e.output)
}

// start runs c, its output discarded, and returns once it takes connections.
func start(ctx context.Context, c command) (*process, error) {
	p, err := launch(c.exec())
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(startTimeout)
	for {
		conn, err := net.DialTimeout("tcp", c.addr.String(), time.Second)
		if err == nil {
			return p, conn.Close()
		}
		select {
		case <-p.exited:
			return nil, c.explain()
		case <-ctx.Done():
			p.stop()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("not ready after %v: %w", startTimeout, err)
		}
	}
}

// exec makes the command. It has a process group of its own, so that a terminal's Ctrl-C does not reach it: it is stopped in
// order instead. If this process dies first, the kernel sends it SIGTERM.
func (c command) exec() *exec.Cmd {
	cmd := exec.Command(c.path, c.args...)
	cmd.Env = append([]string{}, c.env...) // nil would be the environment of this process
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return cmd
}

// explain runs c once more, now with its output kept. (A pipe to this process would have been part of what is measured.)
func (c command) explain() error {
	var out strings.Builder
	cmd := c.exec()
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := launch(cmd)
	if err != nil {
		return err
	}
	select {
	case <-p.exited:
	case <-time.After(startTimeout):
		p.stop()
		return errors.New("ended at start, but not when started again")
	}
	return &exitError{code: cmd.ProcessState.ExitCode(), output: strings.TrimSpace(out.String())}
}

func launch(cmd *exec.Cmd) (*process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		cmd.Wait() // the exit status is in cmd.ProcessState
		close(p.exited)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process and its children. On SIGTERM nginx's master ends its workers; on SIGKILL it cannot, so SIGKILL goes
// to the group.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		syscall.Kill(-p.pid(), syscall.SIGKILL)
		<-p.exited
	}
}
