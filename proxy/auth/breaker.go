package auth

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

const (
	// breakerFailures is how many calls in turn must fail before the service
	// is given up: one more than may hang by chance when it restarts.
	breakerFailures = 5
	// breakerPause is how long it is then left alone. Afterwards one call tries.
	breakerPause = 2 * time.Second
)

// A breaker spares clients the wait for a service that is dead: after
// breakerFailures it says so at once. Only a service that does not answer, or
// asks to be left alone, is given up: a status 500 may be the doing of one odd
// token, and must not shut out everybody else.
type breaker struct {
	verifier
	circuit     *gobreaker.CircuitBreaker[Decision]
	lastFailure atomic.Pointer[UnavailableError] // for the log
}

// newBreaker returns a breaker that does not count what exhausted reports of a call.
func newBreaker(v verifier, exhausted func(error) bool, log *slog.Logger) *breaker {
	b := &breaker{verifier: v}
	b.circuit = gobreaker.NewCircuitBreaker[Decision](gobreaker.Settings{
		Timeout:     breakerPause,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= breakerFailures },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			switch to {
			case gobreaker.StateOpen:
				log.Warn("the auth service does not answer and is not asked for a while", "pause", breakerPause, "error", b.lastFailure.Load())
			case gobreaker.StateClosed:
				log.Info("the auth service answers again")
			}
		},
		IsSuccessful: func(err error) bool {
			unavailable, ok := errors.AsType[*UnavailableError](err)
			return !ok || unavailable.responded
		},
		// None of these says anything about the service: a client that went
		// away, a malformed token, a shortage on this side.
		IsExcluded: func(err error) bool {
			_, unavailable := errors.AsType[*UnavailableError](err)
			return err != nil && (!unavailable && !isRefusal(err) || exhausted(err))
		},
	})
	return b
}

func (b *breaker) verify(ctx context.Context, c Credential) (Decision, error) {
	d, err := b.circuit.Execute(func() (Decision, error) {
		d, err := b.verifier.verify(ctx, c)
		if unavailable, ok := errors.AsType[*UnavailableError](err); ok {
			b.lastFailure.Store(unavailable)
		}
		return d, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return Decision{}, &UnavailableError{Cause: errBreakerOpen, RetryAfter: breakerPause}
	}
	return d, err
}

var errBreakerOpen = errors.New("it has not answered several times in turn and is left alone for a moment")
