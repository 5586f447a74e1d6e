package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRefusalIsHandedOverBounded(t *testing.T) {
	const stall = "" // after which the backend sends nothing and does not close
	kib10 := strings.Repeat("0123456789", 1<<10)
	tests := []struct {
		name      string
		answer    []string // each written in turn, the last again and again
		endless   bool
		status    int
		body      string
		truncated bool
	}{
		{"10 KiB of body", []string{"HTTP/1.1 403 No\r\nContent-Length: 10240\r\n\r\n" + kib10, stall}, false, 403, kib10, false},
		{"no body", []string{"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", stall}, false, 401, "", false},
		{"chunked body", []string{"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", stall}, false, 503, "hello", false},
		{"64 KiB exactly", []string{"HTTP/1.1 403 No\r\nContent-Length: 65536\r\n\r\n" + strings.Repeat("x", 64<<10), stall}, false, 403, strings.Repeat("x", 64<<10), false},
		{"one byte more", []string{"HTTP/1.1 403 No\r\nContent-Length: 65537\r\n\r\n" + strings.Repeat("x", 64<<10+1), stall}, false, 403, strings.Repeat("x", 64<<10), true},
		{"endless body", []string{"HTTP/1.1 403 No\r\n\r\n", strings.Repeat("x", 1000)}, true, 403, strings.Repeat("x", 64<<10), true},
		{"endless chunks", []string{"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat("1\r\nx\r\n", 100)}, true, 403, strings.Repeat("x", 64<<10), true},
		{"body that stalls", []string{"HTTP/1.1 403 No\r\nContent-Length: 10\r\n\r\nshort", stall}, false, 403, "short", true},
		{"malformed chunk", []string{"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n", stall}, false, 403, "ab", true},
		{"200 instead of 101", []string{"HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nhi", stall}, false, 200, "hi", false},
		{"204", []string{"HTTP/1.1 204 x\r\n\r\n", stall}, false, 204, "", false},
		{"426", []string{"HTTP/1.1 426 x\r\nSec-WebSocket-Version: 14\r\nContent-Length: 0\r\n\r\n", stall}, false, 426, "", false},
		{"HTTP/1.0", []string{"HTTP/1.0 500 x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi", stall}, false, 500, "hi", false},
		{"after interim answers", []string{"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n", stall}, false, 404, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, Config{URL: "ws://" + startBackend(t, func(c net.Conn) {
				http.ReadRequest(bufio.NewReader(c))
				for _, s := range tt.answer {
					io.WriteString(c, s)
				}
				for tt.endless {
					if _, err := io.WriteString(c, tt.answer[len(tt.answer)-1]); err != nil {
						return
					}
				}
				io.Copy(io.Discard, c)
			})})
			if strings.HasSuffix(tt.name, "stalls") {
				u.handshakeTimeout = 30 * time.Millisecond
			}
			_, err := u.Connect(t.Context(), &Request{Path: "/"})
			e, ok := errors.AsType[*RefusedError](err)
			if !ok {
				t.Fatalf("got error %v, want a RefusedError", err)
			}
			if e.Status != tt.status || e.Truncated != tt.truncated {
				t.Errorf("got status %d, truncated %v, want %d, %v", e.Status, e.Truncated, tt.status, tt.truncated)
			}
			if string(e.Body) != tt.body {
				t.Errorf("got body of %d bytes, want %d", len(e.Body), len(tt.body))
			}
		})
	}
}

// An upstream whose answer ends with a connection that it does not end holds nobody up.
func TestRefusalBodyHasATimeOfItsOwn(t *testing.T) {
	for name, tt := range map[string]struct{ answer, body string }{
		"no length":            {"HTTP/1.1 403 No\r\n\r\nno such room", "no such room"},
		"no length, no body":   {"HTTP/1.1 403 No\r\n\r\n", ""},
		"less than its length": {"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nno such room", "no such room"},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, Config{HandshakeTimeout: time.Hour, URL: "ws://" + startBackend(t, answering(t, fixed(tt.answer)))})
			u.bodyTimeout = 50 * time.Millisecond
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := u.Connect(ctx, &Request{Path: "/"})
			e, ok := errors.AsType[*RefusedError](err)
			if !ok {
				t.Fatalf("got error %v, want a RefusedError", err)
			}
			if e.Status != 403 || string(e.Body) != tt.body || !e.Truncated {
				t.Errorf("got status %d, body %q, truncated %v, want 403, %q, true", e.Status, e.Body, e.Truncated, tt.body)
			}
		})
	}
}

func TestCancelDuringRefusal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	u := newUpstream(t, Config{HandshakeTimeout: time.Hour, URL: "ws://" + startBackend(t, func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 403 No\r\n\r\n")
		cancel()
		io.Copy(io.Discard, c) // ends only if Connect closes
	})})
	u.bodyTimeout = time.Hour - time.Minute
	_, err := u.Connect(ctx, &Request{Path: "/"})
	wantHandshakeError(t, err, reasonCancelled)
}

func TestRedirectIsNotFollowed(t *testing.T) {
	elsewhere := startBackend(t, func(net.Conn) { t.Error("the redirect was followed") })
	u := newUpstream(t, Config{URL: "ws://" + startBackend(t, answering(t,
		fixed("HTTP/1.1 302 Found\r\nLocation: ws://"+elsewhere+"/\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n")))})
	_, err := u.Connect(t.Context(), &Request{Path: "/", Query: "token=x"})
	e, ok := errors.AsType[*RefusedError](err)
	if !ok || e.Status != http.StatusFound {
		t.Fatalf("got error %v, want a refusal with 302", err)
	}
	if got := e.Header.Get("Location"); got != "ws://"+elsewhere+"/" {
		t.Errorf("got Location %q", got)
	}
	if got := len(e.Header.Values("Set-Cookie")); got != 2 {
		t.Errorf("got %d cookies, want 2", got)
	}
}
