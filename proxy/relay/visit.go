package relay

import "sync"

// visitor does something with a session where its state may be touched. It must not block.
type visitor func(i int, p *policy, now moment)

// visit has do called once for each of those sessions, by its index, and returns at once. Visits of one session happen in the
// order in which they were asked for. wait returns when all have happened; it waits for no peer.
func (r *Relay) visit(sessions []Session, do visitor) (wait func()) {
	var all sync.WaitGroup
	rest := visitLoops(sessions, do, &all)
	for _, i := range rest {
		sessions[i].(*stream).visit(i, do)
	}
	return all.Wait
}

func (s *stream) visit(i int, do visitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(i, &s.policy, now())
	if !s.policy.over() {
		s.settle()
	}
}

// Traffic returns what both sides of those sessions have sent so far.
func (r *Relay) Traffic(of []Session) (fromClient, fromUpstream []Traffic) {
	fromClient, fromUpstream = make([]Traffic, len(of)), make([]Traffic, len(of))
	r.visit(of, func(i int, p *policy, _ moment) {
		fromClient[i], fromUpstream[i] = p.peers[client].reading.traffic, p.peers[upstream].reading.traffic
	})()
	return fromClient, fromUpstream
}

// Reach is how many sessions something has reached.
type Reach struct {
	Reached   int // whose queue took the push, or that were told to go
	Ending    int // that were on their way out already
	TooSlow   int // whose queue was full: they are ended for that
	Extension int // whose messages cannot be made here, for they have an extension that is not known
}

// CloseAll ends those sessions as [Session].Close does. wait returns when they have been told, or could not be.
func (r *Relay) CloseAll(sessions []Session, why Reason, c Closing) (wait func() Reach) {
	var counts counter
	done := r.visit(sessions, func(_ int, p *policy, now moment) {
		if p.reason != "" {
			counts.add(Reach{Ending: 1})
			return
		}
		p.end(why, c, now)
		counts.add(Reach{Reached: 1})
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
	c.reach.Reached += r.Reached
	c.reach.Ending += r.Ending
	c.reach.TooSlow += r.TooSlow
	c.reach.Extension += r.Extension
}
