package gate

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
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
	"portcullis/upstream"
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
	FirstMessage bool `env:"AUTH_FIRST_MESSAGE" envDefault:"false" guard:"true"`
	// FirstMessageFormat is raw, where that message is the token, or a JSON pointer (RFC 6901) to the string in it that is,
	// such as /token. Empty: raw.
	FirstMessageFormat string `env:"AUTH_FIRST_MESSAGE_FORMAT" envDefault:"raw" guard:"true" needs:"AUTH_FIRST_MESSAGE"`
	// FirstMessageTimeout is for the whole of that message to arrive. Zero is refused.
	FirstMessageTimeout time.Duration `env:"AUTH_FIRST_MESSAGE_TIMEOUT" envDefault:"5s" guard:"true" needs:"AUTH_FIRST_MESSAGE"`
	// FirstMessageMax is how many sockets may have their 101 and no session yet, those being closed included; further clients
	// without a token get 503. Zero is refused.
	FirstMessageMax int `env:"AUTH_FIRST_MESSAGE_MAX" envDefault:"1000" guard:"true" needs:"AUTH_FIRST_MESSAGE"`
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
	ClientIP   *clientip.Resolver
	Origins    *origin.List
	Limits     *ratelimit.Limits
	Fleet      *fleet.Fleet // nil: this instance is alone
	Auth       *auth.Auth
	Upstream   *upstream.Upstream
	Extensions bool    // sessions may have extensions
	Tickets    Tickets // nil: there are none
	Sessions   *session.Manager
	Report     *refusal.Reporter
	Metrics    *admin.Metrics
	Log        *slog.Logger

	// Base ends when all requests are to end at once. Accepting, which it bounds, ends when nothing new is to begin.
	Base, Accepting context.Context
}

// route is where upgrades of some paths go, and by which rules. There is one.
type route struct {
	paths      *paths
	auth       *auth.Auth
	upstream   *upstream.Upstream
	balance    upstream.Balance
	targets    string        // as the log names them
	extensions bool          // sessions may have extensions
	first      *firstMessage // nil: a token comes with the handshake
	http       HTTPMode
}

func newRoute(paths *paths, c Config, p Parts, first *firstMessage) *route {
	r := &route{paths: paths, auth: p.Auth, upstream: p.Upstream, extensions: p.Extensions, first: first, http: c.HTTP}
	if p.Upstream != nil {
		r.balance, r.targets = p.Upstream.Balance(), p.Upstream.Names()
	}
	return r
}

// Gate refuses requests or turns them into sessions. It is safe for concurrent use.
type Gate struct {
	Parts
	route           *route
	loops           *loopDetector
	authTimeout     time.Duration
	closeTimeout    time.Duration
	drainTimeout    time.Duration
	closeFrames     semaphore      // for sockets that are open only to be refused
	requests        semaphore      // for plain requests
	noPort          rate.Sometimes // of the line in the log that says so
	refuseWithClose bool           // every client gets a Close frame, not only one that offers resumption
}

// New checks c and returns a Gate that works with p. The error joins every mistake, one a line.
func New(c Config, p Parts) (*Gate, error) {
	paths, pathsErr := compilePaths(c.Paths, c.PathsUnsafeForms)
	first, firstErr := newFirstMessage(&c)
	if err := errors.Join(pathsErr, firstErr); err != nil {
		return nil, err
	}
	return &Gate{
		Parts:           p,
		route:           newRoute(paths, c, p, first),
		loops:           &loopDetector{id: rand.Text(), warn: rate.Sometimes{Interval: time.Minute}},
		authTimeout:     c.AuthTimeout,
		closeTimeout:    c.CloseTimeout,
		drainTimeout:    c.DrainTimeout,
		closeFrames:     newSemaphore(c.MaxCloseFrames),
		requests:        newSemaphore(c.MaxRequests),
		noPort:          rate.Sometimes{Interval: time.Minute},
		refuseWithClose: c.RefuseWithClose,
	}, nil
}
