package relay

import (
	"encoding/binary"

	"portcullis/proxy/frame"
)

// heard notes that bytes came from side s: it is alive, whatever it says.
func (p *policy) heard(s side, now moment) {
	e := &p.peers[s]
	e.reading.heard = now
	if p.pingInterval > 0 {
		p.wakeBy(now + p.pingInterval)
	}
	// Also of a ping that is being written: its pong may come before we are told
	// that it has been.
	e.ping.state, e.ping.appPing = noPing, 0
	e.ack.target, e.ack.delivered = 0, false
	if e.end.slides {
		e.end.cutAt = now + p.closeTimeout
	}
}

// heartbeat pings side s when it has been silent for long enough, and gives it
// up when it does not answer.
func (p *policy) heartbeat(s side, now moment) {
	e := &p.peers[s]
	if s == client && p.resumes() {
		return // see followSilence
	}
	if p.pingInterval > 0 && e.writing.pending {
		if now >= p.writeDeadline(s) {
			// The socket has room again only when much of what it holds is gone.
			p.queryKernel(s, now)
			e.writing.progress = max(e.writing.progress, e.ack.last)
		}
		until := p.writeDeadline(s)
		if now >= until {
			p.pongTimedOut(s, now)
			return
		}
		p.wakeBy(until)
	}
	if p.pingInterval == 0 || e.reading.eof || e.reading.closed || e.end.closing == closeDue || e.shut() {
		return
	}
	switch {
	case p.unheard(s), e.ping.state == pingDue, e.ping.state == pingWriting:
		// We do not listen, or our ping is not out: silence means nothing yet.
		p.wakeBy(now + p.pingInterval)
	case e.ping.state == pingAwaited:
		p.followDelivery(s, now)
		if now >= e.ping.deadline {
			p.pongTimedOut(s, now)
			return
		}
		p.wakeBy(e.ping.deadline)
	default:
		due := e.reading.heard + p.pingInterval
		if e.ping.appPing != 0 {
			// The application asks already; it has as long as we would give.
			due = max(due, e.ping.appPing+p.pongTimeout)
		}
		if now >= due {
			e.ping.state = pingDue
			due = now + p.pingInterval
		}
		p.wakeBy(due)
	}
}

// writeDeadline is until when side s, which takes nothing, may go on so. No ping can
// be written to it. If it is silent, too, it has as long as it would have to answer one; if it
// speaks, or is not listened to, as long as it might also have been silent.
func (p *policy) writeDeadline(s side) moment {
	e := &p.peers[s]
	until := e.writing.progress + p.pingInterval + p.pongTimeout
	if e.reading.eof || e.reading.closed || p.unheard(s) {
		return until
	}
	return min(until, max(e.writing.progress, e.reading.heard+p.pingInterval)+p.pongTimeout)
}

// appendPing appends a ping of ours to side s. Its payload is 64 bits, random
// per session and counted up, so that only a peer that has read a ping can
// answer it, and so that a late answer is known for ours, too.
func (p *policy) appendPing(s side, b []byte) []byte {
	e := &p.peers[s]
	e.ping.sent++
	e.ping.state = pingWriting
	return frame.AppendControl(b, s.role(), frame.Ping, binary.BigEndian.AppendUint64(nil, p.nonce+e.ping.sent))
}

// answersOurs reports whether a pong from side s answers any ping of ours.
func (p *policy) answersOurs(s side, payload []byte) bool {
	if len(payload) != 8 {
		return false
	}
	n := binary.BigEndian.Uint64(payload) - p.nonce
	return n >= 1 && n <= p.peers[s].ping.sent
}

// passedPing notes that a ping of the application passes on to side s. It
// takes the place of ours, since a peer may answer the latest ping alone
// (RFC 6455, section 5.5.3). It does so once in a silence: else an application
// that pings a dead peer often enough would keep us from ever giving it up.
func (p *policy) passedPing(s side, now moment) {
	e := &p.peers[s]
	if e.ping.appPing != 0 {
		return
	}
	e.ping.appPing = now
	e.ping.state = noPing
	p.wakeBy(now + p.pongTimeout)
}

// pongTimedOut gives up side s, which has not answered our ping.
func (p *policy) pongTimedOut(s side, now moment) {
	p.blame(s, reasonSilent[s], frame.CodeTimeout, now)
	p.closeWith(s, Closing{frame.CodeTimeout, "no pong"}, now)
	if s == upstream {
		p.closeClient(peerSilent[s], now)
	} else {
		p.closeWith(upstream, peerSilent[s], now)
	}
}
