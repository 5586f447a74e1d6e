package relay

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"portcullis/proxy/frame"
)

// Resumable has a session wait for its client when that is gone.
type Resumable struct {
	Owner  Owner
	Secret [16]byte // of its first token, of generation 1
	First  []byte   // what the client gets before anything else; nil: it has that already
}

// Owner is told what becomes of a resumable session. Each method is called where the session's state is touched, and must not block.
type Owner interface {
	Recipient
	Detached() // its client has gone, and is waited for
	Attached() // and has come back, or has taken the place of its own old connection
}

// Return is how a client comes back.
type Return struct {
	Token   Token
	Count   uint64 // how many counted messages it has received
	Attempt uint64 // how often it has come by this token, from 1
}

// Verdict says what a return is worth.
type Verdict uint8

// The verdicts. What is not accepted leaves the session untouched.
const (
	Unknown Verdict = iota // no such session, or none that this client could go on with
	Stale                  // a later attempt, or a later token, was seen already
	Accepted
)

// Arrival is the connection on which a client comes back.
type Arrival struct {
	Conn   net.Conn // without deadlines
	Early  []byte   // what the client sent together with its handshake; it is overwritten
	Secret [16]byte // of the next token
	// First returns what the client gets before anything else.
	First func(Standing) []byte
}

// Standing is how far a session has come when its client is back.
type Standing struct {
	Generation uint32 // of the token that its client gets now
	Received   uint64 // how many messages of the client were accepted
	Pushed     string // the id of the last push that the client has, as far as it is known here; empty: of none
}

// CheckReturn says what a return is worth. It changes nothing.
func (r *Relay) CheckReturn(s Session, back Return) (v Verdict) {
	wait, _ := r.visit([]Session{s}, func(_ int, p *policy, _ moment) Reach {
		v = p.judge(back)
		return Reach{}
	})
	wait()
	return v
}

// Attach gives a session the connection on which its client comes back. Where it is accepted, the connection is the relay's: that
// which the session had gets Close 1008 "taken over". Else, and where there is an error, it stays the caller's.
func (r *Relay) Attach(s Session, back Return, a Arrival) (v Verdict, err error) {
	replace, cancel, err := s.prepare(a.Conn)
	if err != nil {
		return Unknown, err
	}
	wait, _ := r.visit([]Session{s}, func(_ int, p *policy, now moment) Reach {
		if v = p.attach(back, a, now); v == Accepted {
			replace(a.Early)
		}
		return Reach{}
	})
	wait()
	if v != Accepted {
		cancel()
	}
	return v, nil
}

// Evict ends a session whose client is away, and reports whether it did.
func (r *Relay) Evict(s Session) (evicted bool) {
	wait, _ := r.visit([]Session{s}, func(_ int, p *policy, now moment) Reach {
		if evicted = p.detached(); evicted {
			p.end(DetachedEvicted, Closing{frame.CodeGoingAway, "the client did not come back"}, now)
		}
		return Reach{}
	})
	wait()
	return evicted
}

// LoseResumability has a session end with the connection of its client from now on, and tells the client. It reports whether it was resumable.
func (r *Relay) LoseResumability(s Session) (was bool) {
	wait, _ := r.visit([]Session{s}, func(_ int, p *policy, now moment) Reach {
		was = p.loseResumability(now)
		return Reach{}
	})
	wait()
	return was
}

// KeptBytes returns how many bytes each of those sessions keeps for its peers.
func (r *Relay) KeptBytes(of []Session) []int {
	kept := make([]int, len(of))
	wait, _ := r.visit(of, func(i int, p *policy, _ moment) Reach {
		if p.resumes() {
			kept[i] = p.resume.down.bytes + p.resume.up.bytes
		}
		return Reach{}
	})
	wait()
	return kept
}

// KeptTotal is how many bytes all resumable sessions keep, and how many they may.
func (r *Relay) KeptTotal() (bytes, limit int64) {
	return r.resumeRules.budget.bytes.Load(), r.resumeRules.budget.limit
}

// OnFull has f called where sessions keep more than they may. It must not block.
func (r *Relay) OnFull(f func()) { r.resumeRules.budget.full.Store(&f) }

// Resumption is what a client is told of it: how long it may stay away, how often it hears of the gate at least, and how many
// bytes it may have unacknowledged. A window of zero: no session is resumable.
func (r *Relay) Resumption() (window, beat time.Duration, buffer int) {
	return r.resumeRules.window, r.resumeRules.beat, r.resumeRules.buffer
}

// checkResume returns what is wrong with the settings of resumption.
func (c *Config) checkResume() (mistakes []error) {
	note := func(format string, a ...any) { mistakes = append(mistakes, fmt.Errorf(format, a...)) }
	if c.Resume < 0 {
		note("RESUME: %q is negative; want a duration such as 2m, or 0s to switch it off", c.Resume)
	}
	if c.Resume <= 0 {
		return mistakes
	}
	switch {
	case c.Mode == "terminate":
		note("RESUME: %q needs RELAY_MODE=passthrough; want that, or RESUME=0s", c.Resume)
	case c.MessageMaxBytes == 0:
		note("RESUME: %q keeps whole messages and needs MESSAGE_MAX_BYTES, which is 0; want a size such as 64KiB", c.Resume)
	case c.MessageMaxBytes > c.ResumeBuffer:
		note("MESSAGE_MAX_BYTES: \"%d\" does not fit RESUME_BUFFER, %d; want no more", c.MessageMaxBytes, c.ResumeBuffer)
	}
	if c.ResumeBuffer < 1<<10 {
		note("RESUME_BUFFER: \"%d\" is too small; want 1KiB or more", c.ResumeBuffer)
	}
	if c.ResumeTotal < c.ResumeBuffer {
		note("RESUME_TOTAL: \"%d\" is less than RESUME_BUFFER, %d; want room for one session at least", c.ResumeTotal, c.ResumeBuffer)
	}
	return mistakes
}

// maxDismissed bounds the connections that are open only to be told that another has taken their place.
const maxDismissed = 1000

// takenOver is what they are told.
var takenOver = frame.AppendControl(nil, frame.Server, frame.Close, frame.ClosePayload(frame.CodePolicy, "taken over"))

// dismissals are those connections.
type dismissals struct {
	slots chan struct{}
	stop  context.Context
	close context.CancelFunc
}

func newDismissals() *dismissals {
	d := &dismissals{slots: make(chan struct{}, maxDismissed)}
	d.stop, d.close = context.WithCancel(context.Background())
	return d
}

// dismiss tells a connection that another has taken its place, and closes it when it has taken that, or after timeout. To close
// with bytes unread would reset the connection, and the reset overtakes the Close frame.
func (d *dismissals) dismiss(conn net.Conn, timeout time.Duration) {
	defer conn.Close()
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	default:
		return
	}
	defer context.AfterFunc(d.stop, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(timeout))
	if _, err := conn.Write(takenOver); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	io.CopyN(io.Discard, conn, Linger)
}
