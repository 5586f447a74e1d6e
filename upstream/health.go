package upstream

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

// health is what is known of an endpoint. The zero value is well.
type health struct {
	failures  int       // dials and handshakes that failed, one after the other
	ejections int       // one after the other
	until     time.Time // it is ejected until then; zero: it is not
	probing   bool      // it was, and one handshake finds out whether it is well again
	down      bool      // by its health checks
	misses    int       // checks that failed in a row
	passes    int       // that were passed in a row
	since     time.Time // it has come up since then, and has less than its share at first; zero: long ago
}

const (
	// ejectAfter is how many failures, one after the other, eject an endpoint.
	ejectAfter = 3
	// minEjection doubles with each ejection that follows another, up to maxEjection.
	minEjection = time.Second
	maxEjection = time.Minute
	// minWeight is the part of its share that an endpoint has which has just come up.
	minWeight = 0.1
)

// usable reports whether an endpoint gets new sessions. One whose ejection is over gets one, which finds out more.
func (h *health) usable(now time.Time) bool {
	return !h.down && !now.Before(h.until) && !h.probing
}

// chosen notes that an endpoint gets a session.
func (h *health) chosen() { h.probing = !h.until.IsZero() }

// weight is the part of its share that an endpoint has.
func (h *health) weight(now time.Time, slowStart time.Duration) float64 {
	if h.since.IsZero() {
		return 1
	}
	up := now.Sub(h.since)
	if up >= slowStart {
		h.since = time.Time{}
		return 1
	}
	return max(minWeight, float64(up)/float64(slowStart))
}

// cannotServe reports whether a refusal says that the target itself serves nobody: it, or what stands before it, is not there (502, 504), or
// takes no more (503). One that refused everybody would otherwise have the fewest sessions, and get everybody.
func (e *RefusedError) cannotServe() bool {
	return e.Status == http.StatusBadGateway || e.Status == http.StatusServiceUnavailable || e.Status == http.StatusGatewayTimeout
}

// report notes what came of a dial or a handshake. Any other refusal of the upstream is about the client, and none of a failure; what the
// client or this machine is to blame for tells nothing.
func (u *Upstream) report(e *endpoint, err error, ctx context.Context) {
	refused, answered := errors.AsType[*RefusedError](err)
	if err != nil && !answered && (ctx.Err() != nil || u.exhausted(err)) {
		u.release(e)
		return
	}
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	if err == nil || answered && !refused.cannotServe() {
		u.well(e)
		return
	}
	if time.Now().Before(e.until) {
		return // another was quicker
	}
	if e.failures++; e.failures < ejectAfter && !e.probing {
		return
	}
	failures := e.failures
	e.failures, e.probing = 0, false
	if !u.anotherUsable(e) {
		e.until = time.Time{} // never the last
		return
	}
	wait := min(minEjection<<min(e.ejections, 10), maxEjection)
	wait += rand.N(wait / 4)
	e.ejections++
	e.until = time.Now().Add(wait)
	u.log.Warn("a target of the upstream is left alone", "target", e.name, "for", wait.Round(time.Millisecond), "failures", failures, "error", err)
}

// well notes that an endpoint has answered. The caller holds mu.
func (u *Upstream) well(e *endpoint) {
	if !e.until.IsZero() {
		e.since = time.Now()
		u.log.Info("a target of the upstream is back", "target", e.name)
	}
	e.failures, e.ejections, e.until, e.probing = 0, 0, time.Time{}, false
}

// release has another handshake find out how an endpoint is that was to find it out.
func (u *Upstream) release(e *endpoint) {
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	e.probing = false
}

// anotherUsable reports whether another endpoint gets new sessions. The caller holds mu.
func (u *Upstream) anotherUsable(than *endpoint) bool {
	now := time.Now()
	for _, e := range u.endpoints {
		if e != than && !e.down && !now.Before(e.until) {
			return true
		}
	}
	return false
}

// check asks all endpoints for HealthPath, again and again, until ctx ends.
func (u *Upstream) check(ctx context.Context) {
	for {
		u.servers.mu.Lock()
		all := slices.DeleteFunc(slices.Clone(u.endpoints), func(e *endpoint) bool { return !e.due(u.checks.interval) })
		u.servers.mu.Unlock()
		var asking sync.WaitGroup
		for _, e := range all {
			asking.Go(func() { u.checked(e, u.ask(ctx, e)) })
		}
		asking.Wait()
		select {
		case <-time.After(u.checks.interval - u.checks.interval/10 + rand.N(u.checks.interval/5+1)):
		case <-ctx.Done():
			return
		}
	}
}

// due reports whether a server is to be checked now, and not for another upstream that has it. The caller holds mu.
func (s *server) due(interval time.Duration) bool {
	now := time.Now()
	if now.Sub(s.checked) < interval/2 {
		return false
	}
	s.checked = now
	return true
}

// checks are how endpoints are checked.
type checks struct {
	path              string // empty: they are not
	interval, timeout time.Duration
	failures, passes  int // in a row, until it is down, or up again
}

// ask does one check. Nil: it has been passed.
func (u *Upstream) ask(ctx context.Context, e *endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, u.checks.timeout)
	defer cancel()
	conn, err := u.dial(ctx, e, u.checks.timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(u.checks.timeout))
	host := cmp.Or(u.host, e.authority)
	if _, err := io.WriteString(conn, "GET "+u.checks.path+" HTTP/1.1\r\nHost: "+host+"\r\nUser-Agent: portcullis\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxHeader)), nil)
	switch {
	case isTimeout(err):
		return fmt.Errorf("its health check has no answer in %v", u.checks.timeout)
	case err != nil:
		return errors.New("the answer to its health check is not HTTP") // the error quotes it
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("its health check says %d", resp.StatusCode)
	}
	return nil
}

// checked notes what came of a check.
func (u *Upstream) checked(e *endpoint, err error) {
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	if err == nil {
		e.misses = 0
		if e.passes++; e.down && e.passes >= u.checks.passes {
			e.down, e.since = false, time.Now()
			u.log.Info("a target of the upstream is up", "target", e.name)
		}
		return
	}
	if u.exhausted(err) {
		return
	}
	e.passes = 0
	if e.misses++; !e.down && e.misses >= u.checks.failures {
		e.down = true
		u.log.Warn("a target of the upstream is down", "target", e.name, "error", err)
	}
}
