package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/session"
)

// The deadlines of the listener are for requests. A stream of events outlives them.
func TestOperatorEventsOutliveDeadlines(t *testing.T) {
	o := newOperator(t, nil)
	s := httptest.NewUnstartedServer(o.gate.Operator())
	s.Config.ReadTimeout, s.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	s.Start()
	t.Cleanup(s.Close)
	o.url = s.URL
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	lines := o.events(ctx)

	// A body that does not come is waited for until the deadline, which is then past for the stream too.
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "POST /api/messages?all=true HTTP/1.1\r\nHost: admin\r\nAuthorization: Bearer %s\r\nContent-Length: 5\r\n\r\nhe", adminToken)
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Fatalf("a call whose body does not come: %v", err)
	}
	o.gate.connect(t, "/?token=wonder", nil)
	if name, e := next(t, lines); name != "opened" || e.Session.Subject != "Alice" {
		t.Errorf("after the deadlines: %q %+v", name, e)
	}
}

// Who reads events too slowly is told that some are missing, and waits for no more.
func TestOperatorEventsSlowReader(t *testing.T) {
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, accepted(r)+"\r\n\x01\x01x") // a message that does not end, behind which pushes wait
		io.Copy(io.Discard, conn)
	})
	g := newGate(t, b.url, withAPI)
	s := httptest.NewUnstartedServer(g.Operator())
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		c.(*net.TCPConn).SetWriteBuffer(64 << 10) // so that little is on its way when the reader stops
		return ctx
	}
	s.Start()
	t.Cleanup(s.Close)

	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.(*net.TCPConn).SetReadBuffer(64 << 10)
	conn.SetDeadline(time.Now().Add(4 * patience))
	fmt.Fprintf(conn, "GET /api/events HTTP/1.1\r\nHost: admin\r\nAuthorization: Bearer %s\r\n\r\n", adminToken)
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%v, %v", resp, err)
	}

	// Each push that is dropped is an event, and a long one.
	client := g.connect(t, "/"+strings.Repeat("x", 1000)+"?token=wonder", nil)
	if _, _, err := client.NextReader(); err != nil { // before the message begins, pushes are delivered
		t.Fatal(err)
	}
	const pushes = 6000
	for range pushes {
		g.push(session.Filter{}, "")
	}
	for began := time.Now(); g.metric(t, "portcullis_pushes_dropped_total", "no_boundary") < pushes; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 2*patience {
			t.Fatalf("%v pushes are dropped, want %d", g.metric(t, "portcullis_pushes_dropped_total", "no_boundary"), pushes)
		}
	}
	g.connect(t, "/?token=good", nil) // nobody waits for the reader

	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Count(string(text), "event: push_dropped\n")
	if !strings.HasSuffix(string(text), "\n\nevent: gap\ndata: {}\n\n") || got == 0 || got >= pushes {
		t.Errorf("%d events of %d, and the end %q", got, pushes, text[max(0, len(text)-100):])
	}
}
