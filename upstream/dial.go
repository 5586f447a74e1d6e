package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
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

// newDialer returns a dialer without TCP keep-alive, unless c asks for it: a session's heartbeat finds a dead peer sooner, and
// four setsockopt calls per upgrade are saved. TCP_NODELAY is Go's default.
func newDialer(c Config) *net.Dialer {
	d := &net.Dialer{Timeout: c.DialTimeout}
	if !c.KeepAlive {
		d.KeepAlive = -1
	}
	return d
}

// dial returns a *net.TCPConn, or a *tls.Conn with its handshake done. Every error is a *DialError.
func (u *Upstream) dial(ctx context.Context) (net.Conn, error) {
	deadline := time.Now().Add(u.dialTimeout)
	conn, err := u.dialTCP(ctx, "tcp", u.target.address)
	if err == nil && u.tls != nil {
		conn.SetDeadline(deadline)
		conn, err = u.startTLS(ctx, conn)
	}
	if err == nil {
		return conn, nil
	}
	if ctx.Err() != nil { // net replaces the context's error by its own
		err = ctx.Err()
	}
	return nil, &DialError{Err: err}
}

// startTLS does the TLS handshake on tcp. It closes tcp if that fails.
func (u *Upstream) startTLS(ctx context.Context, tcp net.Conn) (net.Conn, error) {
	conn := tls.Client(tcp, u.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		tcp.Close()
		return nil, err
	}
	return conn, nil
}

// clientTLS returns nil for a target without TLS. A nil target, which could not be parsed, also gives nil, but its CA file is
// checked.
func clientTLS(t *target, caFile string) (*tls.Config, error) {
	var roots *x509.CertPool // nil: the system's
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("UPSTREAM_CA_FILE: %q cannot be read (%w); want a PEM file of certificates", caFile, errors.Unwrap(err))
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("UPSTREAM_CA_FILE: %q holds no certificate; want a PEM file of certificates", caFile)
		}
	}
	switch {
	case t == nil:
		return nil, nil
	case !t.secure && caFile != "": // whoever sets it believes the connection to be encrypted
		return nil, fmt.Errorf("UPSTREAM_CA_FILE: %q has no effect without TLS; want it empty, or a wss or https UPSTREAM_URL", caFile)
	case !t.secure:
		return nil, nil
	}
	return &tls.Config{
		ServerName: t.serverName,
		RootCAs:    roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"}, // an upgrade needs HTTP/1.1 (RFC 6455 section 4.1)
		// There is one server name, so one entry is enough. Later handshakes resume, which spares both sides the signature.
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}, nil
}
