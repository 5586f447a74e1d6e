package gate

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/fleet"
	"portcullis/proxy/origin"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
)

// Config is what a Gate checks by itself.
type Config struct {
	// Paths are the patterns of the request paths that are served: an escaped path, or a prefix ending in *. Empty: every
	// path. * alone is every path too, odd forms such as // and %2f included.
	Paths []string `env:"PATHS"`
	// PathsUnsafeForms lets the odd forms through with a list of Paths too. They are compared byte for byte: /a/* serves /a/b%2Fc
	// and not /a%2Fb. A list must be set.
	PathsUnsafeForms bool `env:"PATHS_UNSAFE_FORMS" envDefault:"false"`

	// FirstMessage accepts the handshake of a client that shows no token, which then must send it as its first text message.
	// The upstream is not asked before the token is verified, so it sees neither that message nor a choice of its own:
	// subprotocol and extensions are settled, and the headers of its 101 have nobody to go to.
	FirstMessage bool `env:"AUTH_FIRST_MESSAGE" envDefault:"false" guard:"true" fixed:"true"`
	// FirstMessageFormat is raw, where that message is the token, or a JSON pointer (RFC 6901) to the string in it that is,
	// such as /token. Empty: raw.
	FirstMessageFormat string `env:"AUTH_FIRST_MESSAGE_FORMAT" envDefault:"raw" guard:"true" needs:"AUTH_FIRST_MESSAGE" fixed:"true"`
	// FirstMessageTimeout is for the whole of that message to arrive. Zero is refused.
	FirstMessageTimeout time.Duration `env:"AUTH_FIRST_MESSAGE_TIMEOUT" envDefault:"5s" guard:"true" needs:"AUTH_FIRST_MESSAGE" fixed:"true"`
	// FirstMessageMax is how many sockets may have their 101 and no session yet, those being closed included; further clients
	// without a token get 503. Zero is refused.
	FirstMessageMax int `env:"AUTH_FIRST_MESSAGE_MAX" envDefault:"1000" guard:"true" needs:"AUTH_FIRST_MESSAGE" fixed:"true"`
	// RefuseWithClose answers a refused but valid handshake, from an allowed origin, with 101 and a Close frame instead of an
	// HTTP status: a browser shows its script no HTTP answer to a handshake. Nothing is dialled for it.
	RefuseWithClose bool `env:"REFUSE_WITH_CLOSE" envDefault:"false"`

	// HTTP is what becomes of requests of the served paths that ask for no upgrade.
	HTTP HTTPMode `env:"HTTP_MODE" envDefault:"off"`

	// AuthTimeout bounds the wait until an address may try another credential; CloseTimeout the wait for a refused client to close.
	AuthTimeout, CloseTimeout time.Duration `env:"-"`
	// MaxCloseFrames bounds the sockets that are open only to be refused. Zero: none is opened for that.
	MaxCloseFrames int `env:"-"`
	// MaxRequests bounds the plain requests under way. Zero: there may be none.
	MaxRequests int `env:"-"`
	// DrainTimeout is in whose second quarter plain requests are cut that are still under way.
	DrainTimeout time.Duration `env:"-"`
}

// Parts are what a Gate works with. All are needed but Fleet and Tickets.
type Parts struct {
	ClientIP *clientip.Resolver
	Origins  *origin.List
	Limits   *ratelimit.Limits
	Fleet    *fleet.Fleet // nil: this instance is alone
	Auth     *auth.Auth
	Tickets  Tickets // nil: there are none
	Sessions *session.Manager
	Report   *refusal.Reporter
	Metrics  *admin.Metrics
	Log      *slog.Logger

	// Base ends when all requests are to end at once. Accepting, which it bounds, ends when nothing new is to begin.
	Base, Accepting context.Context
}

// Gate refuses requests or turns them into sessions. It is safe for concurrent use.
type Gate struct {
	Parts
	*state
	routes          []*route
	table           *table
	authTimeout     time.Duration
	closeTimeout    time.Duration
	drainTimeout    time.Duration
	refuseWithClose bool // every client gets a Close frame, not only one that offers resumption
}

// state is what one Gate leaves to the next.
type state struct {
	loops       *loopDetector
	first       *firstMessage  // nil: a token comes with the handshake
	closeFrames semaphore      // for sockets that are open only to be refused
	requests    semaphore      // for plain requests
	noPort      rate.Sometimes // of the line in the log that says so
}

// New checks c and routes and returns a Gate that works with p. before is the Gate whose place it takes; nil: it is the first. What c
// says of first messages and sockets to be refused is for the first alone. The error joins every mistake, one a line.
func New(c Config, p Parts, routes []Route, before *Gate) (*Gate, error) {
	s, firstErr := newState(&c, before)
	var all []*route
	for i := range routes {
		all = append(all, newRoute(&routes[i], p, s.first))
	}
	table, tableErr := newTable(all, c.PathsUnsafeForms)
	if err := errors.Join(c.checkPaths(routes), tableErr, firstErr); err != nil {
		return nil, err
	}
	return &Gate{
		Parts:           p,
		state:           s,
		routes:          all,
		table:           table,
		authTimeout:     c.AuthTimeout,
		closeTimeout:    c.CloseTimeout,
		drainTimeout:    c.DrainTimeout,
		refuseWithClose: c.RefuseWithClose,
	}, nil
}

func newState(c *Config, before *Gate) (*state, error) {
	if before != nil {
		return before.state, nil
	}
	first, err := newFirstMessage(c)
	return &state{
		loops:       &loopDetector{id: rand.Text(), warn: rate.Sometimes{Interval: time.Minute}},
		first:       first,
		closeFrames: newSemaphore(c.MaxCloseFrames),
		requests:    newSemaphore(c.MaxRequests),
		noPort:      rate.Sometimes{Interval: time.Minute},
	}, err
}

func newRoute(of *Route, p Parts, first *firstMessage) *route {
	r := &route{Route: of, auth: p.Auth, upstream: of.Upstream, extensions: of.Rules == nil || of.Rules.Extensions()}
	if !of.Open {
		r.first = first
	}
	if of.Upstream != nil {
		r.balance, r.targets = of.Upstream.Balance(), of.Upstream.Names()
	}
	return r
}

// checkPaths finds the mistakes of PATHS_UNSAFE_FORMS.
func (c *Config) checkPaths(routes []Route) error {
	switch {
	case !c.PathsUnsafeForms:
	case slices.ContainsFunc(routes, func(r Route) bool { return r.Name != "" && (r.Open || r.HTTP == HTTPOpen) }):
		return errors.New(`PATHS_UNSAFE_FORMS: "true" would let forms through that some servers take for another path, beside a route with auth=none or http=open; want false, or no such route`)
	case len(routes) == 1 && routes[0].Name == "" && len(c.Paths) == 0:
		return errors.New(`PATHS_UNSAFE_FORMS: "true" has no effect without PATHS; want PATHS set to the paths that are served, or to * for every path in every form`)
	case slices.Equal(c.Paths, []string{"*"}):
		return errors.New(`PATHS_UNSAFE_FORMS: "true" has no effect with PATHS=*, which lets such forms through by itself; want false, or a list of PATHS`)
	}
	return nil
}
