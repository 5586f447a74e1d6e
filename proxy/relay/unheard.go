package relay

import "time"

// A side is not read while the other takes nothing, while its rate has it
// wait, and when it has been told to go and sends on and on. That it has left stands, if
// anywhere, behind what is not read. Here is how that is noticed all the same, and what follows.
//
// A FIN is an orderly end: what came before it is still due to the other side, and
// the client's own Close frame may be among it. So reading is not brought forward, and the
// session goes on for as long as the upstream takes something in each CloseTimeout. A throttled
// client that has left is kept for as long as a silent one is, PingInterval and PongTimeout: its
// rate says how fast its bytes may go on, and that could take days.
//
// A connection that is broken, a throttled client's or that of a side told to go, ends
// at once. Elsewhere that is like a FIN: to close with something unread resets a
// connection, too, and a client that has sent all and did not wait for an answer does that.

// lookOut is how long bytes for one side are on their way before it is asked whether the other
// has left, and lookAgain how long until the next time. An engine may notice before (watch).
const (
	lookOut   = moment(10 * time.Second)
	lookAgain = moment(time.Second)
)

// held reports whether side s is not to be read now, whatever the other takes.
func (p *policy) held(s side) bool {
	return p.throttled(s) || p.peers[s].reading.pausedUntil != 0 || p.resumeFull(s)
}

// Linger is how many bytes are read at once, and then in each second, of a
// peer that has been told to go: as many as its Close frame and its FIN may stand
// behind. To read all that such a peer sends would cost as much as relaying it. But
// to stop would be to miss the answer of one that on a fast link had sent more before it
// was told; and to close with bytes unread resets the connection, and the reset overtakes our
// own Close frame. So it is read little by little until its time is over.
const Linger = 1 << 20

// chargeDiscarded counts bytes of side s that lead nowhere, and has it wait when they are too many.
func (p *policy) chargeDiscarded(s side, n int, now moment) {
	e := &p.peers[s]
	e.reading.discarded = max(e.reading.discarded, now) + moment(n)*moment(time.Second)/Linger
	if over := e.reading.discarded - moment(time.Second) - now; over > 0 && e.reading.left == 0 {
		e.reading.pausedUntil = now + max(over, wheelTick) // a pause is worth its price
		p.wakeBy(e.reading.pausedUntil)
	}
}

// unheard reports whether side s is not read now.
func (p *policy) unheard(s side) bool {
	return p.peers[s.other()].writing.pending && p.resume == nil || p.held(s)
}

// hasLeft reports whether side s, while it is not read, has hung up.
func (p *policy) hasLeft(s side, now moment) bool {
	e := &p.peers[s]
	if e.reading.left == 0 && !e.reading.eof && !e.end.gone && p.unheard(s) {
		fin, broken := p.kernel.hungUp(s)
		switch {
		case broken && p.held(s):
			e.reading.left, e.reading.pausedUntil = now, 0
			p.readFailed(s, now)
		case fin || broken:
			e.reading.left, e.reading.pausedUntil = now, 0 // what there is lies in the kernel, and is read to the end
		}
	}
	return e.reading.left != 0
}

// watch sees whether side s has left while it is not read, and ends what is then no more to
// be waited for. An engine calls it when it learns that a side has hung up; tick calls it, too.
func (p *policy) watch(s side, now moment) {
	e, o := &p.peers[s], &p.peers[s.other()]
	if e.reading.pausedUntil != 0 {
		if now >= e.reading.pausedUntil {
			e.reading.pausedUntil = 0
		} else {
			p.wakeBy(e.reading.pausedUntil)
		}
	}
	if e.end.gone || e.reading.eof || !p.unheard(s) {
		return
	}
	if !p.hasLeft(s, now) {
		p.wakeBy(now + lookAgain)
		return
	}
	if s == upstream || e.end.gone || p.resumes() {
		return
	}
	switch {
	case o.writing.pending:
		if now >= max(e.reading.left, o.writing.progress)+p.closeTimeout {
			p.queryKernel(upstream, now)
			o.writing.progress = max(o.writing.progress, o.ack.last)
		}
		until := max(e.reading.left, o.writing.progress) + p.closeTimeout
		if now >= until {
			p.giveUp(upstream, now)
			return
		}
		p.wakeBy(until)
	case p.pingInterval > 0:
		until := e.reading.left + p.pingInterval + p.pongTimeout
		if now >= until {
			p.readFailed(client, now)
			return
		}
		p.wakeBy(until)
	}
}
