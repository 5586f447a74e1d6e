package relay

import "sync"

// visitor does something with a session where its state may be touched, and says what came of it. It must not block.
type visitor func(i int, p *policy, now moment) Reach

// visit has do called once for each of those sessions, by its index, and returns at once. Visits of one session happen in the
// order in which they were asked for. wait returns when all have happened, and counts are complete; it waits for no peer.
func (r *Relay) visit(sessions []Session, do visitor) (wait func(), counts *counter) {
	counts = new(counter)
	var all sync.WaitGroup
	rest := visitLoops(sessions, do, counts, &all)
	for _, i := range rest {
		counts.add(sessions[i].(*stream).visit(i, do))
	}
	return all.Wait, counts
}

func (s *stream) visit(i int, do visitor) Reach {
	s.mu.Lock()
	defer s.mu.Unlock()
	over := s.policy.over()
	reach := do(i, &s.policy, now())
	if !over {
		s.settle()
	}
	return reach
}

// Traffic returns what both sides of those sessions have sent so far.
func (r *Relay) Traffic(of []Session) (fromClient, fromUpstream []Traffic) {
	fromClient, fromUpstream = make([]Traffic, len(of)), make([]Traffic, len(of))
	wait, _ := r.visit(of, func(i int, p *policy, _ moment) Reach {
		fromClient[i], fromUpstream[i] = p.peers[client].reading.traffic, p.peers[upstream].reading.traffic
		return Reach{}
	})
	wait()
	return fromClient, fromUpstream
}

// Reach is how many sessions something has reached.
type Reach struct {
	Reached   int // whose queue took the push, or that were told to go
	Ending    int // that were on their way out already
	TooSlow   int // whose queue was full: they are ended for that
	Extension int // whose messages cannot be made here, for they have an extension that is not known
	Full      int // whose buffer of a resumable session was full; one whose client was away is ended for that
}

// CloseAll ends those sessions as [Session].Close does. wait returns when they have been told, or could not be.
func (r *Relay) CloseAll(sessions []Session, why Reason, c Closing) (wait func() Reach) {
	done, counts := r.visit(sessions, func(_ int, p *policy, now moment) Reach {
		if p.reason != "" {
			return Reach{Ending: 1}
		}
		p.end(why, c, now)
		return Reach{Reached: 1}
	})
	return func() Reach { done(); return counts.reach }
}

// counter adds up what several loops find.
type counter struct {
	mu    sync.Mutex
	reach Reach // guarded by mu until all have been visited
}

func (c *counter) add(r Reach) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reach.Add(r)
}

// Add adds what more sessions it has reached.
func (r *Reach) Add(more Reach) {
	r.Reached += more.Reached
	r.Ending += more.Ending
	r.TooSlow += more.TooSlow
	r.Extension += more.Extension
	r.Full += more.Full
}
