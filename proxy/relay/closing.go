package relay

import "portcullis/proxy/frame"

// farewell is what the other side is told when one side is lost.
var farewell = [2]Closing{
	client:   {frame.CodeGoingAway, "client connection lost"},
	upstream: {frame.CodeInternal, "upstream connection lost"},
}

// noAnswer is what it is told when that side is connected and yet does nothing any more.
var noAnswer = [2]Closing{
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

// because notes why the session ends: the first cause counts.
func (p *policy) because(r Reason, code int) {
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
	p.because(r, c.Code)
	p.ends[client].sliding, p.ends[upstream].sliding = false, false
	p.closeWith(client, c, now)
	p.closeWith(upstream, c, now)
}

// cut ends the session without a frame.
func (p *policy) cut(now moment) {
	p.because(Forced, frame.CodeAbnormal)
	p.leave(client, now)
	p.leave(upstream, now)
}

// closeWith has a Close frame sent to side s at the next boundary. A side
// to which no such boundary comes, or that does not take it, is cut.
func (p *policy) closeWith(s side, c Closing, now moment) {
	e := &p.ends[s]
	if e.shut() || e.closing != nil {
		return
	}
	e.closing, e.wantPing = &c, false
	e.sliding = false
	p.stopBy(s, now+p.closeTimeout)
}

// stopBy sets when side s is cut.
func (p *policy) stopBy(s side, t moment) {
	p.ends[s].cutAt = t
	p.wakeBy(t)
}

// violated ends the session because of what side s sent. Nothing after it has
// boundaries, so its own Close frame can no longer be told from the rest and is
// not waited for.
func (p *policy) violated(s side, err error, now moment) {
	p.ends[s].inClosed = true
	reason, code := reasonFraming[s], frame.CodeProtocol
	switch err {
	case frame.ErrTooBig:
		reason, code = reasonTooBig[s], frame.CodeTooBig
	case errEncoding:
		reason, code = reasonText[s], frame.CodeInvalid
	}
	p.because(reason, code)
	p.closeWith(s, Closing{code, err.Error()}, now)
	p.closeWith(s.other(), Closing{frame.CodeGoingAway, ""}, now)
	p.shaken(s, now)
}

// shaken sees to side s once a Close frame has passed both ways. The server
// closes first (RFC 6455, section 7.1.1): towards the client that is us;
// the upstream is given the time to do it, which also leaves the TIME_WAIT to it.
func (p *policy) shaken(s side, now moment) {
	e := &p.ends[s]
	if !e.inClosed || !e.flushed {
		return
	}
	e.sliding = false
	p.stopBy(s, now+p.closeTimeout)
	if s == client {
		e.wantFIN = true
	}
	p.retire(s, now)
}

// eof notes that side s has shut its direction.
func (p *policy) eof(s side, now moment) {
	e, o := &p.ends[s], &p.ends[s.other()]
	e.eof = true
	e.deadline, e.frozen = 0, 0
	switch {
	case e.inClosed:
	case s == upstream:
		p.loseUpstream(farewell[upstream], now)
	case !o.shut() && o.closing == nil:
		// The client may still listen, so what the upstream has to say goes on.
		p.because(ClientGone, frame.CodeAbnormal)
		o.wantFIN, o.sliding = true, true
		p.stopBy(upstream, now+p.closeTimeout)
	}
	p.retire(s, now)
}

// loseUpstream tells the client in those words that its upstream is no more.
func (p *policy) loseUpstream(c Closing, now moment) {
	p.blame(upstream, UpstreamGone, c.Code, now)
	p.ends[client].forwarded = false
	p.closeWith(client, c, now)
}

// blame notes that the session ends because of side s, unless the client had
// left before, and nobody has come to read that yet.
func (p *policy) blame(s side, r Reason, code int, now moment) {
	if s == upstream && p.hasLeft(client, now) {
		p.because(ClientGone, frame.CodeAbnormal)
	}
	p.because(r, code)
}

// deafened notes that writing to side s has failed. What it sent before may
// still be there to be read, its Close frame above all, so reading goes on to
// the end.
func (p *policy) deafened(s side, now moment) {
	e := &p.ends[s]
	if e.gone {
		return
	}
	p.listen(s, now)
	e.wantPing, e.closing, e.deaf = false, nil, true
	e.outClosed, e.flushed, e.finSent = true, true, true
	e.sliding = false
	p.stopBy(s, now+p.closeTimeout)
	p.retire(s, now)
}

// lost gives up side s: its connection is to be closed as it is. An engine
// calls it when reading has failed.
func (p *policy) lost(s side, now moment) {
	p.abandon(s, farewell[upstream], now)
}

// giveUp gives up side s, which has not done in time what it was waited for.
func (p *policy) giveUp(s side, now moment) {
	if p.ends[s].deaf {
		p.lost(s, now)
		return
	}
	p.abandon(s, noAnswer[upstream], now)
}

// abandon closes the connection of side s as it is. If that is the upstream's, and it
// took no leave, the client is told in those words.
func (p *policy) abandon(s side, words Closing, now moment) {
	if p.ends[s].gone {
		return
	}
	if s == upstream && !p.ends[s].inClosed {
		p.loseUpstream(words, now)
	} else {
		p.because(reasonGone[s], frame.CodeAbnormal)
	}
	p.leave(s, now)
}

// retire closes side s when neither direction has anything left to do.
func (p *policy) retire(s side, now moment) {
	e := &p.ends[s]
	if !e.gone && e.eof && !e.unsent && (e.finSent || e.outClosed && e.flushed) {
		p.leave(s, now)
	}
}

// leave has the connection of side s closed. The other side is shut, too, unless it is
// told so by a Close frame, and what it may still send has nowhere to go.
func (p *policy) leave(s side, now moment) {
	e, o := &p.ends[s], &p.ends[s.other()]
	p.listen(s, now)
	e.gone = true
	o.sliding = false
	if o.shut() || o.closing != nil {
		return
	}
	o.wantFIN = true
	p.stopBy(s.other(), now+p.closeTimeout)
}
