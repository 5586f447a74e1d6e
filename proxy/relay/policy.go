package relay

import (
	"time"

	"portcullis/proxy/frame"
)

// moment is a point in time, as the time since the process began relaying. It
// is a third of a time.Time in size, and of those a session keeps many. Zero
// means never.
type moment = time.Duration

// never is later than every other moment.
const never = moment(1<<63 - 1)

// side is one of the two peers of a session.
type side uint8

const (
	client side = iota
	upstream
)

func (s side) other() side { return 1 - s }

// speaks is the role in which we speak to a side: to the upstream we are the client.
func (s side) speaks() frame.Role {
	if s == upstream {
		return frame.Client
	}
	return frame.Server
}

// policy is what a session does, and when: it follows the frames of both
// directions, counts and limits them, keeps the heartbeat, and brings the
// session to an end. It does no I/O and has no clock. An engine shows it bytes
// as they arrive (receive, transmit), tells it what became of them (written,
// eof, lost) and calls tick when wake has come; it asks for frames to insert
// (insertion), and which sides to half-close (takeFIN) and to close (gone).
// Before a peer is given up the policy asks it for what the kernel knows (delivery).
//
// It is not safe for concurrent use.
type policy struct {
	*rules
	scan    *[2]frame.Rules // what each side must obey, by the extensions of this session
	ends    [2]end
	wake    moment // when tick must be called at the latest; it only ever moves closer between two ticks
	started moment
	active  moment // when a message last ended, or came on by activeBytes
	payload int64  // of data frames that came since then, from either side
	meter   meter  // of what the client may send
	kernel  kernel // asked before a peer is given up
	nonce   uint64 // our pings carry nonce+1, nonce+2, ...
	reason  Reason // why the session ends; empty while it does not
	code    int
}

// end is one side of a session: what its peer sends us (in) and what we send
// it (out).
type end struct {
	in      frame.Scanner
	out     *outgoing // terminating only
	text    *text     // of what the peer sends; terminating only
	carry   []byte    // an incomplete header or control frame, until the rest of it comes
	traffic Traffic   // what the peer has sent
	hollow  moment    // the meter of its hollow frames; see limits.go
	heard   moment    // when bytes last came, or when we began to listen again

	// Heartbeat.
	pings    uint64 // how many of ours went out
	wantPing bool   // one of ours is due at the next boundary
	pinging  bool   // it has been handed out, but not all of it has been written
	deadline moment // by when a byte must come in answer to it; 0: none is awaited
	frozen   moment // what was left until then, while we do not listen
	appPing  moment // when the first ping of the other side since the last byte passed; 0: none has

	// What the kernel told when the peer was about to be given up; see look.
	acked     uint64 // bytes that it had acknowledged
	moved     moment // when it last acknowledged any
	target    uint64 // with how many our ping has been delivered; 0: not asked since the last byte
	delivered bool   // it has been

	// The end.
	closing   *Closing // the Close frame that is due at the next boundary; nil: none
	outClosed bool     // a Close frame has been handed out: nothing more is, RFC 6455 section 5.5.1
	flushed   bool     // and written
	forwarded bool     // it was the other side's own
	inClosed  bool     // the peer has sent its Close frame, or broken the framing: nothing more of it is read
	unsent    bool     // bytes handed out for this side have not all been written
	since     moment   // when they were handed out
	taken     moment   // when the peer last took any of them
	wantFIN   bool     // our direction is to be shut once all has been written
	finSent   bool     //
	eof       bool     // the peer has shut its direction
	left      moment   // when that, or that it has broken off, was seen while it was not read; 0: it was not
	spill     moment   // the meter of its bytes that lead nowhere
	sated     moment   // it is not read before that, for there were enough of them; 0: it is
	deaf      bool     // writing to it has failed
	gone      bool     // the connection is to be closed, or was
	cutAt     moment   // when it is cut if nothing comes of it; 0: never
	sliding   bool     // every byte from the peer moves that back
}

// outgoing follows what goes out to a side when terminating: not what came in
// at the other.
type outgoing struct {
	frame.Scanner
	queue []byte // control frames of the other side, to be sent on
}

func (p *policy) start(r *rules, scan *[2]frame.Rules, k kernel, nonce uint64, now moment) {
	*p = policy{rules: r, scan: scan, kernel: k, nonce: nonce, started: now, active: now, wake: never}
	for s := range p.ends {
		p.ends[s].heard = now
		if r.terminate {
			p.ends[s].out, p.ends[s].text = new(outgoing), new(text)
		}
	}
	p.tick(now)
}

// carried moves what receive could not use last time to the front of buf, and
// returns its length: the next read goes behind it. It is never more than
// frame.MaxControl bytes.
func (p *policy) carried(s side, buf []byte) int {
	e := &p.ends[s]
	n := copy(buf, e.carry)
	e.carry = e.carry[:0]
	return n
}

// receive takes bytes that came from side s. It returns out, what is to be
// written to the other side, and rest, which must be shown to it again after
// out, and then what insertion gives, have been handed over, and s is not
// held any more. Both alias b, which is overwritten.
//
// When terminating, out goes to the library instead, and holds data frames only.
func (p *policy) receive(s side, b []byte, now moment) (out, rest []byte) {
	from, to := &p.ends[s], &p.ends[s.other()]
	p.heard(s, now)
	limited := s == client && (p.perMessage > 0 || p.perByte > 0)
	n := 0 // how much of b goes on; it stands at its start
	for at := 0; at < len(b) && !from.inClosed; {
		if limited {
			if p.terminate && n > 0 || !p.admit(b[at:], now) {
				// What came before it must be through the library first, or the
				// client is to wait.
				rest = b[at:]
				break
			}
			if from.inClosed {
				break
			}
		}
		if !p.terminate && to.due() && !from.in.Inside() {
			rest = b[at:]
			break
		}
		in := from.in
		part, err := in.Next(b[at:], &p.scan[s])
		if p.terminate && err == nil {
			err = from.text.check(part, b[at:][part.Size-part.Payload:part.Size])
		}
		if err != nil {
			if p.terminate && n > 0 {
				rest = b[at:] // what came before it must be through the library first
				break
			}
			p.violated(s, err, now)
			break
		}
		from.in = in
		if part.Size == 0 {
			from.carry = append(from.carry, b[at:]...)
			break
		}
		if limited {
			p.take(part, now)
		}
		wire := b[at : at+part.Size]
		pass := true
		if hollow(part) && !to.shut() && !p.bears(s, now) {
			at += part.Size
			continue
		}
		if part.Control {
			if p.terminate && part.Header.Opcode == frame.Close && n > 0 {
				// What came before it must be through the library first.
				rest = b[at:]
				break
			}
			pass = p.control(s, part, wire, now)
		} else {
			from.traffic.Bytes += int64(part.Payload)
			if part.Message {
				from.traffic.Messages++
				from.sliding = from.sliding && !from.forwarded
			}
			p.carriedOn(part, now)
			pass = !to.shut()
		}
		if pass {
			if n != at {
				copy(b[n:], wire)
			}
			n += part.Size
		}
		at += part.Size
	}
	if n > 0 && !p.terminate {
		p.handedOut(s.other(), now)
	}
	if from.inClosed || to.shut() {
		p.spilled(s, len(b)-len(rest), now)
	}
	return b[:n], rest
}

// transmit takes what the terminating library writes to side s. It returns
// what is to be written, and the rest as receive does; it does not change b.
// Control frames of the library's own are dropped: those that matter were
// passed on by control.
func (p *policy) transmit(s side, b []byte, now moment) (out, rest []byte) {
	e := &p.ends[s]
	if e.shut() {
		return nil, nil
	}
	n := 0
	for n < len(b) {
		if e.due() && !e.out.Inside() {
			break
		}
		part, err := e.out.Next(b[n:], &p.plain[s.other()])
		if err != nil || part.Size == 0 {
			b = b[:n] // not whole frames: nothing that the library writes
			break
		}
		if part.Control {
			if n > 0 {
				break
			}
			b = b[part.Size:]
			continue
		}
		n += part.Size
	}
	if n > 0 {
		p.handedOut(s, now)
	}
	return b[:n], b[n:]
}

// control looks at a whole control frame from side s and reports whether it
// goes on to the other side as it is.
func (p *policy) control(s side, part frame.Part, wire []byte, now moment) (pass bool) {
	from, to := &p.ends[s], &p.ends[s.other()]
	var buf [frame.MaxControlPayload]byte
	payload := part.ControlPayload(buf[:0], wire)

	switch part.Header.Opcode {
	case frame.Close:
		code, reason, err := frame.ParseClose(payload)
		if err != nil {
			p.violated(s, err, now)
			return false
		}
		from.inClosed = true
		p.because(reasonClosed[s], code)
		p.shaken(s, now)
		if to.shut() {
			return false
		}
		to.forwarded = true
		if p.terminate {
			p.closeWith(s.other(), Closing{code, reason}, now)
			return false
		}
		to.outClosed = true
		p.stopBy(s.other(), now+p.closeTimeout)
		return true
	case frame.Ping:
		p.passedPing(s.other(), now)
	case frame.Pong:
		if p.answersOurs(s, payload) {
			return false
		}
	}
	if to.shut() {
		return false
	}
	if p.terminate {
		if to.closing == nil {
			to.out.enqueue(s.other(), part.Header.Opcode, payload)
		}
		return false
	}
	return true
}

// maxQueue bounds the control frames that wait for a side that takes nothing.
const maxQueue = 8 * frame.MaxControl

// enqueue keeps a control frame for the next boundary. When the queue is full
// the frame is dropped: a peer that floods another with pings is owed no answer to
// each (RFC 6455, section 5.5.3).
func (o *outgoing) enqueue(s side, op frame.Opcode, payload []byte) {
	if len(o.queue) < maxQueue {
		o.queue = frame.AppendControl(o.queue, s.speaks(), op, payload)
	}
}

// shut reports whether nothing more is handed out for this side.
func (e *end) shut() bool { return e.outClosed || e.wantFIN || e.gone }

// due reports whether a frame waits for the next boundary towards this side.
func (e *end) due() bool {
	return (e.wantPing || e.closing != nil || e.out != nil && len(e.out.queue) > 0) && !e.shut()
}

// inside reports whether what was handed out for side s ends inside a frame.
func (p *policy) inside(s side) bool {
	if p.terminate {
		return p.ends[s].out.Inside()
	}
	return p.ends[s.other()].in.Inside()
}

// wants reports whether the engine has something to do for side s: a frame to
// insert now, a direction to shut, a connection to close.
func (p *policy) wants(s side) bool {
	e := &p.ends[s]
	return e.gone || !e.unsent && (e.wantFIN && !e.finSent || e.due() && (!p.inside(s) || p.boundless(s)))
}

// boundless reports whether side s stands inside a frame whose rest can no
// longer come. (The terminating library always finishes a frame.)
func (p *policy) boundless(s side) bool {
	o := &p.ends[s.other()]
	return !p.terminate && p.inside(s) && (o.eof || o.gone || o.inClosed)
}

// insertion appends the frames that are to be written to side s now. It gives
// none inside a frame, and none before all that was handed out has been written.
func (p *policy) insertion(s side, b []byte, now moment) []byte {
	e := &p.ends[s]
	if e.unsent || !e.due() {
		return b
	}
	if p.boundless(s) {
		e.wantPing, e.closing, e.wantFIN = false, nil, true
		return b
	}
	if p.inside(s) {
		return b
	}
	before := len(b)
	if e.out != nil {
		b = append(b, e.out.queue...)
		e.out.queue = nil
	}
	if e.wantPing && e.closing == nil {
		b = p.appendPing(s, b)
	}
	e.wantPing = false
	if e.closing != nil {
		b = frame.AppendControl(b, s.speaks(), frame.Close, frame.ClosePayload(e.closing.Code, e.closing.Reason))
		e.closing, e.outClosed = nil, true
	}
	if len(b) > before {
		p.handedOut(s, now)
	}
	return b
}

// handedOut notes that bytes for side s are on their way. Until they are
// written the other side is not listened to, and its deadline stands still.
func (p *policy) handedOut(s side, now moment) {
	e, o := &p.ends[s], &p.ends[s.other()]
	if e.unsent {
		return
	}
	e.unsent, e.since, e.taken = true, now, now
	p.wakeBy(now + lookOut)
	if o.deadline != 0 {
		o.frozen, o.deadline = max(o.deadline-now, 1), 0
	}
}

// progress tells that some of what was handed out for side s has been written.
func (p *policy) progress(s side, now moment) { p.ends[s].taken = now }

// listen notes that nothing is on its way to side s any more, so that the
// other is listened to again.
func (p *policy) listen(s side, now moment) {
	e, o := &p.ends[s], &p.ends[s.other()]
	if !e.unsent {
		return
	}
	e.unsent = false
	o.heard = min(o.heard+now-e.since, now) // silence while we do not listen is none
	if p.pingInterval > 0 {
		p.wakeBy(o.heard + p.pingInterval)
	}
	p.unfreeze(s.other(), now)
}

// unfreeze has the deadline of side s run on.
func (p *policy) unfreeze(s side, now moment) {
	if e := &p.ends[s]; e.frozen != 0 {
		e.deadline, e.frozen = now+e.frozen, 0
		p.wakeBy(e.deadline)
	}
}

// written tells that all that was handed out for side s has been written.
func (p *policy) written(s side, now moment) {
	e, o := &p.ends[s], &p.ends[s.other()]
	if !e.unsent {
		return
	}
	p.listen(s, now)
	if e.pinging {
		e.pinging = false
		e.frozen = p.pongTimeout
		p.aim(s, now)
		if !p.unheard(s) {
			p.unfreeze(s, now)
		}
	}
	if e.outClosed && !e.flushed {
		e.flushed, e.spill, e.sated = true, 0, 0
		// The answer may have to wait for the end of the message that the
		// peer is sending (RFC 6455, section 5.5.1), and for nothing else.
		e.sliding = e.forwarded && e.in.InMessage()
		p.stopBy(s, now+p.closeTimeout)
		p.shaken(s, now)
		if s == client && (o.eof || o.gone) && !o.inClosed {
			e.wantFIN = true // the upstream broke off: there is no more to wait for
		}
	}
	p.retire(s, now)
}

// takeFIN reports, once, that our direction towards side s is to be shut now.
func (p *policy) takeFIN(s side, now moment) bool {
	e := &p.ends[s]
	if e.gone || !e.wantFIN || e.finSent || e.unsent {
		return false
	}
	e.finSent = true
	p.retire(s, now)
	return true
}

// over reports whether both connections are to be closed, or were.
func (p *policy) over() bool { return p.ends[client].gone && p.ends[upstream].gone }

// summary is what became of the session.
func (p *policy) summary(now moment) End {
	return End{
		Reason:       p.reason,
		Code:         p.code,
		Duration:     now - p.started,
		FromClient:   p.ends[client].traffic,
		FromUpstream: p.ends[upstream].traffic,
	}
}

// tick does what is due, and sets wake to when it must be called next.
func (p *policy) tick(now moment) {
	p.wake = never
	p.lifetime(now)
	p.watch(client, now)
	p.watch(upstream, now)
	p.thaw(now)
	for s := range side(2) {
		e := &p.ends[s]
		if e.gone {
			continue
		}
		if e.sliding && p.ends[s.other()].unsent {
			e.cutAt = now + p.closeTimeout // it cannot be heard while we do not listen
		}
		if e.cutAt != 0 && now >= e.cutAt {
			p.giveUp(s, now)
			continue
		}
		if e.cutAt != 0 {
			p.wakeBy(e.cutAt)
		}
		p.heartbeat(s, now)
	}
}

// activeBytes is how much payload is as good as the end of a message: a large one on a slow link is not idle. A byte now
// and then is, or a frame without an end would keep a session open for ever.
const activeBytes = 4 << 10

// carriedOn notes that a session is not idle, if a part of a data frame shows that.
func (p *policy) carriedOn(part frame.Part, now moment) {
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

func (p *policy) wakeBy(t moment) { p.wake = min(p.wake, t) }
