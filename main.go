// Portcullis is a front proxy for WebSocket backends: it rate-limits and authenticates every upgrade request, then relays
// the accepted connection and keeps hold of the session until it ends.
//
// This file is the only one that reads the environment, sets up logging, handles signals and exits. It reads top to bottom:
// command, settings, wiring, run, shutdown.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/caarlos0/env/v11"

	"portcullis/proxy"
	"portcullis/proxy/admin"
	"portcullis/proxy/probe"
	"portcullis/upstream/echo"
)

// Exit codes.
const (
	exitDrained  = 0 // every session ended in order; also: the probe found what it asked for
	exitFailed   = 1 // forced by a second signal or DRAIN_TIMEOUT, or something broke
	exitSettings = 2 // mistakes in the environment or on the command line
)

const usage = `usage:
  portcullis               serve; every setting is an environment variable (config.example.env lists them)
  portcullis probe [URL]   connect to URL as a WebSocket client and tell what happens; without URL ask /readyz at ADMIN_ADDR
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

// settings is the whole environment: the packages' own Config structs, and what only the program needs.
type settings struct {
	// ListenAddr is the front listener's host:port; without a host it listens on every address.
	ListenAddr string `env:"LISTEN_ADDR" envDefault:":3000"`
	// LogLevel is the least level written to standard error.
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"info"`
	// LogFormat is json or text, one record a line.
	LogFormat string `env:"LOG_FORMAT" envDefault:"json"`

	Proxy proxy.Config
	Admin admin.Config
	Demo  echo.Config
}

// reserved are the names of settings that later versions will have. To ignore one would let an operator believe that a guard
// is up which is not, so setting one is a mistake. A * stands for the rest of a name.
var reserved = []string{
	"PROXY_PROTOCOL",
}

// secrets matches the variables whose value is never shown. Each has a twin NAME_FILE, the path of a file that holds the value.
var secrets = []string{"*_TOKEN", "*_SECRET"}

// emptySays matches the variables whose empty value differs from their default and means something: the listener is off, no
// claim is passed on, there is no limit. Every other variable that is set but empty counts as not set.
var emptySays = []string{"ADMIN_ADDR", "AUTH_FORWARD", "RATE_*"}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	})
}

// misspelt finds the names in environ that were probably meant for settings.
func misspelt(environ map[string]string) []slip {
	var set []string
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if environ[name] != "" {
			set = append(set, name)
		}
	}
	return slips(set, names())
}

// names are those of all variables that are read.
func names() (known []string) {
	variables, _ := env.GetFieldParams(new(settings)) // readSettings tells of an error
	for _, v := range variables {
		known = append(known, v.Key)
		if matches(secrets, v.Key) {
			known = append(known, v.Key+"_FILE")
		}
	}
	return known
}

// readSettings reads the settings from environ. The error joins every mistake in it, one a line; a variable with a mistake
// holds its default, so that whoever checks the settings further has no second complaint about it.
func readSettings(environ map[string]string) (settings, error) {
	var s settings
	var mistakes []error
	variables, err := env.GetFieldParams(&s)
	if err != nil {
		return s, err
	}
	changed := map[string]string{}
	for _, v := range variables {
		value, set := environ[v.Key]
		secret := matches(secrets, v.Key)
		if secret {
			value, err = readSecret(environ, v.Key)
			mistakes = append(mistakes, err)
		}
		if value == "" && !(set && matches(emptySays, v.Key)) {
			value = v.DefaultValue
		}
		if quoted(value) && !secret {
			err = fmt.Errorf("%q has quotes, which are part of it where no shell takes them away; want it without", value)
		} else {
			err = s.set(v.Key, value)
		}
		if err != nil {
			mistakes = append(mistakes, mistake(v.Key, value, err))
			_ = s.set(v.Key, v.DefaultValue)
			continue
		}
		if !slices.Contains([]string{v.DefaultValue, "", "0", "0s"}, value) { // which ask for nothing
			changed[v.Key] = value
			if secret {
				changed[v.Key] = "***"
			}
		}
	}
	mistakes = append(mistakes, s.check(), s.idle(changed))
	for _, slip := range misspelt(environ) {
		if slip.error {
			mistakes = append(mistakes, slip)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if value := environ[name]; value != "" && matches(reserved, name) {
			if matches(secrets, name) {
				value = "***"
			}
			mistakes = append(mistakes, fmt.Errorf("%s: %q is for a later version, this one does not have it; want it unset", name, value))
		}
	}
	return s, errors.Join(mistakes...)
}

// check finds the mistakes in what main alone needs.
func (s *settings) check() error {
	var mistakes []error
	if s.LogFormat != "json" && s.LogFormat != "text" {
		mistakes = append(mistakes, fmt.Errorf("LOG_FORMAT: %q is no log format; want json or text", s.LogFormat))
	}
	host, port, err := net.SplitHostPort(s.ListenAddr)
	adminHost, adminPort, adminErr := net.SplitHostPort(s.Admin.Addr) // admin tells of an error
	switch {
	case err != nil || !isPort(port):
		mistakes = append(mistakes, fmt.Errorf("LISTEN_ADDR: %q is no address; want host:port or :port, and a port up to 65535", s.ListenAddr))
	case adminErr == nil && adminPort == port && port != "0" && (host == adminHost || covers(host, adminHost) || covers(adminHost, host)):
		mistakes = append(mistakes, fmt.Errorf("ADMIN_ADDR: %q has the port of LISTEN_ADDR, %q; want another port for one of them", s.Admin.Addr, s.ListenAddr))
	}
	return errors.Join(mistakes...)
}

// covers reports whether to listen on host is to listen on other too.
func covers(host, other string) bool {
	return host == "" || host == "::" || host == "0.0.0.0" && !strings.Contains(other, ":")
}

// set parses one variable into its field. One at a time, because the library names struct fields in its errors, and several
// packages have a field of the same name.
func (s *settings) set(name, value string) error {
	return env.ParseWithOptions(s, env.Options{
		Environment:         map[string]string{name: value},
		DefaultValueTagName: "-", // no defaults: readSettings has chosen the value
		FuncMap:             map[reflect.Type]env.ParserFunc{reflect.TypeFor[[]string](): parseList},
	})
}

// parseList takes a list apart at its commas, with white space around its entries or without.
func parseList(s string) (any, error) {
	list := strings.Split(s, ",")
	for i, entry := range list {
		if list[i] = strings.TrimSpace(entry); list[i] == "" {
			return nil, fmt.Errorf("%q has an empty entry; want entries separated by one comma each", s)
		}
	}
	return list, nil
}

// readSecret gives the value of a secret, from the variable itself or from the file that its twin names.
func readSecret(environ map[string]string, name string) (string, error) {
	twin := name + "_FILE"
	file := environ[twin]
	switch {
	case file == "":
		return environ[name], nil
	case environ[name] != "":
		return environ[name], fmt.Errorf("%s: %q is set beside %s; want one of the two", twin, file, name)
	}
	text, err := os.ReadFile(file)
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err // the name is said already
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if err == nil && secret == "" {
		err = errors.New("the file is empty")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %q cannot be used: %w; want the path of a file that holds the secret", twin, file, err)
	}
	return secret, nil
}

// mistake says what is wrong with a value that the library could not parse, and what is allowed.
func mistake(name, value string, err error) error {
	var parse env.ParseError
	if !errors.As(err, &parse) {
		return fmt.Errorf("%s: %w", name, err)
	}
	var wrong string
	switch kind := parse.Type.Kind(); {
	case parse.Type == reflect.TypeFor[time.Duration]():
		wrong = "is no duration; want a number with its unit, such as 500ms, 30s or 5m"
	case parse.Type == reflect.TypeFor[slog.Level]():
		wrong = "is no log level; want debug, info, warn or error"
	case kind == reflect.Bool:
		wrong = "is neither true nor false; want true or false"
	case errors.Is(parse.Err, strconv.ErrRange):
		wrong = "is too large; want a number that fits into 64 bits"
	case kind == reflect.Int, kind == reflect.Int64:
		wrong = "is no whole number; want digits alone, such as 1000"
	default: // a type of our own, whose error says it all
		return fmt.Errorf("%s: %w", name, parse.Err)
	}
	return fmt.Errorf("%s: %q %s", name, value, wrong)
}

// quoted reports whether a value is in quotes that a shell would have taken away.
func quoted(s string) bool {
	return len(s) >= 2 && strings.ContainsRune(`"'`, rune(s[0])) && s[0] == s[len(s)-1]
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// program is everything that runs, wired together; only the bundled backend has its listener open already.
type program struct {
	settings
	log     *slog.Logger
	proxy   *proxy.Proxy
	admin   *admin.Server
	backend *echo.Server // nil: UPSTREAM_URL names the backend
}

// wire checks the settings as a whole and builds the program from them. The error joins every mistake, one a line.
func wire(s settings) (*program, error) {
	p := &program{settings: s, log: newLogger(s)}
	var mistakes []error
	var err error
	endpoint := s.Proxy.Auth.Mode == "endpoint" && s.Proxy.Auth.URL == "" // nobody has named one
	switch {
	case s.Proxy.Upstream.URL == "":
		err = p.startBackend(endpoint)
	case endpoint:
		err = errors.New(`AUTH_URL: "" would leave UPSTREAM_URL open to everyone; ` +
			`want the URL of your token endpoint, or AUTH_MODE=none to let everyone in on purpose`)
	}
	if err != nil {
		mistakes = append(mistakes, err)
		// Any URL will do from here on, so that nobody complains about the lack of one again.
		p.Proxy.Upstream.URL = cmp.Or(p.Proxy.Upstream.URL, "ws://localhost")
		if endpoint {
			p.Proxy.Auth.URL = "http://localhost"
		}
	}
	known := proxy.KnownReasons()
	known.Version = buildVersion()
	metrics := admin.NewMetrics(known)
	p.Proxy.Logger, p.Proxy.Metrics, p.Admin.Logger = p.log, metrics, p.log
	p.proxy, err = proxy.New(p.Proxy)
	mistakes = append(mistakes, err)
	p.Admin.Ready = p.proxy.Ready
	p.admin, err = admin.New(p.Admin, metrics)
	mistakes = append(mistakes, err)
	return p, errors.Join(mistakes...)
}

func newLogger(s settings) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogFormat == "text" {
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

// startBackend starts the bundled backend and points the settings at it. With endpoint, the bundled token endpoint verifies and
// is reachable on the front port too.
func (p *program) startBackend(endpoint bool) error {
	var err error
	if p.backend, err = echo.Start(p.Demo); err != nil {
		return err
	}
	p.Proxy.Upstream.URL = p.backend.URL()
	if len(p.Proxy.Paths) == 0 && !p.Proxy.PathsUnsafeForms { // which wants PATHS, and says so
		p.Proxy.Paths = []string{"/"}
	}
	if endpoint {
		p.Proxy.Auth.URL = p.backend.TokenURL()
		p.Proxy.TokenEndpoint = p.backend.Token()
	}
	return nil
}

func serve(environ map[string]string) int {
	// Before anything is open, so that a signal never finds a program that does not drain.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	// net/http prints the beginning of an answer that it did not expect through the global logger, and an endpoint's may hold a
	// token. What this program has to say goes through its own.
	log.SetOutput(io.Discard)
	runtime.MemProfileRate = 0 // nothing here serves a profile

	s, err := readSettings(environ)
	p, wireErr := wire(s)
	defer p.close()
	if err := errors.Join(err, wireErr); err != nil {
		fmt.Fprintln(os.Stderr, err) // not a log record: a person reads this, whatever LOG_FORMAT says
		return exitSettings
	}
	for _, slip := range misspelt(environ) {
		attrs := []any{"variable", slip.name}
		if slip.meant != "" {
			attrs = append(attrs, "meant", slip.meant)
		}
		p.log.Warn("a variable looks like a setting and is none", attrs...)
	}
	return p.run(signals)
}

// run serves until a signal drains it or a listener fails, and returns the exit code.
func (p *program) run(signals <-chan os.Signal) int {
	front, err := p.listen()
	if err != nil {
		p.log.Error("the front listener cannot be opened", "error", fmt.Errorf("LISTEN_ADDR: %q: %w; %s", p.ListenAddr, err, remedy(err)))
		return exitFailed
	}
	if err := p.admin.Start(); err != nil {
		front.Close()
		p.log.Error("the operator's listener cannot be opened", "error", fmt.Errorf("%w; %s", err, remedy(err)))
		return exitFailed
	}
	served := make(chan error, 1)
	go func() { served <- p.proxy.Serve(front) }()
	p.admin.SetReady(true)
	p.announce(front.Addr())

	select {
	case err := <-served:
		p.log.Error("the front listener failed", "error", err)
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

// listen opens the front listener.
func (p *program) listen() (net.Listener, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false) // of which the kernel can't tell what a peer has got, nor soon that it is gone
	if p.Proxy.Relay.PingInterval > 0 {
		// The heartbeat finds a dead client sooner than TCP's keep-alive would, and without four system calls per connection.
		c.KeepAlive = -1
	}
	return c.Listen(context.Background(), "tcp", p.ListenAddr)
}

// remedy says what to do about a listener that cannot be opened.
func remedy(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "another process listens there, perhaps an earlier one of this program; want a port that is free"
	case errors.Is(err, syscall.EACCES):
		return "ports below 1024 are privileged; want a higher one, or the capability CAP_NET_BIND_SERVICE"
	}
	return "want an address of this machine"
}

// drain ends every session in order, within DRAIN_TIMEOUT or until a second signal.
func (p *program) drain(signals <-chan os.Signal) int {
	drained := make(chan error, 1)
	go func() { drained <- p.proxy.Drain(context.Background()) }()
	select {
	case err := <-drained:
		if err != nil {
			p.log.Warn("not drained: what was left is cut", "error", err)
			return exitFailed
		}
		p.log.Info("drained")
		return exitDrained
	case <-signals:
		p.log.Warn("not drained: a second signal cut what was left")
		p.proxy.Cut()
		<-drained
		return exitFailed
	}
}

// close ends what outlives the front listener: the operator's listener, which tells of the drain to its end, and the
// bundled backend.
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
func (p *program) announce(front net.Addr) {
	upstream, _, _ := strings.Cut(p.Proxy.Upstream.URL, "?") // a query may hold a credential
	attrs := []any{"version", buildVersion(), "addr", front.String(), "tls", p.Proxy.TLSCertFile != "", "upstream", upstream}
	if most := proxy.Descriptors(); most > 0 {
		attrs = append(attrs, "descriptors", most)
	}
	if addr := p.admin.Addr(); addr != nil {
		attrs = append(attrs, "admin", addr.String())
	}
	p.log.Info("listening", attrs...)
	if p.backend != nil {
		p.greet(os.Stderr, front)
	}
}

// greet says what the bundled backend is for and what to try, in lines that work as typed.
func (p *program) greet(out io.Writer, front net.Addr) {
	ws, http := "ws", "http"
	if p.Proxy.TLSCertFile != "" {
		ws, http = "wss", "https"
	}
	host, self, query := dialable(front), os.Args[0], "?token=YOUR_TOKEN"
	if strings.Contains(self, "go-build") { // the temporary binary of go run
		self = "go run ."
	}
	switch {
	case p.Proxy.Auth.Mode == "none":
		query = ""
	case p.Proxy.TokenEndpoint != nil && p.Demo.Token == "token": // any other is a secret
		query = "?token=token"
	}
	fmt.Fprintf(out, "\nNo UPSTREAM_URL is set, so the bundled echo backend answers, for trying things out.\n")
	fmt.Fprintf(out, "  WebSocket  %s://%s/%s\n", ws, host, query)
	if p.Proxy.TokenEndpoint != nil {
		fmt.Fprintf(out, "  tokens     %s://%s/token%s\n", http, host, query)
	}
	if addr := p.admin.Addr(); addr != nil {
		fmt.Fprintf(out, "  metrics    http://%s/metrics\n", dialable(addr))
	}
	fmt.Fprintf(out, "Try, in another terminal:\n")
	fmt.Fprintf(out, "  %s probe '%s://%s/%s'\n", self, ws, host, query)
	fmt.Fprintf(out, "  npx wscat -c '%s://%s/%s'\n\n", ws, host, query)
}

// dialable is where a client on this machine reaches a listener: one on every address by the name localhost.
func dialable(addr net.Addr) string {
	a, err := netip.ParseAddrPort(addr.String())
	if err == nil && a.Addr().IsUnspecified() {
		return "localhost:" + strconv.Itoa(int(a.Port()))
	}
	return addr.String()
}

// probeOnce runs the probe and returns the exit code.
func probeOnce(environ map[string]string, url string) int {
	s, _ := readSettings(environ) // ADMIN_ADDR alone matters here; mistakes are for the serving program to report
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := probe.Run(ctx, probe.Config{URL: url, AdminAddr: s.Admin.Addr, Out: os.Stdout}); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		return exitFailed
	}
	return exitDrained
}
