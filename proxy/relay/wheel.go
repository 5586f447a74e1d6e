package relay

import (
	"math/bits"
	"time"
)

const (
	// wheelTick is how late a timer may fire. Everything that sessions time
	// is counted in seconds.
	wheelTick = moment(50 * time.Millisecond)
	// wheelSlots times wheelTick is how far the wheel sees, some 51 s. What is due
	// later waits in the farthest slot and is put off again.
	wheelSlots = 1024
)

// wheel holds the timers of one loop's sessions: a ring of slots, each a list
// through the sessions themselves, so that a timer costs no memory of its own and
// setting one costs a few writes. It is a hashed timing wheel after Varghese and Lauck.
type wheel struct {
	slots  [wheelSlots]*loopSession
	filled [wheelSlots / 64]uint64 // a bit for every slot that is not empty
	tick   moment                  // the number of the last tick that has been fired
}

// timer is a session's place in a wheel.
type timer struct {
	next, prev *loopSession
	slot       int16
	set        bool
	at         moment // when it is wanted
}

// set sets the session's timer, or moves it.
func (w *wheel) set(s *loopSession, at moment) {
	w.clear(s)
	if at == never {
		return
	}
	// Rounded up, so that it never fires before its time; at least one tick
	// ahead, and at most once around.
	tick := min(max((at+wheelTick-1)/wheelTick, w.tick+1), w.tick+wheelSlots-1)
	i := tick % wheelSlots
	s.timer = timer{next: w.slots[i], slot: int16(i), set: true, at: at}
	if s.timer.next != nil {
		s.timer.next.timer.prev = s
	}
	w.slots[i] = s
	w.filled[i/64] |= 1 << (i % 64)
}

// clear takes the session's timer off the wheel.
func (w *wheel) clear(s *loopSession) {
	t := s.timer
	if !t.set {
		return
	}
	if t.next != nil {
		t.next.timer.prev = t.prev
	}
	if t.prev != nil {
		t.prev.timer.next = t.next
	} else if w.slots[t.slot] = t.next; t.next == nil {
		w.filled[t.slot/64] &^= 1 << (t.slot % 64)
	}
	s.timer = timer{}
}

// advance fires, through fire, the timers of every tick up to now. A timer whose
// time lies beyond the wheel's sight is put off again instead.
func (w *wheel) advance(now moment, fire func(*loopSession)) {
	last := now / wheelTick
	if last-w.tick > wheelSlots {
		w.tick = last - wheelSlots // asleep for more than a turn: every slot is due, once
	}
	for w.tick < last {
		w.tick++
		i := w.tick % wheelSlots
		for s := w.slots[i]; s != nil; s = w.slots[i] {
			at := s.timer.at
			w.clear(s)
			if at > now {
				w.set(s, at)
			} else {
				fire(s)
			}
		}
	}
}

// wait is how long nothing is due; never if no timer is set.
func (w *wheel) wait(now moment) time.Duration {
	start := (w.tick + 1) % wheelSlots
	for n := moment(0); n < wheelSlots; {
		i := (start + n) % wheelSlots
		if word := w.filled[i/64] >> (i % 64); word != 0 {
			n += moment(bits.TrailingZeros64(word))
			return max((w.tick+1+n)*wheelTick-now, 0)
		}
		n += 64 - i%64
	}
	return never
}
