// Package upstream opens the WebSocket connection behind the proxy: it dials the target and plays the client's half of
// the opening handshake (RFC 6455 section 4.1), with a key of its own.
//
//	New       UPSTREAM_* settings, checked once, compiled into an immutable Upstream
//	Connect   compose the request    target.go, request.go   before dialling: a request we would not send costs no socket
//	          dial                   dial.go                 TCP, then TLS for wss and https, within DialTimeout
//	          one write              request.go
//	          read and verify        answer.go, negotiate.go within HandshakeTimeout, 64 KiB and five 1xx answers
//	          a Conn or a refusal    refusal.go
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
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"portcullis/proxy/header"
)

// Config is where the upstream is and how long it may take.
type Config struct {
	// URL is the target: ws, wss, http or https (ws and http mean the same, as do wss and https), a host, a port if not
	// 80 or 443, and a base path and query that every request's own are joined to. User information and a fragment are
	// mistakes. Empty is a mistake too.
	URL string `env:"UPSTREAM_URL"`

	// Host is sent as the Host header field. Empty: the client's own, which backends compare with Origin.
	Host string `env:"UPSTREAM_HOST"`

	// DialTimeout bounds name resolution, connecting and the TLS handshake together. It must be above zero.
	DialTimeout time.Duration `env:"UPSTREAM_DIAL_TIMEOUT" envDefault:"5s"`

	// HandshakeTimeout bounds sending the request and reading the answer; a refusal's body has a second of it at most. It must
	// be above zero.
	HandshakeTimeout time.Duration `env:"UPSTREAM_HANDSHAKE_TIMEOUT" envDefault:"10s"`

	// CAFile is a PEM file of the certificate authorities to trust for wss and https, instead of the system's. Empty: the
	// system's. It is read once, by New.
	CAFile string `env:"UPSTREAM_CA_FILE"`

	// KeepAlive has TCP ask a silent upstream whether it is still there, with Go's intervals. It is for connections that
	// nothing else watches.
	KeepAlive bool `env:"-"`
}

// Upstream connects to one target. It is immutable and safe for concurrent use.
type Upstream struct {
	target           *target
	host             string // UPSTREAM_HOST; empty: the client's
	tls              *tls.Config
	dialTimeout      time.Duration
	handshakeTimeout time.Duration
	bodyTimeout      time.Duration // refusalBodyTimeout, except in tests

	// dialTCP is net.Dialer.DialContext, except in tests that need a dial to fail in a certain way.
	dialTCP func(ctx context.Context, network, address string) (net.Conn, error)
}

// New checks the whole configuration and reports all of its mistakes together, a line for each.
func New(c Config) (*Upstream, error) {
	var errs []error
	target, err := parseTarget(c.URL)
	errs = append(errs, err)
	if c.Host != "" && !header.IsHost(c.Host) {
		errs = append(errs, fmt.Errorf("UPSTREAM_HOST: %q is no host name; want host or host:port, an international name in its xn-- form", c.Host))
	}
	if c.DialTimeout <= 0 {
		errs = append(errs, fmt.Errorf("UPSTREAM_DIAL_TIMEOUT: %q would never connect; want a duration above 0s", c.DialTimeout))
	}
	if c.HandshakeTimeout <= 0 {
		errs = append(errs, fmt.Errorf("UPSTREAM_HANDSHAKE_TIMEOUT: %q would never wait for an answer; want a duration above 0s", c.HandshakeTimeout))
	}
	tlsConfig, err := clientTLS(target, c.CAFile)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Upstream{
		target:           target,
		host:             c.Host,
		tls:              tlsConfig,
		dialTimeout:      c.DialTimeout,
		handshakeTimeout: c.HandshakeTimeout,
		dialTCP:          newDialer(c).DialContext,
		bodyTimeout:      refusalBodyTimeout,
	}, nil
}

// Request is the client's half of a handshake.
type Request struct {
	// Path is the escaped path and Query the raw query, without "?", of the client's request. They are joined with the
	// target's own and otherwise sent byte for byte; an empty path is "/".
	Path, Query string

	// Host is the client's Host, sent unless UPSTREAM_HOST is set. Empty: the target's own.
	Host string

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
}

// Connect opens a connection for req. It ends early when ctx does. The error is a *DialError, *HandshakeError or
// *RefusedError, or, for a Request that cannot be sent, a plain one; nothing stays open after it.
func (u *Upstream) Connect(ctx context.Context, req *Request) (*Conn, error) {
	x := handshakes.Get().(*handshake)
	defer x.release()
	if err := x.compose(u, req); err != nil {
		return nil, fmt.Errorf("upstream request: %w", err)
	}
	start := time.Now()
	conn, err := u.dial(ctx)
	if err != nil {
		return nil, err
	}
	dialTime := time.Since(start)
	c, err := u.handshake(ctx, conn, x)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.DialTime = dialTime
	return c, nil
}

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
