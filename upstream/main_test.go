package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startBackend runs serve for every connection to a port of 127.0.0.1 and closes the connection after it. The test fails
// if one is still open soon after the test's end: then Connect has leaked its side.
func startBackend(t testing.TB, serve func(net.Conn)) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		ended := make(chan struct{})
		go func() {
			running.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Error("a connection to the backend was never closed")
			mu.Lock()
			for _, c := range conns {
				c.Close()
			}
			mu.Unlock()
			<-ended
		}
	})
	return listener.Addr().String()
}

// answering is a backend that reads the request, writes what answer makes of its key, and then waits for the other side
// to close.
func answering(t testing.TB, answer func(key string) string) func(net.Conn) {
	return func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			t.Errorf("backend cannot read the request: %v", err)
			return
		}
		io.WriteString(c, answer(r.Header.Get("Sec-WebSocket-Key")))
		io.Copy(io.Discard, c)
	}
}

// switching is a right 101 with more lines to its header.
func switching(lines string) func(key string) string {
	return func(key string) string {
		return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
			Accept(key) + "\r\n" + lines + "\r\n"
	}
}

// fixed is the same answer to every key.
func fixed(answer string) func(key string) string { return func(string) string { return answer } }

func newUpstream(t testing.TB, c Config) *Upstream {
	t.Helper()
	if c.DialTimeout == 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = 5 * time.Second
	}
	u, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

func connect(t *testing.T, u *Upstream, req *Request) *Conn {
	t.Helper()
	c, err := u.Connect(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// reasons is every Reason there is.
var reasons = []string{
	reasonCancelled, reasonWrite, reasonNoAnswer, reasonClosed, reasonTooLong, reasonNoHTTP, reasonInterim, reasonStatus,
	reasonVersion, reasonBody, reasonUpgrade, reasonConnection, reasonAccept, reasonProtocol, reasonExtensions,
}

// wantHandshakeError checks the reason of err, and that it is told apart from a timeout and a cancellation.
func wantHandshakeError(t *testing.T, err error, reason string) {
	t.Helper()
	e, ok := errors.AsType[*HandshakeError](err)
	if !ok {
		t.Fatalf("got error %v, want a HandshakeError", err)
	}
	if e.Reason != reason {
		t.Errorf("got reason %q, want %q", e.Reason, reason)
	}
	if !slices.Contains(reasons, e.Reason) {
		t.Errorf("reason %q is not in the list", e.Reason)
	}
	if got, want := e.Timeout(), reason == reasonNoAnswer; got != want {
		t.Errorf("got Timeout %v, want %v", got, want)
	}
	if got, want := errors.Is(err, context.Canceled), reason == reasonCancelled; got != want {
		t.Errorf("got cancelled %v, want %v", got, want)
	}
}
