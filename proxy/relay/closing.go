package relay

import "portcullis/proxy/frame"

// peerLost is what the other side is told when one side is lost.
var peerLost = [2]Closing{
	client:   {frame.CodeGoingAway, "client connection lost"},
	upstream: {frame.CodeInternal, "upstream connection lost"},
}

// peerSilent is what it is told when that side is connected and yet does nothing any more.
var peerSilent = [2]Closing{
	client:   {frame.CodeGoingAway, "client does not answer"},
	upstream: {frame.CodeInternal, "upstream does not answer"},
}

var (
	reasonClosed  = [2]Reason{ClientClose, UpstreamClose}
	reasonGone    = [2]Reason{ClientGone, UpstreamGone}
	reasonFraming = [2]Reason{ClientFraming, UpstreamFraming}
	reasonTooBig  = [2]Reason{ClientTooBig, UpstreamTooBig}
	reasonText    = [2]Reason{ClientEncoding, UpstreamEncoding}
	reasonSilent  = [2]Reason{ClientSilent, UpstreamSilent}
	reasonRate    = [2]Reason{ClientRate, UpstreamRate}
)

// setReason notes why the session ends: the first cause counts.
func (p *policy) setReason(r Reason, code int) {
	if p.reason != "" {
		return
	}
	p.reason, p.code = r, code
	if p.meter.until != 0 {
		p.wakeBy(0) // a throttled client is listened to again
	}
}

// end brings the session to an end on both sides, also one that is ending but
// has a side that goes on.
func (p *policy) end(r Reason, c Closing, now moment) {
	p.setReason(r, c.Code)
	p.endResumption(now)
	p.peers[client].end.slides, p.peers[upstream].end.slides = false, false
	p.closeWith(client, c, now)
	p.closeWith(upstream, c, now)
}

// cut ends the session without a frame.
func (p *policy) cut(now moment) {
	p.setReason(Forced, frame.CodeAbnormal)
	p.endResumption(now)
	p.leave(client, now)
	p.leave(upstream, now)
}

// closeWith has a Close frame sent to side s at the next boundary. A side
// to which no such boundary comes, or that does not take it, is cut.
func (p *policy) closeWith(s side, c Closing, now moment) {
	e := &p.peers[s]
	if e.shut() || e.end.closing == closeDue {
		return
	}
	e.end.closing, e.end.frame = closeDue, &c
	e.ping.leave(pingDue)
	e.end.slides = false
	p.stopBy(s, now+p.closeTimeout)
}

// stopBy sets when side s is cut.
func (p *policy) stopBy(s side, t moment) {
	p.peers[s].end.cutAt = t
	p.wakeBy(t)
}

// violated ends the session because of what side s sent. Nothing after it has
// boundaries, so its own Close frame can no longer be told from the rest and is
// not waited for.
func (p *policy) violated(s side, err error, now moment) {
	p.peers[s].reading.closed = true
	reason, code := reasonFraming[s], frame.CodeProtocol
	switch err {
	case frame.ErrTooBig:
		reason, code = reasonTooBig[s], frame.CodeTooBig
	case errEncoding:
		reason, code = reasonText[s], frame.CodeInvalid
	}
	p.setReason(reason, code)
	p.endResumption(now)
	p.closeWith(s, Closing{code, err.Error()}, now)
	p.closeWith(s.other(), Closing{frame.CodeGoingAway, ""}, now)
	p.closeHandshakeDone(s, now)
}

// closeHandshakeDone sees to side s once a Close frame has passed both ways. The server
// closes first (RFC 6455, section 7.1.1): towards the client that is us;
// the upstream is given the time to do it, which also leaves the TIME_WAIT to it.
func (p *policy) closeHandshakeDone(s side, now moment) {
	e := &p.peers[s]
	if !e.reading.closed || e.end.closing != closeSent {
		return
	}
	e.end.slides = false
	p.stopBy(s, now+p.closeTimeout)
	if s == client {
		e.setFIN()
	}
	p.closeIfDone(s, now)
}

// eof notes that side s has shut its direction.
func (p *policy) eof(s side, now moment) {
	e, o := &p.peers[s], &p.peers[s.other()]
	e.reading.eof = true
	e.ping.leave(pingAwaited, pingPaused)
	switch {
	case e.reading.closed:
	case s == upstream:
		p.loseUpstream(peerLost[upstream], now)
	case p.resumes():
		p.detach(now)
		return
	case !o.shut() && o.end.closing != closeDue:
		// The client may still listen, so what the upstream has to say goes on.
		p.setReason(ClientGone, frame.CodeAbnormal)
		o.setFIN()
		o.end.slides = true
		p.stopBy(upstream, now+p.closeTimeout)
	}
	p.closeIfDone(s, now)
}

// loseUpstream tells the client in those words that its upstream is no more.
func (p *policy) loseUpstream(c Closing, now moment) {
	p.blame(upstream, UpstreamGone, c.Code, now)
	p.peers[client].end.forwarded = false
	p.closeClient(c, now)
}

// closeClient tells the client that its upstream is no more.
func (p *policy) closeClient(c Closing, now moment) {
	if p.resumes() {
		p.keepClose(c, now)
		return
	}
	p.closeWith(client, c, now)
}

// blame notes that the session ends because of side s, unless the client had
// left before, and nobody has come to read that yet.
func (p *policy) blame(s side, r Reason, code int, now moment) {
	if s == upstream && p.hasLeft(client, now) {
		p.setReason(ClientGone, frame.CodeAbnormal)
	}
	p.setReason(r, code)
}

// writeFailed notes that writing to side s has failed. What it sent before may
// still be there to be read, its Close frame above all, so reading goes on to
// the end.
func (p *policy) writeFailed(s side, now moment) {
	e := &p.peers[s]
	if e.end.gone {
		return
	}
	p.resumeReading(s, now)
	e.ping.leave(pingDue)
	e.writing.failed = true
	e.end.closing, e.end.frame, e.end.fin = closeSent, nil, finSent
	e.end.slides = false
	p.stopBy(s, now+p.closeTimeout)
	p.closeIfDone(s, now)
}

// readFailed gives up side s: its connection is to be closed as it is. An engine
// calls it when reading has failed.
func (p *policy) readFailed(s side, now moment) {
	p.abandon(s, peerLost[upstream], now)
}

// giveUp gives up side s, which has not done in time what it was waited for.
func (p *policy) giveUp(s side, now moment) {
	if p.peers[s].writing.failed {
		p.readFailed(s, now)
		return
	}
	p.abandon(s, peerSilent[upstream], now)
}

// abandon closes the connection of side s as it is. If that is the upstream's, and it
// took no leave, the client is told in those words.
func (p *policy) abandon(s side, words Closing, now moment) {
	if p.peers[s].end.gone {
		return
	}
	switch {
	case s == upstream && !p.peers[s].reading.closed:
		p.loseUpstream(words, now)
	case s == client && p.resumes():
	default:
		p.setReason(reasonGone[s], frame.CodeAbnormal)
	}
	p.leave(s, now)
}

// closeIfDone closes side s when neither direction has anything left to do.
func (p *policy) closeIfDone(s side, now moment) {
	e := &p.peers[s]
	if !e.end.gone && e.reading.eof && !e.writing.pending && (e.end.fin == finSent || e.end.closing == closeSent) {
		p.leave(s, now)
	}
}

// leave has the connection of side s closed. The other side is shut, too, unless it is
// told so by a Close frame, and what it may still send has nowhere to go.
func (p *policy) leave(s side, now moment) {
	e, o := &p.peers[s], &p.peers[s.other()]
	p.resumeReading(s, now)
	switch {
	case !p.resumes():
	case s == client:
		p.detach(now)
		return
	default:
		e.end.gone = true
		return // the client is told behind its messages
	}
	e.end.gone = true
	if s == client {
		p.dropPushes()
	}
	o.end.slides = false
	if o.shut() || o.end.closing == closeDue {
		return
	}
	o.setFIN()
	p.stopBy(s.other(), now+p.closeTimeout)
}
