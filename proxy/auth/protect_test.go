package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// verifierFunc is a verifier for the ones around it.
type verifierFunc func(ctx context.Context, c Credential) (Decision, error)

func (f verifierFunc) verify(ctx context.Context, c Credential) (Decision, error) { return f(ctx, c) }
func (verifierFunc) close()                                                       {}

// scripted answers with what is set, and counts.
type scripted struct {
	decision Decision
	err      error
	calls    int
}

func (s *scripted) verify(context.Context, Credential) (Decision, error) {
	s.calls++
	return s.decision, s.err
}
func (*scripted) close() {}

var (
	errRefused   = &RefusedError{Cause: errors.New("no")}
	errDenied    = &DeniedError{Cause: errors.New("not that")}
	errDown      = &UnavailableError{Cause: errors.New("down")}
	errExhausted = &UnavailableError{Cause: errors.New("no descriptor")}
	errHalt      = &UnavailableError{Cause: errors.New("status 500"), responded: true}
)

func TestCache(t *testing.T) {
	const fresh, stale = 10 * time.Second, time.Minute
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	type step struct {
		after time.Duration // since the step before
		err   error         // what the verifier would say now; nil: its yes
		calls int           // made so far, after this step
		want  error         // of its type
		again bool          // VerifyAgain
	}
	tests := []struct {
		name     string
		decision func() Decision
		times    cacheTimes
		steps    []step
	}{
		{"a yes is used again", nil, cacheTimes{fresh, 0}, []step{{calls: 1}, {after: fresh - 1, calls: 1}, {after: 1, calls: 2}}},
		{"not beyond Until", func() Decision { return Decision{Until: in(2 * time.Second)} }, cacheTimes{fresh, 0},
			[]step{{calls: 1}, {after: 2*time.Second - 1, calls: 1}, {after: 1, calls: 2}}},
		{"no-store", func() Decision { return Decision{noStore: true} }, cacheTimes{fresh, stale},
			[]step{{calls: 1}, {calls: 2}, {err: errDown, calls: 3, want: errDown}}},
		{"a refusal is used again, for a short time", nil, cacheTimes{fresh, stale},
			[]step{{err: errRefused, want: errRefused, calls: 1}, {after: maxRefusalTTL - 1, want: errRefused, calls: 1}, {after: 1, calls: 2}}},
		{"a denial too", nil, cacheTimes{time.Second, 0},
			[]step{{err: errDenied, want: errDenied, calls: 1}, {after: time.Second - 1, want: errDenied, calls: 1}, {after: 1, calls: 2}}},
		{"a refusal that is not to be stored", nil, cacheTimes{fresh, 0},
			[]step{{err: &RefusedError{Cause: errHalt, noStore: true}, calls: 1, want: errRefused}, {calls: 2}}},
		{"a denial that is not to be stored", nil, cacheTimes{fresh, 0},
			[]step{{err: &DeniedError{Cause: errHalt, noStore: true}, calls: 1, want: errDenied}, {calls: 2}}},
		{"an outage is not remembered", nil, cacheTimes{fresh, stale}, []step{{err: errDown, want: errDown, calls: 1}, {calls: 2}}},
		{"in an outage a yes admits for longer", nil, cacheTimes{fresh, stale}, []step{
			{calls: 1}, {after: fresh, err: errDown, calls: 2}, {after: stale - 1, err: errDown, calls: 3}, {after: 1, err: errDown, calls: 4, want: errDown},
		}},
		{"but not without AUTH_STALE_TTL", nil, cacheTimes{fresh, 0}, []step{{calls: 1}, {after: fresh, err: errDown, calls: 2, want: errDown}}},
		{"with AUTH_STALE_TTL alone", nil, cacheTimes{0, stale}, []step{
			{calls: 1}, {calls: 2}, {after: stale - 1, err: errDown, calls: 3}, {err: errRefused, want: errRefused, calls: 4}, {calls: 5},
		}},
		{"a stale yes never outlives its exp", func() Decision { return Decision{Until: in(5 * time.Second), Expires: in(20 * time.Second)} }, cacheTimes{fresh, stale},
			[]step{{calls: 1}, {after: 20*time.Second - 1, err: errDown, calls: 2}, {after: 1, err: errDown, calls: 3, want: errDown}}},
		{"a refusal ends a stale yes", nil, cacheTimes{fresh, stale}, []step{
			{calls: 1}, {after: fresh, err: errRefused, want: errRefused, calls: 2}, {after: maxRefusalTTL, err: errDown, want: errDown, calls: 3},
		}},
		{"a client that left says nothing", nil, cacheTimes{fresh, stale}, []step{
			{calls: 1}, {after: fresh, err: context.Canceled, want: context.Canceled, calls: 2}, {err: errDown, calls: 3},
		}},
		{"asked again nothing is used, and all remembered", nil, cacheTimes{fresh, stale}, []step{
			{calls: 1}, {again: true, calls: 2}, {again: true, err: errDown, want: errDown, calls: 3}, {calls: 3},
			{again: true, err: errRefused, want: errRefused, calls: 4}, {want: errRefused, calls: 4}, {again: true, calls: 5}, {calls: 5},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := &scripted{}
				if test.decision != nil {
					v.decision = test.decision()
				}
				hash := newTokenHash("")
				c := newCache(v, hash, test.times)
				a := &Auth{verifier: c, cache: c, hash: hash}
				for i, s := range test.steps {
					time.Sleep(s.after)
					v.err = s.err
					verify := a.Verify
					if s.again {
						verify = a.VerifyAgain
					}
					_, err := verify(t.Context(), Credential{Token: "x"})
					if v.calls != s.calls || fmt.Sprintf("%T", err) != fmt.Sprintf("%T", s.want) {
						t.Fatalf("step %d: %v after %d calls; want %v after %d", i, err, v.calls, s.want, s.calls)
					}
				}
			})
		})
	}
}

// Guessing must not drive out what is known to be good, and memory is bounded.
func TestCacheIsBounded(t *testing.T) {
	v := verifierFunc(func(_ context.Context, c Credential) (Decision, error) {
		if strings.HasPrefix(c.Token, "good") {
			return Decision{}, nil
		}
		return Decision{}, errRefused
	})
	const size = 8
	c := newCache(v, newTokenHash(""), cacheTimes{time.Hour, 0})
	c.accepted.Resize(size) // from cacheSize, for speed
	c.refused.Resize(size)
	for i := range 10 * size {
		for _, kind := range []string{"bad", "good"} {
			if i == 0 || kind == "bad" {
				c.verify(t.Context(), Credential{Token: fmt.Sprint(kind, i)})
			}
		}
	}
	if c.accepted.Len() != 1 || c.refused.Len() != size {
		t.Errorf("%d and %d kept; want 1 and %d", c.accepted.Len(), c.refused.Len(), size)
	}
}

func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, cancelled atomic.Int32
		s := newShare(verifierFunc(func(ctx context.Context, c Credential) (Decision, error) {
			calls.Add(1)
			select {
			case <-time.After(time.Second):
				return Decision{Subject: c.Token}, nil
			case <-ctx.Done():
				cancelled.Add(1)
				return Decision{}, ctx.Err()
			}
		}), newTokenHash(""))
		ask := func(ctx context.Context, token string, want error) {
			d, err := s.verify(ctx, Credential{Token: token})
			if !errors.Is(err, want) || err == nil && d.Subject != token {
				t.Errorf("%s: %+v, %v; want %v", token, d, err, want)
			}
		}
		check := func(wantCalls, wantCancelled int32) {
			t.Helper()
			synctest.Wait()
			if calls.Load() != wantCalls || cancelled.Load() != wantCancelled || len(s.calls) != 0 {
				t.Errorf("%d calls, %d cancelled, %d kept; want %d, %d, 0", calls.Load(), cancelled.Load(), len(s.calls), wantCalls, wantCancelled)
			}
		}
		var clients sync.WaitGroup

		// The first goes away; the call is not its own.
		first, leave := context.WithCancel(t.Context())
		clients.Go(func() { ask(first, "a", context.Canceled) })
		synctest.Wait()
		for range 10 {
			clients.Go(func() { ask(t.Context(), "a", nil) })
		}
		clients.Go(func() { ask(t.Context(), "b", nil) })
		time.Sleep(time.Millisecond)
		leave()
		clients.Wait()
		check(2, 0)

		// All go away, and the next one does not get their cancelled call.
		all, leave := context.WithCancel(t.Context())
		for range 3 {
			clients.Go(func() { ask(all, "a", context.Canceled) })
		}
		synctest.Wait()
		leave()
		clients.Wait()
		ask(t.Context(), "a", nil)
		check(4, 1)

		// One who has gone already does not ask.
		ask(all, "a", context.Canceled)
		check(4, 1)
	})
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		v := &scripted{}
		exhausted := func(err error) bool { return errors.Is(err, errExhausted) }
		b := newBreaker(v, exhausted, slog.New(slog.NewTextHandler(&logged, nil)))
		ask := func(says error, wantCalls int, want error) {
			t.Helper()
			v.err = says
			_, err := b.verify(t.Context(), Credential{Token: "x"})
			if v.calls != wantCalls || !errors.Is(err, want) {
				t.Errorf("%v after %d calls; want %v after %d", err, v.calls, want, wantCalls)
			}
		}
		// Neither refusals nor clients that leave, nor a 500 for one odd token, nor what is lacking here.
		for _, says := range []error{errRefused, errDenied, context.Canceled, errHalt, errExhausted} {
			for range 2 * breakerFailures {
				v.calls = 0
				ask(says, 1, says)
			}
		}
		v.calls = 0
		for i := range breakerFailures {
			ask(errDown, i+1, errDown)
		}
		ask(nil, breakerFailures, errBreakerOpen)
		_, err := b.verify(t.Context(), Credential{Token: "x"})
		if unavailable, ok := errors.AsType[*UnavailableError](err); !ok || unavailable.RetryAfter != breakerPause {
			t.Errorf("%v; want an UnavailableError with the pause", err)
		}

		time.Sleep(breakerPause + 1)
		ask(errDown, breakerFailures+1, errDown)
		ask(nil, breakerFailures+1, errBreakerOpen)
		time.Sleep(breakerPause + 1)
		ask(context.Canceled, breakerFailures+2, context.Canceled) // no answer either way
		ask(errExhausted, breakerFailures+3, errExhausted)         // nor this
		ask(errRefused, breakerFailures+4, errRefused)             // it is back
		ask(nil, breakerFailures+5, nil)
		for _, want := range []string{"does not answer", "answers again", errDown.Error()} {
			if !strings.Contains(logged.String(), want) {
				t.Errorf("no line says that it %s:\n%s", want, &logged)
			}
		}
	})
}

func TestInflight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var flying, most atomic.Int32
		hold := time.Second
		l := newInflight(verifierFunc(func(context.Context, Credential) (Decision, error) {
			most.Store(max(most.Load(), flying.Add(1)))
			defer flying.Add(-1)
			time.Sleep(hold)
			return Decision{}, nil
		}), 2, 3*time.Second)
		count := func(n int) map[string]int {
			outcomes := map[string]int{}
			var mu sync.Mutex
			var clients sync.WaitGroup
			for range n {
				clients.Go(func() {
					_, err := l.verify(t.Context(), Credential{})
					mu.Lock()
					defer mu.Unlock()
					outcomes[fmt.Sprintf("%T", err)]++
				})
			}
			clients.Wait()
			return outcomes
		}
		// Two each second, and who waits may wait for three.
		if got := count(6); got["<nil>"] != 6 || most.Load() != 2 {
			t.Errorf("%v, %d at once; want all 6, 2 at once", got, most.Load())
		}
		hold = 10 * time.Second
		if got := count(7); got["<nil>"] != 2 || got["*auth.UnavailableError"] != 5 {
			t.Errorf("%v; want 2 and 5 unavailable", got)
		}
		go l.verify(t.Context(), Credential{})
		go l.verify(t.Context(), Credential{})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.verify(ctx, Credential{}); !errors.Is(err, context.DeadlineExceeded) || err.Error() == "" {
			t.Errorf("%v; want the client's own deadline", err)
		}
		time.Sleep(hold)
	})
}
