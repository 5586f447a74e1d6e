package front

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testServer is a Server whose handler hijacks what upgrades, echoes on it, and refuses everything else.
type testServer struct {
	*Server
	network   string // tcp unless it is set
	addr      string
	malformed atomic.Int32

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

func (s *testServer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

func (s *testServer) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func (s *testServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := NewExchange(w, r)
	if r.Header.Get("Upgrade") == "" {
		e.Respond(404, http.Header{}, []byte("no\n"))
		return
	}
	conn, _, err := e.Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
	go func() {
		io.Copy(conn, conn)
		conn.Close()
	}()
}

func newServer(t *testing.T) *testServer {
	t.Helper()
	s := &testServer{}
	var err error
	s.Server, err = New(Config{
		Handler: s, Base: t.Context(), RequestTimeout: 5 * time.Second, HalfClosed: time.Second,
		Malformed: func(netip.Addr) { s.malformed.Add(1) },
		Logger:    slog.New(slog.NewTextHandler(s, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve has s serve until the end of the test.
func (s *testServer) serve(t *testing.T) {
	t.Helper()
	where := "127.0.0.1:0"
	if s.network == "unix" {
		where = filepath.Join(t.TempDir(), "front.sock")
	}
	l, err := net.Listen(cmp.Or(s.network, "tcp"), where)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func (s *testServer) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial(cmp.Or(s.network, "tcp"), s.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// awaitPending waits until so many connections are pending.
func (s *testServer) awaitPending(t *testing.T, want int) {
	t.Helper()
	n := -1
	for range 5000 {
		if n = s.Pending(); n == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%d connections are pending, want %d", n, want)
}

// newCrowdedServer serves with a bound of so many pending connections.
func newCrowdedServer(t *testing.T, network string, max int) *testServer {
	t.Helper()
	s := newServer(t)
	s.pending.max, s.network = max, network
	s.serve(t)
	return s
}

// eachNetwork runs a test with connections of TCP and of a unix socket.
func eachNetwork(t *testing.T, test func(t *testing.T, network string)) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) { test(t, network) })
	}
}

const upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"

// open opens a session and has it echo.
func (s *testServer) open(t *testing.T) {
	t.Helper()
	conn := s.dial(t)
	io.WriteString(conn, upgrade)
	want := "HTTP/1.1 101 Switching Protocols\r\n\r\n"
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != want {
		t.Fatalf("got %q, %v", buf, err)
	}
	io.WriteString(conn, "hello")
	if _, err := io.ReadFull(conn, buf[:5]); err != nil || string(buf[:5]) != "hello" {
		t.Fatalf("echo: got %q, %v", buf[:5], err)
	}
}

// Silent connections beyond the bound make room for others, the oldest first, and keep nobody from a session.
func TestSilentConnectionsMakeRoom(t *testing.T) { eachNetwork(t, testSilentConnectionsMakeRoom) }

func testSilentConnectionsMakeRoom(t *testing.T, network string) {
	const max, more = 5, 3
	s := newCrowdedServer(t, network, max)
	var silent []net.Conn
	for i := range max + more {
		silent = append(silent, s.dial(t))
		s.awaitPending(t, min(i+1, max))
	}
	for i, c := range silent {
		if i >= more {
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		}
		if _, err := c.Read(make([]byte, 1)); (err == io.EOF) != (i < more) {
			t.Errorf("connection %d of %d: %v", i+1, max+more, err)
		}
	}
	if want := "too many connections that ask nothing: the oldest are closed"; strings.Count(s.logged(), want) != 1 {
		t.Errorf("log: %s", s.logged())
	}
	for range max + more {
		s.open(t)
	}
	s.awaitPending(t, max-1) // the last to be let in found room
	for _, c := range silent {
		c.Close()
	}
	s.awaitPending(t, 0)
}

// A session's connection, and one that was refused, are pending no more.
func TestRequestEndsTheWait(t *testing.T) { eachNetwork(t, testRequestEndsTheWait) }

func testRequestEndsTheWait(t *testing.T, network string) {
	s := newCrowdedServer(t, network, 100)
	s.open(t)
	s.awaitPending(t, 0)

	c := s.dial(t)
	s.awaitPending(t, 1)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	io.Copy(io.Discard, c)
	s.awaitPending(t, 0)

	c = s.dial(t)
	s.awaitPending(t, 1)
	c.Close()
	s.awaitPending(t, 0)
}

// A request with a body that does not come is answered at once, and lingers: so do many of them, within the bound.
func TestRefusedConnectionsMakeRoom(t *testing.T) { eachNetwork(t, testRefusedConnectionsMakeRoom) }

func testRefusedConnectionsMakeRoom(t *testing.T, network string) {
	const max, more = 5, 3
	s := newCrowdedServer(t, network, max)
	for range max + more {
		c := s.dial(t)
		io.WriteString(c, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
		want := "HTTP/1.1 404"
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
			t.Fatalf("got %q, %v", buf, err)
		}
	}
	s.awaitPending(t, max)
	s.awaitPending(t, 0) // net/http lingers for a second and a half
}

// A connection is evicted or its request is answered, never both.
func TestEvictedConnectionIsNotAnswered(t *testing.T) {
	s := newServer(t)
	s.pending.max = 1
	l, err := net.Listen("tcp", "127.0.0.1:0") // which accepts nothing: the only pending connections are the test's
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.addr = l.Addr().String()
	request := func() (*trackedConn, *http.Request) {
		c := s.pending.add(s.dial(t).(*net.TCPConn), nil)
		return c, (&http.Request{}).WithContext(s.http.ConnContext(t.Context(), c))
	}
	first, late := request()
	_, next := request() // for which the first makes room
	if _, err := first.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the oldest is open: %v", err)
	}
	if markHandled(late) {
		t.Error("the request of an evicted connection goes on")
	}
	if !markHandled(next) {
		t.Error("the request of another does not")
	}
	if _, third := request(); !markHandled(third) {
		t.Error("a request that is being answered was taken for one that waits")
	}
}

// A PROXY head that does not end is not waited for either, and its peer is told of; one that does not begin is given up in silence.
func TestHeadThatDoesNotEnd(t *testing.T) {
	for raw, want := range map[string]int{"PROXY TCP4 203.0.113.9": 1, "": 0} {
		s := newServer(t)
		refused := make(chan error, 1)
		s.trusts = func(netip.Addr) bool { return true }
		s.headRefused = func(_ netip.Addr, err error) { refused <- err }
		s.http.ReadHeaderTimeout = 50 * time.Millisecond
		s.serve(t)
		conn := s.dial(t)
		io.WriteString(conn, raw)
		if answer, err := io.ReadAll(conn); len(answer) > 0 || err != nil {
			t.Errorf("%q: got %q, %v; want the end of the connection", raw, answer, err)
		}
		s.awaitPending(t, 0)
		s.Close()
		if len(refused) != want {
			t.Errorf("%q: %d heads were refused, want %d", raw, len(refused), want)
		}
	}
}

// A request whose header does not end is not waited for, or a few such requests take every descriptor (slowloris).
func TestHeaderThatDoesNotEnd(t *testing.T) {
	s := newServer(t)
	if got := s.http.ReadHeaderTimeout; got <= 0 || got > headerTimeout {
		t.Errorf("a header may take %v, want at most %v", got, headerTimeout)
	}
	s.http.ReadHeaderTimeout = 50 * time.Millisecond
	s.serve(t)
	conn := s.dial(t)
	io.WriteString(conn, strings.TrimSuffix(upgrade, "\r\n"))
	answer, err := io.ReadAll(conn)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Errorf("the connection stays open, answered %q", answer)
	}
}

// The request's context must not end before the handler has had its time.
func TestServerWaitsForTheHandler(t *testing.T) {
	const took = 25 * time.Hour
	s, err := New(Config{Handler: http.NotFoundHandler(), Base: context.Background(), RequestTimeout: took})
	if err != nil {
		t.Fatal(err)
	}
	if s.http.WriteTimeout <= took || s.http.ReadTimeout <= took+s.http.ReadHeaderTimeout {
		t.Errorf("WriteTimeout %v, ReadTimeout %v: want more than the handler's %v", s.http.WriteTimeout, s.http.ReadTimeout, took)
	}
}

// failing is a listener that accepts nothing.
type failing struct {
	net.Listener
	err error
}

func (f failing) Accept() (net.Conn, error) { return nil, f.err }

func TestAcceptErrorsAreToldOnceASecond(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want int // in two seconds and a half
	}{
		{"no descriptor", &net.OpError{Op: "accept", Err: syscall.EMFILE}, 3},
		{"closed", net.ErrClosed, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				server := &Server{log: slog.New(slog.NewTextHandler(&log, nil))}
				l := &listener{failing{err: tt.err}, server, rate.Sometimes{Interval: time.Second}}
				for range 500 { // as often as net/http tries
					if _, err := l.Accept(); !errors.Is(err, tt.err) {
						t.Fatalf("got %v", err)
					}
					time.Sleep(5 * time.Millisecond)
				}
				if got := strings.Count(log.String(), "msg=accept"); got != tt.want {
					t.Errorf("%d lines, want %d", got, tt.want)
				}
			})
		})
	}
}

// TestWhatCountsAsMalformed goes through what net/http tells of a connection.
func TestWhatCountsAsMalformed(t *testing.T) {
	s := newServer(t)
	const (
		handled http.ConnState = -1 - iota // our handler ran
		written                            // net/http wrote an answer
		alerted                            // crypto/tls wrote that it closes
	)
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	for _, tt := range []struct {
		name   string
		states []http.ConnState
		want   int32
	}{
		{"silent", []http.ConnState{http.StateNew, http.StateClosed}, 0},
		{"refused by net/http", []http.ConnState{http.StateNew, http.StateActive, written, http.StateClosed}, 1},
		{"gone or evicted within its header", []http.ConnState{http.StateNew, http.StateActive, http.StateClosed}, 0},
		{"the same with TLS", []http.ConnState{http.StateNew, http.StateActive, alerted, http.StateClosed}, 0},
		{"answered", []http.ConnState{http.StateNew, http.StateActive, handled, http.StateClosed}, 0},
		{"upgraded", []http.ConnState{http.StateNew, http.StateActive, handled, http.StateHijacked}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := s.malformed.Load()
			tcp, err := net.Dial("tcp", elsewhere.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer tcp.Close()
			conn := s.pending.add(tcp.(*net.TCPConn), nil)
			r := (&http.Request{}).WithContext(s.http.ConnContext(t.Context(), conn))
			for _, state := range tt.states {
				switch state {
				case handled:
					markHandled(r)
				case written:
					io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request")
				case alerted:
					conn.Write(make([]byte, 31)) // RFC 5246 section 7.2, sealed by AES-GCM
				default:
					s.connState(conn, state)
				}
			}
			if got := s.malformed.Load() - before; got != tt.want {
				t.Errorf("counted %v times, want %v", got, tt.want)
			}
		})
	}
}

// The relay's event loop takes plain connections only, and the bytes behind a PROXY head are the session's.
func TestSessionHasThePlainConnection(t *testing.T) {
	for _, c := range []socket{&net.TCPConn{}, &net.UnixConn{}} {
		if got, read := untrack(&trackedConn{socket: c}); got != net.Conn(c) || read != nil {
			t.Errorf("got %T and %q, want the %T", got, read, c)
		}
		reader := bufio.NewReader(strings.NewReader("PROXY UNKNOWN\r\nrest"))
		if _, err := parseHead(reader); err != nil {
			t.Fatal(err)
		}
		if got, read := untrack(&trackedConn{socket: c, head: &proxyHead{reader: reader}}); got != net.Conn(c) || string(read) != "rest" {
			t.Errorf("got %T and %q, want the %T and what stands behind the head", got, read, c)
		}
	}
}
