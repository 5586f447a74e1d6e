package proxy

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/certificate"
	"portcullis/proxy/clientip"
	"portcullis/proxy/lease"
	"portcullis/proxy/origin"
	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
	"portcullis/proxy/ticket"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

// Config is the front door with all that stands behind it. The environment fills what has a name there.
type Config struct {
	// Paths are the patterns of the request paths that are served: an escaped path, or a prefix ending in *. Empty: every
	// path. * alone is every path too, odd forms such as // and %2f included.
	Paths []string `env:"PATHS"`
	// PathsUnsafeForms lets the odd forms through with a list of Paths too. They are compared byte for byte: /a/* serves /a/b%2Fc
	// and not /a%2Fb. A list must be set.
	PathsUnsafeForms bool `env:"PATHS_UNSAFE_FORMS" envDefault:"false"`
	// DrainDelay is how long Drain goes on accepting, for load balancers to learn that /readyz says 503. Zero: not at all.
	DrainDelay time.Duration `env:"DRAIN_DELAY" envDefault:"0s"`
	// DrainTimeout bounds the rest of Drain: sessions are told to go over its first half, and cut at its end. Zero is refused.
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"30s"`
	// TLSCertFile and TLSKeyFile are PEM files, read again when they change. Both empty: no TLS.
	TLSCertFile string `env:"TLS_CERT_FILE" guard:"true"`
	TLSKeyFile  string `env:"TLS_KEY_FILE" guard:"true"`

	ClientIP clientip.Config
	Origin   origin.Config
	Limits   ratelimit.Config
	Auth     auth.Config `guard:"true"`
	Upstream upstream.Config
	Relay    relay.Config

	// FirstMessage accepts the handshake of a client that shows no token, which then must send it as its first text message.
	// The upstream is not asked before the token is verified, so it sees neither that message nor a choice of its own:
	// subprotocol and extensions are settled, and the headers of its 101 have nobody to go to.
	FirstMessage bool `env:"AUTH_FIRST_MESSAGE" envDefault:"false" guard:"true"`
	// FirstMessageFormat is raw, where that message is the token, or a JSON pointer (RFC 6901) to the string in it that is,
	// such as /token. Empty: raw.
	FirstMessageFormat string `env:"AUTH_FIRST_MESSAGE_FORMAT" envDefault:"raw" guard:"true" needs:"AUTH_FIRST_MESSAGE"`
	// FirstMessageTimeout is for the whole of that message to arrive. Zero is refused.
	FirstMessageTimeout time.Duration `env:"AUTH_FIRST_MESSAGE_TIMEOUT" envDefault:"5s" guard:"true" needs:"AUTH_FIRST_MESSAGE"`
	// FirstMessageMax is how many sockets may be open that are not sessions yet, those on their way out included; further
	// clients without a token get 503. Zero is refused.
	FirstMessageMax int `env:"AUTH_FIRST_MESSAGE_MAX" envDefault:"1000" guard:"true" needs:"AUTH_FIRST_MESSAGE"`
	// RefuseWithClose tells a no, after a handshake that was right and from an allowed origin, by a Close frame on a socket
	// that is opened for it: a browser shows its script no HTTP answer to a handshake. Nothing is dialled for it.
	RefuseWithClose bool `env:"REFUSE_WITH_CLOSE" envDefault:"false"`

	// Renewal answers POST /.portcullis/session: a session that is named by its id in Portcullis-Session lives on by the token
	// in Authorization, if that has the same subject. The id is in the header of that name of the handshake's answer.
	Renewal bool `env:"RENEWAL" envDefault:"false"`
	// SessionHello sends a session's id, and when its credential ends, as a first text message besides. It needs Renewal.
	SessionHello bool `env:"SESSION_HELLO" envDefault:"false"`
	// Tickets answers POST /.portcullis/ticket: a ticket for the token in Authorization, which opens one session as ?ticket=.
	Tickets bool `env:"TICKETS" envDefault:"false"`
	// TicketTTL is how long a ticket can be used. Zero is refused.
	TicketTTL time.Duration `env:"TICKET_TTL" envDefault:"30s" needs:"TICKETS"`
	// TicketBindIP has a ticket used by the address alone that it was issued to; an IPv6 /64 is one.
	TicketBindIP bool `env:"TICKET_BIND_IP" envDefault:"true" needs:"TICKETS"`

	// TokenEndpoint answers /token, unless Paths serve that path: 400 for a token that is not accepted. It is held to the
	// limits of an upgrade. Nil: none.
	TokenEndpoint http.Handler `env:"-"`
	// Logger gets one line per refusal and per ended session, and what an operator should know. Nil: nothing is logged.
	Logger *slog.Logger `env:"-"`
	// Metrics counts. Nil: nobody does.
	Metrics *admin.Metrics `env:"-"`
}

// Proxy is a compiled [Config]: an http.Handler that refuses a request or turns it into a session. Serve and Drain are its
// life in a process.
type Proxy struct {
	paths    *paths
	clientIP *clientip.Resolver
	origins  *origin.List
	limits   *ratelimit.Limits
	auth     *auth.Auth
	upstream *upstream.Upstream
	relay    *relay.Relay
	token    http.Handler // nil: no token endpoint
	keeper   *lease.Keeper
	renewals *renewals            // nil: sessions cannot be renewed
	tickets  *ticket.Store[grant] // nil: there are none

	log     *slog.Logger
	report  *refusal.Reporter
	waiting *waiting
	present *presences
	metrics *admin.Metrics
	outage  rate.Sometimes // of the line in the log about sessions that cannot be verified again

	id           string // of this gate, in viaHeader
	looped       rate.Sometimes
	authTimeout  time.Duration
	closeTimeout time.Duration
	recheck      bool          // sessions are verified again even where the verifier's yes has no end
	hello        bool          // sessions begin with a greeting
	behind       string        // the upstream, as the log names it
	first        *firstMessage // nil: a token comes with the handshake
	refused      places        // for sockets that are only told no; nil without REFUSE_WITH_CLOSE

	server                   *http.Server
	certificate              *certificate.Reloader // nil: no TLS
	drainDelay, drainTimeout time.Duration
	base                     context.Context // of every request; ended by Cut
	cut                      context.CancelFunc
	accepting                context.Context // ended by Drain and Cut, once nothing new is begun
	stopAccepting            context.CancelFunc

	mu       sync.Mutex
	closing  bool           // guarded by mu; set once, by Drain or Cut
	listener net.Listener   // guarded by mu; Serve's, nil before
	requests sync.WaitGroup // in ServeHTTP; Add under mu and only while not closing, so that Wait may follow
}

// New checks the whole of c and compiles it. The error joins every mistake, one a line.
func New(c Config) (*Proxy, error) {
	p := &Proxy{
		token:        c.TokenEndpoint,
		log:          cmp.Or(c.Logger, slog.New(slog.DiscardHandler)),
		metrics:      c.Metrics,
		id:           rand.Text(),
		looped:       rate.Sometimes{Interval: time.Minute},
		authTimeout:  c.Auth.Timeout,
		closeTimeout: c.Relay.CloseTimeout,
		recheck:      c.Auth.Recheck > 0,
		hello:        c.SessionHello,
		drainDelay:   c.DrainDelay,
		drainTimeout: c.DrainTimeout,
		keeper:       lease.New(lease.Config{Timeout: c.Auth.Timeout, Recheck: c.Auth.Recheck, Stale: c.Auth.StaleTTL}),
		tickets:      newTickets(&c),
		outage:       rate.Sometimes{Interval: time.Minute},
	}
	if c.Renewal {
		p.renewals = newRenewals()
	}
	if p.metrics == nil {
		p.metrics = admin.NewMetrics(KnownReasons())
	}
	p.report = refusal.NewReporter(p.log, p.metrics)
	if target, err := url.Parse(c.Upstream.URL); err == nil {
		p.behind = target.Host
	}
	if c.RefuseWithClose {
		p.refused = make(places, share(maxRefused))
	}
	p.waiting = newWaiting(p.log)
	p.present = newPresences(p.closeTimeout)
	p.base, p.cut = context.WithCancel(context.Background())
	p.accepting, p.stopAccepting = context.WithCancel(p.base)
	c.Auth.Logger = cmp.Or(c.Auth.Logger, p.log)
	c.Auth.Exhausted, c.Auth.Observe = exhausted, p.observeAuth

	var errs [10]error
	p.paths, errs[0] = compilePaths(c.Paths, c.PathsUnsafeForms)
	p.clientIP, errs[1] = clientip.New(c.ClientIP)
	p.origins, errs[2] = origin.New(c.Origin)
	p.limits, errs[3] = ratelimit.New(c.Limits)
	p.auth, errs[4] = auth.New(c.Auth)
	c.Upstream.KeepAlive = c.Relay.PingInterval == 0 // where there is no heartbeat
	p.upstream, errs[5] = upstream.New(c.Upstream)
	perSession := c.Limits.PerSession()
	c.Relay.MessageRate, c.Relay.MessageBurst = perSession.Messages, perSession.Burst
	c.Relay.MessageByteRate = perSession.Bytes
	p.relay, errs[6] = relay.New(c.Relay)
	p.server, errs[7] = p.newServer(&c)
	p.first, errs[8] = newFirstMessage(&c)
	errs[9] = c.check()
	if err := errors.Join(errs[:]...); err != nil {
		if p.auth != nil {
			p.auth.Close() // it may be fetching keys
		}
		return nil, err
	}
	for _, warning := range p.auth.Warnings() {
		p.log.Warn(warning)
	}
	return p, nil
}

// Ready says why no client can be let in yet, although p serves. Nil: it can be.
func (p *Proxy) Ready() error { return p.auth.Ready() }

// check finds the mistakes that no package sees alone.
func (c *Config) check() error {
	var mistakes []error
	note := func(format string, a ...any) { mistakes = append(mistakes, fmt.Errorf(format, a...)) }

	if c.Auth.UsesCookie() && len(c.Origin.Origins) == 0 {
		note("ORIGINS: %q allows every web page to use the cookies that authenticate; want the origins of your own pages", "")
	}
	if !c.Auth.NamesSubject() && c.Limits.PerSubject() {
		note("AUTH_MODE: %q names no subject for RATE_UPGRADES_PER_SUBJECT and LIMIT_SESSIONS_PER_SUBJECT to count; want another mode, or neither limit", c.Auth.Mode)
	}
	checkExchanges(c, note)
	scheme, _, _ := strings.Cut(strings.ToLower(c.Upstream.URL), ":")
	if c.Relay.Engine == "loop" && (c.TLSCertFile != "" || scheme == "wss" || scheme == "https") {
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

// upgrade is one request on its way through the steps: what each finds out, for those after it.
type upgrade struct {
	w http.ResponseWriter
	r *http.Request

	path, query string // of the request target, as they came
	handshaken  bool   // checkHandshake found nothing wrong
	client      clientip.Client
	address     netip.Prefix // the key of limits by address
	route       auth.Route   // how the request came here, as far as we believe it
	credential  auth.Credential
	decision    auth.Decision
	id          string // of the session, from the 101 on

	// What the request holds; let go of by leave, unless it is a session's by then.
	slot     *ratelimit.Slot // from before the dial
	upstream *upstream.Conn
	hijacked net.Conn // the client's connection; net/http answers no more
	early    []byte   // what the client sent behind its handshake
	started  bool     // the relay owns the four above

	open     bool   // the client has its 101: until started is true too, a no is a Close frame
	hopeless bool   // the 101 is there for the no alone
	place    places // where a socket has its place that is open and no session's; nil: nowhere
}

// newUpgrade takes the request target apart as it stood in the request line: url.URL has decoded it already, and encodes it
// anew in a way of its own. Behind it there is no absolute target: its authority is the Host, whatever Host says.
func newUpgrade(w http.ResponseWriter, r *http.Request) *upgrade {
	u := &upgrade{w: w, r: r}
	if authority, target, absolute := cutAuthority(r.RequestURI); absolute {
		u.r = r.WithContext(r.Context()) // a copy, for a handler must not change its request
		u.r.Host, u.r.RequestURI = authority, target
	}
	u.path, u.query, _ = strings.Cut(u.r.RequestURI, "?")
	return u
}

// ServeHTTP refuses the request or turns it into a session. Cheap checks come before costly ones, and nothing is dialled
// before everything else has said yes.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !reached(r) {
		panic(http.ErrAbortHandler) // its connection was closed to make room
	}
	// One request a connection. Were a proxy in front to take a refused upgrade for accepted, it would tunnel whatever its client
	// sends next, which would be the requests of a trusted proxy here (0ang3el/websocket-smuggle).
	w.Header().Set("Connection", "close")
	u := newUpgrade(w, r)
	if !p.enter() {
		p.refuse(u, &refusal.Refusal{Reason: refusal.Draining})
		return
	}
	defer p.requests.Done()
	defer p.watch(u)()
	defer p.leave(u)
	if p.isTokenRequest(u) {
		p.serveToken(u)
		return
	}
	if act := p.endpoint(u); act != nil {
		p.serveEndpoint(u, act)
		return
	}
	for _, step := range [...]func(*Proxy, *upgrade) *refusal.Refusal{
		(*Proxy).checkPath,       // not served 404; suspicious 400
		(*Proxy).checkHandshake,  // not GET 405; not an upgrade, or of another version 426; malformed 400
		(*Proxy).findClient,      // from here on limits know whom they limit
		(*Proxy).checkOrigin,     // 403
		(*Proxy).checkLoop,       // has been here before 508
		(*Proxy).checkRates,      // by address 429; global 503
		(*Proxy).checkRoom,       // by address 429; in total 503
		(*Proxy).authenticate,    // no good token 401; not enough 403; two 400; too many failures 429; nobody could tell 503
		(*Proxy).takeSlot,        // by address and subject 429; in total 503
		(*Proxy).connect,         // no connection 502; no answer 504; the upstream's own no
		(*Proxy).switchProtocols, // 101; the session is the relay's
	} {
		if no := step(p, u); no != nil {
			p.refuse(u, no)
			return
		}
	}
}

// enter lets a request in unless the proxy is closing.
func (p *Proxy) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return false
	}
	p.requests.Add(1)
	return true
}

// leave is deferred. It lets go of what the request holds, however it ends, and answers for a panic.
func (p *Proxy) leave(u *upgrade) {
	failure := recover()
	defer func() {
		u.letGo()
		if u.hijacked != nil && !u.started {
			u.hijacked.Close()
		}
		if u.place != nil {
			u.place.free()
		}
	}()
	switch {
	case failure == nil:
	case failure == http.ErrAbortHandler:
		panic(failure) // net/http closes the connection, and says nothing
	default:
		p.log.Error("panic", "value", failure, "stack", string(debug.Stack()))
		p.refuse(u, &refusal.Refusal{Reason: refusal.Internal})
	}
}

// letGo lets go of the upstream and the session's slot, unless there is a session. A second call changes nothing.
func (u *upgrade) letGo() {
	if u.started {
		return
	}
	if u.slot != nil {
		u.slot.Release()
	}
	if u.upstream != nil {
		u.upstream.Close()
		u.upstream = nil
	}
}
