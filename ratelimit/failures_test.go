package ratelimit

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// budget is the failure budget of most tests here: a token comes back every
// six seconds, three at most.
var budget = Config{AuthFailuresPerIP: Rate{10, time.Minute}, AuthFailuresPerIPBurst: 3}

const refill = 6 * time.Second

var client = key("192.0.2.1")

// begin begins an attempt that need not wait.
func begin(t *testing.T, l *Limits, key netip.Prefix) *Attempt {
	t.Helper()
	now := time.Now()
	a, err := l.Attempt(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(now); waited != 0 {
		t.Fatalf("waited %v", waited)
	}
	return a
}

// outcome is how an attempt begun in the background fared.
type outcome struct {
	attempt *Attempt
	err     error
	after   time.Duration
}

// beginLater begins an attempt that is expected to wait.
func beginLater(t *testing.T, ctx context.Context, l *Limits) <-chan outcome {
	t.Helper()
	done := make(chan outcome, 1)
	go func() {
		now := time.Now()
		a, err := l.Attempt(ctx, client)
		done <- outcome{a, err, time.Since(now)}
	}()
	synctest.Wait()
	select {
	case o := <-done:
		t.Fatalf("did not wait: %+v", o)
	default:
	}
	return done
}

func wantIdle(t *testing.T, l *Limits) {
	t.Helper()
	l.failures.mu.Lock()
	defer l.failures.mu.Unlock()
	if n := len(l.failures.byAddress); n != 0 {
		t.Errorf("%d addresses kept without an attempt", n)
	}
}

func TestFailuresAreCharged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, budget)
		for range 10 {
			begin(t, l, client).Release() // costs nothing
		}
		for n := range 3 {
			if wait, ok := l.FailuresLeft(client, time.Now()); !ok {
				t.Fatalf("after %d failures: none left for %v", n, wait)
			}
			begin(t, l, client).Charge()
		}
		if wait, ok := l.FailuresLeft(client, time.Now()); ok || wait != refill {
			t.Errorf("got %v, %v; want %v", wait, ok, refill)
		}
		_, err := l.Attempt(context.Background(), client)
		var gone *BudgetError
		if !errors.As(err, &gone) || gone.Wait != refill {
			t.Errorf("got %v, want a BudgetError for %v", err, refill)
		}
		begin(t, l, key("192.0.2.2")).Release() // another address is not concerned

		time.Sleep(gone.Wait)
		if wait, ok := l.FailuresLeft(client, time.Now()); !ok {
			t.Errorf("after the time told: %v", wait)
		}
		begin(t, l, client).Charge()
		if _, ok := l.FailuresLeft(client, time.Now()); ok {
			t.Error("more than one token came back")
		}
		wantIdle(t, l)
	})
}

func TestAskingForFailuresMakesNoBucket(t *testing.T) {
	l := newLimits(t, budget)
	for n := range uint32(100) {
		l.FailuresLeft(nthKey(n), t0)
		a, err := l.Attempt(context.Background(), nthKey(n))
		if err != nil {
			t.Fatal(err)
		}
		a.Release()
	}
	if n := len(l.failures.buckets.ring); n != 0 {
		t.Errorf("%d buckets for clients that have not failed", n)
	}
}

// TestGuessesInParallel: a hundred guesses at once get no more answers than
// there are failure tokens.
func TestGuessesInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, budget)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		asked := make(chan struct{}, 100)
		var guesses sync.WaitGroup
		for range 100 {
			guesses.Go(func() {
				a, err := l.Attempt(ctx, client)
				var gone *BudgetError
				if errors.As(err, &gone) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				asked <- struct{}{}
				time.Sleep(time.Millisecond) // the verifier
				a.Charge()
			})
		}
		guesses.Wait()
		if len(asked) != 3 {
			t.Errorf("verifier asked %d times, want 3", len(asked))
		}
		wantIdle(t, l)
	})
}

// TestGoodCredentialsInParallel: a hundred users behind one address all get
// in, three at a time, since nothing is charged.
func TestGoodCredentialsInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, budget)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		start := time.Now()
		var users sync.WaitGroup
		for range 99 {
			users.Go(func() {
				a, err := l.Attempt(ctx, client)
				if err != nil {
					t.Error(err)
					return
				}
				defer a.Release()
				time.Sleep(10 * time.Millisecond) // the verifier
			})
		}
		users.Wait()
		if got, want := time.Since(start), 330*time.Millisecond; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
		wantIdle(t, l)
	})
}

func TestWaitEndsWith(t *testing.T) {
	for name, run := range map[string]func(t *testing.T, l *Limits, underWay []*Attempt){
		"a release": func(t *testing.T, l *Limits, underWay []*Attempt) {
			done := beginLater(t, context.Background(), l)
			time.Sleep(time.Second)
			underWay[0].Release()
			o := <-done
			if o.err != nil || o.after != time.Second {
				t.Fatalf("got %v after %v, want leave after 1s", o.err, o.after)
			}
			o.attempt.Release()
		},
		"a charge and the refill": func(t *testing.T, l *Limits, underWay []*Attempt) {
			done := beginLater(t, context.Background(), l)
			time.Sleep(time.Second)
			underWay[0].Charge() // as many tokens as attempts under way again
			o := <-done
			if o.err != nil || o.after != time.Second+refill {
				t.Fatalf("got %v after %v, want leave after 7s", o.err, o.after)
			}
			o.attempt.Release()
		},
		"all charged": func(t *testing.T, l *Limits, underWay []*Attempt) {
			done := beginLater(t, context.Background(), l)
			time.Sleep(time.Second)
			for _, a := range underWay {
				a.Charge()
			}
			o := <-done
			var gone *BudgetError
			if !errors.As(o.err, &gone) || gone.Wait != refill || o.after != time.Second {
				t.Fatalf("got %v after %v, want a BudgetError for 6s after 1s", o.err, o.after)
			}
		},
		"the deadline": func(t *testing.T, l *Limits, underWay []*Attempt) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			o := <-beginLater(t, ctx, l)
			if !errors.Is(o.err, context.DeadlineExceeded) || o.after != 3*time.Second {
				t.Fatalf("got %v after %v, want the deadline after 3s", o.err, o.after)
			}
			underWay[0].Release()
			begin(t, l, client).Release() // the place in the queue is gone
		},
		"the client": func(t *testing.T, l *Limits, underWay []*Attempt) {
			ctx, cancel := context.WithCancel(context.Background())
			first := beginLater(t, ctx, l)
			second := beginLater(t, context.Background(), l)
			cancel()
			if o := <-first; !errors.Is(o.err, context.Canceled) {
				t.Fatalf("got %v, want cancelled", o.err)
			}
			underWay[0].Release() // passes by the one that left
			o := <-second
			if o.err != nil {
				t.Fatal(o.err)
			}
			o.attempt.Release()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimits(t, budget)
				underWay := []*Attempt{begin(t, l, client), begin(t, l, client), begin(t, l, client)}
				run(t, l, underWay)
				for _, a := range underWay {
					a.Release()
				}
				wantIdle(t, l)
			})
		})
	}
}

func TestWaitersAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, Config{AuthFailuresPerIP: Rate{1, time.Hour}})
		a := begin(t, l, client)
		var queue []<-chan outcome
		for range 5 {
			queue = append(queue, beginLater(t, context.Background(), l))
		}
		for n, done := range queue {
			a.Release()
			synctest.Wait()
			select {
			case o := <-done:
				a = o.attempt
			default:
				t.Fatalf("not the turn of number %d", n)
			}
		}
		a.Release()
		wantIdle(t, l)
	})
}

// TestAWaiterWakesForEachToken: with the verifier hanging, attempts still begin
// as tokens come back, up to the burst and no further.
func TestAWaiterWakesForEachToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, budget)
		for range 2 {
			begin(t, l, client).Charge()
		}
		underWay := []*Attempt{begin(t, l, client)}
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		var queue []<-chan outcome
		for range 3 {
			queue = append(queue, beginLater(t, ctx, l))
		}
		for n, want := range []time.Duration{refill, 2 * refill} {
			o := <-queue[n]
			if o.err != nil || o.after != want {
				t.Fatalf("number %d: got %v after %v, want leave after %v", n, o.err, o.after, want)
			}
			underWay = append(underWay, o.attempt)
		}
		if o := <-queue[2]; !errors.Is(o.err, context.DeadlineExceeded) {
			t.Fatalf("beyond the burst: got %v, want the deadline", o.err)
		}
		for _, a := range underWay {
			a.Release()
		}
		wantIdle(t, l)
	})
}

func TestAttemptEndsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, Config{AuthFailuresPerIP: Rate{2, time.Hour}})
		a := begin(t, l, client)
		a.Charge()
		a.Charge()
		a.Release()
		b := begin(t, l, client) // one token was left
		a.Release()
		if n := l.failures.byAddress[client].underWay; n != 1 {
			t.Errorf("%d under way, want 1", n)
		}
		b.Release()
		b.Charge()
		if _, ok := l.FailuresLeft(client, time.Now()); !ok {
			t.Error("charged after release")
		}
		wantIdle(t, l)
	})
}

// TestGuessesFromEverywhere fills the table with addresses that have failed.
// Further addresses share one bucket, and the attempts on it as well: else as
// many could guess as come at once.
func TestGuessesFromEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, budget)
		l.failures = newFailures(tableOf[netip.Prefix](t, "3/m", 10))
		for n := range uint32(10) {
			begin(t, l, nthKey(n)).Charge()
		}
		var asked []*Attempt
		for n := range uint32(3) {
			asked = append(asked, begin(t, l, nthKey(100+n)))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := l.Attempt(ctx, nthKey(200)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("fourth guess at once: got %v, want to wait in vain", err)
		}
		begin(t, l, nthKey(1)).Release() // those with a bucket are not concerned
		for _, a := range asked {
			a.Charge()
		}
		if _, ok := l.FailuresLeft(nthKey(201), time.Now()); ok {
			t.Error("failures left of the shared bucket")
		}
		time.Sleep(20 * time.Second) // buckets refill: there is room again
		if _, ok := l.FailuresLeft(nthKey(201), time.Now()); !ok {
			t.Error("no failures left with room in the table")
		}
		wantIdle(t, l)
	})
}

// TestBudgetHolds lets many clients of few addresses attempt, give up, fail
// and succeed at random, and counts: never more refusals than tokens, never
// more under way than the burst.
func TestBudgetHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(t, budget)
		start := time.Now()
		var mu sync.Mutex // guards underWay and refused
		underWay, refused := make(map[netip.Prefix]int), make(map[netip.Prefix]int)
		count := func(counts map[netip.Prefix]int, key netip.Prefix, n int) int {
			mu.Lock()
			defer mu.Unlock()
			counts[key] += n
			return counts[key]
		}
		var clients sync.WaitGroup
		for n := range uint32(40) {
			clients.Go(func() {
				random := rand.New(rand.NewPCG(5, uint64(n)))
				pause := func(d time.Duration) { time.Sleep(time.Duration(random.Int64N(int64(d)))) }
				address := nthKey(n % 4)
				for range 50 {
					pause(time.Second)
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.Int64N(int64(3*time.Second))))
					a, err := l.Attempt(ctx, address)
					cancel()
					if err != nil {
						continue
					}
					if n := count(underWay, address, 1); n > 3 {
						t.Errorf("%d under way", n)
					}
					pause(time.Second)
					count(underWay, address, -1)
					if random.IntN(4) > 0 {
						a.Release()
						continue
					}
					n := count(refused, address, 1)
					if most := 3 + int(time.Since(start)/refill); n > most {
						t.Errorf("%d refusals after %v, want at most %d", n, time.Since(start), most)
					}
					a.Charge()
				}
			})
		}
		clients.Wait()
		for address, n := range refused {
			if n < 4 {
				t.Errorf("%v: %d refusals: the test shows nothing", address, n)
			}
		}
		wantIdle(t, l)
	})
}
