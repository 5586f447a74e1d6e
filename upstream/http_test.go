package upstream

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

// newSite starts a server of plain requests, and counts its connections.
func newSite(t *testing.T, handle http.HandlerFunc) (address string, conns *atomic.Int64) {
	t.Helper()
	conns = new(atomic.Int64)
	s := httptest.NewUnstartedServer(handle)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), conns
}

// send sends a plain request and returns the body of the answer.
func send(t *testing.T, u *Upstream, method string, body io.Reader) (*Answer, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://gate.example/", body)
	if err != nil {
		t.Fatal(err)
	}
	a, err := u.RoundTrip(r, &Request{Path: "/", Host: "gate.example", Header: http.Header{}})
	if err != nil {
		return nil, "", err
	}
	defer a.Place.Release()
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a, string(text), nil
}

// idle fails the test if something counts on a target.
func idle(t *testing.T, u *Upstream) {
	t.Helper()
	for _, s := range u.Targets() {
		if s.Live != 0 {
			t.Errorf("%d count on %s", s.Live, s.Name)
		}
	}
}

// Requests that follow one another share a connection.
func TestPlainConnectionsAreKept(t *testing.T) {
	address, conns := newSite(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	u := newUpstream(t, Config{URL: "http://" + address})
	for i := range 10 {
		text := fmt.Sprint("request ", i)
		a, got, err := send(t, u, "POST", strings.NewReader(text))
		if err != nil || got != text || a.Target != address {
			t.Fatalf("got %q of %v, %v", got, a, err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	idle(t, u)
}

// A dial that fails is tried on the others with the whole body, one that was answered is not, and a target that fails is left alone.
func TestPlainRequestsTryOtherTargets(t *testing.T) {
	address, _ := newSite(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	u := newUpstream(t, Config{URL: "http://127.0.0.1:1 unix:" + filepath.Join(t.TempDir(), "none") + " http://" + address})
	for range 20 {
		if _, got, err := send(t, u, "POST", strings.NewReader("body")); err != nil || got != "body" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	for _, s := range u.Targets() {
		if s.Usable != (s.Name == address) {
			t.Errorf("%+v", s)
		}
	}
	idle(t, u)

	dead := startBackend(t, func(c net.Conn) { io.ReadFull(c, make([]byte, 10)) })
	u = newUpstream(t, Config{URL: "http://" + dead})
	_, _, err := send(t, u, "POST", strings.NewReader("body"))
	if answer, ok := errors.AsType[*AnswerError](err); !ok || answer.Reason != reasonClosed {
		t.Errorf("got %v", err)
	}
	idle(t, u)
}

// What is wrong with a body is its client's fault, and no target's.
func TestBrokenBody(t *testing.T) {
	address, _ := newSite(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	u := newUpstream(t, Config{URL: "http://" + address + " http://" + address + "/other"})
	broken := errors.New("broken")
	for range 2 * ejectAfter {
		_, _, err := send(t, u, "POST", io.MultiReader(strings.NewReader("some"), iotest.ErrReader(broken)))
		if body, ok := errors.AsType[*BodyError](err); !ok || body.Err != broken {
			t.Fatalf("got %v", err)
		}
	}
	for _, s := range u.Targets() {
		if !s.Usable {
			t.Errorf("%s is left alone", s.Name)
		}
	}
	idle(t, u)
}

// A request whose context ends says why, and is told by nobody else.
func TestPlainRequestIsCancelled(t *testing.T) {
	asked := make(chan bool)
	address, _ := newSite(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- true
		<-r.Context().Done()
	})
	u := newUpstream(t, Config{URL: "http://" + address})
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(why)
	}()
	r, _ := http.NewRequestWithContext(ctx, "GET", "http://gate.example/", nil)
	if _, err := u.RoundTrip(r, &Request{Path: "/", Header: http.Header{}}); err != why {
		t.Errorf("got %v", err)
	}
	idle(t, u)
}

// No more dials are under way at once than may be; who finds no place is told so.
func TestDialsOfPlainRequestsAreBounded(t *testing.T) {
	address, _ := newSite(t, func(http.ResponseWriter, *http.Request) {})
	u := newUpstream(t, Config{URL: "http://" + address, MaxDials: 2})
	var at, most atomic.Int64
	dial := u.dialTCP
	u.dialTCP = func(ctx context.Context, network, address string) (net.Conn, error) {
		defer at.Add(-1)
		for n := at.Add(1); ; {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		time.Sleep(time.Millisecond) // so that dials meet
		return dial(ctx, network, address)
	}
	errs := make(chan error)
	for range 30 {
		go func() {
			_, _, err := send(t, u, "GET", nil)
			errs <- err
		}()
	}
	for range 30 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n > 2 {
		t.Errorf("%d dials at once", n)
	}
	idle(t, u)

	full := newUpstream(t, Config{URL: "http://" + address, MaxDials: 2}) // to which none of the transport's own dials is under way
	for _, e := range full.endpoints {
		e.waiting.Store(queued * 2)
		*e.dials.Load() <- struct{}{}
		*e.dials.Load() <- struct{}{}
	}
	if _, _, err := send(t, full, "GET", nil); err != ErrBusy {
		t.Errorf("got %v, want ErrBusy", err)
	}
}

// Plain requests go over sockets and TLS as handshakes do.
func TestPlainRequestsOverSocketAndTLS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	socket := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })}
	go socket.Serve(l)
	t.Cleanup(func() { socket.Close() })
	u := newUpstream(t, Config{URL: "unix:" + path})
	if _, got, err := send(t, u, "GET", nil); err != nil || got != "gate.example" {
		t.Errorf("socket: got %q, %v", got, err)
	}

	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto+" "+r.Host) }))
	t.Cleanup(secure.Close)
	_, _, err = send(t, newUpstream(t, Config{URL: secure.URL}), "GET", nil)
	if _, ok := errors.AsType[*DialError](err); !ok {
		t.Errorf("a certificate that nobody trusts: got %v", err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	u = newUpstream(t, Config{URL: secure.URL, CAFile: ca, Host: "other.example"})
	if _, got, err := send(t, u, "GET", nil); err != nil || got != "HTTP/1.1 other.example" {
		t.Errorf("TLS: got %q, %v", got, err)
	}
}
