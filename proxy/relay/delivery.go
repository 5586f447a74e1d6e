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

// kernel is asked about delivery, and about a peer that is not read. It cannot always tell.
type kernel interface {
	delivery(side) (d delivery, ok bool)
	// hungUp reports whether a peer has shut its direction, or broken the connection.
	hungUp(side) (fin, broken bool)
}

// notePingTarget notes how much must have been acknowledged before our ping to side s,
// which has just been written, has been delivered. Where nothing else is on its way it
// will be at once, and its deadline stands.
func (p *policy) notePingTarget(s side, now moment) {
	if d, ok := p.queryKernel(s, now); ok {
		const ping = 2 + 4 + 8 // the header, the key towards an upstream, the payload
		e := &p.peers[s]
		e.ack.target, e.ack.delivered = d.acked+d.queued, d.queued <= ping
	}
}

// followed is how often per PongTimeout the kernel is asked whether a ping has been delivered.
const followed = 16

// followDelivery moves the deadline of our ping to side s while that has not been
// delivered: until then the peer has to take something in every PongTimeout, and from then on it
// has that long to answer, however much is still sent to it.
func (p *policy) followDelivery(s side, now moment) {
	e := &p.peers[s]
	if e.ack.delivered || e.ack.target == 0 && now < e.ping.deadline {
		return
	}
	d, ok := p.queryKernel(s, now)
	if !ok {
		return
	}
	if e.ack.target == 0 { // the kernel could not tell when the ping was written
		e.ack.target = d.acked + d.queued
	}
	e.ping.deadline = max(e.ping.deadline, e.ack.last+p.pongTimeout)
	if e.ack.delivered = d.acked >= e.ack.target; !e.ack.delivered {
		p.wakeBy(now + p.pongTimeout/followed)
	}
}

// queryKernel asks the kernel about side s, and notes when the peer last took anything.
func (p *policy) queryKernel(s side, now moment) (d delivery, ok bool) {
	d, ok = p.kernel.delivery(s)
	if e := &p.peers[s]; ok && d.acked != e.ack.bytes {
		e.ack.bytes, e.ack.last = d.acked, now-d.quiet
	}
	return d, ok
}
