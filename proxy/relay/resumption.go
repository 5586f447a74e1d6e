package relay

import (
	"crypto/sha256"
	"crypto/subtle"
	"sync/atomic"
	"time"

	"portcullis/proxy/frame"
)

// resumption is what a session has beside its two peers where its client may come back: what either side is still to get, the tokens
// by which the client comes, and how long it may stay away. docs/resume.md has the protocol. While it lasts, both directions carry
// whole messages, and neither peer has to wait for the other.
type resumption struct {
	owner       Owner
	tokens      tokens
	down        outbox
	up          inbox
	transient   *transient // nil: nothing is under way
	closings    *closings  // nil: neither side has closed
	detachedAt  moment     // since when no client is attached; 0: one is
	heard       moment     // when something of a message last came from the client
	owed        moment     // since when the client owes one; 0: it owes none
	meter       moment     // of library messages beyond one for each of ours
	credit      int32      // how many it may still send for those of ours
	silences    uint8      // how often it was given up in a row without a counted message
	state       resumeState
	firstUnsent bool // the connection that was last replaced had not had its first message, so that it cannot be told why it ends
}

// transient is what a session has for moments only.
type transient struct {
	own     []byte      // frames of ours for the client, before anything else
	pong    [2][]byte   // the payload of a ping of that side's that is to be answered; nil: none
	partial [2]*message // what each side has begun; nil: nothing
}

// nothing is what a session has most of the time. It is only read.
var nothing transient

// peek returns it to be read.
func (r *resumption) peek() *transient {
	if r.transient == nil {
		return &nothing
	}
	return r.transient
}

// ensure returns it to be written to.
func (r *resumption) ensure() *transient {
	if r.transient == nil {
		r.transient = new(transient)
	}
	return r.transient
}

// tidy lets go of it where it is empty.
func (r *resumption) tidy() {
	if i := r.transient; i != nil && i.own == nil && i.pong[0] == nil && i.pong[1] == nil && i.partial == [2]*message{} {
		r.transient = nil
	}
}

// closings are the Close frames that wait behind messages.
type closings struct {
	client   *Closing // the client's, which goes upstream; nil: it sent none
	by       moment   // when it goes at the latest
	upstream *Closing // the upstream's, or what its end amounts to; nil: it goes on
}

// clientClosed reports whether the client has closed; upstreamClosed whether the upstream has.
func (r *resumption) clientClosed() bool   { return r.closings != nil && r.closings.client != nil }
func (r *resumption) upstreamClosed() bool { return r.closings != nil && r.closings.upstream != nil }

// ensureClosings returns the Close frames to be added to.
func (r *resumption) ensureClosings() *closings {
	if r.closings == nil {
		r.closings = new(closings)
	}
	return r.closings
}

// resumeState is what becomes of a session that loses its client's connection.
type resumeState uint8

const (
	resumable   resumeState = iota
	unresumable             // it ends, for its messages could not be kept
	resumeEnded             // it is ending already
)

// Token is what a client shows to get its session back.
type Token struct {
	Generation uint32 // which one of its session's it is, from 1
	Secret     [16]byte
}

// tokens are the two with which a session can be had. Of either only the hash is kept.
type tokens struct {
	shown, issued secretHash // the newest that the client has shown, and the one given after it
	shownAt       uint32     // its generation; 0: none was shown
	issuedAt      uint32
	attempt       uint64 // the highest seen with the one that was shown
}

type secretHash [16]byte

func hashSecret(secret [16]byte) secretHash {
	sum := sha256.Sum256(secret[:])
	return secretHash(sum[:])
}

func (h *secretHash) equals(other secretHash) bool {
	return subtle.ConstantTimeCompare(h[:], other[:]) == 1
}

// issue gives the client a fresh token. One that was given before and never shown is void.
func (t *tokens) issue(secret [16]byte) {
	t.issued, t.issuedAt = hashSecret(secret), t.issuedAt+1
}

// show notes that the client has the token that was issued last.
func (t *tokens) show() {
	if t.shownAt != t.issuedAt {
		t.shown, t.shownAt, t.attempt = t.issued, t.issuedAt, 0
	}
}

// judge says what a return by a token is worth, before its count is looked at.
func (t *tokens) judge(back Return) Verdict {
	hash := hashSecret(back.Token.Secret)
	switch generation := back.Token.Generation; {
	case generation < t.shownAt:
		return Stale
	case generation == t.issuedAt && t.issued.equals(hash):
		if generation == t.shownAt && back.Attempt <= t.attempt {
			return Stale
		}
		return Accepted
	case generation == t.shownAt && t.shown.equals(hash):
		if back.Attempt <= t.attempt {
			return Stale
		}
		return Accepted
	}
	return Unknown // made up, or void
}

// resumeRules are what all resumable sessions have in common.
type resumeRules struct {
	window moment // how long a client may stay away; 0: no session is resumable
	beat   moment // how often the client hears of us at least
	buffer int    // bytes of either direction
	budget *budget
}

// The protocol's own numbers.
const (
	messageCost   = 64                       // what a kept message counts beside its bytes
	controlRoom   = 64 << 10                 // what is read of an upstream beyond a full buffer, for its control frames
	unshownWindow = moment(10 * time.Second) // a session is kept for a client that has shown no token yet
	leaveTime     = moment(10 * time.Second) // what a client has sent before its Close has to go upstream
	ackMessages   = 16                       // so many messages are acknowledged at once,
	ackBytes      = 64 << 10                 // or so many bytes, or a quarter of the buffer,
	ackDelay      = moment(time.Second)      // or what came so long ago
	maxSilence    = moment(10 * time.Minute) // a client that owes a message is never waited for longer
	libraryEvery  = moment(time.Second) / 2  // library messages of a client beside one for each of ours,
	libraryBurst  = 32 * libraryEvery        // in such bursts
	libraryMax    = 1 << 10                  // bytes of one
	libraryPrefix = "\x00portcullis "        // begins their text; JSON follows
	maxBeat       = moment(25 * time.Second) // proxies on the way cut what is silent for 30 s or 60 s
	minBeat       = moment(time.Second)
)

func newResumeRules(c Config, b *budget) resumeRules {
	return resumeRules{
		window: c.Resume,
		beat:   max(min(maxBeat, c.Resume/4), minBeat),
		buffer: int(c.ResumeBuffer),
		budget: b,
	}
}

// budget counts what all resumable sessions hold.
type budget struct {
	limit int64
	bytes atomic.Int64
	full  atomic.Pointer[func()] // called where there are more bytes than limit; it must not block
}

func (b *budget) add(n int) {
	if b.bytes.Add(int64(n)) > b.limit && n > 0 {
		if full := b.full.Load(); full != nil {
			(*full)()
		}
	}
}

// startResumption makes a session resumable.
func (p *policy) startResumption(h *Resumable, now moment) {
	if h == nil {
		return
	}
	p.resume = &resumption{owner: h.Owner, heard: now, owed: now}
	p.resume.tokens.issue(h.Secret)
	if h.First != nil {
		p.resume.ensure().own = h.First
	} else {
		p.resume.credit++
	}
	p.resume.up.lastAck = now
	p.wakeBy(now + p.resumeRules.beat)
}

// resumes reports whether the session is not ending and the loss of its client's connection is a matter of resumption.
func (p *policy) resumes() bool { return p.resume != nil && p.resume.state != resumeEnded }

// detached reports whether the session waits for its client.
func (p *policy) detached() bool { return p.resumes() && p.resume.detachedAt != 0 }

// leaveClient has the client's connection closed, as it is, and what belongs to that connection alone forgotten.
func (p *policy) leaveClient() {
	r, c := p.resume, &p.peers[client]
	p.forgetPartial(client)
	r.owed = 0
	if r.transient != nil {
		r.transient.own, r.transient.pong[client] = nil, nil
		r.tidy()
	}
	old := *c
	*c = peer{}
	c.reading.traffic, c.reading.hollow = old.reading.traffic, old.reading.hollow
	c.end.gone = true
}

// detach notes that the client's connection is lost. The session waits for it to come back, or is over.
func (p *policy) detach(now moment) {
	r := p.resume
	p.leaveClient()
	switch {
	case r.clientClosed(): // it said that it would go
	case r.state == unresumable:
		p.setReason(ClientGone, frame.CodeAbnormal)
		p.endResumption(now)
		p.closeWith(upstream, peerLost[client], now)
	default:
		r.detachedAt = now
		p.wakeBy(now + p.detachWindow())
		r.owner.Detached()
	}
}

// detachWindow is how long the session waits for its client.
func (p *policy) detachWindow() moment {
	if p.resume.tokens.shownAt == 0 {
		return min(p.resumeRules.window, unshownWindow)
	}
	return p.resumeRules.window
}

// judge says what a return is worth.
func (p *policy) judge(back Return) Verdict {
	if !p.resumes() || p.resume.state == unresumable || p.resume.clientClosed() {
		return Unknown
	}
	r := p.resume
	if v := r.tokens.judge(back); v != Accepted {
		return v
	}
	if back.Count < r.down.base || back.Count > r.down.base+uint64(r.down.sent) {
		return Unknown
	}
	return Accepted
}

// attach gives the session a new connection of its client, if the return is good. Nothing that the old one still holds is taken.
func (p *policy) attach(back Return, a Arrival, now moment) Verdict {
	if v := p.judge(back); v != Accepted {
		return v
	}
	r := p.resume
	if back.Token.Generation == r.tokens.issuedAt {
		r.tokens.show()
	}
	r.tokens.attempt = back.Attempt
	r.tokens.issue(a.Secret)

	r.firstUnsent = r.peek().own != nil
	p.leaveClient()
	c := &p.peers[client]
	c.end.gone = false
	c.reading.heard = now
	r.detachedAt, r.heard, r.credit = 0, now, 1
	p.forgetMessages(back.Count, now)
	r.down.next = 0
	r.up.unacked, r.up.unackedBytes, r.up.ackSince, r.up.lastAck = 0, 0, 0, now
	r.up.ackDue = r.up.forwarded > 0 // for only an acknowledgement opens the client's window
	standing := Standing{Generation: r.tokens.issuedAt, Received: r.up.accepted()}
	if r.down.pushed != nil {
		standing.Pushed = *r.down.pushed
	}
	r.ensure().own = a.First(standing)
	r.owner.Attached()
	p.wakeBy(now)
	p.advance(now)
	return Accepted
}

// endResumption notes that the session ends, and forgets what it holds.
func (p *policy) endResumption(now moment) {
	if !p.resumes() {
		return
	}
	r := p.resume
	r.state = resumeEnded
	for _, k := range r.down.kept[r.down.next:] {
		if k.push != nil {
			r.owner.PushDropped(Ended)
		}
	}
	p.forgetMessages(r.down.end(), now)
	p.forgetQueue()
	p.forgetPartial(client)
	p.forgetPartial(upstream)
	r.transient = nil
}

// loseResumability has a session end with its client's connection from now on. What was written is unresumable, and what was not is still sent.
func (p *policy) loseResumability(now moment) bool {
	if !p.resumes() || p.resume.state == unresumable || p.detached() {
		return false
	}
	r := p.resume
	r.state = unresumable
	p.forgetMessages(r.down.base+uint64(r.down.next), now)
	i := r.ensure()
	i.own = append(i.own, libraryFrame(`{"resumable":false}`)...)
	p.wakeBy(now)
	return true
}

// keepClose notes that the upstream has closed, or is lost. The client gets to know behind the last message, at each return, until
// it has answered.
func (p *policy) keepClose(c Closing, now moment) {
	r := p.resume
	if r.upstreamClosed() {
		return
	}
	r.ensureClosings().upstream = &c
	p.forgetQueue() // nobody takes it any more
	p.forgetPartial(upstream)
	p.advance(now)
}

// clientCloses takes the client's Close: the end of the session, once what came before it has gone upstream.
func (p *policy) clientCloses(c Closing, now moment) {
	r := p.resume
	p.setReason(ClientClose, c.Code) // unless the upstream has closed before
	k := r.ensureClosings()
	k.client, k.by = &c, now+leaveTime
	p.forgetMessages(r.down.end(), now) // a client that has closed reads no more
	p.forgetPartial(upstream)
	p.wakeBy(k.by)
	p.advance(now)
}

// advance does what has become possible: the Close of the client goes upstream behind its messages, that of the upstream to the
// client, and what the client has missed before it.
func (p *policy) advance(now moment) {
	if !p.resumes() {
		return
	}
	r := p.resume
	switch {
	case r.clientClosed():
		if len(r.up.queue) > 0 && now < r.closings.by {
			return
		}
		c := *r.closings.client
		p.endResumption(now)
		p.peers[upstream].end.forwarded = true
		p.closeWith(upstream, c, now)
		p.closeWith(client, c, now)
		p.closeHandshakeDone(client, now) // it may have been an answer
	case r.upstreamClosed():
		if r.detachedAt == 0 && r.peek().own == nil && r.down.written() {
			p.closeWith(client, *r.closings.upstream, now)
		}
	default:
		p.pullMissed(now)
	}
}

// followResumption does what is due: an acknowledgement, the end of a client's time.
func (p *policy) followResumption(now moment) {
	if !p.resumes() {
		return
	}
	r := p.resume
	switch {
	case r.clientClosed():
		p.wakeBy(r.closings.by)
		p.advance(now)
	case r.detachedAt != 0:
		if now >= r.detachedAt+p.detachWindow() {
			p.end(DetachedExpired, Closing{frame.CodeGoingAway, "the client did not come back"}, now)
			return
		}
		p.wakeBy(r.detachedAt + p.detachWindow())
	default:
		next := r.up.lastAck + p.resumeRules.beat
		if r.up.ackSince != 0 {
			next = min(next, r.up.ackSince+ackDelay)
		}
		if now >= next {
			r.up.ackDue = true
		} else {
			p.wakeBy(next)
		}
		p.followSilence(now)
	}
}

// followSilence gives the client's connection up when nothing of a message has come for two beats while one is owed. A client on a
// slow link may be busy with one of ours, so each time without a message in between it has twice as long.
func (p *policy) followSilence(now moment) {
	r := p.resume
	if r.owed == 0 {
		return
	}
	if p.held(client) {
		r.heard = now
	}
	limit := min(2*p.resumeRules.beat<<min(r.silences, 16), max(maxSilence, 2*p.resumeRules.beat))
	if c := &p.peers[client]; c.writing.pending && now >= max(r.owed, r.heard)+limit {
		p.queryKernel(client, now)
		r.heard = max(r.heard, c.writing.progress, c.ack.last) // it is busy with one of ours
	}
	if until := max(r.owed, r.heard) + limit; now < until {
		p.wakeBy(until)
		return
	}
	r.silences++
	p.detach(now)
}
