package auth

import (
	"context"
	"fmt"
	"time"
)

// An inflight bounds the calls in flight. Further ones wait for their turn, as
// long as a call may take.
type inflight struct {
	verifier
	slots   chan struct{} // holds one for each call
	timeout time.Duration
}

func newInflight(v verifier, limit int, timeout time.Duration) *inflight {
	return &inflight{v, make(chan struct{}, limit), timeout}
}

func (i *inflight) verify(ctx context.Context, c Credential) (Decision, error) {
	select {
	case i.slots <- struct{}{}:
	default:
		if err := i.wait(ctx); err != nil {
			return Decision{}, err
		}
	}
	defer func() { <-i.slots }()
	return i.verifier.verify(ctx, c)
}

// wait takes a slot once there is one.
func (i *inflight) wait(ctx context.Context) error {
	timer := time.NewTimer(i.timeout)
	defer timer.Stop()
	select {
	case i.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return aborted(ctx)
	case <-timer.C:
		return &UnavailableError{
			Cause:      fmt.Errorf("AUTH_MAX_INFLIGHT: %d calls in flight, and none ended in %v", cap(i.slots), i.timeout),
			RetryAfter: i.timeout,
		}
	}
}
