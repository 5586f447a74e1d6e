package relay

import (
	"bytes"
	"encoding/json"
	"strconv"

	"portcullis/proxy/frame"
)

// message is one that a peer has begun.
type message struct {
	op      frame.Opcode
	payload []byte // so far, unmasked
	key     [4]byte
	at      int64 // bytes of the current frame's payload so far
}

// outbox is what a client gets: each message stays until it is acknowledged.
type outbox struct {
	kept   []kept
	base   uint64  // how many messages were acknowledged and are forgotten
	next   int32   // how many of kept were handed out, or had come, on this connection
	sent   int32   // how many of kept were ever handed out
	bytes  int     // what kept counts
	pushed *string // the id of the last push that is forgotten; nil: there was none
	missed bool    // NextPush may have more
}

// kept is a message for a client, and the push that it was. Nobody changes its bytes.
type kept struct {
	wire []byte
	push *Push
}

func (k *kept) cost() int { return len(k.wire) + messageCost }

// end is how many messages there were.
func (o *outbox) end() uint64 { return o.base + uint64(len(o.kept)) }

// written reports whether all has been handed out on this connection.
func (o *outbox) written() bool { return int(o.next) == len(o.kept) }

// inbox is what an upstream is still to get.
type inbox struct {
	queue     [][]byte // whole frames; nobody changes their bytes
	bytes     int      // what queue counts
	forwarded uint64   // how many messages of the client's have been written to the upstream

	ackSince     moment // when the first of those was that are not acknowledged on this connection; 0: there is none
	lastAck      moment // when any was sent
	unacked      int32  // how many have been since the last
	unackedBytes int32
	ackDue       bool // one is to be sent, even if it says nothing new
	writing      bool // the first of queue has been handed out
}

// accepted is how many messages of the client's were taken.
func (i *inbox) accepted() uint64 { return i.forwarded + uint64(len(i.queue)) }

// resumeFull reports whether side s is not read because there is no room for what it sends.
func (p *policy) resumeFull(s side) bool {
	r := p.resume
	switch {
	case !p.resumes() || r.clientClosed():
		return false
	case s == client:
		return !r.upstreamClosed() && r.up.bytes >= p.resumeRules.buffer
	}
	return r.down.bytes >= p.resumeRules.buffer+controlRoom
}

// resumeRoom is how much is read from side s at once.
func (p *policy) resumeRoom(s side) int {
	const least = 512
	if s == client {
		return max(p.resumeRules.buffer-p.resume.up.bytes, least)
	}
	return max(p.resumeRules.buffer+controlRoom-p.resume.down.bytes, least)
}

// collect takes bytes from side s of a resumable session: whole messages go to where they wait for the other side. rest must be
// shown to it again when the side is not held any more.
func (p *policy) collect(s side, b []byte, now moment) (rest []byte) {
	from := &p.peers[s]
	p.heard(s, now)
	for at := 0; at < len(b) && !from.reading.closed; {
		if p.held(s) {
			return b[at:]
		}
		part, err := from.reading.frames.Next(b[at:], &p.scan[s])
		if err != nil {
			p.violated(s, err, now)
			break
		}
		if part.Size == 0 {
			from.reading.partial = append(from.reading.partial, b[at:]...)
			break
		}
		wire := b[at : at+part.Size]
		at += part.Size
		if hollow(part) && !p.chargeHollow(s, now) {
			break
		}
		if part.Control {
			p.collectControl(s, part, wire, now)
		} else if p.resumes() {
			p.collectData(s, part, wire[part.Size-part.Payload:], now)
		}
	}
	if from.reading.closed || !p.resumes() {
		p.chargeDiscarded(s, len(b), now)
	}
	return nil
}

// collectControl looks at a control frame. None is passed on: each connection has its own heartbeat.
func (p *policy) collectControl(s side, part frame.Part, wire []byte, now moment) {
	from, r := &p.peers[s], p.resume
	payload := part.ControlPayload(nil, wire)
	switch part.Header.Opcode {
	case frame.Close:
		code, reason, err := frame.ParseClose(payload)
		if err != nil {
			p.violated(s, err, now)
			return
		}
		from.reading.closed = true
		switch {
		case !p.resumes():
			p.closeHandshakeDone(s, now)
			return
		case s == client:
			p.clientCloses(Closing{code, reason}, now)
			return
		}
		p.setReason(UpstreamClose, code)
		p.closeWith(upstream, Closing{code, reason}, now)
		p.closeHandshakeDone(upstream, now)
		p.keepClose(Closing{code, reason}, now)
	case frame.Ping:
		if payload == nil {
			payload = []byte{} // one to be answered
		}
		r.ensure().pong[s] = payload
	}
}

// collectData looks at a part of a data frame. Most are whole messages, and those are not copied here.
func (p *policy) collectData(s side, part frame.Part, payload []byte, now moment) {
	r := p.resume
	if s == client {
		r.heard = now
	}
	m := r.peek().partial[s]
	if m == nil && part.Message {
		if s == client {
			frame.Mask(part.Header.Key, 0, payload)
		}
		p.collectMessage(s, part.Header.Opcode, payload, now)
		return
	}
	if m == nil {
		m = new(message)
		r.ensure().partial[s] = m
	}
	if part.Starts {
		if part.Header.Opcode != frame.Continuation {
			m.op = part.Header.Opcode
		} else if s == client && counted(part.Header) && !p.charge(0, now) {
			return
		}
		m.key, m.at = part.Header.Key, 0
	}
	start := len(m.payload)
	m.payload = append(m.payload, payload...)
	if s == client {
		frame.Mask(m.key, m.at, m.payload[start:])
	}
	m.at += int64(len(payload))
	p.grow(len(payload))
	switch library := m.op == frame.Text && Reserved(m.payload); {
	case part.Message:
		p.forgetPartial(s)
		p.collectMessage(s, m.op, m.payload, now)
	case library && s == upstream:
		p.reservedFromUpstream(now)
	case library && len(m.payload) > libraryMax:
		p.violated(client, errLibrary, now)
	case !library:
		p.noteActivity(part, now)
	}
}

// collectMessage takes a whole message, which it copies if it keeps it.
func (p *policy) collectMessage(s side, op frame.Opcode, payload []byte, now moment) {
	library := op == frame.Text && Reserved(payload)
	switch {
	case library && s == upstream:
		p.reservedFromUpstream(now)
	case library && len(payload) > libraryMax:
		p.violated(client, errLibrary, now)
	case library:
		p.libraryMessage(payload[len(libraryPrefix):], now)
	default:
		p.active, p.payload = now, 0
		if s == client {
			p.accept(op, payload, now)
			return
		}
		p.peers[upstream].reading.traffic.add(payload)
		if !p.resume.clientClosed() {
			wire := make([]byte, 0, len(payload)+frame.MaxHeader-4)
			p.keep(kept{wire: frame.AppendMessage(wire, op, payload)}, now)
		}
	}
}

// reservedFromUpstream ends a session whose upstream sends what only the gate may.
func (p *policy) reservedFromUpstream(now moment) {
	p.setReason(UpstreamFraming, frame.CodeProtocol)
	p.endResumption(now)
	p.closeWith(upstream, Closing{frame.CodeProtocol, "a message must not begin as the gate's own do"}, now)
	p.closeWith(client, Closing{frame.CodeInternal, "the upstream sent a message that begins as the gate's own do"}, now)
}

func (t *Traffic) add(message []byte) {
	t.Messages++
	t.Bytes += int64(len(message))
}

// accept takes a whole message of the client's for the upstream.
func (p *policy) accept(op frame.Opcode, payload []byte, now moment) {
	r := p.resume
	r.tokens.show()
	r.owed, r.silences = 0, 0
	if r.upstreamClosed() {
		return // the upstream has gone: neither counted nor acknowledged
	}
	if !p.charge(len(payload), now) {
		return
	}
	p.peers[client].reading.traffic.add(payload)
	wire := frame.AppendMasked(make([]byte, 0, len(payload)+frame.MaxHeader), op, payload)
	r.up.queue = append(r.up.queue, wire)
	r.up.bytes += len(wire) + messageCost
	p.grow(len(wire) + messageCost)
}

// charge charges a message of the client's, or a crumb of one, to its rates. Where that is too much it reports false if the session
// ends, and else has the client wait.
func (p *policy) charge(size int, now moment) bool {
	l := &p.limits
	var over moment
	if l.perMessage > 0 {
		p.meter.messages = max(p.meter.messages, now) + l.perMessage
		over = p.meter.messages - l.burst - now
	}
	if l.perByte > 0 {
		before := p.meter.bytes - l.byteBurst - now
		p.meter.bytes = max(p.meter.bytes, now) + moment(float64(size)*l.perByte)
		if l.throttle {
			before = p.meter.bytes - l.byteBurst - now
		}
		over = max(over, before)
	}
	if over <= 0 {
		return true
	}
	p.exceeded(now+over, now)
	return p.resumes()
}

// keep keeps a message for the client.
func (p *policy) keep(k kept, now moment) {
	r := p.resume
	r.down.kept = append(r.down.kept, k)
	r.down.bytes += k.cost()
	p.grow(k.cost())
}

// forgetMessages forgets the messages for the client up to that number.
func (p *policy) forgetMessages(upTo uint64, now moment) {
	d := &p.resume.down
	if upTo <= d.base {
		return
	}
	n := int32(upTo - d.base)
	freed := 0
	for i := range d.kept[:n] {
		k := &d.kept[i]
		freed += k.cost()
		if k.push != nil && k.push.id != "" {
			d.pushed = &k.push.id
		}
		*k = kept{}
	}
	if d.kept = d.kept[n:]; len(d.kept) == 0 {
		d.kept = nil
	}
	d.base, d.bytes = upTo, d.bytes-freed
	d.next, d.sent = max(d.next-n, 0), max(d.sent-n, 0)
	p.grow(-freed)
	if d.bytes < p.resumeRules.buffer+controlRoom && d.bytes+freed >= p.resumeRules.buffer+controlRoom {
		p.readAgain(upstream, now)
	}
}

// readAgain notes that a side is read again that was not for lack of room: its silence meanwhile means nothing.
func (p *policy) readAgain(s side, now moment) {
	e := &p.peers[s]
	e.reading.heard = now
	if e.ping.state == pingAwaited {
		e.ping.deadline = max(e.ping.deadline, now+p.pongTimeout)
	}
}

// forgetQueue forgets what the upstream was to get, but for what it is getting.
func (p *policy) forgetQueue() {
	u := &p.resume.up
	p.grow(-u.bytes)
	u.queue, u.bytes, u.writing = nil, 0, false
}

// forgetPartial forgets what a side has begun to send.
func (p *policy) forgetPartial(s side) {
	r := p.resume
	if m := r.peek().partial[s]; m != nil {
		p.grow(-len(m.payload))
		r.transient.partial[s] = nil
		r.tidy()
	}
}

// grow counts what the session holds.
func (p *policy) grow(n int) { p.resumeRules.budget.add(n) }

// resumeDue reports whether something of a resumable session's is to be written to side s.
func (p *policy) resumeDue(s side) bool {
	if !p.resumes() || p.peers[s].shut() {
		return false
	}
	r := p.resume
	if r.peek().pong[s] != nil {
		return true
	}
	if s == upstream {
		return len(r.up.queue) > 0
	}
	return r.detachedAt == 0 && (r.peek().own != nil || r.up.ackDue || !r.down.written() && !r.clientClosed())
}

// resumeInsertion returns what is to be written to side s next. Nobody changes it.
func (p *policy) resumeInsertion(s side, now moment) (b []byte) {
	r := p.resume
	switch i := r.peek(); {
	case i.pong[s] != nil:
		b = frame.AppendControl(nil, s.role(), frame.Pong, i.pong[s])
		i.pong[s] = nil
	case s == upstream:
		r.up.writing = true
		b = r.up.queue[0]
	case i.own != nil:
		b, i.own = i.own, nil
		r.credit++
	case r.up.ackDue:
		b = p.acknowledgement(now)
		r.credit++
	default:
		k := &r.down.kept[r.down.next]
		r.down.next++
		r.down.sent = max(r.down.sent, r.down.next)
		r.credit++
		if b = k.wire; k.push != nil && k.push.id != "" && r.owner.Markers() {
			b = append(bytes.Clone(b), libraryFrame(`{"push":`+strconv.Quote(k.push.id)+`}`)...)
		}
	}
	r.tidy()
	p.beginWrite(s, now)
	if s == client && r.owed == 0 { // each is to be answered, by an acknowledgement at the latest
		r.owed = now
		p.wakeBy(now + 2*p.resumeRules.beat)
	}
	return b
}

// acknowledgement is the next one for the client.
func (p *policy) acknowledgement(now moment) []byte {
	u := &p.resume.up
	u.unacked, u.unackedBytes, u.ackSince, u.lastAck, u.ackDue = 0, 0, 0, now, false
	p.wakeBy(now + p.resumeRules.beat)
	return libraryFrame(`{"ack":` + strconv.FormatUint(u.forwarded, 10) + `}`)
}

// Reserved reports whether the text of a message begins as those of the gate and the client's library do.
func Reserved(text []byte) bool { return bytes.HasPrefix(text, []byte(libraryPrefix)) }

// libraryFrame is a message of ours to the client's library, as a frame.
func libraryFrame(text string) []byte {
	return frame.AppendMessage(nil, frame.Text, []byte(libraryPrefix+text))
}

// LibraryMessage is a message to the library of a client, as a frame. Its text is JSON.
func LibraryMessage(text []byte) []byte { return libraryFrame(string(text)) }

// resumeWritten notes that what was handed out for side s has been written.
func (p *policy) resumeWritten(s side, now moment) {
	if !p.resumes() {
		return
	}
	r := p.resume
	if s == client {
		if r.state == unresumable {
			p.forgetMessages(r.down.base+uint64(r.down.next), now)
		}
	} else if u := &r.up; u.writing {
		size := len(u.queue[0])
		u.queue[0] = nil
		if u.queue = u.queue[1:]; len(u.queue) == 0 {
			u.queue = nil
		}
		u.writing = false
		u.forwarded++
		u.bytes -= size + messageCost
		p.grow(-size - messageCost)
		u.unacked++
		u.unackedBytes += int32(min(size, ackBytes))
		if u.ackSince == 0 {
			u.ackSince = now
			p.wakeBy(now + ackDelay)
		}
		u.ackDue = u.ackDue || u.unacked >= ackMessages || int(u.unackedBytes) >= min(ackBytes, p.resumeRules.buffer/4)
	}
	p.advance(now)
}

// What ends a session because of its client's library.
const (
	errLibrary   = frame.Error("unknown or malformed message of the client library")
	errNeverSent = frame.Error("acknowledgement of what was never sent")
)

// libraryMessage takes a message of the client's library, without its prefix.
func (p *policy) libraryMessage(text []byte, now moment) {
	r := p.resume
	r.tokens.show()
	r.owed = 0
	if r.credit > 0 {
		r.credit--
	} else if r.meter = max(r.meter, now) + libraryEvery; r.meter > now+libraryBurst {
		p.rateExceeded(client, "too many library messages", now)
		return
	}
	var m map[string]json.RawMessage
	n, err := uint64(0), json.Unmarshal(text, &m)
	if err == nil {
		n, err = strconv.ParseUint(string(m["ack"]), 10, 64)
	}
	if err != nil || len(m) != 1 {
		p.violated(client, errLibrary, now)
		return
	}
	switch {
	case r.state == unresumable, n <= r.down.base:
	case n > r.down.base+uint64(r.down.next):
		p.violated(client, errNeverSent, now)
	default:
		r.silences = 0
		p.forgetMessages(n, now)
		r.credit = min(r.credit, r.down.next+64)
		p.advance(now)
	}
}

// pushResumable keeps a push for the client of a resumable session; nil: what it has missed.
func (p *policy) pushResumable(m *Push, now moment) Reach {
	r := p.resume
	switch {
	case m == nil:
		r.down.missed = true
		p.pullMissed(now)
		return Reach{Reached: 1}
	case r.down.bytes >= p.resumeRules.buffer:
		if r.detachedAt != 0 {
			p.end(DetachedEvicted, Closing{frame.CodeGoingAway, "the client did not come back"}, now)
		}
		return Reach{Full: 1}
	}
	p.keep(kept{m.wire[:m.message], m}, now)
	return Reach{Reached: 1}
}

// pullMissed keeps the next of what the client has missed, when nothing else waits for it.
func (p *policy) pullMissed(now moment) {
	r := p.resume
	if !r.down.missed || r.detachedAt != 0 || !r.down.written() || r.down.bytes >= p.resumeRules.buffer || p.reason != "" {
		return
	}
	if m := r.owner.NextPush(); m != nil {
		p.keep(kept{m.wire[:m.message], m}, now)
	} else {
		r.down.missed = false
	}
}
