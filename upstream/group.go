package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

// endpoint is one address of a target.
type endpoint struct {
	*target
	address string // to dial: host:port, or the path of a socket
	name    string // as the log names it
	*server

	transport *http.Transport // of plain requests
}

var (
	// ErrNone says that no target can be used.
	ErrNone = errors.New("no target of the upstream is up")
	// ErrBusy says that as many handshakes as may be are under way or wait.
	ErrBusy = errors.New("too many handshakes with the upstream are under way")
)

const (
	// queued is how many wait for a place among UPSTREAM_MAX_DIALS, for each place.
	queued = 20
	// queueTime is how long one waits.
	queueTime = time.Second
)

// Connect opens a connection for req to one of the targets. It ends early when ctx does. A dial that fails is tried on another target,
// as long as DialTimeout has not passed since the first. The error is a *DialError, *HandshakeError or *RefusedError, ErrNone or
// ErrBusy, or, for a Request that cannot be sent, a plain one; nothing stays open after it.
func (u *Upstream) Connect(ctx context.Context, req *Request) (*Conn, error) {
	x := handshakes.Get().(*handshake)
	defer x.release()
	var tried []*endpoint
	var last error
	for first := time.Now(); ; {
		e, others := u.choose(req, tried)
		if e == nil {
			if last == nil {
				last = ErrNone
			}
			return nil, last
		}
		left := u.dialTimeout - time.Since(first)
		if others {
			left /= 2
		}
		c, err := u.connectTo(ctx, e, x, req, left)
		if err == nil {
			return c, nil
		}
		u.leave(e)
		_, unreached := errors.AsType[*DialError](err)
		again := (unreached && !u.exhausted(err) || err == ErrBusy) && ctx.Err() == nil
		if !again || !others || time.Since(first) >= u.dialTimeout {
			return nil, err
		}
		if err != ErrBusy || last == nil {
			last = err
		}
		tried = append(tried, e)
	}
}

// connectTo opens a connection to one endpoint, on which it counts from before the call. left is for the dial.
func (u *Upstream) connectTo(ctx context.Context, e *endpoint, x *handshake, req *Request, left time.Duration) (*Conn, error) {
	if err := x.compose(u, e.target, req); err != nil {
		u.release(e)
		return nil, fmt.Errorf("upstream request: %w", err)
	}
	dials, err := e.enter(ctx)
	if err != nil {
		u.release(e)
		return nil, err
	}
	defer func() { <-dials }()
	start := time.Now()
	conn, err := u.dial(ctx, e, left)
	if err != nil {
		u.report(e, err, ctx)
		return nil, err
	}
	dialTime := time.Since(start)
	c, err := u.handshake(ctx, conn, x)
	u.report(e, err, ctx)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.DialTime, c.Target, c.TargetID, c.Written, c.Place = dialTime, e.name, e.id, e.raw, &Place{upstream: u, endpoint: e}
	return c, nil
}

// enter waits for a place among the handshakes with e, in which the caller then is.
func (e *endpoint) enter(ctx context.Context) (dials chan struct{}, err error) {
	dials = *e.dials.Load()
	select {
	case dials <- struct{}{}:
		return dials, nil
	default:
	}
	if e.waiting.Add(1) > int64(queued*cap(dials)) {
		e.waiting.Add(-1)
		return nil, ErrBusy
	}
	defer e.waiting.Add(-1)
	timeout := time.NewTimer(queueTime)
	defer timeout.Stop()
	select {
	case dials <- struct{}{}:
		return dials, nil
	case <-timeout.C:
		return nil, ErrBusy
	case <-ctx.Done():
		return nil, &DialError{Err: ctx.Err()}
	}
}

// choose chooses an endpoint among those that have not been tried, and counts on it; leave has to follow. Nil: there is none. others
// says that there is another.
func (u *Upstream) choose(req *Request, tried []*endpoint) (chosen *endpoint, others bool) {
	now := time.Now()
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	n := 0
	best := 0.0
	first := 0
	if u.balance.kind == balanceLeast || req.Key == "" && req.StickyID == 0 {
		first = rand.IntN(len(u.endpoints)) // of those that are equal any will do
	}
	hash := uint64(0)
	if u.balance.kind == balanceHash && req.Key != "" {
		hash = xxhash.Sum64String(req.Key)
	}
	// Where all have been ejected, for another route's failures, those will have to do.
	ejected := len(tried) == 0 && !slices.ContainsFunc(u.endpoints, func(e *endpoint) bool { return e.usable(now) })
	for i := range u.endpoints {
		e := u.endpoints[(first+i)%len(u.endpoints)]
		if !e.usable(now) && !(ejected && !e.down) || slices.Contains(tried, e) {
			continue
		}
		n++
		score := 0.0
		switch {
		case u.balance.kind == balanceSticky && req.StickyID == e.id:
			score = 1
		case hash != 0:
			score = float64(mix(hash^e.id)>>11) / (1 << 53)
		default:
			score = -float64(e.live+1) / e.weight(now, u.slowStart)
		}
		if chosen == nil || score > best {
			chosen, best = e, score
		}
	}
	if chosen == nil {
		return nil, false
	}
	chosen.live++
	chosen.chosen()
	return chosen, n > 1
}

// mix spreads the bits of a number (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// leave takes one off an endpoint.
func (u *Upstream) leave(e *endpoint) {
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	e.live--
	u.servers.forget(e.server)
}

// Targets are the names of the endpoints, each with how many sessions and handshakes it has, and whether it is used.
func (u *Upstream) Targets() (all []TargetState) {
	now := time.Now()
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	for _, e := range u.endpoints {
		all = append(all, TargetState{e.name, e.live, e.usable(now)})
	}
	return all
}

// Names are those of the targets, with blanks between them.
func (u *Upstream) Names() string {
	var all []string
	for _, s := range u.Targets() {
		all = append(all, s.Name)
	}
	return strings.Join(all, " ")
}

// TargetState is what a target is at the moment.
type TargetState struct {
	Name   string
	Live   int  // sessions, and handshakes and plain requests under way
	Usable bool // it gets new ones
}
