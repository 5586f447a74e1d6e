// Portcullis is a front proxy for WebSocket backends: it rate-limits and authenticates every upgrade request, then relays
// the accepted connection and keeps hold of the session until it ends.
//
// This file is the only one that reads the environment, sets up logging, handles signals and exits. It reads top to
// bottom: command, parts, run, shutdown; proxy/config has the settings.
package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/coreos/go-systemd/v22/activation"

	"portcullis/proxy"
	"portcullis/proxy/admin"
	"portcullis/proxy/check"
	"portcullis/proxy/config"
	"portcullis/proxy/front"
	"portcullis/proxy/operate"
	"portcullis/proxy/probe"
	"portcullis/proxy/settings"
	"portcullis/upstream/echo"
)

// Exit codes.
const (
	exitDrained  = 0 // every session ended in order; also: the probe found what it asked for
	exitFailed   = 1 // forced by a second signal or DRAIN_TIMEOUT, or something broke
	exitSettings = 2 // mistakes in the environment or on the command line
)

// openAPI describes /api of the operator's listener.
//
//go:embed docs/openapi.json
var openAPI []byte

const usage = `usage:
  portcullis               serve; every setting is an environment variable (config.example.env lists them), or a line of the file ENV_FILE
  portcullis probe [URL]   connect to URL as a WebSocket client and tell what happens; without URL ask /readyz at ADMIN_ADDR
  portcullis check         say whether the settings are right, and whether what they name is there and fit; -h tells its flag
  portcullis sessions      list the open sessions, by the API at ADMIN_ADDR; -h tells its flags, and those of the next two
  portcullis kick          end some of them
  portcullis send          send a message to some of them
  portcullis version
  portcullis help
`

func main() {
	environ := env.ToMap(os.Environ())
	switch args := os.Args[1:]; {
	case len(args) == 0:
		os.Exit(serve(environ))
	case args[0] == "probe" && len(args) <= 2:
		os.Exit(probeOnce(environ, strings.Join(args[1:], "")))
	case args[0] == "check":
		os.Exit(checkOnce(environ, args[1:]))
	case slices.Contains(operate.Commands, args[0]):
		os.Exit(operateOnce(environ, args))
	case slices.Contains([]string{"version", "-v", "-version", "--version"}, args[0]) && len(args) == 1:
		fmt.Println("portcullis", buildVersion())
	case slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]):
		fmt.Print(usage)
	default:
		fmt.Fprintf(os.Stderr, "portcullis: unknown command %q\n%s", strings.Join(args, " "), usage)
		os.Exit(exitSettings)
	}
}

// version is set by the linker (-X main.version=v0.1.0) where the build knows no version control, as in the image.
var version string

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}

// program is everything that runs. Only the bundled backend has its listener open before run.
type program struct {
	config.Config
	settings *config.Config // as they were read
	metrics  *admin.Metrics
	level    *slog.LevelVar
	log      *slog.Logger
	proxy    *proxy.Proxy
	admin    *admin.Server
	backend  *echo.Server // nil: UPSTREAM_URL names the backend

	checking bool // only the mistakes are wanted: nothing is started, not even the bundled backend, and nothing is logged
}

// build makes the program's parts from the settings, and checks them as a whole. The error joins every mistake, one a line.
func build(c *config.Config) (*program, error) {
	p := &program{Config: *c, settings: c, level: new(slog.LevelVar)}
	p.level.Set(c.LogLevel)
	p.log = newLogger(c.LogFormat, p.level)
	return p, p.build()
}

func (p *program) build() error {
	var mistakes []error
	if err := p.chooseBackend(); err != nil {
		mistakes = append(mistakes, err)
		// Any URL will do from here on, so that nobody complains about the lack of one again.
		p.Proxy.Upstream.URL = cmp.Or(p.Proxy.Upstream.URL, "ws://localhost")
		if p.LacksTokenEndpoint() {
			p.Proxy.Auth.URL = "http://localhost"
		}
	}
	known := proxy.KnownReasons()
	known.Version = buildVersion()
	p.metrics = admin.NewMetrics(known)
	p.Proxy.Logger, p.Proxy.Metrics, p.Admin.Logger = p.log, p.metrics, p.log
	p.Proxy.API.OpenAPI = openAPI
	var err error
	if p.checking {
		err = proxy.Check(p.Proxy)
	} else {
		p.proxy, err = proxy.New(p.Proxy)
	}
	mistakes = append(mistakes, err)
	p.Admin.Ready = p.proxy.Ready
	if p.proxy != nil {
		p.Admin.API = p.proxy.Operator()
	}
	p.admin, err = admin.New(p.Admin, p.metrics)
	mistakes = append(mistakes, err)
	return errors.Join(mistakes...)
}

func newLogger(format string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	// The handler's own choice for durations, nanoseconds, is a unit that nobody expects; seconds are what the metrics have.
	options.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration {
			a.Value = slog.Float64Value(a.Value.Duration().Seconds())
		}
		return a
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options))
}

// defaultTokenFrom is AUTH_TOKEN_FROM where it is not set.
var defaultTokenFrom = []string{"query:token", "header:Authorization"}

// chooseBackend starts the bundled backend, and points the settings at it, where none is named. It verifies tokens too, on the
// front port as well, where no token endpoint is named.
func (p *program) chooseBackend() (err error) {
	bundledTokens := p.LacksTokenEndpoint()
	switch {
	case len(p.Proxy.Routes) > 0 && bundledTokens:
		return fmt.Errorf(`AUTH_URL: "" would leave %s open to everyone; `+
			`want the URL of your token endpoint, or AUTH_MODE=none to let everyone in on purpose`, p.Proxy.Routes[0].Setting)
	case p.NamesBackend() && bundledTokens:
		return errors.New(`AUTH_URL: "" would leave UPSTREAM_URL open to everyone; ` +
			`want the URL of your token endpoint, or AUTH_MODE=none to let everyone in on purpose`)
	case p.NamesBackend():
		return nil
	}
	if p.checking {
		p.Proxy.Upstream.URL = "ws://localhost" // any will do
		if bundledTokens {
			p.Proxy.Auth.URL = "http://localhost"
		}
		return p.Demo.Check()
	}
	if p.backend == nil {
		if p.backend, err = echo.Start(p.Demo); err != nil {
			return err
		}
	}
	p.Proxy.Upstream.URL = p.backend.URL()
	if len(p.Proxy.Gate.Paths) == 0 && !p.Proxy.Gate.PathsUnsafeForms { // which wants PATHS, and says so
		p.Proxy.Gate.Paths = []string{"/"}
	}
	if bundledTokens {
		if slices.Equal(p.Proxy.Auth.TokenFrom, defaultTokenFrom) { // so that the client library needs no setting
			p.Proxy.Auth.TokenFrom = append(slices.Clone(defaultTokenFrom), "protocol:bearer")
		}
		p.Proxy.Auth.URL = p.backend.TokenURL()
		p.Proxy.API.TokenEndpoint = p.backend.Token()
	}
	return nil
}

func serve(environ map[string]string) int {
	// Before anything is open, so that a signal never finds a program that does not drain.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	// net/http prints the beginning of an answer that it did not expect through the global logger, and an endpoint's may hold a
	// token. This program logs through its own logger.
	log.SetOutput(io.Discard)
	runtime.MemProfileRate = 0 // nothing here serves a profile

	all, fileErr := config.Environ(environ)
	if all == nil {
		fmt.Fprintln(os.Stderr, fileErr)
		return exitSettings
	}
	c, misspelt, err := config.Read(all)
	p, buildErr := build(c)
	defer p.close()
	if err := errors.Join(fileErr, err, buildErr); err != nil {
		fmt.Fprintln(os.Stderr, err) // not a log record: a person reads this, whatever LOG_FORMAT says
		return exitSettings
	}
	p.warn(misspelt)
	return p.run(signals, hangups, environ)
}

func (p *program) warn(misspelt []settings.Misspelling) {
	for _, m := range misspelt {
		attrs := []any{"variable", m.Name}
		if m.Meant != "" {
			attrs = append(attrs, "meant", m.Meant)
		}
		p.log.Warn("a variable looks like a setting but is not one", attrs...)
	}
}

// run serves until a signal drains it or a listener fails, and returns the exit code. A hangup has it read its settings again.
func (p *program) run(signals, hangups <-chan os.Signal, environ map[string]string) int {
	listeners, err := p.listen()
	if err != nil {
		p.log.Error("the front listener cannot be opened", "error", err)
		return exitFailed
	}
	if err := p.admin.Start(); err != nil {
		closeAll(listeners)
		p.log.Error("the operator's listener cannot be opened", "error", fmt.Errorf("%w; %s", err, front.Remedy(err)))
		return exitFailed
	}
	served := make(chan error, 1)
	go func() { served <- p.proxy.Serve(listeners...) }()
	p.admin.SetReady(true)
	p.announce(listeners)

	p.metrics.Reloaded(true)
	go func() { // a file that does not let itself be read holds up no signal
		for range hangups {
			p.reload(environ)
		}
	}()
	select {
	case err := <-served:
		p.log.Error("it cannot go on", "error", err)
		p.proxy.Cut()
		return exitFailed
	case s := <-signals:
		p.admin.SetReady(false)
		p.log.Info("draining", "signal", s.String())
		code := p.drain(signals)
		<-served
		return code
	}
}

// reload reads the settings again. Where they have a mistake, nothing changes.
func (p *program) reload(environ map[string]string) {
	c, misspelt, kept, err := p.reread(environ)
	p.metrics.Reloaded(err == nil)
	if err != nil {
		p.log.Error("the settings were not reloaded, and the old ones hold", "mistakes", strings.Split(err.Error(), "\n"))
		return
	}
	changed := c.Changed(p.settings)
	p.settings = c
	p.level.Set(c.LogLevel)
	p.warn(misspelt)
	if len(kept) > 0 {
		p.log.Warn("settings that cannot change while it runs are as they were; want a restart for them", "settings", kept)
	}
	p.log.Info("reloaded", "changed", changed)
}

// reread reads the settings again and has the proxy go by them. The error joins every mistake, one a line.
func (p *program) reread(environ map[string]string) (c *config.Config, misspelt []settings.Misspelling, kept []string, err error) {
	all, fileErr := config.Environ(environ)
	if all == nil {
		return nil, nil, nil, fileErr
	}
	c, misspelt, kept, err = config.Reread(all, p.settings)
	next := &program{Config: *c, backend: p.backend}
	if p.backend == nil && !c.NamesBackend() {
		err = errors.Join(err, errors.New("UPSTREAM_URL: \"\" would have the bundled backend started, which is for a start; want the targets, or a restart"))
	}
	if err = errors.Join(fileErr, err); err != nil {
		return nil, nil, nil, err
	}
	if err = next.chooseBackend(); err == nil {
		err = p.proxy.Reload(next.Proxy)
	}
	return c, misspelt, kept, err
}

// listen opens the front listeners.
func (p *program) listen() ([]net.Listener, error) {
	all, err := front.Listen(front.Listening{
		Addrs:     p.ListenAddrs,
		Passed:    activation.Files(true),
		KeepAlive: p.Proxy.Relay.PingInterval == 0, // else the heartbeat finds a dead client
		Logger:    p.log,
	})
	if err == nil && slices.ContainsFunc(all, isTCP) { // among those from systemd, of which the settings do not tell
		err = p.CheckProxyProtocol()
	}
	if err != nil {
		closeAll(all)
		return nil, err
	}
	return all, nil
}

func isTCP(l net.Listener) bool { return l.Addr().Network() == "tcp" }

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// drain ends every session in order, within DRAIN_TIMEOUT or until a second signal.
func (p *program) drain(signals <-chan os.Signal) int {
	drained := make(chan error, 1)
	go func() { drained <- p.proxy.Drain(context.Background()) }()
	select {
	case err := <-drained:
		if err != nil {
			p.log.Warn("drain incomplete: the remaining connections are closed", "error", err)
			return exitFailed
		}
		p.log.Info("drained")
		return exitDrained
	case <-signals:
		p.log.Warn("drain incomplete: a second signal closes the remaining connections")
		p.proxy.Cut()
		<-drained
		return exitFailed
	}
}

// close ends what outlives the front listener: the operator's listener, whose metrics show the drain to its end, and the bundled
// backend.
func (p *program) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if p.admin != nil {
		p.admin.Close(ctx)
	}
	if p.backend != nil {
		p.backend.Close(ctx)
	}
}

// announce says what listens where: in the log for an operator, and in words for the newcomer who runs the bundled backend.
func (p *program) announce(listeners []net.Listener) {
	var addrs []string
	for _, l := range listeners {
		addrs = append(addrs, front.AddrOf(l))
	}
	attrs := []any{"version", buildVersion(), "addr", strings.Join(addrs, ","), "tls", p.Proxy.Front.CertFile != ""}
	for _, r := range p.Proxy.Routes {
		place := r.Host + strings.Join(r.Paths, " ")
		attrs = append(attrs, slog.Group(strings.ToLower(r.Setting), "path", place, "upstream", showTargets(r.Upstream.URL), "open", r.Open))
	}
	if len(p.Proxy.Routes) == 0 {
		attrs = append(attrs, "upstream", showTargets(p.Proxy.Upstream.URL))
	}
	if most := proxy.Descriptors(); most > 0 {
		attrs = append(attrs, "descriptors", most)
	}
	if addr := p.admin.Addr(); addr != nil {
		attrs = append(attrs, "admin", addr.String())
	}
	p.log.Info("listening", attrs...)
	first := slices.IndexFunc(listeners, isTCP)
	if p.backend == nil || first < 0 {
		return
	}
	greeting := echo.Greeting{Command: os.Args[0], Addr: dialable(listeners[first].Addr()), TLS: p.Proxy.Front.CertFile != "",
		Auth: p.Proxy.Auth.TakesToken(), Tokens: p.Proxy.API.TokenEndpoint != nil}
	if strings.Contains(greeting.Command, "go-build") { // the temporary binary of go run
		greeting.Command = "go run ."
	}
	if addr := p.admin.Addr(); addr != nil {
		greeting.AdminAddr = dialable(addr)
	}
	p.backend.Greet(os.Stderr, greeting)
}

// showTargets is a list of targets as the log may have it.
func showTargets(list string) string {
	targets := strings.Fields(list)
	for i, target := range targets {
		targets[i], _, _ = strings.Cut(target, "?") // a query may hold a credential
	}
	return strings.Join(targets, " ")
}

// dialable is the address at which a client on this machine reaches a listener. One on every address is localhost.
func dialable(addr net.Addr) string {
	a, err := netip.ParseAddrPort(addr.String())
	if err == nil && a.Addr().IsUnspecified() {
		return "localhost:" + strconv.Itoa(int(a.Port()))
	}
	return addr.String()
}

// probeOnce runs the probe and returns the exit code.
func probeOnce(environ map[string]string, url string) int {
	c, fileErr := commandConfig(environ)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	trust, err := c.AdminTLS()
	if err == nil {
		err = probe.Run(ctx, probe.Config{URL: url, AdminAddr: c.Admin.Addr, AdminTLS: trust, Out: os.Stdout})
	}
	if err != nil {
		// A file that is being edited is none of a health check's failures, but may be why it asked at the wrong address.
		fmt.Fprintln(os.Stderr, "probe:", errors.Join(err, fileErr))
		return exitFailed
	}
	return exitDrained
}

// commandConfig reads the settings for a command to which the operator's listener alone matters: other mistakes than those of ENV_FILE
// are for the serving program to report.
func commandConfig(environ map[string]string) (*config.Config, error) {
	all, err := config.Environ(environ)
	if all == nil {
		all = environ
	}
	c, _, _ := config.Read(all)
	return c, err
}

// checkOnce checks the settings and what they name, and returns the exit code.
func checkOnce(environ map[string]string, args []string) int {
	log.SetOutput(io.Discard) // as in serve
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all, mistakes := config.Environ(environ)
	c := check.Config{Environ: environ, All: all, Mistakes: mistakes, Out: os.Stdout, Errors: os.Stderr}
	if all != nil {
		read, misspelt, err := config.Read(all)
		p := &program{Config: *read, log: slog.New(slog.DiscardHandler), checking: true}
		c.Misspelt = misspelt
		c.Settings, c.Backend, c.Tokens = read, !p.NamesBackend(), p.LacksTokenEndpoint()
		c.Mistakes = errors.Join(mistakes, err, p.build())
	}
	code, err := check.Run(ctx, c, args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "check:", err)
	}
	return code
}

// operateOnce runs a command for the operator and returns the exit code.
func operateOnce(environ map[string]string, args []string) int {
	c, fileErr := commandConfig(environ)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	trust, trustErr := c.AdminTLS()
	addr, addrErr := probe.DialAddr(c.Admin.Addr)
	if err := errors.Join(fileErr, trustErr, addrErr); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", args[0], err)
		return exitSettings
	}
	err := operate.Run(ctx, operate.Config{Addr: addr, TLS: trust, Token: c.Proxy.API.AdminToken, In: os.Stdin, Out: os.Stdout}, args[0], args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return exitDrained
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, args[0]+":", err)
		if _, wrong := errors.AsType[*operate.UsageError](err); wrong {
			return exitSettings
		}
		return exitFailed
	}
	return exitDrained
}
