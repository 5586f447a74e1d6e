package relay

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/proxy/frame"
)

func newLoopRig(t *testing.T, edit func(*Config)) *rig {
	t.Helper()
	e := engines[slices.IndexFunc(engines, func(e engine) bool { return e.name == "loop" })]
	c := e.config()
	if edit != nil {
		edit(&c)
	}
	return newRig(t, e, c)
}

// A read ends at urgent data, which no WebSocket has, and what stands behind it is read all the same.
func TestUrgentDataStopsNothing(t *testing.T) {
	r := newLoopRig(t, nil)
	s := r.connect()
	raw, err := s.client.tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	send := func(b []byte, flags int) {
		raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), b, flags, nil) })
		if err != nil {
			t.Fatal(err)
		}
	}
	send(s.client.wire(frame.Header{Fin: true, Opcode: frame.Text}, "one"), 0)
	send([]byte{0}, unix.MSG_OOB)
	send(s.client.wire(frame.Header{Fin: true, Opcode: frame.Text}, "two"), 0)
	r.start(s, Handover{})
	s.upstream.expect("text one")
	s.upstream.expect("text two")
}

// The client is lost while bytes of the upstream are kept because it took no more: they are looked at then, and so is the
// upstream's end behind them.
func TestKeptBytesOfOneSideWhenTheOtherIsLost(t *testing.T) {
	const closeTimeout = 10 * time.Second
	r := newLoopRig(t, func(c *Config) { c.CloseTimeout = closeTimeout })
	s := r.connect()
	s.client.tcp.SetReadBuffer(4 << 10)
	s.ends[0].(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(4 << 10)
	r.start(s, Handover{})
	session := r.Relay.sessions()[0].(*loopSession)
	inLoop := func(f func()) {
		done := make(chan struct{})
		session.loop.post(func() { f(); close(done) })
		<-done
	}

	bulk := appendBulk(nil, frame.Server, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, 60_000))
	s.upstream.write(bulk[:10])
	for inside := false; !inside; {
		inLoop(func() { inside = session.policy.inside(client) })
	}
	session.Close(Drained, goingAway) // due to the client at the end of that frame
	s.upstream.expect("close 1001 going away")
	s.upstream.write(slices.Concat(bulk[10:],
		s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Text}, "more"),
		s.upstream.wire(frame.Header{Fin: true, Opcode: frame.Close}, string(frame.ClosePayload(1001, "")))))
	s.upstream.closeWrite()
	for kept := false; !kept; {
		inLoop(func() { kept = len(session.pending[client]) > 0 && len(session.unread[upstream]) > 0 })
	}
	// In one turn: something of the client was to be read, and before its turn came it had reset.
	inLoop(func() {
		s.client.reset()
		for !session.policy.peers[client].end.gone {
			session.readable[client] = true
			session.readAgain()
		}
	})
	began := time.Now()
	if s.ended(); time.Since(began) > closeTimeout/2 {
		t.Errorf("the session ended only after %v", time.Since(began))
	}
}
