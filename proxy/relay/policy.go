package relay

import (
	"slices"
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

// role is the role in which we speak to a side: to the upstream we are the client.
func (s side) role() frame.Role {
	if s == upstream {
		return frame.Client
	}
	return frame.Server
}

// policy is what a session does, and when: it follows the frames of both
// directions, counts and limits them, keeps the heartbeat, and brings the
// session to an end. It does no I/O and has no clock. An engine shows it bytes
// as they arrive (receive, transmit), tells it what became of them (endWrite,
// eof, readFailed) and calls tick when wake has come; it asks for frames to insert
// (insertion), and which sides to half-close (takeFIN) and to close (gone).
// Before a peer is given up the policy asks it for what the kernel knows (delivery).
//
// It is not safe for concurrent use.
type policy struct {
	*Rules
	scan    *[2]frame.Rules // what each side must obey, by the extensions of this session
	peers   [2]peer
	wake    moment // when tick must be called at the latest; it only ever moves closer between two ticks
	started moment
	active  moment      // when a message last ended, or came on by activeBytes
	payload int64       // of data frames that came since then, from either side
	meter   meter       // of what the client may send
	pushes  *pushes     // to the client; nil: none wait
	resume  *resumption // nil: the session ends with its client's connection
	kernel  kernel      // asked before a peer is given up
	nonce   uint64      // our pings carry nonce+1, nonce+2, ...
	reason  Reason      // why the session ends; empty while it does not
	code    int
}

// peer is one side of a session, in states that can be copied: what it sends, what is sent to it, its heartbeat, and its end.
type peer struct {
	reading reading
	writing writing
	ping    heartbeat
	ack     acknowledged
	end     closeState
}

// reading is what a peer sends.
type reading struct {
	frames  frame.Scanner
	text    *text   // terminating only
	partial []byte  // an incomplete header or control frame, until the rest of it comes
	traffic Traffic // what it has sent
	hollow  moment  // the meter of its hollow frames; see limits.go
	heard   moment  // when bytes last came, or when reading began again

	closed      bool   // it has sent its Close frame, or broken the framing: nothing more of it is read
	eof         bool   // it has shut its direction
	left        moment // when that, or that it has broken off, was seen while it was not read; 0: it was not
	discarded   moment // the meter of its bytes that lead nowhere
	pausedUntil moment // it is not read before that, for too many were discarded; 0: it is
}

// writing is what is sent to a peer.
type writing struct {
	library  *outgoing // terminating only
	pending  bool      // bytes handed out for it have not all been written
	start    moment    // when they were handed out
	progress moment    // when it last took any of them
	failed   bool      // writing to it has failed
}

// heartbeat is our pings to a peer, and its answers.
type heartbeat struct {
	sent     uint64 // how many of ours went out
	state    pingState
	deadline moment // pingAwaited: by when a byte must come; pingPaused: how long is left from when the peer is read again
	appPing  moment // when the first ping of the other side since the last byte passed; 0: none has
}

// pingState is how far a ping of ours has come. Any byte from the peer, or a ping of the application to it, begins anew.
type pingState uint8

const (
	noPing      pingState = iota // none is under way
	pingDue                      // it goes out at the next boundary
	pingWriting                  // it has been handed out, and not all of it has been written
	pingAwaited                  // an answer must come before the deadline
	pingPaused                   // the same, but the peer is not read: the deadline stands still
)

// leave changes the state where it is one of those.
func (h *heartbeat) leave(states ...pingState) {
	if slices.Contains(states, h.state) {
		h.state = noPing
	}
}

// acknowledged is what the kernel last said of a peer; see queryKernel.
type acknowledged struct {
	bytes     uint64 // that it had acknowledged
	last      moment // when it last acknowledged any
	target    uint64 // with how many our ping has been delivered; 0: not asked since the last byte
	delivered bool   // it has been
}

// closeState is how far the close of a peer has come. The Close frame may be missing, and so may the FIN: whoever closes the
// connection need not shut it before.
type closeState struct {
	closing   closingState
	fin       finState
	forwarded bool     // the Close frame was the other side's own
	gone      bool     // the connection is to be closed, or was
	slides    bool     // every byte from the peer moves cutAt back
	frame     *Closing // closeDue: what it says
	cutAt     moment   // when it is cut if nothing comes of it; 0: never
}

// closingState is how far our Close frame to a peer has come.
type closingState uint8

const (
	notClosing   closingState = iota
	closeDue                  // it goes out at the next boundary
	closeWriting              // it has been handed out: nothing more is (RFC 6455, section 5.5.1)
	closeSent                 // it has been written, or never will be
)

// finState is how far the end of our direction to a peer has come.
type finState uint8

const (
	noFIN   finState = iota
	finDue           // the direction is to be shut once all has been written
	finSent          // it has been, or never will be
)

// outgoing follows what goes out to a side when terminating: not what came in
// at the other.
type outgoing struct {
	frame.Scanner
	queue []byte // control frames of the other side, to be sent on
}

func (p *policy) start(r *Rules, scan *[2]frame.Rules, k kernel, nonce uint64, now moment) {
	*p = policy{Rules: r, scan: scan, kernel: k, nonce: nonce, started: now, active: now, wake: never}
	for s := range p.peers {
		p.peers[s].reading.heard = now
		if r.terminate {
			p.peers[s].writing.library, p.peers[s].reading.text = new(outgoing), new(text)
		}
	}
	p.tick(now)
}

// takePartial moves what receive could not use last time to the front of buf, and
// returns its length: the next read goes behind it. It is never more than
// frame.MaxControl bytes.
func (p *policy) takePartial(s side, buf []byte) int {
	e := &p.peers[s]
	n := copy(buf, e.reading.partial)
	e.reading.partial = e.reading.partial[:0]
	return n
}

// receive takes bytes that came from side s. It returns out, what is to be
// written to the other side, and rest, which must be shown to it again after
// out, and then what insertion gives, have been handed over, and s is not
// held any more. Both alias b, which is overwritten.
//
// When terminating, out goes to the library instead, and holds data frames only.
func (p *policy) receive(s side, b []byte, now moment) (out, rest []byte) {
	if p.resume != nil {
		return nil, p.collect(s, b, now)
	}
	from, to := &p.peers[s], &p.peers[s.other()]
	p.heard(s, now)
	limited := s == client && (p.perMessage > 0 || p.perByte > 0)
	n := 0 // how much of b goes on; it stands at its start
	for at := 0; at < len(b) && !from.reading.closed; {
		if limited {
			if p.terminate && n > 0 || !p.admit(b[at:], now) {
				// What came before it must be through the library first, or the
				// client is to wait.
				rest = b[at:]
				break
			}
			if from.reading.closed {
				break
			}
		}
		if !p.terminate && (to.due() && !from.reading.frames.Inside() || p.pushDue(s.other()) && !p.inMessage(s.other())) {
			rest = b[at:]
			break
		}
		in := from.reading.frames
		part, err := in.Next(b[at:], &p.scan[s])
		if p.terminate && err == nil {
			err = from.reading.text.check(part, b[at:][part.Size-part.Payload:part.Size])
		}
		if err != nil {
			if p.terminate && n > 0 {
				rest = b[at:] // what came before it must be through the library first
				break
			}
			p.violated(s, err, now)
			break
		}
		from.reading.frames = in
		if part.Size == 0 {
			from.reading.partial = append(from.reading.partial, b[at:]...)
			break
		}
		if limited {
			p.take(part, now)
		}
		wire := b[at : at+part.Size]
		pass := true
		if hollow(part) && !to.shut() && !p.chargeHollow(s, now) {
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
			from.reading.traffic.Bytes += int64(part.Payload)
			if part.Message {
				from.reading.traffic.Messages++
				from.end.slides = from.end.slides && !from.end.forwarded
			}
			p.noteActivity(part, now)
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
		p.beginWrite(s.other(), now)
	}
	if from.reading.closed || to.shut() {
		p.chargeDiscarded(s, len(b)-len(rest), now)
	}
	return b[:n], rest
}

// transmit takes what the terminating library writes to side s. It returns
// what is to be written, and the rest as receive does; it does not change b.
// Control frames of the library's own are dropped: those that matter were
// passed on by control.
func (p *policy) transmit(s side, b []byte, now moment) (out, rest []byte) {
	e := &p.peers[s]
	if e.shut() {
		return nil, nil
	}
	n := 0
	for n < len(b) {
		if e.due() && !e.writing.library.Inside() || p.pushDue(s) && !p.inMessage(s) {
			break
		}
		part, err := e.writing.library.Next(b[n:], &p.plain[s.other()])
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
		p.beginWrite(s, now)
	}
	return b[:n], b[n:]
}

// control looks at a whole control frame from side s and reports whether it
// goes on to the other side as it is.
func (p *policy) control(s side, part frame.Part, wire []byte, now moment) (pass bool) {
	from, to := &p.peers[s], &p.peers[s.other()]
	var buf [frame.MaxControlPayload]byte
	payload := part.ControlPayload(buf[:0], wire)

	switch part.Header.Opcode {
	case frame.Close:
		code, reason, err := frame.ParseClose(payload)
		if err != nil {
			p.violated(s, err, now)
			return false
		}
		from.reading.closed = true
		p.setReason(reasonClosed[s], code)
		p.closeHandshakeDone(s, now)
		if to.shut() {
			return false
		}
		to.end.forwarded = true
		if p.terminate {
			p.closeWith(s.other(), Closing{code, reason}, now)
			return false
		}
		to.end.closing = closeWriting
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
		if to.end.closing != closeDue {
			to.writing.library.enqueue(s.other(), part.Header.Opcode, payload)
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
		o.queue = frame.AppendControl(o.queue, s.role(), op, payload)
	}
}

// shut reports whether nothing more is handed out for this side.
func (e *peer) shut() bool { return e.end.closing >= closeWriting || e.end.fin != noFIN || e.end.gone }

// setFIN has our direction shut once all has been written, unless it has been.
func (e *peer) setFIN() { e.end.fin = max(e.end.fin, finDue) }

// due reports whether a frame waits for the next boundary towards this side.
func (e *peer) due() bool {
	return (e.ping.state == pingDue || e.end.closing == closeDue || e.writing.library != nil && len(e.writing.library.queue) > 0) && !e.shut()
}

// inside reports whether what was handed out for side s ends inside a frame.
func (p *policy) inside(s side) bool {
	switch {
	case p.resume != nil:
		return false // whole messages are handed out
	case p.terminate:
		return p.peers[s].writing.library.Inside()
	}
	return p.peers[s.other()].reading.frames.Inside()
}

// wants reports whether the engine has something to do for side s: a frame to
// insert now, a direction to shut, a connection to close.
func (p *policy) wants(s side) bool {
	e := &p.peers[s]
	return e.end.gone || !e.writing.pending && (e.end.fin == finDue || e.due() && (!p.inside(s) || p.frameNeverEnds(s)) ||
		p.pushDue(s) && !p.inMessage(s) || p.resumeDue(s))
}

// frameNeverEnds reports whether side s stands inside a frame whose rest can no
// longer come. (The terminating library always finishes a frame.)
func (p *policy) frameNeverEnds(s side) bool {
	o := &p.peers[s.other()]
	return !p.terminate && p.inside(s) && (o.reading.eof || o.end.gone || o.reading.closed)
}

// insertion returns what is to be written to side s now: frames of our own, or a push. It gives
// none inside a frame, and none before all that was handed out has been written. Whoever writes it does not change it.
func (p *policy) insertion(s side, now moment) (b []byte) {
	e := &p.peers[s]
	switch {
	case e.writing.pending:
		return nil
	case e.due() && e.end.closing != closeDue: // a ping does not wait for pushes
	case p.pushDue(s) && !p.inMessage(s): // and they not for the end
		return p.nextPush(now)
	case e.due():
	case p.resumeDue(s):
		return p.resumeInsertion(s, now)
	default:
		return nil
	}
	if p.frameNeverEnds(s) {
		e.ping.leave(pingDue)
		e.end.closing, e.end.frame, e.end.fin = notClosing, nil, finDue
		return b
	}
	if p.inside(s) {
		return b
	}
	before := len(b)
	if e.writing.library != nil {
		b = append(b, e.writing.library.queue...)
		e.writing.library.queue = nil
	}
	switch {
	case e.end.closing == closeDue:
		b = frame.AppendControl(b, s.role(), frame.Close, frame.ClosePayload(e.end.frame.Code, e.end.frame.Reason))
		e.end.closing, e.end.frame = closeWriting, nil
		e.ping.leave(pingDue)
	case e.ping.state == pingDue:
		b = p.appendPing(s, b)
	}
	if len(b) > before {
		p.beginWrite(s, now)
	}
	return b
}

// beginWrite notes that bytes for side s are on their way. Until they are
// written the other side is not listened to, and its deadline stands still.
func (p *policy) beginWrite(s side, now moment) {
	e, o := &p.peers[s], &p.peers[s.other()]
	if e.writing.pending {
		return
	}
	e.writing.pending, e.writing.start, e.writing.progress = true, now, now
	p.wakeBy(now + lookOut)
	if o.ping.state == pingAwaited && p.resume == nil {
		o.ping.state, o.ping.deadline = pingPaused, max(o.ping.deadline-now, 0)
	}
}

// progress tells that some of what was handed out for side s has been written.
func (p *policy) progress(s side, now moment) { p.peers[s].writing.progress = now }

// resumeReading notes that nothing is on its way to side s any more, so that the
// other is listened to again.
func (p *policy) resumeReading(s side, now moment) {
	e, o := &p.peers[s], &p.peers[s.other()]
	if !e.writing.pending {
		return
	}
	e.writing.pending = false
	o.reading.heard = min(o.reading.heard+now-e.writing.start, now) // silence while we do not listen is none
	if p.pingInterval > 0 {
		p.wakeBy(o.reading.heard + p.pingInterval)
	}
	p.resumeDeadline(s.other(), now)
}

// resumeDeadline has the deadline of side s run on.
func (p *policy) resumeDeadline(s side, now moment) {
	if e := &p.peers[s]; e.ping.state == pingPaused {
		e.ping.state, e.ping.deadline = pingAwaited, now+e.ping.deadline
		p.wakeBy(e.ping.deadline)
	}
}

// endWrite tells that all that was handed out for side s has been written.
func (p *policy) endWrite(s side, now moment) {
	e, o := &p.peers[s], &p.peers[s.other()]
	if !e.writing.pending {
		return
	}
	p.resumeReading(s, now)
	if s == client {
		p.pushWritten(now)
	}
	p.resumeWritten(s, now)
	if e.ping.state == pingWriting {
		e.ping.state, e.ping.deadline = pingPaused, p.pongTimeout
		p.notePingTarget(s, now)
		if !p.unheard(s) {
			p.resumeDeadline(s, now)
		}
	}
	if e.end.closing == closeWriting {
		e.end.closing, e.reading.discarded, e.reading.pausedUntil = closeSent, 0, 0
		// The answer may have to wait for the end of the message that the
		// peer is sending (RFC 6455, section 5.5.1), and for nothing else.
		e.end.slides = e.end.forwarded && e.reading.frames.InMessage()
		p.stopBy(s, now+p.closeTimeout)
		p.closeHandshakeDone(s, now)
		if s == client && (o.reading.eof || o.end.gone) && !o.reading.closed {
			e.setFIN() // the upstream broke off: there is no more to wait for
		}
	}
	p.closeIfDone(s, now)
}

// takeFIN reports, once, that our direction towards side s is to be shut now.
func (p *policy) takeFIN(s side, now moment) bool {
	e := &p.peers[s]
	if e.end.gone || e.end.fin != finDue || e.writing.pending {
		return false
	}
	e.end.fin = finSent
	p.closeIfDone(s, now)
	return true
}

// over reports whether both connections are to be closed, or were, and no client is waited for.
func (p *policy) over() bool {
	return p.peers[client].end.gone && p.peers[upstream].end.gone && !p.resumes()
}

// summary is what became of the session.
func (p *policy) summary(now moment) End {
	return End{
		Reason:       p.reason,
		Code:         p.code,
		Duration:     now - p.started,
		FromClient:   p.peers[client].reading.traffic,
		FromUpstream: p.peers[upstream].reading.traffic,
	}
}

// tick does what is due, and sets wake to when it must be called next.
func (p *policy) tick(now moment) {
	p.wake = never
	p.lifetime(now)
	p.watch(client, now)
	p.watch(upstream, now)
	p.thaw(now)
	p.followPushes(now)
	p.followResumption(now)
	for s := range side(2) {
		e := &p.peers[s]
		if e.end.gone {
			continue
		}
		if e.end.slides && p.peers[s.other()].writing.pending {
			e.end.cutAt = now + p.closeTimeout // it cannot be heard while we do not listen
		}
		if e.end.cutAt != 0 && now >= e.end.cutAt {
			p.giveUp(s, now)
			continue
		}
		if e.end.cutAt != 0 {
			p.wakeBy(e.end.cutAt)
		}
		p.heartbeat(s, now)
	}
}

func (p *policy) wakeBy(t moment) { p.wake = min(p.wake, t) }
