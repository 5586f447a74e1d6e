package relay

import (
	"encoding/binary"

	"portcullis/proxy/frame"
)

// heard notes that bytes came from side s: it is alive, whatever it says.
func (p *policy) heard(s side, now moment) {
	e := &p.ends[s]
	e.heard = now
	if p.pingInterval > 0 {
		p.wakeBy(now + p.pingInterval)
	}
	// Also of a ping that is being written: its pong may come before we are told
	// that it has been.
	e.deadline, e.frozen, e.appPing = 0, 0, 0
	e.pinging, e.wantPing = false, false
	e.target, e.delivered = 0, false
	if e.sliding {
		e.cutAt = now + p.closeTimeout
	}
}

// heartbeat pings side s when it has been silent for long enough, and gives it
// up when it does not answer.
func (p *policy) heartbeat(s side, now moment) {
	e := &p.ends[s]
	if p.pingInterval > 0 && e.unsent {
		if now >= p.patience(s) {
			// The socket has room again only when much of what it holds is gone.
			p.look(s, now)
			e.taken = max(e.taken, e.moved)
		}
		until := p.patience(s)
		if now >= until {
			p.silent(s, now)
			return
		}
		p.wakeBy(until)
	}
	if p.pingInterval == 0 || e.eof || e.inClosed || e.closing != nil || e.shut() {
		return
	}
	switch {
	case p.unheard(s), e.wantPing, e.pinging:
		// We do not listen, or our ping is not out: silence means nothing yet.
		p.wakeBy(now + p.pingInterval)
	case e.deadline != 0:
		p.follow(s, now)
		if now >= e.deadline {
			p.silent(s, now)
			return
		}
		p.wakeBy(e.deadline)
	default:
		due := e.heard + p.pingInterval
		if e.appPing != 0 {
			// The application asks already; it has as long as we would give.
			due = max(due, e.appPing+p.pongTimeout)
		}
		if now >= due {
			e.wantPing = true
			due = now + p.pingInterval
		}
		p.wakeBy(due)
	}
}

// patience is until when side s, which takes nothing, may go on so. No ping can
// be written to it. If it is silent, too, it has as long as it would have to answer one; if it
// speaks, or is not listened to, as long as it might also have been silent.
func (p *policy) patience(s side) moment {
	e := &p.ends[s]
	until := e.taken + p.pingInterval + p.pongTimeout
	if e.eof || e.inClosed || p.unheard(s) {
		return until
	}
	return min(until, max(e.taken, e.heard+p.pingInterval)+p.pongTimeout)
}

// appendPing appends a ping of ours to side s. Its payload is 64 bits, random
// per session and counted up, so that only a peer that has read a ping can
// answer it, and so that a late answer is known for ours, too.
func (p *policy) appendPing(s side, b []byte) []byte {
	e := &p.ends[s]
	e.pings++
	e.pinging = true
	return frame.AppendControl(b, s.speaks(), frame.Ping, binary.BigEndian.AppendUint64(nil, p.nonce+e.pings))
}

// answersOurs reports whether a pong from side s answers any ping of ours.
func (p *policy) answersOurs(s side, payload []byte) bool {
	if len(payload) != 8 {
		return false
	}
	n := binary.BigEndian.Uint64(payload) - p.nonce
	return n >= 1 && n <= p.ends[s].pings
}

// passedPing notes that a ping of the application passes on to side s. It
// takes the place of ours, since a peer may answer the latest ping alone
// (RFC 6455, section 5.5.3). It does so once in a silence: else an application
// that pings a dead peer often enough would keep us from ever giving it up.
func (p *policy) passedPing(s side, now moment) {
	e := &p.ends[s]
	if e.appPing != 0 {
		return
	}
	e.appPing = now
	e.deadline, e.frozen, e.pinging, e.wantPing = 0, 0, false, false
	p.wakeBy(now + p.pongTimeout)
}

// silent gives up side s, which has not answered our ping.
func (p *policy) silent(s side, now moment) {
	p.blame(s, reasonSilent[s], frame.CodeTimeout, now)
	p.closeWith(s, Closing{frame.CodeTimeout, "no pong"}, now)
	p.closeWith(s.other(), noAnswer[s], now)
}
