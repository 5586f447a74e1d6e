package relay

import (
	"math/rand/v2"
	"testing"
	"time"
)

// The wheel against a map: no timer fires before its time, or later than a tick
// after it, or twice, and nobody is told to sleep past one.
func TestWheel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1987, 1)) // the year of the paper
	reach := []time.Duration{time.Millisecond, wheelTick, time.Second, wheelTick * wheelSlots, time.Hour}
	for range 50 {
		var w wheel
		now := moment(rng.Int64N(int64(time.Hour)))
		w.tick = now / wheelTick
		sessions := make([]*loopSession, 20)
		for i := range sessions {
			sessions[i] = new(loopSession)
		}
		due := map[*loopSession]moment{}
		for range 500 {
			s := sessions[rng.IntN(len(sessions))]
			switch rng.IntN(4) {
			case 0, 1:
				at := now + moment(rng.Int64N(int64(reach[rng.IntN(len(reach))]))) - time.Second/2
				w.set(s, at)
				due[s] = max(at, now) // what is past comes with the next tick
			case 2:
				w.clear(s)
				delete(due, s)
			case 3:
				earliest := never
				for _, at := range due {
					earliest = min(earliest, at)
				}
				wait := w.wait(now)
				if earliest == never && wait != never || wait < 0 {
					t.Fatalf("wait %v with %d timers", wait, len(due))
				}
				if late := now + wait - earliest; earliest != never && late > wheelTick && wait > wheelTick {
					t.Fatalf("told to sleep %v past a timer", late)
				}
				if rng.IntN(2) == 0 && wait != never {
					now += wait
				} else {
					now += moment(rng.Int64N(int64(reach[rng.IntN(len(reach))])))
				}
				w.advance(now, func(s *loopSession) {
					at, set := due[s]
					if !set || at > now {
						t.Fatalf("fired %v before its time, set: %v", at-now, set)
					}
					delete(due, s)
				})
				for s, at := range due {
					if at <= now-wheelTick {
						t.Fatalf("not fired %v after its time, set: %v", now-at, s.timer.set)
					}
				}
			}
		}
	}
}

// A timer that is set while the wheel fires comes with the next turn, not in this one for ever.
func TestWheelSetWhileFiring(t *testing.T) {
	var w wheel
	s := new(loopSession)
	now := moment(10 * time.Second)
	w.tick = now / wheelTick
	w.set(s, now)
	fired := 0
	for range 3 {
		now += wheelTick
		w.advance(now, func(s *loopSession) {
			fired++
			w.set(s, 0)
		})
	}
	if fired != 3 {
		t.Errorf("fired %d times in 3 ticks", fired)
	}
	if got := w.wait(now); got > wheelTick {
		t.Errorf("the next is %v away", got)
	}
}
