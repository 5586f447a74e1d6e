package lease

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// holder is a Holder of two functions. Without ask every answer is an open-ended yes; without end an end is a mistake.
type holder struct {
	t   *testing.T
	ask func(context.Context) (Terms, error)
	end func(EndReason)
}

func (h *holder) VerifyAgain(ctx context.Context) (Terms, error) {
	if h.ask == nil {
		return Terms{}, nil
	}
	return h.ask(ctx)
}

func (h *holder) LeaseEnded(why EndReason) {
	if h.end == nil {
		h.t.Errorf("ended: %v", why)
		return
	}
	h.end(why)
}

// verifier answers questions about one lease, and notes when they came.
type verifier struct {
	began  time.Time
	answer func(ctx context.Context, n int) (Terms, error) // n counts from 1
	asked  []time.Duration
}

func (v *verifier) ask(ctx context.Context) (Terms, error) {
	v.asked = append(v.asked, time.Since(v.began))
	return v.answer(ctx, len(v.asked))
}

// elapse lets a bubble's time go by.
func elapse(d time.Duration) { <-time.After(d) }

func within(t *testing.T, what string, got, from, to time.Duration) {
	t.Helper()
	if got < from || got > to {
		t.Errorf("%s: got %v, want %v to %v", what, got, from, to)
	}
}

func TestLease(t *testing.T) {
	const minute = time.Minute
	unavailable := errors.New("no answer")
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	type ending struct {
		why EndReason
		at  time.Duration
	}
	for _, test := range []struct {
		name   string
		config Config
		terms  func() Terms
		answer func(ctx context.Context, n int) (Terms, error)
		asked  [][2]time.Duration // between
		want   *ending            // nil: it holds for an hour
	}{{
		name:  "open-ended: never asked",
		terms: func() Terms { return Terms{} },
	}, {
		name:   "open-ended with recheck",
		config: Config{Recheck: 20 * minute},
		terms:  func() Terms { return Terms{} },
		answer: func(_ context.Context, n int) (Terms, error) { return Terms{}, nil },
		asked:  [][2]time.Duration{{18 * minute, 20 * minute}, {36 * minute, 40 * minute}, {54 * minute, 60 * minute}},
	}, {
		name:  "final: the credential runs out unasked",
		terms: func() Terms { return Terms{Until: in(10 * minute), Expires: in(10 * minute), Final: true} },
		want:  &ending{Expired, 10 * minute},
	}, {
		name:  "asked in the last quarter, and held on",
		terms: func() Terms { return Terms{Until: in(40 * minute)} },
		answer: func(context.Context, int) (Terms, error) {
			return Terms{Until: in(40 * minute)}, nil
		},
		asked: [][2]time.Duration{{35*minute - 3*time.Second, 40*minute - 3*time.Second}},
	}, {
		name:   "a short lifetime is not asked about before three quarters of it",
		terms:  func() Terms { return Terms{Until: in(4 * time.Second)} },
		answer: func(context.Context, int) (Terms, error) { return Terms{}, nil },
		asked:  [][2]time.Duration{{3 * time.Second, 3 * time.Second}},
	}, {
		name:   "revoked, at the answer",
		config: Config{Recheck: 10 * minute},
		terms:  func() Terms { return Terms{Until: in(2 * time.Hour)} },
		answer: func(_ context.Context, n int) (Terms, error) {
			if n == 1 {
				return Terms{Until: in(2 * time.Hour)}, nil
			}
			return Terms{}, fmt.Errorf("verifier: %w", ErrRefused)
		},
		asked: [][2]time.Duration{{9 * minute, 10 * minute}, {18 * minute, 20 * minute}},
		want:  &ending{why: Revoked},
	}, {
		name:   "an outage ends it at its time",
		terms:  func() Terms { return Terms{Until: in(12 * time.Second)} },
		answer: func(context.Context, int) (Terms, error) { return Terms{}, unavailable },
		want:   &ending{Unavailable, 12 * time.Second},
	}, {
		name:   "an outage ends it later with stale",
		config: Config{Stale: minute},
		terms:  func() Terms { return Terms{Until: in(12 * time.Second)} },
		answer: func(context.Context, int) (Terms, error) { return Terms{}, unavailable },
		want:   &ending{Unavailable, 12*time.Second + minute},
	}, {
		name:   "never past exp",
		config: Config{Stale: minute},
		terms:  func() Terms { return Terms{Until: in(12 * time.Second), Expires: in(20 * time.Second)} },
		answer: func(context.Context, int) (Terms, error) { return Terms{}, unavailable },
		want:   &ending{Expired, 20 * time.Second},
	}, {
		name:   "an outage that passes",
		config: Config{Stale: minute},
		terms:  func() Terms { return Terms{Until: in(40 * time.Second)} },
		answer: func(_ context.Context, n int) (Terms, error) {
			if n <= 20 {
				return Terms{}, unavailable
			}
			return Terms{}, nil
		},
	}, {
		name:  "little is left at the start: the verifier has its time",
		terms: func() Terms { return Terms{Until: in(100 * time.Millisecond)} },
		answer: func(context.Context, int) (Terms, error) {
			elapse(2 * time.Second)
			return Terms{}, nil
		},
		asked: [][2]time.Duration{{75 * time.Millisecond, 100 * time.Millisecond}},
	}, {
		name:   "little is left at the start, and nobody answers",
		terms:  func() Terms { return Terms{Until: in(100 * time.Millisecond)} },
		answer: func(ctx context.Context, _ int) (Terms, error) { <-ctx.Done(); return Terms{}, ctx.Err() },
		asked:  [][2]time.Duration{{75 * time.Millisecond, 100 * time.Millisecond}},
		want:   &ending{Unavailable, 3*time.Second + 75*time.Millisecond},
	}, {
		name:  "an answer that is over as it comes is not asked for without a pause",
		terms: func() Terms { return Terms{Until: in(0)} },
		answer: func(_ context.Context, n int) (Terms, error) {
			if n == 3 {
				return Terms{}, nil
			}
			return Terms{Until: in(0)}, nil
		},
		asked: [][2]time.Duration{{time.Second, time.Second}, {2 * time.Second, 2 * time.Second}, {3 * time.Second, 3 * time.Second}},
	}, {
		name:   "a verifier that hangs",
		terms:  func() Terms { return Terms{Until: in(12 * time.Second)} },
		answer: func(ctx context.Context, _ int) (Terms, error) { <-ctx.Done(); return Terms{}, ctx.Err() },
		want:   &ending{Unavailable, 12 * time.Second},
	}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := test.config
				c.Timeout = 3 * time.Second
				k := New(c)
				defer k.Close()
				v := &verifier{began: time.Now(), answer: test.answer}
				var got *ending
				k.Hold(new(Lease), &holder{ask: v.ask, end: func(why EndReason) {
					if got != nil {
						t.Error("ended twice")
					}
					got = &ending{why, time.Since(v.began)}
				}}, test.terms())
				elapse(time.Hour)
				synctest.Wait()

				for i, between := range test.asked {
					if i >= len(v.asked) {
						t.Fatalf("asked at %v, want %d times", v.asked, len(test.asked))
					}
					within(t, "asked", v.asked[i], between[0], between[1])
				}
				switch {
				case test.want == nil && got != nil:
					t.Fatalf("ended: %+v", *got)
				case test.want == nil:
				case got == nil:
					t.Fatal("not ended")
				case got.why != test.want.why:
					t.Errorf("ended because %v, want %v", got.why, test.want.why)
				case test.want.at != 0:
					within(t, "ended", got.at, test.want.at, test.want.at+time.Second)
				default:
					within(t, "ended", got.at, v.asked[len(v.asked)-1], v.asked[len(v.asked)-1]+time.Second)
				}
			})
		})
	}
}

// refusedOnce answers no to the first question, when answer is closed, and yes to those that follow.
func refusedOnce(answer <-chan struct{}) func(context.Context) (Terms, error) {
	var asked atomic.Bool
	return func(context.Context) (Terms, error) {
		if asked.Swap(true) {
			return Terms{}, nil
		}
		<-answer
		return Terms{}, ErrRefused
	}
}

func TestRenewedWhileAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := New(Config{Timeout: 3 * time.Second})
		defer k.Close()
		answer := make(chan struct{})
		l, h := new(Lease), &holder{t: t, ask: refusedOnce(answer)}
		k.Hold(l, h, Terms{Until: time.Now().Add(8 * time.Second)})
		elapse(7 * time.Second)
		k.Renew(l, Terms{Until: time.Now().Add(time.Hour)})
		close(answer) // a no about the old credential
		elapse(time.Minute)
		synctest.Wait()
	})
}

// The renewed terms are over sooner than the question about the old ones is: they are asked about when it is.
func TestRenewedForShorterThanTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := New(Config{Timeout: 10 * time.Second})
		defer k.Close()
		answer := make(chan struct{})
		l, h := new(Lease), &holder{t: t, ask: refusedOnce(answer)}
		k.Hold(l, h, Terms{Until: time.Now().Add(time.Minute)})
		elapse(50 * time.Second)
		k.Renew(l, Terms{Until: time.Now().Add(8 * time.Second)})
		elapse(7 * time.Second)
		close(answer)
		elapse(time.Minute)
		synctest.Wait()
	})
}

func TestWhatIsOverIsNotRenewed(t *testing.T) {
	for _, test := range []struct {
		name string
		over func(*Keeper, *Lease)
		want bool
	}{
		{"held", func(*Keeper, *Lease) {}, true},
		{"released", (*Keeper).Release, false},
		{"ended", func(*Keeper, *Lease) { elapse(2 * time.Minute) }, false},
		{"closed", func(k *Keeper, _ *Lease) { k.Close() }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := New(Config{Timeout: time.Second})
				defer k.Close()
				l := new(Lease)
				k.Hold(l, &holder{end: func(EndReason) {}}, Terms{Expires: time.Now().Add(time.Minute), Final: true})
				test.over(k, l)
				if got := k.Renew(l, Terms{}); got != test.want {
					t.Errorf("renewed: got %t, want %t", got, test.want)
				}
				k.Release(l) // of whatever is left, at any time
			})
		})
	}
}

func TestReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := New(Config{Timeout: time.Second})
		defer k.Close()
		l := new(Lease)
		k.Hold(l, &holder{t: t}, Terms{Until: time.Now().Add(time.Minute), Final: true})
		k.Release(l)
		k.Release(l)
		if n := k.Len(); n != 0 {
			t.Errorf("%d leases in the queue, want none", n)
		}
		elapse(time.Hour)
		synctest.Wait()
	})
}

// 10,000 leases that end in the same second.
func TestQuestionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := New(Config{Timeout: 3 * time.Second, PerSecond: 500})
		defer k.Close()
		perSecond := make(map[int64]int)
		var total int
		asked := make(chan int64, 10_000)
		for range 10_000 {
			k.Hold(new(Lease), &holder{t: t, ask: func(context.Context) (Terms, error) {
				asked <- time.Now().Unix()
				return Terms{}, nil
			}}, Terms{Until: time.Now().Add(10 * time.Minute)})
		}
		elapse(time.Hour)
		synctest.Wait()
		close(asked)
		for second := range asked {
			perSecond[second]++
			total++
		}
		if total != 10_000 {
			t.Errorf("asked %d times, want 10000", total)
		}
		for second, n := range perSecond {
			if n > 550 {
				t.Errorf("asked %d times in second %d, want at most 500 and a burst of 50", n, second)
			}
		}
	})
}

// Leases that are due wait in line for the pace, each once, and none of them is touched again before its turn: as long as a
// backlog lasts, the end of every session has to wait for what is done about it.
func TestDueLeasesWaitInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const leases, perSecond = 1000, 20
		k := New(Config{Timeout: 3 * time.Second, PerSecond: perSecond, Recheck: time.Minute})
		defer k.Close()
		var asked [leases]atomic.Int32
		var all [leases]*Lease
		for i := range all {
			all[i] = new(Lease)
			k.Hold(all[i], &holder{t: t, ask: func(context.Context) (Terms, error) {
				asked[i].Add(1)
				return Terms{Final: true}, nil // not again
			}}, Terms{})
		}
		elapse(61 * time.Second)
		k.mu.Lock()
		due, queued := k.due.Len(), len(k.queue)
		k.mu.Unlock()
		if queued != 0 || due < leases-10*perSecond {
			t.Errorf("%d wait in line and %d are looked at by time; want all that were not asked, and none", due, queued)
		}
		if n := k.Len(); n != due {
			t.Errorf("%d to be looked after, want the %d in line", n, due)
		}
		released := all[:leases/2]
		for _, l := range released {
			k.Release(l)
		}
		elapse(leases / perSecond * time.Second)
		synctest.Wait()
		for i := range all {
			if n := asked[i].Load(); n > 1 || n == 0 && i >= len(released) {
				t.Errorf("lease %d: asked %d times, want once", i, n)
			}
		}
		if k.due.Len() != 0 {
			t.Errorf("%d are left in line", k.due.Len())
		}
	})
}

// A credential's end has the wall clock's reading alone, an answer's end has both: in the queue all times are of one clock.
func TestTimesOfOneClock(t *testing.T) { // in no bubble: its times have one reading
	k := New(Config{Timeout: time.Second})
	defer k.Close()
	wall := func(d time.Duration) time.Time { return time.Now().Round(0).Add(d) }
	for _, terms := range []Terms{
		{Until: time.Now().Add(time.Hour)},
		{Expires: wall(time.Hour)},
		{Until: wall(time.Minute), Expires: wall(time.Minute), Final: true},
	} {
		k.Hold(new(Lease), &holder{end: func(EndReason) {}}, terms)
	}
	for _, l := range k.queue {
		if l.at == l.at.Round(0) {
			t.Errorf("%v has no monotonic reading", l.at)
		}
	}
}

// The wall clock may be set: a credential that has ended by it ends its session with the next maxSleep at the clock, and one that has
// not yet goes on.
func TestWallClockIsSet(t *testing.T) {
	for name, by := range map[string]time.Duration{"forward": 2 * time.Hour, "back": -2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := New(Config{Timeout: time.Second})
				defer k.Close()
				began := time.Now()
				var ended time.Duration // 0: it has not
				l, h := new(Lease), &holder{end: func(EndReason) { ended = time.Since(began) }}
				end := began.Round(0).Add(time.Hour)
				k.Hold(l, h, Terms{Until: end, Expires: end, Final: true})
				k.mu.Lock()
				// The bubble's clock can't be set: so the credential is moved against it, and what the keeper knows of the clock.
				l.terms.Until, l.terms.Expires = end.Add(-by), end.Add(-by)
				k.moved -= by
				k.mu.Unlock()
				elapse(4 * time.Hour)
				synctest.Wait()
				if want := max(time.Hour-by, 0); by > 0 && ended > maxSleep || by < 0 && (ended < want || ended > want+maxSleep) || ended == 0 {
					t.Errorf("ended after %v, want %v, and %v at most", ended, want, want+maxSleep)
				}
			})
		})
	}
}
