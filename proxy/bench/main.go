//go:build linux

// Bench compares this build of Portcullis with other proxies for WebSocket, on this machine, in one run:
//
//	go run ./proxy/bench                                  # everything, about ten minutes
//	go run ./proxy/bench -only loop,nginx -measures message -rounds 9
//	go run ./proxy/bench -measures push                   # pushes by /api, beside nchan and a bare write(2)
//	go run ./proxy/bench -before /tmp/portcullis          # beside an earlier build of the program
//	go run ./proxy/bench -quick                           # does it work? under a minute; figures not to be quoted
//
// It builds this module's program and measures it, with either engine and authentication on, in turn with nginx, HAProxy,
// net/http/httputil.ReverseProxy and koding/websocketproxy, several rounds, each as a process of its own in front of the
// same backend. nginx and HAProxy take part if they are installed (apt-get install nginx haproxy libnginx-mod-nchan); their
// configurations are nginx.conf, nchan.conf and haproxy.cfg beside this file. The method, and what it leaves out, is printed below the tables. Progress, with
// the figures of each round, goes to standard error. The exit code is 1 if a measurement failed.
//
// This process is the load client (load.go). The backend (echo.go) is this program started again, and is the token endpoint
// too. Each is one thread with an epoll of its own, with shared buffers and messages made beforehand. The figures of "no
// proxy" are those of the two without a proxy. All listen on 127.0.0.1.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			exit(role(os.Args[2:]))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, os.Args[1:]))
}

func exit(err error) {
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// roles are what this program does when it starts itself again, with the addresses to listen on and of the backend.
var roles = map[string]func(args []string) error{
	"echo": func(args []string) error {
		s, err := newEchoServer(netip.MustParseAddrPort(args[0]))
		if err != nil {
			return err
		}
		return s.serve()
	},
	"reverseproxy": func(args []string) error { return serveLibrary("reverseproxy", args) },
	"writer":       serveWriter,
	"koding":       func(args []string) error { return serveLibrary("koding", args) },
}

// bench is one run.
type bench struct {
	scale    scale
	targets  []target
	measures []measure
	folder   string         // for everything that is written; removed in the end
	program  string         // this module's, built; "": not measured
	self     string         // a copy of this program
	echo     netip.AddrPort // the backend
	progress io.Writer
	results  results
	absent   map[string]bool // targets that can't be measured here
	failed   int             // measurements
}

func run(ctx context.Context, args []string) (err error) {
	b := &bench{progress: os.Stderr, results: make(results), absent: make(map[string]bool)}
	if err := b.parse(args); err != nil {
		return err
	}
	if b.folder, err = os.MkdirTemp("", "portcullis-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.folder)) }()
	if err := b.programs(ctx); err != nil {
		return err
	}
	echo, err := b.startEcho(ctx)
	if err != nil {
		return fmt.Errorf("start the echo server: %w", err)
	}
	defer echo.stop()

	for round := range b.scale.rounds {
		if err := b.round(ctx, round); err != nil {
			return err
		}
	}
	b.report(os.Stdout).print()
	if b.failed > 0 {
		return fmt.Errorf("%d measurements failed", b.failed)
	}
	return nil
}

func (b *bench) parse(args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	rounds := flags.Int("rounds", 0, "how often everything is measured (0: 7, with -quick 1)")
	before := flags.String("before", "", "the path of an earlier build of Portcullis, to be measured beside this one")
	short := flags.Bool("quick", false, "measure for so short a time that only errors mean anything")
	only := flags.String("only", "", "targets, separated by commas (empty: all): "+names(targets, target.key)+", and with -before each of ours as NAME-before")
	what := flags.String("measures", "", "measures, separated by commas (empty: all): "+names(measures(full), measure.key))
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *rounds < 0 {
		return fmt.Errorf("-rounds: %d is less than 0", *rounds)
	}
	b.scale = full
	if *short {
		b.scale = quick
	}
	b.scale.rounds = cmp.Or(*rounds, b.scale.rounds)
	// Each process opens two descriptors per session at most, and some of its own.
	if most := (descriptorLimit() - 1000) / 2; most < b.scale.sessions {
		fmt.Fprintf(b.progress, "%d idle sessions instead of %d, for %d descriptors allow no more\n", most, b.scale.sessions, descriptorLimit())
		b.scale.sessions = most
	}

	all := targets
	if *before != "" {
		all = withBuild(all, *before)
	}
	var err1, err2 error
	b.targets, err1 = choose("-only", *only, all, target.key)
	b.measures, err2 = choose("-measures", *what, measures(b.scale), measure.key)
	return errors.Join(err1, err2)
}

func (c target) key() string  { return c.name }
func (m measure) key() string { return m.name }

func names[T any](all []T, key func(T) string) string {
	var keys []string
	for _, v := range all {
		keys = append(keys, key(v))
	}
	return strings.Join(slices.Compact(keys), ",")
}

// choose returns those of all that a list names.
func choose[T any](flag, list string, all []T, key func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	var chosen []T
	wanted := strings.Split(list, ",")
	for _, v := range all {
		if slices.Contains(wanted, key(v)) {
			chosen = append(chosen, v)
		}
	}
	for _, name := range wanted {
		if !slices.ContainsFunc(all, func(v T) bool { return key(v) == name }) {
			return nil, fmt.Errorf("%s: %q is none of %s", flag, name, names(all, key))
		}
	}
	return chosen, nil
}

// programs builds the program of this module, and copies this program for the roles.
func (b *bench) programs(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.self = filepath.Join(b.folder, "peer")
	if err := copyProgram(b.self, self); err != nil {
		return fmt.Errorf("copy this program: %w", err)
	}
	if !slices.ContainsFunc(b.targets, target.isPortcullis) {
		return nil
	}
	b.program = filepath.Join(b.folder, "portcullis")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", b.program, "portcullis").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build portcullis: %w\n%s", err, out)
	}
	return nil
}

func copyProgram(to, from string) error {
	program, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, program, 0o700)
}

func (b *bench) startEcho(ctx context.Context) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if b.echo, err = freeAddr(); err != nil {
		return nil, err
	}
	return start(ctx, command{path: self, args: []string{"echo", b.echo.String()}, addr: b.echo})
}

func (b *bench) report(out io.Writer) report {
	r := report{out: out, results: b.results, setting: machine()}
	if v := revision(b.program); v != "" {
		r.setting = append(r.setting, v)
	}
	for _, c := range b.targets {
		if b.absent[c.name] {
			continue
		}
		r.columns = append(r.columns, c)
		if v := c.version(); v != "" {
			r.setting = append(r.setting, v)
		}
	}
	for _, m := range b.measures {
		r.rows = append(r.rows, m.rows...)
	}
	r.setting = append(r.setting, b.scale.String())
	return r
}
