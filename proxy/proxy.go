package proxy

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
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
	Front    front.Config `fixed:"true"`
	Gate     gate.Config
	API      api.Config
	Session  session.Config
	ClientIP clientip.Config
	Origin   origin.Config
	Limits   ratelimit.Config
	Fleet    fleet.Config `fixed:"true"`
	Auth     auth.Config  `guard:"true"`
	Upstream upstream.Config
	Relay    relay.Config

	// DrainDelay is how long Drain goes on accepting, for load balancers to learn that /readyz says 503. Zero: not at all.
	DrainDelay time.Duration `env:"DRAIN_DELAY" envDefault:"0s"`
	// DrainTimeout bounds the rest of Drain: sessions are closed over its first half, and cut at its end. Zero is refused.
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"30s"`

	// Routes are the table of routes. Empty: there is one, of Gate.Paths to Upstream.
	Routes []Route `env:"-"`

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
// life in a process, and Reload gives it another Config meanwhile.
type Proxy struct {
	front    *front.Server
	sessions *session.Manager
	relay    *relay.Relay
	report   *refusal.Reporter
	fleet    *fleet.Fleet // nil: this instance is alone
	tickets  gate.Tickets // nil: there are none
	reached  *api.Instances
	operator *api.Operator // nil: there is no /api
	servers  *upstream.Servers
	log      *slog.Logger
	metrics  *admin.Metrics
	secret   string // of the names of nameless clients

	current   atomic.Pointer[generation]
	reloading sync.Mutex     // held by Reload
	leaving   sync.WaitGroup // of sessions whose targets are gone

	base          context.Context // of every request; ended by Cut
	endBase       context.CancelFunc
	accepting     context.Context // ends when nothing new is to begin
	stopAccepting context.CancelFunc
	requests      requests
	failure       atomic.Pointer[error] // why Serve is to return; nil: it is not
}

// New checks the whole of c and compiles it. The error joins every mistake, one a line.
func New(c Config) (*Proxy, error) {
	p := &Proxy{log: cmp.Or(c.Logger, slog.New(slog.DiscardHandler)), metrics: c.Metrics, servers: upstream.NewServers(), secret: rand.Text()}
	if p.metrics == nil {
		p.metrics = admin.NewMetrics(KnownReasons())
	}
	p.report = refusal.NewReporter(p.log, p.metrics)
	p.base, p.endBase = context.WithCancel(context.Background())
	p.accepting, p.stopAccepting = context.WithCancel(p.base)

	// What the rooms need of each other's settings, where they live as long as the process.
	c.Front.Logger, c.Front.Base = p.log, p.base
	if c.Front.Handler == nil {
		c.Front.Handler = p
	}
	c.Front.RequestTimeout = c.requestTimeout()
	c.Front.HalfClosed = c.Relay.CloseTimeout // as long as the relay gives a client that is half-closed
	c.Front.Malformed = func(client netip.Addr) {
		p.report.Report(&refusal.Refusal{Reason: refusal.Malformed}, slog.String("client", clientip.Name(client)))
	}
	c.Front.Trusts = func(peer netip.Addr) bool { return p.current.Load().gate.ClientIP.Trusts(peer) }
	c.Front.HeadRefused = func(peer netip.Addr, err error) {
		p.report.Report(&refusal.Refusal{Reason: refusal.ProxyHead, Err: err}, slog.String("client", clientip.Name(peer)))
	}
	c.Fleet.Instance = c.Fleet.InstanceName()
	c.Fleet.Limits, c.Fleet.Logger, c.Fleet.Metrics = c.Limits, p.log, p.metrics
	c.Fleet.MaxMessage, c.Fleet.Failed = c.API.MaxMessage(), p.fail
	c.Fleet.HistoryPushes, c.Fleet.HistoryAge = c.Session.History.Pushes, c.Session.History.Age
	c.wireAPI(p.log)

	var mistakes []error
	var err error
	note := func() { mistakes = append(mistakes, err) }
	p.fleet, err = fleet.New(c.Fleet)
	note()
	p.front, err = front.New(c.Front)
	note()
	perSession := c.Limits.PerSession()
	c.Relay.MessageRate, c.Relay.MessageBurst, c.Relay.MessageByteRate = perSession.Messages, perSession.Burst, perSession.Bytes
	p.relay, err = relay.New(c.Relay)
	note()
	c.Session.Relay, c.Session.Logger, c.Session.Metrics = p.relay, p.log, p.metrics
	c.Session.Instance, c.Session.Shared = c.Fleet.Instance, p.fleet != nil
	c.Session.Verifier = verifier{p}
	c.Session.Lease = lease.Config{Timeout: c.Auth.Timeout, Recheck: c.Auth.Recheck, Stale: c.Auth.StaleTTL}
	c.Session.Listed = c.API.Reached || p.fleet != nil // which others may ask for
	p.sessions, err = session.New(c.Session)
	note()
	p.tickets = c.API.NewTickets(p.fleet)
	g, err := p.compile(c, nil)
	note()
	if err := distinct(mistakes); err != nil {
		p.endBase()
		g.close()
		p.fleet.Close()
		return nil, err
	}
	p.metrics.WatchTargets(func() (all []admin.Target) { return p.current.Load().targets() })
	p.metrics.WatchEngines(p.relay.Engines)
	p.metrics.WatchKept(func() float64 {
		bytes, _ := p.relay.KeptTotal()
		return float64(bytes)
	})
	p.reached = api.NewInstances(c.API, p.fleet, p.sessions)
	p.operator = api.NewOperator(c.API, p.sessions, p.reached)
	p.begin(g)
	return p, nil
}

// Check returns the mistakes that [New] finds in c, and begins nothing: nobody is asked, and no fleet is joined.
func Check(c Config) error {
	c.Auth.Idle, c.Upstream.Idle, c.Fleet.Idle = true, true, true
	p, err := New(c)
	if err == nil {
		p.Cut()
	}
	return err
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
func (p *Proxy) Ready() error { return cmp.Or(p.current.Load().auth.Ready(), p.fleet.Ready()) }

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
	now := p.present() // one for the whole of the request
	defer now.requests.end()
	request := now.gate.NewRequest(c, r)
	if !p.requests.begin() {
		now.gate.Refuse(request, &refusal.Refusal{Reason: refusal.Draining})
		return
	}
	defer p.requests.end()
	if !request.From.Addr.IsValid() {
		now.gate.Refuse(request, &refusal.Refusal{Reason: refusal.ClientUnknown})
		return
	}
	if handle := now.api.Handler(request); handle != nil {
		now.gate.Answer(request, handle)
		return
	}
	now.gate.Serve(request)
}

// Serve accepts connections from listeners until Drain or Cut, which make it return nil, or until one of them fails, or until this
// instance cannot be one of its fleet. It closes them. It is called once.
func (p *Proxy) Serve(listeners ...net.Listener) error {
	err := p.front.Serve(listeners...)
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
//  2. The listeners close. Requests in progress finish or get 503; there are no new ones.
//  3. Sessions get Close 1001, spread over the first half of DRAIN_TIMEOUT.
//  4. When the last has ended, what is left are connections that never asked for anything. They are closed.
func (p *Proxy) Drain(ctx context.Context) error {
	defer p.Cut()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.base, cancel)()

	p.fleet.Drain()
	c := &p.current.Load().config
	select {
	case <-time.After(c.DrainDelay):
	case <-ctx.Done():
		return fmt.Errorf("drain: %w", ctx.Err())
	}
	p.close()
	ctx, cancel = context.WithTimeout(ctx, c.DrainTimeout)
	defer cancel()
	p.sessions.Drain(ctx, c.DrainTimeout/2)
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
	p.reloading.Lock() // there are no reloads after endBase
	defer p.reloading.Unlock()
	p.leaving.Wait()
	if p.tickets != nil {
		p.tickets.Close()
	}
	p.report.Flush()
	p.current.Load().close()
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
