package relay

import "sync"

// visitsPerTurn is how many sessions a loop visits before it looks for events again.
const visitsPerTurn = 256

// tour is a visit of several sessions of one loop.
type tour struct {
	sessions []*loopSession
	indexes  []int // of the visitor's
	do       visitor
	counts   *counter
	all      *sync.WaitGroup
}

// visitLoops visits the sessions that are on loops, and returns the indexes of the others.
func visitLoops(sessions []Session, do visitor, counts *counter, all *sync.WaitGroup) (rest []int) {
	tours := make(map[*loop]*tour)
	for i, session := range sessions {
		s, ok := session.(*loopSession)
		if !ok {
			rest = append(rest, i)
			continue
		}
		t := tours[s.loop]
		if t == nil {
			t = &tour{do: do, counts: counts, all: all}
			tours[s.loop] = t
		}
		t.sessions, t.indexes = append(t.sessions, s), append(t.indexes, i)
	}
	for l, t := range tours {
		all.Add(1)
		if !l.post(func() { l.tours = append(l.tours, t) }) {
			t.step(len(t.sessions)) // a loop that does not run has no live session, so nobody else touches these
		}
	}
	return rest
}

// visit goes on with the tours, up to visitsPerTurn sessions.
func (l *loop) visit() {
	for n := visitsPerTurn; n > 0 && len(l.tours) > 0; {
		t := l.tours[0]
		n -= t.step(n)
		if len(t.sessions) == 0 {
			l.tours = l.tours[1:]
		}
	}
}

// step visits up to n sessions, and returns how many it did.
func (t *tour) step(n int) int {
	n = min(n, len(t.sessions))
	var reach Reach
	for i, s := range t.sessions[:n] {
		over := s.policy.over()
		reach.Add(t.do(t.indexes[i], &s.policy, s.loop.now))
		if !over {
			s.settle()
		}
	}
	t.counts.add(reach)
	t.sessions, t.indexes = t.sessions[n:], t.indexes[n:]
	if len(t.sessions) == 0 {
		t.all.Done()
	}
	return n
}
