package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/api"
	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/fleet"
	"portcullis/proxy/front"
	"portcullis/proxy/gate"
	"portcullis/proxy/lease"
	"portcullis/proxy/origin"
	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

// Config configures the whole proxy, room by room. Fields with an env tag are read from the environment.
type Config struct {
	Front    front.Config
	Gate     gate.Config
	API      api.Config
	Session  session.Config
	ClientIP clientip.Config
	Origin   origin.Config
	Limits   ratelimit.Config
	Fleet    fleet.Config
	Auth     auth.Config `guard:"true"`
	Upstream upstream.Config
	Relay    relay.Config

	// DrainDelay is how long Drain goes on accepting, for load balancers to learn that /readyz says 503. Zero: not at all.
	DrainDelay time.Duration `env:"DRAIN_DELAY" envDefault:"0s"`
	// DrainTimeout bounds the rest of Drain: sessions are closed over its first half, and cut at its end. Zero is refused.
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"30s"`

	// Logger gets one line per refusal and per ended session, and what an operator should know. Nil: nothing is logged.
	Logger *slog.Logger `env:"-"`
	// Metrics counts. Nil: nobody does.
	Metrics *admin.Metrics `env:"-"`
}

// maxCloseFrames bounds the sockets that are open only to be refused: each may take CLOSE_TIMEOUT to close. Clients beyond it get
// the HTTP answer.
const maxCloseFrames = 1000

// closeTimeout is for what was closed to notice.
const closeTimeout = time.Second

// Proxy is a compiled [Config]: an http.Handler that refuses a request or turns it into a session. Serve and Drain are its
// life in a process.
type Proxy struct {
	front    *front.Server
	gate     *gate.Gate
	api      *api.API
	operator *api.Operator // nil: there is no /api
	sessions *session.Manager
	auth     *auth.Auth
	upstream *upstream.Upstream
	report   *refusal.Reporter
	fleet    *fleet.Fleet // nil: this instance is alone

	drainDelay, drainTimeout time.Duration
	base                     context.Context // of every request; ended by Cut
	endBase                  context.CancelFunc
	stopAccepting            context.CancelFunc // ends the gate's Accepting
	requests                 requests
	failure                  atomic.Pointer[error] // why Serve is to return; nil: it is not
}

// New checks the whole of c and compiles it. The error joins every mistake, one a line.
func New(c Config) (*Proxy, error) {
	p := &Proxy{drainDelay: c.DrainDelay, drainTimeout: c.DrainTimeout}
	log := cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	metrics := c.Metrics
	if metrics == nil {
		metrics = admin.NewMetrics(KnownReasons())
	}
	p.report = refusal.NewReporter(log, metrics)
	p.base, p.endBase = context.WithCancel(context.Background())
	accepting, stopAccepting := context.WithCancel(p.base)
	p.stopAccepting = stopAccepting

	// What the rooms need of each other's settings.
	c.Auth.Logger = cmp.Or(c.Auth.Logger, log)
	c.Auth.Exhausted = gate.Exhausted
	c.Auth.GroupClaims, c.Auth.GroupHeaders = c.Session.GroupPlaces()
	c.Auth.Observe = func(took time.Duration, err error) { gate.ObserveAuth(metrics, took, err) }
	perSession := c.Limits.PerSession()
	c.Relay.MessageRate, c.Relay.MessageBurst = perSession.Messages, perSession.Burst
	c.Relay.MessageByteRate = perSession.Bytes
	c.Upstream.KeepAlive = c.Relay.PingInterval == 0 // where there is no heartbeat
	c.Front.Logger, c.Front.Base = log, p.base
	if c.Front.Handler == nil {
		c.Front.Handler = p
	}
	c.Front.RequestTimeout = c.requestTimeout()
	c.Front.HalfClosed = c.Relay.CloseTimeout // as long as the relay gives a client that is half-closed
	c.Front.Malformed = func(client netip.Addr) {
		p.report.Report(&refusal.Refusal{Reason: refusal.Malformed}, slog.String("client", client.String()))
	}
	c.Gate.AuthTimeout, c.Gate.CloseTimeout = c.Auth.Timeout, c.Relay.CloseTimeout
	c.Gate.MaxCloseFrames = front.CapByDescriptors(cmp.Or(c.Gate.MaxCloseFrames, maxCloseFrames))
	c.Gate.MaxRequests, c.Gate.DrainTimeout = front.CapByDescriptors(math.MaxInt32), c.DrainTimeout
	c.Upstream.Exhausted, c.Upstream.Logger = gate.Exhausted, log
	c.API.Renewal, c.API.Logger = c.Session.Renewal, log

	parts := gate.Parts{Report: p.report, Metrics: metrics, Log: log, Base: p.base, Accepting: accepting}
	var mistakes []error
	var err error
	note := func() { mistakes = append(mistakes, err) }
	parts.ClientIP, err = clientip.New(c.ClientIP)
	note()
	parts.Origins, err = origin.New(c.Origin)
	note()
	parts.Limits, err = ratelimit.New(c.Limits)
	note()
	c.Fleet.Instance = c.Fleet.InstanceName()
	c.Fleet.Limits, c.Fleet.Logger, c.Fleet.Metrics = c.Limits, log, metrics
	c.Fleet.MaxMessage, c.Fleet.Failed = c.API.MaxMessage(), p.fail
	c.Fleet.HistoryPushes, c.Fleet.HistoryAge = c.Session.History.Pushes, c.Session.History.Age
	p.fleet, err = fleet.New(c.Fleet)
	note()
	c.API.Reached = c.API.AdminToken != "" || c.Fleet.BusURL != ""
	c.Session.Shared = p.fleet != nil
	parts.Fleet, c.Session.Instance = p.fleet, c.Fleet.Instance
	c.Auth.Secret = p.fleet.Secret()
	p.auth, err = auth.New(c.Auth)
	note()
	p.upstream, err = upstream.New(c.Upstream)
	parts.Upstream = p.upstream
	note()
	c.Session.Relay, err = relay.New(c.Relay)
	note()
	p.front, err = front.New(c.Front)
	note()
	parts.Auth, parts.Extensions = p.auth, c.Relay.Mode != "terminate"
	c.Session.Verifier, c.Session.Logger, c.Session.Metrics = p.auth, log, metrics
	c.Session.Lease = lease.Config{Timeout: c.Auth.Timeout, Recheck: c.Auth.Recheck, Stale: c.Auth.StaleTTL}
	c.Session.Limits = session.Limits{Messages: perSession.Messages, Burst: perSession.Burst, Bytes: perSession.Bytes}
	c.Session.Listed = c.API.Reached || p.fleet != nil // which others may ask for
	p.sessions, err = session.New(c.Session)
	note()
	parts.Sessions = p.sessions
	parts.Tickets = c.API.NewTickets(p.fleet)
	p.gate, err = gate.New(c.Gate, parts)
	note()
	if err := errors.Join(append(mistakes, c.check())...); err != nil {
		p.endBase()
		if p.auth != nil {
			p.auth.Close() // it may be fetching keys
		}
		p.fleet.Close()
		if p.upstream != nil {
			p.upstream.Close()
		}
		return nil, err
	}
	metrics.WatchTargets(func() (all []admin.Target) {
		for _, t := range p.upstream.Targets() {
			all = append(all, admin.Target(t))
		}
		return all
	})
	metrics.WatchKept(func() float64 {
		bytes, _ := c.Session.Relay.KeptTotal()
		return float64(bytes)
	})
	all := api.NewInstances(c.API, p.fleet, p.sessions)
	p.api = api.New(c.API, p.gate, all)
	p.operator = api.NewOperator(c.API, p.sessions, all)
	for _, warning := range p.auth.Warnings() {
		log.Warn(warning)
	}
	return p, nil
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
	if !c.Auth.NamesSubject() && c.Limits.PerSubject() {
		note("AUTH_MODE: %q names no subject for RATE_UPGRADES_PER_SUBJECT and LIMIT_SESSIONS_PER_SUBJECT to count; want another mode, or neither limit", c.Auth.Mode)
	}
	if mode := c.Auth.Mode; c.Gate.FirstMessage && (mode == "none" || mode == "forward") {
		note("AUTH_FIRST_MESSAGE: \"true\" has no meaning with AUTH_MODE=%s, which lacks no token; want false, or another mode", mode)
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
	secure := slices.ContainsFunc(strings.Fields(strings.ToLower(c.Upstream.URL)), func(target string) bool {
		return strings.HasPrefix(target, "wss:") || strings.HasPrefix(target, "https:")
	})
	if c.Relay.Engine == "loop" && (c.Front.CertFile != "" || secure) {
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

// KnownReasons are the label values that Config.Metrics must be made for.
func KnownReasons() admin.Known {
	known := admin.Known{RefusalReasons: refusal.Reasons(), PushDrops: relay.Drops(), BusDrops: fleet.Drops(), EndReasons: make(map[string][]int)}
	for r, codes := range relay.Reasons() {
		known.EndReasons[string(r)] = codes
	}
	return known
}

// Descriptors is how many descriptors this process may have open; 0: nobody knows.
func Descriptors() int { return front.Descriptors() }

// Ready says why no client can be let in yet, although p serves. Nil: it can be.
func (p *Proxy) Ready() error { return cmp.Or(p.auth.Ready(), p.fleet.Ready()) }

// Operator answers /api on the operator's listener; nil without ADMIN_TOKEN.
func (p *Proxy) Operator() http.Handler {
	if p.operator == nil {
		return nil
	}
	return p.operator
}

// ServeHTTP refuses the request or turns it into a session.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.serve(front.NewExchange(w, r), r)
}

// serve is where every front door's requests come to.
func (p *Proxy) serve(c gate.Client, r *http.Request) {
	request := p.gate.NewRequest(c, r)
	if !p.requests.begin() {
		p.gate.Refuse(request, &refusal.Refusal{Reason: refusal.Draining})
		return
	}
	defer p.requests.end()
	if handle := p.api.Handler(request.Path); handle != nil {
		p.gate.Answer(request, handle)
		return
	}
	p.gate.Serve(request)
}

// Serve accepts connections from l until Drain or Cut, which make it return nil, or until l fails, or until this instance cannot be
// one of its fleet. It closes l. It is called once.
func (p *Proxy) Serve(l net.Listener) error {
	err := p.front.Serve(l)
	if failure := p.failure.Load(); failure != nil {
		return *failure
	}
	return err
}

// fail has Serve return.
func (p *Proxy) fail(err error) {
	p.failure.Store(&err)
	p.front.Close()
}

// Drain ends the life of p in order. It returns nil when all is over, and an error when it cut what was left: because
// DRAIN_TIMEOUT ran out, ctx ended or Cut was called.
//
//  1. For DRAIN_DELAY all goes on as before. The caller has /readyz say 503 by now.
//  2. The listener closes. Requests in progress finish or get 503; there are no new ones.
//  3. Sessions get Close 1001, spread over the first half of DRAIN_TIMEOUT.
//  4. When the last has ended, what is left are connections that never asked for anything. They are closed.
func (p *Proxy) Drain(ctx context.Context) error {
	defer p.Cut()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.base, cancel)()

	p.fleet.Drain()
	select {
	case <-time.After(p.drainDelay):
	case <-ctx.Done():
		return fmt.Errorf("drain: %w", ctx.Err())
	}
	p.close()
	ctx, cancel = context.WithTimeout(ctx, p.drainTimeout)
	defer cancel()
	p.sessions.Drain(ctx, p.drainTimeout/2)
	err := p.requests.wait(ctx)
	if err == nil {
		err = p.sessions.Wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("drain: %d sessions left: %w", p.sessions.Len(), err)
	}
	return nil
}

// Cut ends everything at once: requests, sessions, Serve and Drain. It may be called at any time, and again.
func (p *Proxy) Cut() {
	p.close()
	p.endBase()
	p.front.Close()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	p.requests.wait(ctx) // none starts a session after this
	p.sessions.Close(ctx)
	p.gate.Close()
	p.report.Flush()
	p.auth.Close()
	p.upstream.Close()
	p.fleet.Close()
}

// close has no further request accepted.
func (p *Proxy) close() {
	p.requests.close()
	p.stopAccepting()
	p.front.StopAccepting()
}

// requests are those in progress, of every front door. The zero value has none.
type requests struct {
	mu     sync.Mutex
	closed bool           // guarded by mu; set once
	group  sync.WaitGroup // Add under mu and only while not closed, so that Wait may follow
}

// begin lets a request in, unless there are to be no more. end has to follow.
func (r *requests) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.group.Add(1)
	return true
}

func (r *requests) end() { r.group.Done() }

func (r *requests) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// wait returns nil when no request is left, and ctx's error when that ends first. It is called after close.
func (r *requests) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		r.group.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
