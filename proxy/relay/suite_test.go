package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis/proxy/frame"
)

// The tests of this package that are not about one part of it are one suite: each
// runs against every engine, between real sockets on the loopback interface.
// It does not look into a relay, but stands where its peers stand.

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(playRole(role)) // a process of TestFleet
	}
	flag.Set("test.parallel", "8") // those that are parallel wait for clocks, not for processors
	goleak.VerifyTestMain(descriptorLeaks{m})
}

// engine is a way to relay a session.
type engine struct {
	name   string
	mode   string
	engine string
	tls    bool // on the client's side
}

func (e engine) terminates() bool { return e.mode == "terminate" }

var engines = func() (all []engine) {
	if haveLoops {
		all = append(all, engine{name: "loop", mode: "passthrough", engine: "loop"})
	}
	return append(all,
		engine{name: "stream", mode: "passthrough", engine: "stream"},
		engine{name: "stream-tls", mode: "passthrough", engine: "auto", tls: true},
		engine{name: "terminate", mode: "terminate", engine: "auto"},
	)
}()

// eachEngine runs a test of the suite with every engine.
func eachEngine(t *testing.T, test func(*testing.T, engine)) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) { test(t, e) })
	}
}

// rig is a relay under test and the sessions that it was given.
type rig struct {
	*Relay
	t         testing.TB
	engine    engine
	sessions  []*testSession
	autotuned bool                    // leave the kernel's buffers as they are
	wrap      func(net.Conn) net.Conn // if set, what the relay sees of the client's connection
}

// config is what the tests start from: nothing that is not asked for happens
// by itself, and nothing is given up while a test may still expect it.
func (e engine) config() Config {
	return Config{
		Mode: e.mode, Engine: e.engine, LimitAction: "close",
		PongTimeout: patience, CloseTimeout: patience,
	}
}

// newRig returns a relay. At the end of the test its sessions are cut, and
// each must have ended exactly once.
func newRig(t testing.TB, e engine, c Config) *rig {
	t.Helper()
	relay, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Relay: relay, t: t, engine: e}
	t.Cleanup(func() {
		r.Cut()
		r.wait()
		if n := r.Len(); n != 0 {
			t.Errorf("%d sessions are live after Wait", n)
		}
		for i, s := range r.sessions {
			s.client.conn.Close()
			s.upstream.conn.Close()
			s.mu.Lock()
			if len(s.results) != 1 {
				t.Errorf("session %d: Ended was called %d times, want 1", i, len(s.results))
			}
			s.mu.Unlock()
		}
	})
	return r
}

// wait waits for all sessions.
func (r *rig) wait() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.Wait(ctx); err != nil {
		r.t.Errorf("Wait: %v; %d sessions are live", err, r.Len())
	}
}

// testSession is a session with the test at both ends of it.
type testSession struct {
	t                testing.TB
	client, upstream *testPeer
	ends             [2]net.Conn   // that the relay is given
	over             chan struct{} // closed by the first Ended

	mu      sync.Mutex // guards results
	results []End
}

// open starts a session.
func (r *rig) open() *testSession {
	r.t.Helper()
	return r.openWith(Handover{})
}

// openWith starts a session with what else the handover is to have.
func (r *rig) openWith(h Handover) *testSession {
	r.t.Helper()
	s := r.connect()
	r.start(s, h)
	return s
}

// connect makes the connections of a session. The kernel's buffers are small, so that a
// peer that does not read is felt before megabytes have gone.
func (r *rig) connect() *testSession {
	r.t.Helper()
	var client net.Conn
	dialed, accepted := tcpPair(r.t)
	s := &testSession{t: r.t, over: make(chan struct{})}
	client, s.ends[0] = dialed, accepted
	if r.engine.tls {
		client, s.ends[0] = tlsPair(r.t, dialed, accepted)
	}
	if r.wrap != nil {
		s.ends[0] = r.wrap(s.ends[0])
	}
	s.client = newPeer(r.t, frame.Client, client, dialed)
	far, near := tcpPair(r.t)
	if !r.autotuned {
		for _, c := range []*net.TCPConn{dialed, accepted, near, far} {
			c.SetReadBuffer(64 << 10)
			c.SetWriteBuffer(64 << 10)
		}
	}
	s.upstream, s.ends[1] = newPeer(r.t, frame.Server, far, far), near
	return s
}

// start hands a session over.
func (r *rig) start(s *testSession, h Handover) {
	if h.Extensions != "" {
		s.client.rules.FrameRSV, s.upstream.rules.FrameRSV = 0x70, 0x70
	}
	h.Client, h.Upstream = s.ends[0], s.ends[1]
	h.Ended = func(e End) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.results = append(s.results, e); len(s.results) == 1 {
			close(s.over)
		}
	}
	r.sessions = append(r.sessions, s)
	r.Start(h)
}

// ended waits for the end of the session.
func (s *testSession) ended() End {
	s.t.Helper()
	select {
	case <-s.over:
	case <-time.After(patience):
		s.t.Fatal("the session does not end")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.results[0]
}

// wantEnd waits for the end of the session and compares all but how long it took.
func (s *testSession) wantEnd(want End) {
	s.t.Helper()
	got := s.ended()
	if got.Duration <= 0 {
		s.t.Errorf("the session took %v", got.Duration)
	}
	got.Duration = 0
	if got != want {
		s.t.Errorf("end %+v, want %+v", got, want)
	}
}

// hangUp brings a session to its proper end from the client, and returns what
// became of it.
func (s *testSession) hangUp() End {
	s.t.Helper()
	s.client.sendClose(frame.CodeNormal, "done")
	s.upstream.expect("close 1000 done")
	s.upstream.sendClose(frame.CodeNormal, "done")
	s.upstream.conn.Close()
	s.client.expect("close 1000 done")
	s.client.expectEOF()
	s.client.conn.Close()
	return s.ended()
}

// tcpPair returns both ends of a connection.
func tcpPair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	dialed, accepted, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	return dialed, accepted
}

func connect() (dialed, accepted *net.TCPConn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	a, err := l.Accept()
	if err != nil {
		d.Close()
		return nil, nil, err
	}
	return d.(*net.TCPConn), a.(*net.TCPConn), nil
}

// tlsPair returns both ends of a TLS connection over such a pair.
func tlsPair(t testing.TB, dialed, accepted net.Conn) (client, server *tls.Conn) {
	t.Helper()
	client = tls.Client(dialed, &tls.Config{InsecureSkipVerify: true})
	server = tls.Server(accepted, &tls.Config{Certificates: []tls.Certificate{certificate()}})
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	return client, server
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// descriptorLeaks runs the tests and then compares the open descriptors with those before.
type descriptorLeaks struct{ *testing.M }

func (m descriptorLeaks) Run() int {
	// Go's poller opens its own with the first connection, and keeps them.
	if d, a, err := connect(); err == nil {
		d.Close()
		a.Close()
	}
	before, known := descriptors()
	code := m.M.Run()
	goleak.Find() // waits for what is about to end: loops linger
	if after, _ := descriptors(); known && after != before && code == 0 {
		println("descriptors open before the tests:", before, "and after:", after)
		return 1
	}
	return code
}

// descriptors counts this process's open descriptors, where the system tells.
func descriptors() (n int, known bool) {
	entries, err := os.ReadDir("/proc/self/fd")
	return len(entries), err == nil
}

// atLeast calls f and fails where that takes less than least.
func atLeast(t *testing.T, least time.Duration, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took < least {
		t.Errorf("took %v, want at least %v", took, least)
	}
}
