package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/api"
	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/front"
	"portcullis/proxy/gate"
	"portcullis/proxy/origin"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

// Route is one entry of the table of routes. What it does not say itself it has from Config.
type Route struct {
	// Name is that of the metrics and the log, and Setting, in mistakes, the variable. Empty: it is the only one, of UPSTREAM_URL.
	Name, Setting string
	// Host is that of the requests; empty: any. Paths are patterns, as PATHS.
	Host  string
	Paths []string
	// Open says that clients need no credential.
	Open bool
	// HTTP is what becomes of requests that ask for no upgrade.
	HTTP gate.HTTPMode
	// Upstream has the targets, and Relay and Limits are those of its sessions. Of Limits only what is by session counts.
	Upstream upstream.Config
	Relay    relay.Config
	Limits   ratelimit.Config
}

// generation is all that the settings come to which Reload may change. It does not change: a request takes one and keeps to it.
type generation struct {
	config Config
	gate   *gate.Gate
	api    *api.API
	auth   *auth.Auth
	limits *ratelimit.Limits
	groups session.Groups
	routes []gate.Route

	requests requests // that go by it; there are no new ones once another has taken its place
}

// compile checks c and makes a generation of it, which takes over from before; nil: it is the first. The error joins every mistake.
func (p *Proxy) compile(c Config, before *generation) (*generation, error) {
	c.wireAPI(p.log)
	g := &generation{config: c}
	mistakes := []error{c.check()}
	var err error
	note := func() { mistakes = append(mistakes, err) }

	parts := gate.Parts{Fleet: p.fleet, Tickets: p.tickets, Sessions: p.sessions, Report: p.report, Metrics: p.metrics, Log: p.log,
		Base: p.base, Accepting: p.accepting}
	parts.ClientIP, err = clientip.New(c.ClientIP)
	note()
	parts.Origins, err = origin.New(c.Origin)
	note()
	g.groups, err = session.ParseGroups(c.Session.Groups)
	note()
	if before == nil {
		g.limits, err = ratelimit.New(c.Limits)
	} else {
		g.limits, err = before.limits.With(c.Limits)
	}
	note()
	parts.Limits, parts.Groups = g.limits, g.groups
	g.auth, err = p.authenticator(c, before)
	note()
	parts.Auth = g.auth
	g.routes, err = p.compileRoutes(c)
	note()
	c.Gate.AuthTimeout, c.Gate.CloseTimeout = c.Auth.Timeout, c.Relay.CloseTimeout
	c.Gate.MaxCloseFrames = front.CapByDescriptors(cmp.Or(c.Gate.MaxCloseFrames, maxCloseFrames))
	c.Gate.MaxRequests, c.Gate.DrainTimeout = front.CapByDescriptors(cmp.Or(c.Gate.MaxRequests, math.MaxInt32)), c.DrainTimeout
	var old *gate.Gate
	if before != nil {
		old = before.gate
	}
	g.gate, err = gate.New(c.Gate, parts, g.routes, old)
	note()
	return g, distinct(mistakes)
}

// authenticator is that of c: the one before where nothing is new, for it knows keys and answers.
func (p *Proxy) authenticator(c Config, before *generation) (*auth.Auth, error) {
	if before != nil && before.config.Auth.Same(&c.Auth) && slices.Equal(before.config.Session.Groups, c.Session.Groups) {
		return before.auth, nil
	}
	c.Auth.Logger = cmp.Or(c.Auth.Logger, p.log)
	c.Auth.Exhausted = gate.Exhausted
	c.Auth.GroupClaims, c.Auth.GroupHeaders = c.Session.GroupPlaces()
	c.Auth.Observe = func(took time.Duration, err error) { gate.ObserveAuth(p.metrics, took, err) }
	c.Auth.Secret = cmp.Or(p.fleet.Secret(), p.secret)
	return auth.New(c.Auth)
}

// compileRoutes compiles the table of routes. The error joins every mistake.
func (p *Proxy) compileRoutes(c Config) (all []gate.Route, err error) {
	var mistakes []error
	for _, r := range c.routes() {
		perSession := r.Limits.PerSession()
		r.Relay.MessageRate, r.Relay.MessageBurst, r.Relay.MessageByteRate = perSession.Messages, perSession.Burst, perSession.Bytes
		r.Relay.Route = r.Name
		compiled := gate.Route{Name: r.Name, Setting: cmp.Or(r.Setting, "PATHS"), Host: r.Host, Paths: r.Paths, Open: r.Open, HTTP: r.HTTP,
			Limits: &session.Limits{Messages: perSession.Messages, Burst: perSession.Burst, Bytes: perSession.Bytes}}
		if p.relay != nil { // else all that is wrong is known
			compiled.Rules, err = p.relay.Compile(r.Relay)
			mistakes = append(mistakes, r.blame(err))
		}
		r.Upstream.KeepAlive = r.Relay.PingInterval == 0 // where there is no heartbeat
		r.Upstream.Exhausted, r.Upstream.Logger, r.Upstream.Servers = gate.Exhausted, p.log, p.servers
		r.Upstream.Setting, r.Upstream.Secure = r.Setting, c.secureTargets()
		r.Upstream.Idle = c.Upstream.Idle
		compiled.Upstream, err = upstream.New(r.Upstream)
		mistakes = append(mistakes, err)
		all = append(all, compiled)
	}
	return all, distinct(mistakes)
}

// routes are Routes, or the one that the other settings make.
func (c *Config) routes() []Route {
	if len(c.Routes) > 0 {
		return c.Routes
	}
	return []Route{{Paths: c.Gate.Paths, HTTP: c.Gate.HTTP, Upstream: c.Upstream, Relay: c.Relay, Limits: c.Limits}}
}

// blame names the route in each line of an error.
func (r *Route) blame(err error) error {
	if err == nil || r.Name == "" {
		return err
	}
	return fmt.Errorf("%s: %s", r.Setting, strings.ReplaceAll(err.Error(), "\n", "\n"+r.Setting+": "))
}

// secureTargets reports whether any target is spoken to with TLS.
func (c *Config) secureTargets() bool {
	return slices.ContainsFunc(c.routes(), func(r Route) bool {
		return slices.ContainsFunc(strings.Fields(strings.ToLower(r.Upstream.URL)), func(target string) bool {
			return strings.HasPrefix(target, "wss:") || strings.HasPrefix(target, "https:")
		})
	})
}

// distinct joins errors and leaves out the lines that are there already, as of a setting that several routes share.
func distinct(all []error) error {
	var lines []error
	seen := make(map[string]bool)
	for _, err := range all {
		if err == nil {
			continue
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !seen[line] {
				seen[line] = true
				lines = append(lines, errors.New(line))
			}
		}
	}
	return errors.Join(lines...)
}

// wireAPI is what package api needs of the other settings.
func (c *Config) wireAPI(log *slog.Logger) {
	c.API.Renewal, c.API.Logger = c.Session.Renewal, log
	c.API.Reached = c.API.AdminToken != "" || c.Fleet.BusURL != ""
}

// present returns the generation that a request goes by, and has it counted there.
func (p *Proxy) present() *generation {
	for {
		if g := p.current.Load(); g.requests.begin() {
			return g
		}
	}
}

// begin has requests take g from now on.
func (p *Proxy) begin(g *generation) {
	g.api = api.New(g.config.API, g.gate, p.reached)
	p.sessions.SetGroups(g.groups)
	var names []string
	for _, r := range g.routes {
		names = append(names, r.Name)
	}
	p.metrics.WatchRoutes(names)
	before := p.current.Swap(g)
	if before != nil && before.auth == g.auth {
		return
	}
	for _, warning := range g.auth.Warnings() {
		p.log.Warn(warning)
	}
}

// targets are those of all routes, by their names. A server that several routes have is there once; several that have one name, such as two
// paths of one address, count together.
func (g *generation) targets() (all []admin.Target) {
	seen := make(map[uint64]bool)
	for _, r := range g.routes {
		for _, t := range r.Upstream.Targets() {
			if seen[t.ID] {
				continue
			}
			seen[t.ID] = true
			i := slices.IndexFunc(all, func(other admin.Target) bool { return other.Name == t.Name })
			if i < 0 {
				i, all = len(all), append(all, admin.Target{Name: t.Name})
			}
			all[i].Live += t.Live
			all[i].Usable = all[i].Usable || t.Usable
		}
	}
	return all
}

// close ends what g does in the background.
func (g *generation) close() {
	if g.auth != nil {
		g.auth.Close() // it may be fetching keys
	}
	g.closeUpstreams()
}

func (g *generation) closeUpstreams() {
	for _, r := range g.routes {
		if r.Upstream != nil {
			r.Upstream.Close()
		}
	}
}

// verifier is that of sessions: the present one.
type verifier struct{ *Proxy }

func (v verifier) VerifyAgain(ctx context.Context, c auth.Credential) (auth.Decision, error) {
	return v.current.Load().auth.VerifyAgain(ctx, c)
}

// requestTimeout is how long the steps of a request may wait: for a failure token, for the verifier to have time and to answer, for
// the dial and the upstream.
func (c *Config) requestTimeout() time.Duration {
	return 3*c.Auth.Timeout + c.Upstream.DialTimeout + c.Upstream.HandshakeTimeout
}

// check finds the mistakes that no room sees alone.
func (c *Config) check() error {
	mistakes := c.API.Check(&c.Auth)
	note := func(format string, a ...any) { mistakes = append(mistakes, fmt.Errorf(format, a...)) }

	if c.Auth.UsesCookie() && len(c.Origin.Origins) == 0 {
		note("ORIGINS: %q allows every web page to use the cookies that authenticate; want the origins of your own pages", "")
	}
	if c.Auth.UsesCertificate() && len(c.Origin.Origins) == 0 {
		note("ORIGINS: %q allows every web page to use the certificates that browsers have; want the origins of your own pages, or https://none.invalid where no page is to connect", "")
	}
	if c.Auth.UsesCertificate() && c.Front.ClientCAFile == "" {
		note("AUTH_MODE: %q needs TLS_CLIENT_CA_FILE, for whose certificates are verified; want that set, or another mode", c.Auth.Mode)
	}
	if !c.Auth.NamesSubject() && c.Limits.PerSubject() {
		note("AUTH_MODE: %q names no subject for RATE_UPGRADES_PER_SUBJECT and LIMIT_SESSIONS_PER_SUBJECT to count; want another mode, or neither limit", c.Auth.Mode)
	}
	if c.Gate.FirstMessage && !c.Auth.ByToken() {
		note("AUTH_FIRST_MESSAGE: \"true\" has no meaning with AUTH_MODE=%s, which lacks no token; want false, or another mode", c.Auth.Mode)
	}
	if c.Session.Renewal && !c.Auth.ByToken() {
		note("RENEWAL: \"true\" needs to know whose a token is by the token alone, which AUTH_MODE=%s does not; want false, or another mode", c.Auth.Mode)
	}
	if c.Session.Hello && !c.Session.Renewal && c.Session.History.Pushes == 0 {
		note("SESSION_HELLO: \"true\" sends what is of no use without RENEWAL or PUSH_HISTORY; want false, or one of them")
	}
	if c.Relay.Resume > 0 && c.API.PushMaxBytes > c.Relay.ResumeBuffer {
		note("PUSH_MAX_BYTES: \"%d\" does not fit RESUME_BUFFER, %d; want no more, or RESUME=0s", c.API.PushMaxBytes, c.Relay.ResumeBuffer)
	}
	if c.Relay.Engine == "loop" && (c.Front.CertFile != "" || c.secureTargets()) {
		note("RELAY_ENGINE: %q is not for connections with TLS, here to the clients or to UPSTREAM_URL; want auto or stream", c.Relay.Engine)
	}
	if c.DrainDelay < 0 {
		note("DRAIN_DELAY: %q is negative; want 0s or more", c.DrainDelay)
	}
	if c.DrainTimeout <= 0 {
		note("DRAIN_TIMEOUT: %q leaves no time to drain; want more than 0s", c.DrainTimeout)
	}
	return errors.Join(mistakes...)
}
