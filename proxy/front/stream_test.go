package front

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// newStreamingServer serves answer by Exchange.Stream, with connections that are kept and so many that may be pending; what asks for an
// upgrade has a session. stall is as long as a client may do nothing.
func newStreamingServer(t *testing.T, max int, stall time.Duration, answer func(http.ResponseWriter, *http.Request, io.ReadCloser)) *testServer {
	t.Helper()
	s := newServer(t)
	s.pending.max = max
	sessions := s.http.Handler
	s.http.Handler = s.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			sessions.ServeHTTP(w, r)
			return
		}
		e := NewExchange(w, r)
		e.stall = stall
		e.Keep()
		if r.URL.Path == "/refused" {
			e.Respond(403, http.Header{"Content-Length": {"0"}}, nil)
			return
		}
		e.Stream(r.Context(), func(w http.ResponseWriter, body io.ReadCloser) { answer(w, r, body) })
	}))
	s.serve(t)
	return s
}

func ok(w http.ResponseWriter, _ *http.Request, body io.ReadCloser) {
	io.Copy(w, body)
	io.WriteString(w, "ok")
}

// ask sends a request and reads the answer.
func ask(t *testing.T, conn net.Conn, raw string) (*http.Response, string) {
	t.Helper()
	io.WriteString(conn, raw)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

// A connection that is kept is pending between its requests, and the oldest makes room. A refusal keeps it, too, unless a body follows.
func TestKeptConnections(t *testing.T) {
	s := newStreamingServer(t, 2, time.Second, ok)
	first, second := s.dial(t), s.dial(t)
	for range 3 {
		for _, c := range []net.Conn{first, second} {
			if resp, body := ask(t, c, get); resp.StatusCode != 200 || body != "ok" || resp.Close {
				t.Fatalf("got %d %q, close %v", resp.StatusCode, body, resp.Close)
			}
			if resp, _ := ask(t, c, strings.Replace(get, "/", "/refused", 1)); resp.StatusCode != 403 || resp.Close {
				t.Fatalf("got %d, close %v", resp.StatusCode, resp.Close)
			}
			s.awaitPending(t, 2) // before the other asks: their order is what the rest is about
		}
	}
	third := s.dial(t) // the first is the oldest
	if _, err := first.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the oldest: %v", err)
	}
	for _, c := range []net.Conn{second, third} {
		if resp, _ := ask(t, c, get); resp.StatusCode != 200 {
			t.Errorf("got %d", resp.StatusCode)
		}
	}
	if resp, _ := ask(t, second, "POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"); !resp.Close {
		t.Error("a refusal before a body keeps its connection")
	}
	io.WriteString(third, upgrade)
	head := make([]byte, len("HTTP/1.1 101"))
	if _, err := io.ReadFull(third, head); err != nil || string(head) != "HTTP/1.1 101" {
		t.Errorf("upgrade on a kept connection: %q, %v", head, err)
	}
	second.Close()
	s.awaitPending(t, 0)
	if n := s.malformed.Load(); n != 0 {
		t.Errorf("%d requests count as malformed", n)
	}
}

// A body may take as long as it likes while some of it comes, and a client that takes an answer slowly has it whole.
func TestSlowClients(t *testing.T) {
	const stall = 300 * time.Millisecond
	s := newStreamingServer(t, 100, stall, func(w http.ResponseWriter, r *http.Request, body io.ReadCloser) {
		n, err := io.Copy(io.Discard, body)
		fmt.Fprint(w, n, " ", err)
	})
	c := s.dial(t)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n")
	for range 7 {
		time.Sleep(stall / 4) // the client is slow: that is what is tested
		io.WriteString(c, "x")
	}
	if _, body := ask(t, c, "x"); body != "8 <nil>" {
		t.Errorf("slow: got %q", body)
	}
	if _, body := ask(t, c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx"); !strings.HasPrefix(body, "1 ") || !strings.Contains(body, "timeout") {
		t.Errorf("stalled: got %q", body)
	}
}

// A client that takes nothing of its answer is given up.
func TestClientThatTakesNothing(t *testing.T) {
	failed := make(chan error, 1)
	s := newStreamingServer(t, 100, 100*time.Millisecond, func(w http.ResponseWriter, _ *http.Request, _ io.ReadCloser) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				failed <- err
				return
			}
		}
	})
	c := s.dial(t)
	io.WriteString(c, get)
	select {
	case err := <-failed:
		if !strings.Contains(err.Error(), "timeout") {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it is waited for")
	}
}

// An answer may take longer than the deadlines of an upgrade, and so may the pause between two parts of it.
func TestAnswerWithoutDeadline(t *testing.T) {
	const stall = 50 * time.Millisecond
	s := newServer(t)
	s.http.ReadTimeout, s.http.WriteTimeout = stall, stall
	s.http.Handler = s.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := NewExchange(w, r)
		e.stall = stall
		e.Stream(r.Context(), func(w http.ResponseWriter, _ io.ReadCloser) {
			for range 3 {
				time.Sleep(3 * stall) // it is slow: that is what is tested
				fmt.Fprint(w, r.Context().Err())
				http.NewResponseController(w).Flush()
			}
		})
	}))
	s.serve(t)
	if resp, body := ask(t, s.dial(t), get); resp.StatusCode != 200 || body != "<nil><nil><nil>" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

// A chunked request is its connection's last: who sent it may have gone by a length that net/http does not tell of.
func TestChunkedRequestIsTheLast(t *testing.T) {
	s := newStreamingServer(t, 100, time.Second, ok)
	c := s.dial(t)
	smuggled := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 41\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
	io.WriteString(c, smuggled)
	all, err := io.ReadAll(c)
	if n := strings.Count(string(all), "HTTP/1.1 "); n != 1 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("%d answers: %q, %v", n, all, err)
	}
}

// A body that nobody reads does not hold up the end of its answer.
func TestBodyThatNobodyWants(t *testing.T) {
	s := newStreamingServer(t, 100, time.Hour, func(w http.ResponseWriter, _ *http.Request, body io.ReadCloser) {
		go io.Copy(io.Discard, body) // as a transport does
		io.WriteString(w, "no")
	})
	if _, body := ask(t, s.dial(t), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx"); body != "no" {
		t.Errorf("got %q", body)
	}
}
