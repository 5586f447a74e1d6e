package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// DialError says that the upstream could not be reached, or that its TLS handshake or certificate was bad.
type DialError struct {
	Err error
}

func (e *DialError) Error() string { return "dial upstream: " + e.Err.Error() }
func (e *DialError) Unwrap() error { return e.Err }

// Timeout reports whether the upstream did not react in time, as opposed to refusing.
func (e *DialError) Timeout() bool { return isTimeout(e.Err) }

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// newDialer returns a dial without TCP keep-alive, unless c asks for it: a session's heartbeat finds a dead peer sooner, and
// four setsockopt calls per upgrade are saved. TCP_NODELAY is Go's default. With sources it dials from each in turn, and from the next
// where one has no port left.
func newDialer(c Config, sources []netip.Addr) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: c.DialTimeout, Resolver: c.Resolver}
	if !c.KeepAlive {
		d.KeepAlive = -1
	}
	if len(sources) == 0 {
		return d.DialContext
	}
	d.Control = bindLate
	var turn atomic.Uint64
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if network == "unix" {
			return d.DialContext(ctx, network, address)
		}
		first := turn.Add(1)
		for i := range sources {
			from := d
			from.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(sources[(first+uint64(i))%uint64(len(sources))], 0))
			if conn, err = from.DialContext(ctx, network, address); !errors.Is(err, syscall.EADDRNOTAVAIL) {
				return conn, err
			}
		}
		return nil, err
	}
}

// parseSources reads UPSTREAM_SOURCE.
func parseSources(list []string) (all []netip.Addr, err error) {
	var mistakes []error
	for _, text := range list {
		a, err := netip.ParseAddr(text)
		if err != nil {
			mistakes = append(mistakes, fmt.Errorf("UPSTREAM_SOURCE: %q is no address; want addresses of this machine, with commas between them", text))
		}
		all = append(all, a)
	}
	return all, errors.Join(mistakes...)
}

// dial returns a *net.TCPConn or *net.UnixConn, or a *tls.Conn with its handshake done. Every error is a *DialError.
func (u *Upstream) dial(ctx context.Context, e *endpoint, timeout time.Duration) (net.Conn, error) {
	deadline := time.Now().Add(timeout)
	dialing := ctx
	if timeout < u.dialTimeout {
		var cancel context.CancelFunc
		dialing, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	conn, err := u.dialTCP(dialing, e.network, e.address)
	if err == nil && e.tls != nil {
		conn.SetDeadline(deadline)
		conn, err = secureConn(dialing, conn, e.tls)
	}
	if err == nil {
		return conn, nil
	}
	if ctx.Err() != nil { // net replaces the context's error by its own
		err = ctx.Err()
	}
	return nil, &DialError{Err: err}
}

// secureConn does the TLS handshake on tcp. It closes tcp if that fails.
func secureConn(ctx context.Context, tcp net.Conn, c *tls.Config) (net.Conn, error) {
	conn := tls.Client(tcp, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		tcp.Close()
		return nil, err
	}
	return conn, nil
}

// clientTLS is how a target with TLS is spoken to; all but its server name is the same for all.
func clientTLS(c *Config, secure, targets bool) (shared *tls.Config, mistakes []error) {
	shared = &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"}, // an upgrade needs HTTP/1.1 (RFC 6455 section 4.1)
	}
	note := func(format string, a ...any) { mistakes = append(mistakes, fmt.Errorf(format, a...)) }
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		shared.RootCAs = x509.NewCertPool() // nil would be the system's
		switch {
		case err != nil:
			note("UPSTREAM_CA_FILE: %q cannot be read (%w); want a PEM file of certificates", c.CAFile, errors.Unwrap(err))
		case !shared.RootCAs.AppendCertsFromPEM(pem):
			note("UPSTREAM_CA_FILE: %q holds no certificate; want a PEM file of certificates", c.CAFile)
		}
	}
	if c.CertFile != "" || c.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			note("UPSTREAM_CERT_FILE: %q, with UPSTREAM_KEY_FILE, is no pair of certificate and key (%w); want both, as PEM files", c.CertFile, err)
		}
		shared.Certificates = []tls.Certificate{pair}
	}
	for _, s := range []struct{ name, value string }{
		{"UPSTREAM_CA_FILE", c.CAFile}, {"UPSTREAM_CERT_FILE", c.CertFile}, {"UPSTREAM_KEY_FILE", c.KeyFile}, {"UPSTREAM_SERVER_NAME", c.ServerName},
	} {
		if s.value != "" && targets && !secure && len(mistakes) == 0 { // whoever sets it believes the connection to be encrypted
			note("%s: %q has no effect without TLS; want it empty, or a wss or https UPSTREAM_URL", s.name, s.value)
		}
	}
	return shared, mistakes
}
