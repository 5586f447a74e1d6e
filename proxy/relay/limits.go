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
	if p.perMessage > 0 && !p.ends[client].in.Inside() {
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
	if c := &p.ends[client]; c.in.Inside() {
		c.inClosed = true // the rest of the frame is not waited for: it may be all that there is
	}
	p.because(ClientRate, frame.CodePolicy)
	p.closeWith(client, Closing{frame.CodePolicy, "message rate"}, now)
	p.closeWith(upstream, Closing{frame.CodeGoingAway, ""}, now)
	return true
}

// throttled reports whether side s is not to be read now.
func (p *policy) throttled(s side) bool { return s == client && p.meter.until != 0 }

// allowance bounds how much is read from side s at once, so that a byte rate
// is not overdrawn by a buffer's worth of it.
func (p *policy) allowance(s side, now moment) int {
	const whole, least = 1 << 30, 512
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
	p.ends[client].heard = now
	p.unfreeze(client, now)
}
