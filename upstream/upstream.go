// Package upstream opens the WebSocket connection behind the proxy: it dials the target and plays the client's half of
// the opening handshake (RFC 6455 section 4.1), with a key of its own.
//
//	New       UPSTREAM_* settings, checked once, compiled into an immutable Upstream
//	Connect   compose the request    target.go, request.go   before dialling: a request we would not send costs no socket
//	          dial                   dial.go                 TCP, then TLS for wss and https, within DialTimeout
//	          one write              request.go
//	          read and verify        answer.go, negotiate.go within HandshakeTimeout, 64 KiB and five 1xx answers
//	          a Conn or a refusal    refusal.go
//	RoundTrip a plain request, in the same way to the same targets: http.go
//
// A Conn exists only after a 101 that is right in every part: HTTP/1.1, Upgrade, Connection, the one accept value for our
// key, no body, a subprotocol and extensions that were offered. Proxies that tunnel after less have been used to reach
// the backend's plain HTTP side (CVE-2018-1002105; 0ang3el/websocket-smuggle). After anything else the connection is
// closed and never used again. A redirect is not followed: it is a refusal like any other.
//
// An error has one of three types, because the caller answers each differently:
//
//	*DialError       no connection             502, or 504 if Timeout
//	*HandshakeError  no usable answer          502, or 504 if Timeout
//	*RefusedError    a whole answer, not 101   its own status
//
// If the context was cancelled, the first two match context.Canceled. No error quotes the request or what the upstream sent: an
// upstream that echoes its input would otherwise put the client's token into the log.
package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"portcullis/proxy/header"
)

const (
	defaultMaxDials       = 64
	defaultDNSRefresh     = 30 * time.Second
	defaultHealthInterval = 10 * time.Second
	defaultHealthTimeout  = 2 * time.Second
)

// Config is where the upstream is and how long it may take.
type Config struct {
	// URL is the target, or several with blanks between them: unix:/path, or ws, wss, http or https (ws and http mean the same, as do wss and https), a host, a port if not
	// 80 or 443, and a base path and query that every request's own are joined to. User information and a fragment are
	// mistakes. Empty is a mistake too.
	URL string `env:"UPSTREAM_URL"`
	// Setting names in mistakes what URL was written in. Empty: UPSTREAM_URL.
	Setting string `env:"-"`

	// Host is sent as the Host header field. Empty: the client's own, which backends compare with Origin.
	Host string `env:"UPSTREAM_HOST"`

	// DialTimeout bounds name resolution, connecting and the TLS handshake together. It must be above zero.
	DialTimeout time.Duration `env:"UPSTREAM_DIAL_TIMEOUT" envDefault:"5s" fixed:"true"`

	// HandshakeTimeout bounds sending the request and reading the answer; a refusal's body has a second of it at most. It must
	// be above zero.
	HandshakeTimeout time.Duration `env:"UPSTREAM_HANDSHAKE_TIMEOUT" envDefault:"10s" fixed:"true"`

	// CAFile is a PEM file of the certificate authorities to trust for wss and https, instead of the system's. Empty: the
	// system's. It is read once, by New.
	CAFile string `env:"UPSTREAM_CA_FILE"`

	// CertFile and KeyFile are PEM files of the certificate that wss and https targets are shown. Empty: none.
	CertFile string `env:"UPSTREAM_CERT_FILE" needs:"UPSTREAM_KEY_FILE"`
	KeyFile  string `env:"UPSTREAM_KEY_FILE" needs:"UPSTREAM_CERT_FILE"`
	// ServerName is what their certificates are to name, and are asked for. Empty: the host of the URL.
	ServerName string `env:"UPSTREAM_SERVER_NAME"`

	// Balance is how a target is chosen for a session.
	Balance Balance `env:"UPSTREAM_BALANCE" envDefault:"least"`
	// Drain is what becomes of the sessions of a target that a reload takes out. Zero: they stay.
	Drain Drain `env:"UPSTREAM_DRAIN" envDefault:""`
	// SlowStart is how long a target that has come up has less than its share. Zero: it has all of it at once.
	SlowStart time.Duration `env:"UPSTREAM_SLOW_START" envDefault:"10s"`
	// DNSRefresh is how often names are looked up. Zero: 30 s.
	DNSRefresh time.Duration `env:"UPSTREAM_DNS_REFRESH" envDefault:"30s"`
	// MaxDials is how many handshakes a target gets at once. Further clients wait, up to twenty for each and for a second. Zero: 64.
	MaxDials int `env:"UPSTREAM_MAX_DIALS" envDefault:"64"`
	// HealthPath is asked for in health checks: a target that does not answer with 200 to 399 gets no new sessions. Empty: there are
	// none.
	HealthPath string `env:"UPSTREAM_HEALTH_PATH"`
	// HealthInterval is the time between two checks, HealthTimeout that for one. Zero: 10 s and 2 s.
	HealthInterval time.Duration `env:"UPSTREAM_HEALTH_INTERVAL" envDefault:"10s" needs:"UPSTREAM_HEALTH_PATH"`
	HealthTimeout  time.Duration `env:"UPSTREAM_HEALTH_TIMEOUT" envDefault:"2s" needs:"UPSTREAM_HEALTH_PATH"`
	// HealthFailures and HealthPasses are how many checks in a row have a target go down and come up. Zero: 1.
	HealthFailures int `env:"UPSTREAM_HEALTH_FAILURES" envDefault:"3" needs:"UPSTREAM_HEALTH_PATH"`
	HealthPasses   int `env:"UPSTREAM_HEALTH_PASSES" envDefault:"2" needs:"UPSTREAM_HEALTH_PATH"`
	// Source are the addresses of this machine to dial from, in turn. Empty: as the system chooses.
	Source []string `env:"UPSTREAM_SOURCE"`

	// Servers is shared by upstreams that may have the same servers, and by one and its successor. Nil: it shares with nobody.
	Servers *Servers `env:"-"`
	// Secure says that another upstream of the same settings has a target with TLS.
	Secure bool `env:"-"`
	// Resolver looks names up. Nil: the system's.
	Resolver *net.Resolver `env:"-"`
	// Exhausted reports whether an error is for want of something of this machine's, for which no target is to blame. Nil: none is.
	Exhausted func(error) bool `env:"-"`
	// Logger is told which targets are left alone. Nil: nobody is.
	Logger *slog.Logger `env:"-"`
	// Idle has nothing looked up and nothing checked in the background. It is for who wants to know the mistakes alone, or asks once.
	Idle bool `env:"-"`
	// KeepAlive has TCP ask a silent upstream whether it is still there, with Go's intervals. It is for connections that
	// nothing else watches.
	KeepAlive bool `env:"-"`
}

// Upstream connects to the targets of a route. It is safe for concurrent use.
type Upstream struct {
	targets          []*target
	host             string // UPSTREAM_HOST; empty: the client's
	balance          Balance
	drain            Drain
	slowStart        time.Duration
	maxDials         int
	checks           checks
	dnsRefresh       time.Duration
	resolver         *net.Resolver
	exhausted        func(error) bool
	log              *slog.Logger
	dialTimeout      time.Duration
	handshakeTimeout time.Duration
	bodyTimeout      time.Duration // refusalBodyTimeout, except in tests

	// dialTCP is net.Dialer.DialContext, except in tests that need a dial to fail in a certain way.
	dialTCP func(ctx context.Context, network, address string) (net.Conn, error)

	servers   *Servers
	endpoints []*endpoint // of the targets, as they are known now; guarded by servers.mu

	stop    context.CancelFunc
	running sync.WaitGroup
}

// New checks the whole configuration and reports all of its mistakes together, a line for each. An Upstream is to be closed.
func New(c Config) (*Upstream, error) {
	targets, errs := parseTargets(c.URL, cmp.Or(c.Setting, "UPSTREAM_URL"))
	note := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if c.Host != "" && !header.IsHost(c.Host) {
		note("UPSTREAM_HOST: %q is no host name; want host or host:port, an international name in its xn-- form", c.Host)
	}
	if c.ServerName != "" && !header.IsHost(c.ServerName) {
		note("UPSTREAM_SERVER_NAME: %q is no host name; want one, without a port", c.ServerName)
	}
	if c.DialTimeout <= 0 {
		note("UPSTREAM_DIAL_TIMEOUT: %q would never connect; want a duration above 0s", c.DialTimeout)
	}
	if c.HandshakeTimeout <= 0 {
		note("UPSTREAM_HANDSHAKE_TIMEOUT: %q would never wait for an answer; want a duration above 0s", c.HandshakeTimeout)
	}
	c.MaxDials, c.DNSRefresh = cmp.Or(c.MaxDials, defaultMaxDials), cmp.Or(c.DNSRefresh, defaultDNSRefresh)
	c.HealthInterval, c.HealthTimeout = cmp.Or(c.HealthInterval, defaultHealthInterval), cmp.Or(c.HealthTimeout, defaultHealthTimeout)
	c.HealthFailures, c.HealthPasses = cmp.Or(c.HealthFailures, 1), cmp.Or(c.HealthPasses, 1)
	for _, s := range []struct {
		name  string
		value int64
		text  any
	}{
		{"UPSTREAM_MAX_DIALS", int64(c.MaxDials), c.MaxDials}, {"UPSTREAM_DNS_REFRESH", int64(c.DNSRefresh), c.DNSRefresh}, {"UPSTREAM_SLOW_START", int64(c.SlowStart), c.SlowStart},
		{"UPSTREAM_HEALTH_INTERVAL", int64(c.HealthInterval), c.HealthInterval}, {"UPSTREAM_HEALTH_TIMEOUT", int64(c.HealthTimeout), c.HealthTimeout},
		{"UPSTREAM_HEALTH_FAILURES", int64(c.HealthFailures), c.HealthFailures}, {"UPSTREAM_HEALTH_PASSES", int64(c.HealthPasses), c.HealthPasses},
	} {
		if s.value < 0 {
			note("%s: \"%v\" is negative; want more", s.name, s.text)
		}
	}
	if c.HealthPath != "" && (c.HealthPath[0] != '/' || !sendable(c.HealthPath)) {
		note("UPSTREAM_HEALTH_PATH: %q is no path; want one that begins with / and is percent-encoded", c.HealthPath)
	}
	sources, err := parseSources(c.Source)
	if err != nil {
		errs = append(errs, err)
	}
	shared, mistakes := clientTLS(&c, c.Secure || slices.ContainsFunc(targets, func(t *target) bool { return t.secure }), len(targets) > 0)
	if err := errors.Join(append(errs, mistakes...)...); err != nil {
		return nil, err
	}
	u := &Upstream{
		targets: targets, host: c.Host, balance: c.Balance, drain: c.Drain, servers: cmp.Or(c.Servers, NewServers()), slowStart: c.SlowStart, maxDials: c.MaxDials,
		checks:     checks{c.HealthPath, c.HealthInterval, c.HealthTimeout, c.HealthFailures, c.HealthPasses},
		dnsRefresh: c.DNSRefresh, resolver: cmp.Or(c.Resolver, net.DefaultResolver), exhausted: c.Exhausted,
		log: cmp.Or(c.Logger, slog.New(slog.DiscardHandler)), dialTimeout: c.DialTimeout, handshakeTimeout: c.HandshakeTimeout,
		dialTCP: newDialer(c, sources), bodyTimeout: refusalBodyTimeout,
	}
	if u.exhausted == nil {
		u.exhausted = func(error) bool { return false }
	}
	names := false
	for _, t := range targets {
		if t.secure {
			t.tls = shared.Clone()
			t.tls.ServerName = cmp.Or(c.ServerName, t.serverName)
			// There is one server name, so one entry is enough. Later handshakes resume, which spares both sides the signature.
			t.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		names = names || t.isName
	}
	u.servers.mu.Lock()
	u.setEndpoints(false)
	u.servers.mu.Unlock()
	var ctx context.Context
	ctx, u.stop = context.WithCancel(context.Background())
	if names && !c.Idle {
		u.running.Go(func() { u.resolve(ctx) })
	}
	if c.HealthPath != "" && !c.Idle {
		u.running.Go(func() { u.check(ctx) })
	}
	return u, nil
}

// Close ends the lookups and health checks, and the connections that wait for a plain request. Others stay as they are, and those that
// are being opened go on.
func (u *Upstream) Close() {
	u.stop()
	u.running.Wait()
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	u.leaveAll(u.endpoints, nil)
}

// Drain is what becomes of the sessions of a target that is taken out.
func (u *Upstream) Drain() Drain { return u.drain }

// Lacks reports whether gone says yes to any of u's targets.
func (u *Upstream) Lacks(gone func(written string) bool) bool {
	return slices.ContainsFunc(u.targets, func(t *target) bool { return gone(t.raw) })
}

// Has reports whether a target, as Conn.Written has it, is one of u's.
func (u *Upstream) Has(written string) bool {
	return slices.ContainsFunc(u.targets, func(t *target) bool { return t.raw == written })
}

// Balance is how a target is chosen.
func (u *Upstream) Balance() Balance { return u.balance }

// Request is the client's half of a handshake.
type Request struct {
	// Path is the escaped path and Query the raw query, without "?", of the client's request. They are joined with the
	// target's own and otherwise sent byte for byte; an empty path is "/".
	Path, Query string

	// Host is the client's Host, sent unless UPSTREAM_HOST is set. Empty: the target's own.
	Host string

	// Key is what hash is of, and StickyID names the target of sticky. Empty, zero: there is none, and the least busy is chosen.
	Key      string
	StickyID uint64

	// Header is sent as it is, with these exceptions. Host, Upgrade, Connection, Sec-WebSocket-Key and -Version are written by
	// Connect. Hop-by-hop and framing fields, in whatever spelling, are left out, because they would give the handshake a body
	// or another protocol. Sec-WebSocket-Protocol and -Extensions are the offer that the answer is checked against. The caller
	// must take out the fields that Connection lists, and forged identities.
	Header http.Header
}

// Conn is a connection whose opening handshake is complete: what follows on it are WebSocket frames.
type Conn struct {
	// Conn is a plain *net.TCPConn, or *tls.Conn for wss and https, without deadlines. The caller closes it.
	net.Conn

	// Early holds the bytes that were read together with the 101. They come before anything that is read from Conn. It is a
	// copy of exact size; nil if there are none.
	Early []byte

	// Header is that of the 101. Hop-by-hop fields are still in it.
	Header http.Header

	// Protocol is the subprotocol chosen, Extensions the extensions accepted, as on the wire. They were offered. Empty: none.
	Protocol, Extensions string

	// DialTime is how long connecting took, with name resolution and TLS.
	DialTime time.Duration

	// Target is the name of the target, and TargetID what a sticky cookie names it by.
	Target   string
	TargetID uint64
	// Written is the target as the settings have it; it may hold a secret.
	Written string

	// Place is to be released when the connection is closed.
	Place *Place
}

// Place is the place of a connection on its target.
type Place struct {
	upstream *Upstream
	endpoint *endpoint
	left     atomic.Bool
}

// Release has it count on its target no more. Only the first call counts.
func (p *Place) Release() {
	if !p.left.Swap(true) {
		p.upstream.leave(p.endpoint)
	}
}

// Move is for who counts clients by their addresses.
func (p *Place) Move(netip.Prefix) {}

// handshake sends what x has composed and reads the answer. Its caller closes conn after an error.
func (u *Upstream) handshake(ctx context.Context, conn net.Conn, x *handshake) (*Conn, error) {
	deadline := time.Now().Add(u.handshakeTimeout)
	conn.SetDeadline(deadline)
	// A deadline in the past is what ends a blocked Read or Write when ctx does.
	abort := func() { conn.SetDeadline(time.Unix(1, 0)) }
	stop := context.AfterFunc(ctx, abort)
	c, refusal, err := x.roundTrip(conn)
	if refusal != nil {
		if short := time.Now().Add(u.bodyTimeout); short.Before(deadline) {
			conn.SetReadDeadline(short)
			if ctx.Err() != nil {
				abort() // ctx may have ended in between, and the new deadline replaced abort's
			}
		}
		err = x.readRefusal(refusal)
	}
	if !stop() {
		// abort has run or still will, so the connection is useless, even after a good answer.
		return nil, &HandshakeError{Reason: reasonCancelled, Err: ctx.Err()}
	}
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Time{}) // ours must not outlive the handshake: sessions are timed by the relay
	c.Conn = conn
	return c, nil
}
