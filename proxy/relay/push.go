package relay

import (
	"sync"

	"portcullis/proxy/frame"
)

// Push is a message of our own for clients, encoded once. Every session that gets it writes from the same bytes, which
// nobody changes.
type Push struct {
	wire    []byte // the message as one frame, and behind it the marker's
	message int    // bytes of wire without the marker
	id      string // in the history; empty: it has none
}

// NewPush returns a push of a text or binary message. The marker, a text message behind it, is for those sessions alone
// that ask for markers; nil: there is none. A resumable one gets the id in the form of its protocol instead; empty: there is none.
func NewPush(op frame.Opcode, id string, message, marker []byte) *Push {
	p := &Push{id: id, wire: make([]byte, 0, len(message)+len(marker)+2*frame.MaxHeader)}
	p.wire = frame.AppendMessage(p.wire, op, message)
	p.message = len(p.wire)
	if marker != nil {
		p.wire = frame.AppendMessage(p.wire, frame.Text, marker)
	}
	return p
}

// Size is how many bytes of a queue it takes.
func (p *Push) Size() int { return len(p.wire) }

// Recipient is a session to which something is pushed.
type Recipient interface {
	// NextPush returns what the session has missed and gets before anything newer; nil: no more. It is called again
	// and again, whenever nothing is queued, until it returns nil.
	NextPush() *Push
	// Markers reports whether the session gets the markers of its pushes.
	Markers() bool
	// PushDropped tells that a push which was queued is not delivered.
	PushDropped(Drop)
}

// Drop says why a push that was queued is not delivered.
type Drop string

const (
	NoBoundary Drop = "no_boundary" // no message ended within CloseTimeout
	Ended      Drop = "ended"       // the session ended first
)

// Drops are all of them.
func Drops() []string { return []string{string(NoBoundary), string(Ended)} }

// queued is a push that waits for a session.
type queued struct {
	push *Push
	at   moment // when it was queued
}

// pushes are what is pushed to a client and not written yet.
type pushes struct {
	to      Recipient
	queue   []queued
	first   [1]queued // where the queue begins, since mostly there is no second
	bytes   int       // of the queue
	writing bool      // one has been handed out, and not all of it has been written
	missed  bool      // NextPush may have more
}

// freshPushes are those of sessions for which nothing waits any more. Most wait for no longer than it takes to write one.
var freshPushes = sync.Pool{New: func() any { return new(pushes) }}

// behind is how many bytes wait behind the push that is being written, or that is to be written next.
func (q *pushes) behind() int {
	if q.writing {
		return q.bytes
	}
	return q.bytes - q.queue[0].push.Size()
}

// forgetPushes lets go of the queue, which is empty or of no use any more.
func (p *policy) forgetPushes() {
	*p.pushes = pushes{}
	freshPushes.Put(p.pushes)
	p.pushes = nil
}

// push queues a push for the client; nil: what it has missed.
func (p *policy) push(m *Push, to Recipient, now moment) Reach {
	switch {
	case p.reason != "":
		return Reach{Ending: 1}
	case p.scan == &p.unknown:
		return Reach{Extension: 1}
	case p.resume != nil:
		return p.pushResumable(m, now)
	}
	if p.pushes == nil {
		p.pushes = freshPushes.Get().(*pushes)
		p.pushes.to, p.pushes.queue = to, p.pushes.first[:0]
	}
	q := p.pushes
	if m == nil {
		q.missed = true
		p.nextMissed(now)
		if len(q.queue) == 0 && !q.writing {
			p.forgetPushes()
		}
		return Reach{Reached: 1}
	}
	if len(q.queue) > 0 && q.behind()+m.Size() > p.pushQueue {
		p.tooSlow(now)
		return Reach{TooSlow: 1}
	}
	p.queuePush(m, now)
	return Reach{Reached: 1}
}

// pushAll queues what a session begins with.
func (p *policy) pushAll(h Handover, now moment) {
	for _, m := range h.Pushes {
		p.push(m, h.Recipient, now)
	}
}

func (p *policy) queuePush(m *Push, now moment) {
	q := p.pushes
	q.queue = append(q.queue, queued{m, now})
	q.bytes += m.Size()
	p.wakeBy(now + p.closeTimeout)
}

// nextMissed queues the next of what the client has missed.
func (p *policy) nextMissed(now moment) {
	q := p.pushes
	if !q.missed || len(q.queue) > 0 || q.writing || p.reason != "" {
		return
	}
	if m := q.to.NextPush(); m != nil {
		p.queuePush(m, now)
	} else {
		q.missed = false
	}
}

// tooSlow ends a session whose client does not take what is pushed to it.
func (p *policy) tooSlow(now moment) {
	p.dropPushes()
	p.end(TooSlow, Closing{frame.CodeTryAgain, "too slow"}, now)
}

// pushDue reports whether a push waits for the next message boundary towards side s.
func (p *policy) pushDue(s side) bool {
	return s == client && p.pushes != nil && len(p.pushes.queue) > 0 && !p.peers[s].shut()
}

// inMessage reports whether what was handed out for side s ends inside a message.
func (p *policy) inMessage(s side) bool {
	switch {
	case p.resume != nil:
		return false
	case p.terminate:
		return p.peers[s].writing.library.InMessage()
	}
	return p.peers[s.other()].reading.frames.InMessage()
}

// nextPush hands out the next push. It is shared: whoever writes it does not change it.
func (p *policy) nextPush(now moment) []byte {
	q := p.pushes
	m := q.queue[0].push
	q.queue[0] = queued{}
	q.queue = q.queue[1:]
	q.bytes -= m.Size()
	q.writing = true
	p.beginWrite(client, now)
	if q.to.Markers() {
		return m.wire
	}
	return m.wire[:m.message]
}

// pushWritten notes that the push which was handed out has been written.
func (p *policy) pushWritten(now moment) {
	q := p.pushes
	if q == nil || !q.writing {
		return
	}
	q.writing = false
	p.nextMissed(now)
	if len(q.queue) == 0 {
		p.forgetPushes()
	}
}

// followPushes drops pushes that have waited too long for a message to end, and ends a session whose client takes nothing of
// the one that is being written.
func (p *policy) followPushes(now moment) {
	q := p.pushes
	if q == nil || p.reason != "" {
		return
	}
	if w := &p.peers[client].writing; q.writing {
		if now >= w.progress+p.closeTimeout {
			p.queryKernel(client, now)
			w.progress = max(w.progress, p.peers[client].ack.last)
		}
		if now >= w.progress+p.closeTimeout {
			p.tooSlow(now)
			return
		}
		p.wakeBy(w.progress + p.closeTimeout)
	}
	for len(q.queue) > 0 && p.inMessage(client) && now >= q.queue[0].at+p.closeTimeout {
		q.bytes -= q.queue[0].push.Size()
		q.queue[0] = queued{}
		q.queue = q.queue[1:]
		q.to.PushDropped(NoBoundary)
		p.nextMissed(now)
	}
	if len(q.queue) == 0 && !q.writing {
		p.forgetPushes()
		return
	}
	if len(q.queue) > 0 && p.inMessage(client) { // elsewhere it goes as soon as the client takes what is before it
		p.wakeBy(q.queue[0].at + p.closeTimeout)
	}
}

// dropPushes tells that what is queued is not delivered any more.
func (p *policy) dropPushes() {
	if q := p.pushes; q != nil {
		for range q.queue {
			q.to.PushDropped(Ended)
		}
		p.forgetPushes()
	}
}

// CanPush reports whether messages can be pushed to a session with those negotiated extensions.
func (r *Rules) CanPush(extensions string) bool { return r.scanRules(extensions) != &r.unknown }

// Push queues a message for those sessions, each the recipient at the same index; nil: what each of them has missed. wait
// returns when their queues have taken it, or could not; it waits for no peer.
func (r *Relay) Push(m *Push, sessions []Session, to []Recipient) (wait func() Reach) {
	done, counts := r.visit(sessions, func(i int, p *policy, now moment) Reach { return p.push(m, to[i], now) })
	return func() Reach { done(); return counts.reach }
}
