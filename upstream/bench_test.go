package upstream

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What a browser's upgrade looks like by the time it is sent on.
var browserRequest = &Request{
	Path: "/chat", Query: "room=1", Host: "front.example",
	Header: http.Header{
		"Origin":            {"https://front.example"},
		"User-Agent":        {"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
		"Accept-Language":   {"en-US,en;q=0.5"},
		"Accept-Encoding":   {"gzip, deflate, br"},
		"Cookie":            {"session=0123456789abcdef0123456789abcdef"},
		"X-Forwarded-For":   {"192.0.2.1"},
		"X-Forwarded-Host":  {"front.example"},
		"X-Forwarded-Proto": {"https"},
		"X-Auth-Subject":    {"alice"},
		extensionsField:     {"permessage-deflate"},
	},
}

// leanBackend answers a request with a 101 that accepts permessage-deflate, and allocates nothing to do so.
type leanBackend struct {
	in  [2 << 10]byte
	out []byte
}

func (b *leanBackend) answer(request []byte) []byte {
	const field = "Sec-WebSocket-Key: "
	at := bytes.Index(request, []byte(field)) + len(field)
	copy(b.in[:], request[at:at+24])
	copy(b.in[24:], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
	sum := sha1.Sum(b.in[:60])
	b.out = append(b.out[:0], "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Accept: "...)
	b.out = base64.StdEncoding.AppendEncode(b.out, sum[:])
	return append(b.out, "\r\n\r\n"...)
}

// BenchmarkConnect is a whole Connect over loopback, up to and without closing. The backend runs in the same process: its
// accept, read, write and close are in the time, its net.Conn in the allocations.
func BenchmarkConnect(b *testing.B) {
	url := "ws://" + startBackend(b, func(c net.Conn) {
		var lean leanBackend
		var request [2 << 10]byte
		if n, _ := c.Read(request[:]); n > 0 {
			c.Write(lean.answer(request[:n]))
		}
	})
	u := newUpstream(b, Config{URL: url})
	ctx, cancel := context.WithCancel(b.Context()) // as a request's context is
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		c, err := u.Connect(ctx, browserRequest)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// wire is a net.Conn in memory whose other side has answered before Write returns.
type wire struct {
	net.Conn
	answer func(request []byte) []byte
	unread []byte
}

func (w *wire) SetDeadline(time.Time) error     { return nil }
func (w *wire) SetReadDeadline(time.Time) error { return nil }
func (w *wire) Close() error                    { return nil }

func (w *wire) Write(p []byte) (int, error) {
	w.unread = w.answer(p)
	return len(p), nil
}

func (w *wire) Read(p []byte) (int, error) {
	if len(w.unread) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.unread)
	w.unread = w.unread[n:]
	return n, nil
}

// BenchmarkHandshake is Connect without sockets: composing, the context's hook, parsing and verifying. Of the hostile
// answers those that cost most are here.
func BenchmarkHandshake(b *testing.B) {
	var lean leanBackend
	always := func(answer string) func([]byte) []byte { return func([]byte) []byte { return []byte(answer) } }
	for _, bb := range []struct {
		name   string
		answer func([]byte) []byte
	}{
		{"accepted", lean.answer},
		{"nonsense", always("SSH-2.0-OpenSSH_9.6\r\n")},
		{"header_of_64KiB", always("HTTP/1.1 403 No\r\n" + strings.Repeat("X: y\r\n", 64<<10))},
		{"refusal_of_64KiB", always("HTTP/1.1 403 No\r\n\r\n" + strings.Repeat("x", 64<<10))},
	} {
		b.Run(bb.name, func(b *testing.B) {
			u := newUpstream(b, Config{URL: "ws://h"})
			w := &wire{answer: bb.answer}
			u.dialTCP = func(context.Context, string, string) (net.Conn, error) { return w, nil }
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			b.ReportAllocs()
			for b.Loop() {
				u.Connect(ctx, browserRequest)
			}
		})
	}
}
