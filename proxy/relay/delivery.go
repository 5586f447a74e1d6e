package relay

// delivery is what the kernel knows of the bytes that were written to a side.
// Written is not delivered: a ping may stand behind megabytes in the socket's
// queue, and a peer on a slow link, which takes them all the time, has not seen
// it yet.
type delivery struct {
	acked  uint64 // bytes that the peer's kernel has acknowledged, since the connection began
	queued uint64 // bytes that it has not
	quiet  moment // how long ago its last acknowledgement came
}

// kernel is asked about delivery. It cannot always tell.
type kernel interface {
	delivery(side) (d delivery, ok bool)
}

// reprieve looks, when our ping to side s was not answered in time, whether the
// peer is merely slow. Then it moves the deadline and reports true. The ping
// has been delivered when all has been that is queued at the first look; until
// then the peer has to take something in every PongTimeout, and from then on it
// has that long to answer, however much is still sent to it.
func (p *policy) reprieve(s side, now moment) bool {
	e := &p.ends[s]
	if e.delivered {
		return false
	}
	d, ok := p.look(s, now)
	if !ok {
		return false
	}
	if e.target == 0 {
		e.target = d.acked + d.queued
	}
	e.delivered = d.acked >= e.target
	e.deadline = e.moved + p.pongTimeout
	return e.deadline > now
}

// look asks the kernel about side s, and notes when the peer last took anything.
func (p *policy) look(s side, now moment) (d delivery, ok bool) {
	d, ok = p.kernel.delivery(s)
	if e := &p.ends[s]; ok && d.acked != e.acked {
		e.acked, e.moved = d.acked, now-d.quiet
	}
	return d, ok
}
