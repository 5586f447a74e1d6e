package session

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/frame"
	"portcullis/proxy/relay"
	"portcullis/ratelimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// newManager returns a manager with a relay of its own, whose sessions are closed at the end of the test.
func newManager(t testing.TB, c Config) *Manager {
	t.Helper()
	r, err := relay.New(relay.Config{
		Mode: "passthrough", Engine: "auto", LimitAction: "close", CloseTimeout: patience, PongTimeout: patience, PushQueue: 256 << 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Relay, c.Listed = r, true
	c.Lease.Timeout = time.Second
	c.Metrics = admin.NewMetrics(admin.Known{PushDrops: relay.Drops()})
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		m.Close(ctx)
		if leases, found := m.Held(); leases != 0 || found != 0 {
			t.Errorf("%d leases and %d sessions are left", leases, found)
		}
	})
	return m
}

// peer is the client of a session.
type peer struct {
	*Session
	conn       net.Conn
	reader     *bufio.Reader
	extensions string
}

// open opens a session and starts it.
func open(t testing.TB, m *Manager, o Opening) *peer {
	t.Helper()
	p := opened(t, m, o)
	p.start(t)
	return p
}

// opened opens a session that the relay does not have yet.
func opened(t testing.TB, m *Manager, o Opening) *peer {
	t.Helper()
	limits, err := ratelimit.New(ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	o.Slot, _ = limits.AcquireSlot(netip.Prefix{}, o.Subject)
	s, err := m.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return &peer{Session: s}
}

// start starts a session, with an upstream that says nothing.
func (p *peer) start(t testing.TB) {
	t.Helper()
	client, near := pair(t)
	upstream, far := pair(t)
	p.conn, p.reader = client, bufio.NewReader(client)
	client.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { client.Close(); far.Close() })
	p.Start(relay.Handover{Client: near, Upstream: upstream, Extensions: p.extensions}, nil)
}

func pair(t testing.TB) (dialed, accepted net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if dialed, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return dialed, accepted
}

// read returns the next message, or what the Close frame says.
func (p *peer) read(t testing.TB) string {
	t.Helper()
	head, err := p.reader.Peek(2)
	if err != nil {
		t.Fatalf("%s: %v", p.ID, err)
	}
	n := 2
	if head[1] == 126 {
		n = 4
	}
	head, err = p.reader.Peek(n)
	if err != nil {
		t.Fatal(err)
	}
	h, size, err := frame.Parse(head)
	if err != nil || size != n {
		t.Fatalf("frame %x: %v", head, err)
	}
	p.reader.Discard(n)
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(p.reader, payload); err != nil {
		t.Fatal(err)
	}
	if h.Opcode == frame.Close {
		code, reason, _ := frame.ParseClose(payload)
		return fmt.Sprintf("close %d %s", code, reason)
	}
	return string(payload)
}

func (p *peer) want(t testing.TB, messages ...string) {
	t.Helper()
	for _, want := range messages {
		if got := p.read(t); got != want {
			t.Fatalf("%s reads %q, want %q", p.ID, got, want)
		}
	}
}

// grant is that of a client of that name.
func grant(subject string) auth.Grant { return auth.Grant{Decision: auth.Decision{Subject: subject}} }

func info(id, subject string) Info {
	return Info{ID: id, Subject: subject, Client: "192.0.2.1", Path: "/", Upstream: "app:80"}
}

func opening(id, subject string, groups ...string) Opening {
	return Opening{Info: info(id, subject), Grant: grant(subject), Groups: groups}
}
