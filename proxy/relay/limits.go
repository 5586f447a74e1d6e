package relay

import (
	"time"

	"portcullis/proxy/frame"
)

// limits are what a client may send per session and second. They are held by
// the generic cell rate algorithm (ITU-T I.371), which is a token bucket in one
// number: the moment at which all that was taken so far would have been due at the
// sustained rate. How far that lies ahead of now is how much of the burst is used up.
type limits struct {
	perMessage moment // what one message takes; 0: no limit
	burst      moment // of messages
	perByte    float64
	byteBurst  moment // one second's worth, whatever the rate
	throttle   bool
}

func newLimits(c Config) (l limits) {
	if c.MessageRate > 0 {
		l.perMessage = moment(float64(time.Second) / c.MessageRate)
		l.burst = l.perMessage * moment(c.MessageBurst)
	}
	if c.MessageByteRate > 0 {
		l.perByte = float64(time.Second) / c.MessageByteRate
		l.byteBurst = moment(time.Second)
	}
	if l.throttle = c.LimitAction == "throttle"; l.throttle {
		// What falls due while a coarse clock sleeps must fit into the burst, or
		// the clock would be the limit.
		l.burst += wheelTick
	}
	return l
}

// meter is how much a client has taken of its limits.
type meter struct {
	messages, bytes moment
	until           moment // it is not read before that; 0: it is
}

// counted reports whether a frame counts as a message. Control frames do, for
// they cost as much, and so do small continuation frames, or a client would
// cut its messages into crumbs.
func counted(h frame.Header) bool {
	return h.Opcode != frame.Continuation || h.Length < 126
}

// admit reports whether what is at the start of b, a frame or more of the
// payload of one, may be taken from the client now. If not, it is to be let
// wait; where limits close, the session is ending then and the answer is yes.
func (p *policy) admit(b []byte, now moment) bool {
	if p.perMessage > 0 && !p.peers[client].reading.frames.Inside() {
		h, size, err := frame.Parse(b)
		if size > 0 && err == nil && counted(h) {
			over := max(p.meter.messages, now) + p.perMessage - p.burst - now
			if over > 0 {
				return p.exceeded(now+over, now)
			}
		}
	}
	// Inside a frame, too, or one without an end would have no limit.
	if over := p.meter.bytes - p.byteBurst - now; p.perByte > 0 && over > 0 {
		return p.exceeded(now+over, now)
	}
	return true
}

// take charges a part that was admitted.
func (p *policy) take(part frame.Part, now moment) {
	if p.perMessage > 0 && (part.Starts || part.Control) && counted(part.Header) {
		p.meter.messages = max(p.meter.messages, now) + p.perMessage
	}
	if p.perByte > 0 {
		p.meter.bytes = max(p.meter.bytes, now) + moment(float64(part.Payload)*p.perByte)
	}
}

// exceeded ends the session, or has the client wait until then.
func (p *policy) exceeded(until, now moment) bool {
	if p.reason != "" {
		return true // it is ending, and its Close frame is to be found
	}
	if p.limits.throttle {
		// A pause is worth its price: else it would end for every few bytes.
		p.meter.until = max(until, now+wheelTick/2)
		p.wakeBy(p.meter.until)
		return false
	}
	if c := &p.peers[client]; c.reading.frames.Inside() {
		c.reading.closed = true // the rest of the frame is not waited for: it may be all that there is
	}
	p.rateExceeded(client, "message rate", now)
	return true
}

// rateExceeded ends the session because of how much side s sends.
func (p *policy) rateExceeded(s side, what string, now moment) {
	p.setReason(reasonRate[s], frame.CodePolicy)
	p.endResumption(now)
	p.peers[client].end.slides, p.peers[upstream].end.slides = false, false
	p.closeWith(s, Closing{frame.CodePolicy, what}, now)
	p.closeWith(s.other(), Closing{frame.CodeGoingAway, ""}, now)
}

// hollowEvery and hollowBurst bound the hollow frames of either side, whatever
// MESSAGE_RATE says: 500 a second, 5,000 at once. A flood of them takes a
// processor, ours and the peer's, and carries nothing. No honest peer comes
// near: what pings most often is a game that does so at each of its ticks, at most 128
// a second, and of those the burst holds what piles up in 39 s on a stalled path. At
// the limit a session costs no more than one of 500 messages a second.
const (
	hollowEvery = moment(time.Second) / 500
	hollowBurst = 5000 * hollowEvery
)

// hollow reports whether a part is a frame that carries nothing: a ping, a
// pong, or a data frame without payload. The empty last frame of a message is
// none: libraries that write before they know what comes next end every message with
// one, and there is no more than one to each first frame, which has payload or is
// hollow itself. Fragments with a byte of payload are none either: to some servers
// every write is one, and who would flood with them can do so with messages.
func hollow(part frame.Part) bool {
	h := part.Header
	if part.Control {
		return h.Opcode != frame.Close
	}
	return part.Starts && h.Length == 0 && !(h.Opcode == frame.Continuation && h.Fin)
}

// chargeHollow charges a hollow frame of side s. Where it is one too many, it ends
// the session and reports false.
func (p *policy) chargeHollow(s side, now moment) bool {
	e := &p.peers[s]
	due := max(e.reading.hollow, now) + hollowEvery
	if due > now+hollowBurst {
		p.rateExceeded(s, "too many control or empty frames", now)
		return false
	}
	e.reading.hollow = due
	return true
}

// throttled reports whether side s is not to be read now because of its rate.
func (p *policy) throttled(s side) bool { return s == client && p.meter.until != 0 }

// readLimit bounds how much is read from side s at once, so that a byte rate
// is not overdrawn by a buffer's worth of it.
func (p *policy) readLimit(s side, now moment) int {
	const whole, least = 1 << 30, 512
	if p.resumes() {
		return p.resumeRoom(s)
	}
	if s != client || p.perByte == 0 || !p.limits.throttle {
		return whole
	}
	room := now + p.byteBurst - max(p.meter.bytes, now)
	return int(min(max(float64(room)/p.perByte, least), whole))
}

// thaw has a throttled client read again when its time has come, or when the
// session ends: then its Close frame is waited for.
func (p *policy) thaw(now moment) {
	if p.meter.until == 0 {
		return
	}
	if now < p.meter.until && p.reason == "" {
		p.wakeBy(p.meter.until)
		return
	}
	p.meter.until = 0
	p.peers[client].reading.heard = now
	p.resumeDeadline(client, now)
}
