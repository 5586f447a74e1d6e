package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"portcullis/proxy/frame"
)

// Config is how sessions are relayed. Durations of zero switch off what they
// time, except where it says otherwise.
type Config struct {
	// Mode is "passthrough": frames go through as they are, whatever their
	// size, compression and extensions; or "terminate": both connections end
	// here and whole messages are carried over, uncompressed.
	Mode string `env:"RELAY_MODE" envDefault:"passthrough"`
	// Engine is what moves the bytes: "loop", an event loop for each
	// processor, on Linux and between plain TCP connections; "stream", two
	// goroutines to a session; or "auto", the loop where it can be had.
	Engine string `env:"RELAY_ENGINE" envDefault:"auto" fixed:"true"`
	// PingInterval is how long either side may be silent before it is pinged.
	PingInterval time.Duration `env:"PING_INTERVAL" envDefault:"30s" below:"SESSION_MAX"`
	// PongTimeout is how long a pinged side may stay silent before it is
	// given up, counted from when the ping was delivered where the kernel can
	// tell (Linux). One that hangs while its kernel acknowledges what comes may
	// get twice as long. It must be positive where PingInterval is.
	PongTimeout time.Duration `env:"PONG_TIMEOUT" envDefault:"10s" needs:"PING_INTERVAL"`
	// IdleTimeout ends a session in which for that long no message has ended,
	// from either side, and no 4 KiB of one have come; pings and pongs do not count.
	IdleTimeout time.Duration `env:"IDLE_TIMEOUT" envDefault:"0s" below:"SESSION_MAX"`
	// SessionMax ends a session that has been open for that long.
	SessionMax time.Duration `env:"SESSION_MAX" envDefault:"0s"`
	// CloseTimeout is how long a side is waited for at the end: for a frame
	// boundary, for bytes to be taken, for its Close frame, for its FIN.
	// It must be positive.
	CloseTimeout time.Duration `env:"CLOSE_TIMEOUT" envDefault:"5s" fixed:"true"`
	// MessageMaxBytes is the largest message over all its fragments, from
	// either side, in payload bytes as on the wire. 0: no limit; 1 MiB when
	// terminating, where a message is held in memory.
	MessageMaxBytes int64 `env:"MESSAGE_MAX_BYTES" envDefault:"0" size:"true"`
	// LimitAction is what becomes of a client that sends more than the rates
	// below: "close", with 1008; or "throttle": it is read more slowly, and
	// nothing is lost.
	LimitAction string `env:"MESSAGE_LIMIT_ACTION" envDefault:"close" needs:"MESSAGE_RATE|MESSAGE_BYTE_RATE"`

	// PushQueue is how many bytes may wait for a client behind the push that is being written to it. A queue that is empty
	// takes any push. It must not be negative.
	PushQueue int64 `env:"PUSH_QUEUE" envDefault:"256KiB" size:"true" needs:"ADMIN_TOKEN"`

	// Resume is how long a session is kept whose client has gone and may come back (docs/resume.md). Zero: not at all.
	Resume time.Duration `env:"RESUME" envDefault:"0s" fixed:"true"`
	// ResumeBuffer bounds what is kept of such a session in each direction; one message and 64 KiB more may be. MessageMaxBytes
	// must fit.
	ResumeBuffer int64 `env:"RESUME_BUFFER" envDefault:"256KiB" size:"true" needs:"RESUME" fixed:"true"`
	// ResumeTotal bounds what is kept of all of them together.
	ResumeTotal int64 `env:"RESUME_TOTAL" envDefault:"256MiB" size:"true" needs:"RESUME" fixed:"true"`

	// MessageRate is how many messages a client may send per second, in
	// bursts of MessageBurst, which must then be positive; control frames and continuation
	// frames under 126 bytes count as messages. MessageByteRate is how many
	// payload bytes, in bursts of one second's worth. 0: no limit.
	MessageRate     float64 `env:"-"`
	MessageBurst    int     `env:"-"`
	MessageByteRate float64 `env:"-"`
	// Route names the sessions that have these rules, for [Relay.DrainTargets].
	Route string `env:"-"`
}

// Reason says why a session ended.
type Reason string

// The reasons, which are log keys and metric labels. Those that name a side
// mean that the end began there.
const (
	ClientClose     Reason = "client_close"     // it sent a Close frame
	UpstreamClose   Reason = "upstream_close"   //
	ClientGone      Reason = "client_gone"      // it broke off without one
	UpstreamGone    Reason = "upstream_gone"    //
	ClientSilent    Reason = "client_silent"    // it answered no ping
	UpstreamSilent  Reason = "upstream_silent"  //
	ClientFraming   Reason = "client_framing"   // it violated RFC 6455's framing
	UpstreamFraming Reason = "upstream_framing" //
	ClientTooBig    Reason = "client_too_big"   // it sent a message beyond MessageMaxBytes
	UpstreamTooBig  Reason = "upstream_too_big" //
	ClientRate      Reason = "client_rate"      // it sent more than MessageRate or MessageByteRate, or a flood of control or empty frames
	UpstreamRate    Reason = "upstream_rate"    // it sent such a flood
	Idle            Reason = "idle"             // IdleTimeout
	SessionLimit    Reason = "session_limit"    // SessionMax
	Expired         Reason = "expired"          // its credential ran out: Session.Close
	Revoked         Reason = "revoked"          // its credential was taken back: Session.Close
	AuthUnavailable Reason = "auth_unavailable" // nobody could say any more whether its credential is good: Session.Close
	Drained         Reason = "drain"            // Drain
	TargetRemoved   Reason = "target_removed"   // DrainTargets
	Forced          Reason = "forced"           // Cut
	Kicked          Reason = "kicked"           // an operator or the backend ended it: CloseAll
	TooSlow         Reason = "too_slow"         // it did not take what was pushed to it
	DetachedExpired Reason = "detached_expired" // its client did not come back
	DetachedEvicted Reason = "detached_evicted" // its client was away, and its place or its buffer was needed

	// Terminating only: it sent text that is not UTF-8.
	ClientEncoding   Reason = "client_encoding"
	UpstreamEncoding Reason = "upstream_encoding"
)

// Reasons are all of them, each with the codes that End.Code usually has for it.
func Reasons() map[Reason][]int {
	byPeer := []int{frame.CodeNormal, frame.CodeGoingAway, frame.CodeNoStatus}
	return map[Reason][]int{
		ClientClose: byPeer, UpstreamClose: byPeer,
		ClientGone: {frame.CodeAbnormal}, UpstreamGone: {frame.CodeInternal},
		ClientSilent: {frame.CodeTimeout}, UpstreamSilent: {frame.CodeTimeout},
		ClientFraming: {frame.CodeProtocol}, UpstreamFraming: {frame.CodeProtocol},
		ClientTooBig: {frame.CodeTooBig}, UpstreamTooBig: {frame.CodeTooBig},
		ClientRate: {frame.CodePolicy}, UpstreamRate: {frame.CodePolicy},
		ClientEncoding: {frame.CodeInvalid}, UpstreamEncoding: {frame.CodeInvalid},
		Idle: {frame.CodeTimeout}, SessionLimit: {frame.CodeGoingAway},
		Expired: {frame.CodeUnauthorized}, Revoked: {frame.CodeUnauthorized}, AuthUnavailable: {frame.CodeTryAgain},
		Drained: {frame.CodeGoingAway}, TargetRemoved: {frame.CodeRestart}, Forced: {frame.CodeAbnormal},
		Kicked: {frame.CodeForbidden}, TooSlow: {frame.CodeTryAgain},
		DetachedExpired: {frame.CodeGoingAway}, DetachedEvicted: {frame.CodeGoingAway},
	}
}

// Traffic is what one side has sent.
type Traffic struct {
	Messages int64 `json:"messages"` // complete data messages
	Bytes    int64 `json:"bytes"`    // payload bytes of data frames, as on the wire
}

// End is what became of a session.
type End struct {
	Reason Reason
	// Code is that of the Close frame with which the end began, a peer's or
	// ours: 1005 where it had none, and 1006 where it began without such a
	// frame (RFC 6455, section 7.1.5). Ours counts also where no boundary
	// was left to send it at.
	Code         int
	Duration     time.Duration
	FromClient   Traffic
	FromUpstream Traffic
}

// Handover is one session as the gate hands it over: both handshakes are done
// and every byte from here on belongs to a frame.
type Handover struct {
	Client, Upstream net.Conn // without deadlines; owned by the relay from Start on
	// The bytes that each side sent together with its handshake. They are overwritten.
	ClientEarly, UpstreamEarly []byte
	// Extensions is the negotiated Sec-WebSocket-Extensions, empty if none were.
	Extensions string
	// Rules are the session's, from [Relay.Compile]. Nil: those of the relay.
	Rules *Rules
	// Target is what is behind Upstream, for [Relay.DrainTargets].
	Target string
	// Pushes are for the client before anything else. Recipient is whose they are; it is needed only with them.
	Pushes    []*Push
	Recipient Recipient
	// Resume has the session wait for its client when that is gone. Nil: it ends.
	Resume *Resumable
	// Ended is called exactly once, after both connections have been closed. It must not block.
	Ended func(End)
}

// Relay is a set of sessions. It is safe for concurrent use.
type Relay struct {
	*Rules            // of sessions that come without any
	loops      *loops // nil: every session is relayed on the stream engine; those that terminate are in any case
	trim       *trimmer
	dismissals *dismissals

	mu       sync.Mutex // guards what follows
	live     map[Session]struct{}
	empty    chan struct{} // closed while there is no session; nil until somebody waits
	draining bool
}

// Session is a live session. Its methods are safe for concurrent use, return
// at once, and do nothing to a session that is ending already.
type Session interface {
	// Close ends it with a Close frame to both sides.
	Close(Reason, Closing)
	// cut closes both connections at once.
	cut()
	// home returns its route and its target.
	home() (route, target string)
	// prepare makes a new connection of the client's fit for the session. replace, called where its state is touched, gives it to
	// the session; cancel leaves it to the caller.
	prepare(net.Conn) (replace func(early []byte), cancel func(), err error)
}

// Closing is what a Close frame says.
type Closing struct {
	Code   int    // RFC 6455, section 7.4
	Reason string // at most 123 bytes of it are sent; it must be fit for a peer to see
}

// Rules are what sessions of a kind have in common. They do not change.
type Rules struct {
	route        string
	terminate    bool
	pingInterval moment
	pongTimeout  moment
	idleTimeout  moment
	sessionMax   moment
	closeTimeout moment
	pushQueue    int
	limits
	resumeRules
	plain   [2]frame.Rules // what each side must obey without extensions,
	deflate [2]frame.Rules // with permessage-deflate,
	unknown [2]frame.Rules // with an extension that is not known here
}

// defaultTerminateMax bounds a message where it is held in memory.
const defaultTerminateMax = 1 << 20

// New returns a Relay without sessions, or all that is wrong with the settings.
func New(c Config) (*Relay, error) {
	rules, err := compile(c, &budget{limit: c.ResumeTotal})
	if err != nil {
		return nil, err
	}
	r := &Relay{Rules: rules, live: make(map[Session]struct{}), trim: newTrimmer(collect), dismissals: newDismissals()}
	if haveLoops && c.Engine != "stream" {
		r.loops = newLoops()
	}
	return r, nil
}

// Compile returns the rules of c, for sessions of r, or all that is wrong with them. Engine, Resume and ResumeTotal are to be those of r.
func (r *Relay) Compile(c Config) (*Rules, error) { return compile(c, r.budget) }

// compile returns the rules of c. b is what all resumable sessions share.
func compile(c Config, b *budget) (*Rules, error) {
	var errs []error
	wrong := func(name string, value any, want string) {
		errs = append(errs, fmt.Errorf("%s: %q is not usable; want %s", name, fmt.Sprint(value), want))
	}
	if c.Mode != "passthrough" && c.Mode != "terminate" {
		wrong("RELAY_MODE", c.Mode, "passthrough or terminate")
	}
	switch c.Engine {
	case "auto", "stream":
	case "loop":
		switch {
		case !haveLoops:
			wrong("RELAY_ENGINE", c.Engine, "auto or stream: the event loop needs Linux")
		case c.Mode == "terminate":
			wrong("RELAY_ENGINE", c.Engine, "auto or stream with RELAY_MODE=terminate")
		}
	default:
		wrong("RELAY_ENGINE", c.Engine, "auto, loop or stream")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"PING_INTERVAL", c.PingInterval}, {"IDLE_TIMEOUT", c.IdleTimeout}, {"SESSION_MAX", c.SessionMax},
	} {
		if d.value < 0 {
			wrong(d.name, d.value, "a duration such as 30s, or 0s to switch it off")
		}
	}
	if c.PongTimeout <= 0 && c.PingInterval > 0 {
		wrong("PONG_TIMEOUT", c.PongTimeout, "a duration above zero such as 10s, or PING_INTERVAL=0s")
	}
	if c.CloseTimeout <= 0 {
		wrong("CLOSE_TIMEOUT", c.CloseTimeout, "a duration above zero such as 5s")
	}
	if c.MessageMaxBytes < 0 {
		wrong("MESSAGE_MAX_BYTES", c.MessageMaxBytes, "a number of bytes, or 0 for no limit")
	}
	if c.PushQueue < 0 {
		wrong("PUSH_QUEUE", c.PushQueue, "a size such as 256KiB, or 0 for no more than one push at a time")
	}
	errs = append(errs, c.checkResume()...)
	if c.LimitAction != "close" && c.LimitAction != "throttle" {
		wrong("MESSAGE_LIMIT_ACTION", c.LimitAction, "close or throttle")
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}

	r := &Rules{
		route:        c.Route,
		terminate:    c.Mode == "terminate",
		pingInterval: c.PingInterval,
		pongTimeout:  c.PongTimeout,
		idleTimeout:  c.IdleTimeout,
		sessionMax:   c.SessionMax,
		closeTimeout: c.CloseTimeout,
		pushQueue:    int(c.PushQueue),
		limits:       newLimits(c),
		resumeRules:  newResumeRules(c, b),
	}
	largest := c.MessageMaxBytes
	if r.terminate && largest == 0 {
		largest = defaultTerminateMax
	}
	r.plain = scanRules(frame.Rules{MaxMessage: largest})
	r.deflate = scanRules(frame.Rules{MaxMessage: largest, MessageRSV: frame.RSV1})
	r.unknown = scanRules(frame.Rules{MaxMessage: largest, FrameRSV: frame.RSV1 | frame.RSV2 | frame.RSV3})
	return r, nil
}

func scanRules(r frame.Rules) (both [2]frame.Rules) {
	both = [2]frame.Rules{r, r}
	both[client].From, both[upstream].From = frame.Client, frame.Server
	return both
}

// scanRules returns what the sides of a session with those negotiated extensions must obey.
func (r *Rules) scanRules(extensions string) *[2]frame.Rules {
	if extensions == "" {
		return &r.plain
	}
	for extension := range strings.SplitSeq(extensions, ",") {
		name, _, _ := strings.Cut(extension, ";")
		if strings.TrimSpace(name) != "permessage-deflate" {
			return &r.unknown
		}
	}
	return &r.deflate
}

// Extensions reports whether a session may have extensions: not where messages
// are taken apart here.
func (r *Rules) Extensions() bool { return !r.terminate }

// Start takes both connections over and returns at once.
func (r *Relay) Start(h Handover) Session {
	r.trim.started()
	if h.Rules == nil {
		h.Rules = r.Rules
	}
	for _, early := range [2]*[]byte{&h.ClientEarly, &h.UpstreamEarly} {
		if len(*early) == 0 {
			*early = nil // or an idle session would hold the buffer behind it
		}
	}
	if r.loops != nil && !h.Rules.terminate {
		if s := newLoopSession(r, h); r.loops.add(s, h) {
			return s
		}
	}
	s := newStream(r, h)
	draining := r.register(s)
	s.run(h)
	if draining {
		s.Close(Drained, goingAway)
	}
	return s
}

// register puts a session on the list. Where it reports draining, the engine
// ends the session as soon as it has begun.
func (r *Relay) register(s Session) (draining bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[s] = struct{}{}
	return r.draining
}

// unregister takes an ended session off the list.
func (r *Relay) unregister(s Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, s)
	if len(r.live) == 0 && r.empty != nil {
		close(r.empty)
		r.empty = nil
	}
}

// Len is the number of live sessions.
func (r *Relay) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.live)
}

func (r *Relay) sessions() []Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Session, 0, len(r.live))
	for s := range r.live {
		all = append(all, s)
	}
	return all
}

var goingAway = Closing{frame.CodeGoingAway, "going away"}

// Drain ends every session with Close 1001, spread evenly over that time so
// that the clients do not all come back in the same moment. Sessions that are
// started from now on are ended at once. It returns when the last has been told,
// or ctx ends; Wait tells when they have gone.
func (r *Relay) Drain(ctx context.Context, spread time.Duration) {
	r.mu.Lock()
	r.draining = true
	r.mu.Unlock()
	closeSpread(ctx, spread, r.sessions(), Drained, goingAway)
}

// DrainTargets ends the sessions whose target is gone from their route, spread over that time. It returns as Drain does.
func (r *Relay) DrainTargets(ctx context.Context, spread time.Duration, c Closing, gone func(route, target string) bool) {
	closeSpread(ctx, spread, slices.DeleteFunc(r.sessions(), func(s Session) bool { return !gone(s.home()) }), TargetRemoved, c)
}

// closeSpread closes sessions, spread evenly over that time. It returns early when ctx ends.
func closeSpread(ctx context.Context, spread time.Duration, all []Session, why Reason, c Closing) {
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, s := range all {
		due := spread * time.Duration(i) / time.Duration(len(all))
		if wait := due - time.Since(began); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		s.Close(why, c)
	}
}

// Cut closes the connections of every session at once, without a frame.
func (r *Relay) Cut() {
	r.dismissals.close()
	for _, s := range r.sessions() {
		s.cut()
	}
}

// Wait returns nil once there is no session and every Ended has returned, or
// ctx's error when that ends first.
func (r *Relay) Wait(ctx context.Context) error {
	r.mu.Lock()
	if len(r.live) == 0 {
		r.mu.Unlock()
		return nil
	}
	if r.empty == nil {
		r.empty = make(chan struct{})
	}
	empty := r.empty
	r.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
