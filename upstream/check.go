package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"time"
)

// Found is what [Check] has found at one address of a target.
type Found struct {
	Target  string        // as it was written, without what may be secret
	Address string        // that was dialled; where it is known with the IP address
	Took    time.Duration // to connect, with TLS, and with name resolution where the name has a single address
	TLS     string        // its version; empty: there is none
	Until   time.Time     // the end of the certificate; zero: there is none
	Health  bool          // a health check was passed
	Err     error         // why it gets no sessions; nil: it would
}

// alertTime is how long is waited for a target to refuse a client without, or with another, certificate: in TLS 1.3 it does so after the
// handshake (RFC 8446 section 4.4.2.4).
const alertTime = 500 * time.Millisecond

// Check looks each target up, dials all of its addresses at the same time, and does one health check at each where there are any. A
// target may take DialTimeout and, with health checks, HealthTimeout, and its name 5 s. The error is that of [New].
func Check(ctx context.Context, c Config) ([]Found, error) {
	c.Idle = true
	whole, err := New(c)
	if err != nil {
		return nil, err
	}
	all := make([][]Found, len(whole.targets))
	var running sync.WaitGroup
	for i := range all {
		u, err := New(c) // of this target alone, so that the names of others neither delay nor hide it
		if err != nil {
			return nil, err
		}
		u.targets, u.endpoints = u.targets[i:i+1], u.endpoints[i:i+1]
		running.Go(func() { all[i] = u.find(ctx) })
	}
	running.Wait()
	var found []Found
	for _, some := range all {
		found = append(found, some...)
	}
	return found, nil
}

// find is what [Check] does with one target.
func (u *Upstream) find(ctx context.Context) []Found {
	if u.targets[0].isName {
		u.lookUp(ctx) // what it does not find, the dial does not find either, and tells
	}
	found := make([]Found, len(u.endpoints))
	var running sync.WaitGroup
	for i, e := range u.endpoints {
		running.Go(func() { found[i] = u.findAt(ctx, e) })
	}
	running.Wait()
	return found
}

func (u *Upstream) findAt(ctx context.Context, e *endpoint) Found {
	found := Found{Target: withoutQuery(e.raw), Address: e.address}
	start := time.Now()
	conn, err := u.dial(ctx, e, u.dialTimeout)
	found.Took = time.Since(start)
	if err != nil {
		found.Err = errors.Unwrap(err) // what it was for is known
		return found
	}
	defer conn.Close()
	if e.network != "unix" {
		found.Address = conn.RemoteAddr().String()
	}
	if secure, ok := conn.(*tls.Conn); ok {
		state := secure.ConnectionState()
		found.TLS, found.Until = tls.VersionName(state.Version), state.PeerCertificates[0].NotAfter
		if found.Err = refusedLate(secure); found.Err != nil {
			return found
		}
	}
	if u.checks.path != "" {
		if err := u.ask(ctx, e); err != nil {
			if dial, ok := errors.AsType[*DialError](err); ok {
				err = dial.Err
			}
			found.Err = err
			return found
		}
		found.Health = true
	}
	return found
}

// withoutQuery is a target that is right, and so has no user information, without its query.
func withoutQuery(raw string) string {
	before, _, has := strings.Cut(raw, "?")
	if has {
		before += "?…"
	}
	return before
}

// refusedLate returns the alert by which a server refuses a client whose handshake is done. Nil: there is none in time.
func refusedLate(conn *tls.Conn) error {
	conn.SetReadDeadline(time.Now().Add(alertTime))
	_, err := conn.Read(make([]byte, 1))
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
		return err
	}
	return nil
}
