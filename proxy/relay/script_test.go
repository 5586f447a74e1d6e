package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// script plays a session for a policy, as an engine would, but without sockets
// and with a clock that only the test moves. What goes out to a peer is read
// as that peer would read it, and kept as a line for every frame.
type script struct {
	t      testing.TB
	policy policy
	clock  moment
	peers  [2]scriptPeer
}

// scriptPeer is the far end of one side.
type scriptPeer struct {
	inbox    []arrival // what it has sent and the engine has not read
	full     bool      // it takes nothing: what is handed out for it stays pending
	broken   bool      // writing to it fails
	pending  []byte    // handed out and not taken
	consumed []byte    // what the policy has taken of what it sent

	// What the kernel tells of the bytes on their way to it.
	acked, queued uint64
	ackedAt       moment // 0: it cannot tell

	wire     []byte   // taken and not yet a whole frame
	raw      []byte   // every frame taken that was not ours, as it was on the wire
	seen     []string // what it got since the last want
	pings    [][]byte // payloads of our pings, in order
	lastPush byte
	pushes   int  // of those in random sessions, which it got
	open     bool // it is in the middle of a message
	closed   bool // it got a Close frame
	fin      bool // and the end of our direction
	gone     bool // its connection is closed

	// Terminating only: what the library has read from it and not yet
	// written, and what it would write to it.
	library []byte
	writing []byte
}

// arrival is what one read from a peer gives.
type arrival struct {
	b        []byte
	eof, err bool
}

// scriptNonce has the pings' payloads pass the end of their 64 bits.
const scriptNonce = 1<<64 - 2

// scriptConfig is what most scripts run with: ping 30 s, pong 10 s, close 5 s.
func scriptConfig() Config {
	return Config{
		Mode: "passthrough", Engine: "stream", LimitAction: "close",
		PingInterval: 30 * time.Second, PongTimeout: 10 * time.Second, CloseTimeout: 5 * time.Second,
	}
}

func newScript(t testing.TB, c Config) *script { return newScriptWith(t, c, "") }

func newScriptWith(t testing.TB, c Config, extensions string) *script {
	t.Helper()
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, clock: time.Hour}
	s.policy.start(r.Rules, r.scanRules(extensions), s, scriptNonce, s.clock)
	return s
}

// Frames, as a side sends them.

func (s side) frame(h frame.Header, payload string) []byte {
	h.Length = int64(len(payload))
	if s == client {
		h.Masked, h.Key = true, [4]byte{1, 2, 3, 4}
	}
	b := h.Append(nil)
	start := len(b)
	b = append(b, payload...)
	if h.Masked {
		frame.Mask(h.Key, 0, b[start:])
	}
	return b
}

func (s side) whole(op frame.Opcode, payload string) []byte {
	return s.frame(frame.Header{Fin: true, Opcode: op}, payload)
}

func (s side) text(m string) []byte { return s.whole(frame.Text, m) }
func (s side) ping(m string) []byte { return s.whole(frame.Ping, m) }
func (s side) pong(m string) []byte { return s.whole(frame.Pong, m) }
func (s side) close(code int, reason string) []byte {
	return s.whole(frame.Close, string(frame.ClosePayload(code, reason)))
}

// The peers' doings.

// send has a peer send bytes that arrive in one read.
func (s *script) send(from side, b ...[]byte) {
	s.t.Helper()
	s.arrive(from, arrival{b: bytes.Join(b, nil)})
}

// sendFIN has a peer shut its direction; reset has it break the connection.
func (s *script) sendFIN(from side) { s.t.Helper(); s.arrive(from, arrival{eof: true}) }
func (s *script) reset(from side)   { s.t.Helper(); s.arrive(from, arrival{err: true}) }

// answer has a peer answer our latest ping.
func (s *script) answer(from side) {
	s.t.Helper()
	pings := s.peers[from].pings
	if len(pings) == 0 {
		s.t.Fatalf("%v has not been pinged", from)
	}
	s.send(from, from.pong(string(pings[len(pings)-1])))
}

func (s *script) arrive(from side, a arrival) {
	s.t.Helper()
	p := &s.peers[from]
	p.inbox = append(p.inbox, a)
	if a.eof || a.err {
		s.policy.watch(from, s.clock)
	}
	s.run()
}

// block has a peer take nothing, unblock has it take all there is.
func (s *script) block(to side) { s.peers[to].full = true }
func (s *script) unblock(to side) {
	s.t.Helper()
	p := &s.peers[to]
	p.full = false
	if b := p.pending; b != nil && !p.gone {
		p.pending = nil
		s.write(to, b)
		s.libraryWrites(to, nil)
	}
	s.run()
}

// onTheWay has the kernel tell how many bytes a peer has acknowledged, the last of them now, and how many are queued for it.
func (s *script) onTheWay(to side, acked, queued uint64) {
	p := &s.peers[to]
	p.acked, p.queued, p.ackedAt = acked, queued, s.clock
}

func (s *script) delivery(to side) (delivery, bool) {
	p := &s.peers[to]
	return delivery{p.acked, p.queued, s.clock - p.ackedAt}, p.ackedAt != 0
}

// hungUp reports whether a peer's end has come, read or not.
func (s *script) hungUp(from side) (fin, broken bool) {
	for _, a := range s.peers[from].inbox {
		fin, broken = fin || a.eof || a.err, broken || a.err
	}
	return fin, broken
}

// wait lets time pass.
func (s *script) wait(d time.Duration) {
	s.t.Helper()
	target := s.clock + d
	for turns := 0; s.policy.wake <= target; turns++ {
		if turns > 10_000 {
			s.t.Fatalf("the policy wants to be woken at %v all the time", s.policy.wake)
		}
		s.clock = max(s.clock, s.policy.wake)
		s.policy.tick(s.clock)
		s.run()
	}
	s.clock = target
}

// The engine's doings.

// end and cut are the engine's.
func (s *script) end(r Reason, c Closing) { s.t.Helper(); s.policy.end(r, c, s.clock); s.run() }
func (s *script) cut()                    { s.t.Helper(); s.policy.cut(s.clock); s.run() }

// run does all that can be done without time passing.
func (s *script) run() {
	s.t.Helper()
	for range 2 {
		for from := range side(2) {
			for s.flows(from) && len(s.peers[from].inbox) > 0 {
				a := s.peers[from].inbox[0]
				s.peers[from].inbox = s.peers[from].inbox[1:]
				s.read(from, a)
			}
		}
		s.settle()
	}
	for to := range side(2) {
		if s.policy.wants(to) && !s.peers[to].gone {
			s.t.Fatalf("the policy still wants something for %v: the engine would spin", to)
		}
	}
	s.checkWake()
}

// flows reports whether a side is read: not while the other takes nothing. The
// library is only kept from reading by what it has to write itself.
func (s *script) flows(from side) bool {
	to := &s.peers[from.other()]
	return len(to.writing) == 0 && (to.pending == nil || s.policy.terminate || s.policy.resume != nil) && !s.policy.held(from) && !s.peers[from].gone
}

func (s *script) read(from side, a arrival) {
	s.t.Helper()
	switch {
	case a.eof:
		s.policy.eof(from, s.clock)
	case a.err:
		s.policy.readFailed(from, s.clock)
	default:
		buf := make([]byte, 1<<10)
		n := s.policy.takePartial(from, buf)
		s.peers[from].consumed = append(s.peers[from].consumed, a.b...)
		s.pass(from, append(buf[:n], a.b...))
		return
	}
	s.settle()
}

func (s *script) pass(from side, b []byte) {
	s.t.Helper()
	p, to := &s.peers[from], from.other()
	for turns := 0; len(b) > 0; turns++ {
		if turns > 10_000 {
			s.t.Fatal("the policy takes nothing: the engine would spin")
		}
		var out []byte
		out, b = s.policy.receive(from, b, s.clock)
		if s.policy.terminate {
			p.library = append(p.library, out...)
			s.carryOver(from)
		} else {
			s.write(to, out)
		}
		if len(b) > 0 {
			s.insert(to)
			if !s.flows(from) {
				p.consumed = p.consumed[:len(p.consumed)-len(b)]
				p.inbox = slices.Insert(p.inbox, 0, arrival{b: bytes.Clone(b)})
				break
			}
		}
	}
	s.settle()
}

// carryOver plays the terminating library: a message that has come whole is
// written to the other side, in a frame of its own.
func (s *script) carryOver(from side) {
	s.t.Helper()
	p, to := &s.peers[from], from.other()
	var op frame.Opcode
	var message []byte
	for b := p.library; ; {
		h, size, err := frame.Parse(b)
		if err != nil {
			s.t.Fatalf("the library reads %v", err)
		}
		if size == 0 || int64(len(b)-size) < h.Length {
			return
		}
		if h.Opcode.Control() || h.RSV != 0 {
			s.t.Fatalf("the library reads %+v", h)
		}
		payload := bytes.Clone(b[size : size+int(h.Length)])
		if h.Masked {
			frame.Mask(h.Key, 0, payload)
		}
		if h.Opcode != frame.Continuation {
			op = h.Opcode
		}
		message = append(message, payload...)
		b = b[size+int(h.Length):]
		if !h.Fin {
			continue
		}
		p.library = b
		s.libraryWrites(to, from.whole(op, string(message)))
		message = nil
	}
}

// libraryWrites has the terminating library write to a side.
func (s *script) libraryWrites(to side, b []byte) {
	s.t.Helper()
	p := &s.peers[to]
	p.writing = append(p.writing, b...)
	for turns := 0; len(p.writing) > 0 && p.pending == nil; turns++ {
		if turns > 10_000 {
			s.t.Fatal("the policy takes nothing: the library would spin")
		}
		var out []byte
		out, p.writing = s.policy.transmit(to, p.writing, s.clock)
		s.write(to, out)
		if len(p.writing) > 0 && p.pending == nil {
			s.insert(to)
		}
	}
}

func (s *script) write(to side, b []byte) {
	s.t.Helper()
	p := &s.peers[to]
	switch {
	case len(b) == 0:
	case p.gone || p.fin:
		s.t.Fatalf("written to %v after its end: %x", to, b)
	case p.broken:
		s.policy.writeFailed(to, s.clock)
	case p.full:
		if p.pending != nil {
			s.t.Fatalf("handed out for %v while it has bytes pending: %x", to, b)
		}
		p.pending = bytes.Clone(b)
	default:
		s.taken(to, b)
		s.policy.endWrite(to, s.clock)
	}
}

func (s *script) insert(to side) {
	s.t.Helper()
	s.write(to, s.policy.insertion(to, s.clock))
}

func (s *script) settle() {
	s.t.Helper()
	for range 2 {
		for to := range side(2) {
			p := &s.peers[to]
			if s.policy.wants(to) && !p.gone {
				s.serve(to)
			}
		}
	}
}

func (s *script) serve(to side) {
	s.t.Helper()
	p := &s.peers[to]
	if s.policy.peers[to].end.gone {
		p.gone, p.pending, p.writing, p.inbox = true, nil, nil, nil
		p.seen = append(p.seen, "gone")
		return
	}
	for s.policy.wants(to) && !s.policy.peers[to].end.gone {
		s.insert(to)
		if s.policy.takeFIN(to, s.clock) {
			p.fin = true
			p.seen = append(p.seen, "FIN")
		}
	}
}

// taken reads what a peer has got.
func (s *script) taken(to side, b []byte) {
	s.t.Helper()
	p := &s.peers[to]
	p.wire = append(p.wire, b...)
	for {
		h, size, err := frame.Parse(p.wire)
		switch {
		case err != nil:
			s.t.Fatalf("%v got %x: %v", to, p.wire, err)
		case len(p.wire) > 0 && p.closed:
			s.t.Fatalf("%v got %x after a Close frame", to, p.wire)
		case size == 0:
			return
		case h.Masked != (to == upstream):
			s.t.Fatalf("%v got a frame masked wrongly: %+v", to, h)
		case int64(len(p.wire)-size) < h.Length:
			return
		}
		payload := bytes.Clone(p.wire[size : size+int(h.Length)])
		if h.Masked {
			frame.Mask(h.Key, 0, payload)
		}
		ours := s.line(to, h, payload)
		if !ours {
			p.raw = append(p.raw, p.wire[:size+int(h.Length)]...)
		}
		p.wire = p.wire[size+int(h.Length):]
	}
}

// pushMark begins what is pushed in random sessions.
const pushMark = "push "

// line keeps a frame that a peer got, in words, and reports whether it is a ping of ours or such a push.
func (s *script) line(to side, h frame.Header, payload []byte) (ours bool) {
	p := &s.peers[to]
	what := map[frame.Opcode]string{frame.Continuation: "continuation", frame.Text: "text", frame.Binary: "binary",
		frame.Close: "close", frame.Ping: "ping", frame.Pong: "pong"}[h.Opcode]
	if h.RSV != 0 {
		what = fmt.Sprintf("RSV %#x %s", h.RSV, what)
	}
	if !h.Fin {
		what += "..."
	}
	switch {
	case h.Opcode == frame.Ping && len(payload) == 8 && binary.BigEndian.Uint64(payload)-scriptNonce-1 < 1000:
		p.pings = append(p.pings, payload)
		what, ours = "our ping", true
	case h.Opcode == frame.Text && bytes.HasPrefix(payload, []byte(pushMark)):
		if p.open {
			s.t.Fatalf("%v got %q inside a message", to, payload)
		}
		if rank := payload[len(pushMark)] - 'a'; p.pushes > 0 && (rank+26-p.lastPush-1)%26 > 20 {
			s.t.Fatalf("%v got %q twice, or too late", to, payload)
		} else {
			p.lastPush = rank
		}
		p.pushes++
		what, ours = string(payload), true
	case h.Opcode == frame.Close:
		p.closed = true
		code, reason, err := frame.ParseClose(payload)
		if err != nil {
			s.t.Fatalf("%v got a Close frame of %x: %v", to, payload, err)
		}
		what = fmt.Sprintf("close %d %s", code, reason)
	case len(payload) > 40:
		what = fmt.Sprintf("%s of %d", what, len(payload))
	default:
		what += " " + string(payload)
	}
	if h.Opcode <= frame.Binary && !ours {
		p.open = !h.Fin
	}
	p.seen = append(p.seen, what)
	return ours
}

// checkWake sees that nothing would have happened before wake: a policy that
// was ticked a moment earlier wants nothing new.
func (s *script) checkWake() {
	s.t.Helper()
	if s.policy.over() || s.policy.wake-1 <= s.clock {
		return
	}
	at := s.policy.wake - 1
	if s.policy.wake == never {
		at = s.clock + 1000*time.Hour
	}
	early := s.policy
	if early.pushes != nil {
		copied := *early.pushes
		copied.queue, copied.to = slices.Clone(copied.queue), &scriptRecipient{}
		early.pushes = &copied
	}
	if early.resume != nil {
		early.Rules, early.resume = early.resume.apart(early.Rules)
	}
	early.tick(at)
	for to := range side(2) {
		if early.wants(to) != s.policy.wants(to) && !s.peers[to].gone || early.peers[to].end.frame != s.policy.peers[to].end.frame {
			s.t.Fatalf("something is due for %v by %v after now, and wake is %v after now", to, at-s.clock, s.policy.wake-s.clock)
		}
	}
	if early.reason != s.policy.reason {
		s.t.Fatalf("the session is to end (%s) by %v after now, and wake is %v after now", early.reason, at-s.clock, s.policy.wake-s.clock)
	}
}

// What must have come of it.

// want compares what a peer got since the last want: a line for every frame,
// "part of a frame" where the last has not come whole, "FIN", and "gone" where
// its connection was closed.
func (s *script) want(to side, lines ...string) {
	s.t.Helper()
	p := &s.peers[to]
	got := p.seen
	if len(p.wire) > 0 {
		got = append(slices.Clone(got), "part of a frame")
	}
	if !slices.Equal(got, lines) {
		s.t.Fatalf("%v got  %q\nwant %q", to, got, lines)
	}
	p.seen = nil
}

// wantOver checks that the session is over, and what its log line will say.
func (s *script) wantOver(reason Reason, code int) {
	s.t.Helper()
	if !s.policy.over() {
		s.t.Errorf("the session is not over")
	}
	if e := s.policy.summary(s.clock); e.Reason != reason || e.Code != code {
		s.t.Errorf("it ended as %s, %d; want %s, %d", e.Reason, e.Code, reason, code)
	}
}

func (s *script) wantLive() {
	s.t.Helper()
	if s.policy.reason != "" {
		s.t.Fatalf("the session is ending: %s", s.policy.reason)
	}
}

// String names a side in messages.
func (s side) String() string { return [2]string{"client", "upstream"}[s] }

// bothSides runs a test for each side.
func bothSides(t *testing.T, test func(*testing.T, side)) {
	for s := range side(2) {
		t.Run(s.String(), func(t *testing.T) { test(t, s) })
	}
}
