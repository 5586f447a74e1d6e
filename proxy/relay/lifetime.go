package relay

import "portcullis/proxy/frame"

// activeBytes is how much payload is as good as the end of a message: a large one on a slow link is not idle. A byte now
// and then is, or a frame without an end would keep a session open for ever.
const activeBytes = 4 << 10

// noteActivity notes that a session is not idle, if a part of a data frame shows that.
func (p *policy) noteActivity(part frame.Part, now moment) {
	if p.payload += int64(part.Payload); part.Message || p.payload >= activeBytes {
		p.active, p.payload = now, 0
	}
}

// lifetime ends a session that has been idle, or just open, for too long.
func (p *policy) lifetime(now moment) {
	if p.sessionMax > 0 {
		if now >= p.started+p.sessionMax {
			p.end(SessionLimit, Closing{frame.CodeGoingAway, "session limit"}, now)
			return
		}
		p.wakeBy(p.started + p.sessionMax)
	}
	if p.idleTimeout > 0 {
		if now >= p.active+p.idleTimeout {
			p.end(Idle, Closing{frame.CodeTimeout, "idle"}, now)
			return
		}
		p.wakeBy(p.active + p.idleTimeout)
	}
}
