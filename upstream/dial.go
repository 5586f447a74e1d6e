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

// DialError is an upstream that could not be reached, or whose TLS handshake or certificate was not in order.
type DialError struct {
	Err error
}

func (e *DialError) Error() string { return "dial upstream: " + e.Err.Error() }
func (e *DialError) Unwrap() error { return e.Err }

// Timeout says that the upstream gave no sign in time, rather than a no.
func (e *DialError) Timeout() bool { return isTimeout(e.Err) }

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// newDialer is without TCP keep-alive, unless asked: a session's heartbeat finds a dead peer sooner, and four setsockopt
// calls per upgrade are saved. TCP_NODELAY is Go's default.
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
		conn, err = u.secure(ctx, conn)
	}
	if err == nil {
		return conn, nil
	}
	if ctx.Err() != nil { // net has errors of its own for a context's end
		err = ctx.Err()
	}
	return nil, &DialError{Err: err}
}

// secure makes a TLS connection of tcp, or closes it.
func (u *Upstream) secure(ctx context.Context, tcp net.Conn) (net.Conn, error) {
	conn := tls.Client(tcp, u.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		tcp.Close()
		return nil, err
	}
	return conn, nil
}

// clientTLS is nil for a target without TLS, and for one that could not be parsed, whose CA file is checked all the same.
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
		// One name, so one entry: later handshakes resume, which spares both sides the signature.
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}, nil
}
