package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/header"
)

// The example of RFC 6455 section 1.3.
const rfcKey, rfcAccept = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

func TestAccept(t *testing.T) {
	if got := Accept(rfcKey); got != rfcAccept {
		t.Errorf("got %q, want %q", got, rfcAccept)
	}
}

// The offer that the answers below are answers to.
var offer = http.Header{
	protocolField:   {"chat, superchat"},
	extensionsField: {"permessage-deflate; client_max_window_bits, x-first", "x-second"},
}

// hostileAnswers are answers of which none is right, to the key of the RFC.
var hostileAnswers = []struct{ name, answer, reason string }{
	{"nonsense", "SSH-2.0-OpenSSH_9.6\r\n", reasonNoHTTP},
	{"nonsense in binary", "\x16\x03\x01\x00\x05\x00\x00\n\xff\xfe\n", reasonNoHTTP},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", reasonNoHTTP},
	{"frames at once", "\x81\x05hello\n", reasonNoHTTP},
	{"status of two digits", "HTTP/1.1 10 x\r\n\r\n", reasonNoHTTP},
	{"status of four digits", "HTTP/1.1 1010 x\r\n\r\n", reasonNoHTTP},
	{"negative status", "HTTP/1.1 -10 x\r\n\r\n", reasonNoHTTP},
	{"status above 599", "HTTP/1.1 999 x\r\n\r\n", reasonStatus},
	{"status below 100", "HTTP/1.1 099 x\r\n\r\n", reasonStatus},
	{"space before a colon", "HTTP/1.1 403 No\r\nContent-Length : 5\r\n\r\n", reasonNoHTTP},
	{"folded first line", "HTTP/1.1 403 No\r\n X: y\r\n\r\n", reasonNoHTTP},
	{"NUL in a value", "HTTP/1.1 403 No\r\nX: a\x00b\r\n\r\n", reasonNoHTTP},
	{"CR in a value", "HTTP/1.1 403 No\r\nX: a\rY: b\r\n\r\n", reasonNoHTTP},
	{"two lengths", "HTTP/1.1 403 No\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", reasonNoHTTP},
	{"unknown transfer coding", "HTTP/1.1 403 No\r\nTransfer-Encoding: xchunked\r\n\r\n", reasonNoHTTP},
	{"1 MiB of header", "HTTP/1.1 403 No\r\nX: " + strings.Repeat("x", 1<<20), reasonTooLong},
	{"1 MiB of header fields", "HTTP/1.1 403 No\r\n" + strings.Repeat("X: y\r\n", 1<<18), reasonTooLong},
	{"1 MiB of status line", "HTTP/1.1 403 " + strings.Repeat("x", 1<<20), reasonTooLong},
	{"1 MiB of header in interim answers", strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 20<<10)+"\r\n\r\n", 52), reasonTooLong},
	{"1000 times 100 Continue", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1000), reasonInterim},

	{"101 without Upgrade", "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonUpgrade},
	{"101 to h2c", "HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonUpgrade},
	{"101 to two protocols", "HTTP/1.1 101 x\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonUpgrade},
	{"101 with two Upgrade", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonUpgrade},
	{"101 to websocket with a Kelvin sign", "HTTP/1.1 101 x\r\nUpgrade: websoc\u212aet\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonUpgrade},
	{"101 without Connection", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonConnection},
	{"101 with Connection: close", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: close, not-upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonConnection},
	{"101 without accept", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", reasonAccept},
	{"101 with the accept of another key", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + Accept("another") + "\r\n\r\n", reasonAccept},
	{"101 with the key for an accept", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcKey + "\r\n\r\n", reasonAccept},
	{"101 with an empty accept", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept:\r\n\r\n", reasonAccept},
	{"101 with the accept twice", switching("Sec-WebSocket-Accept: " + rfcAccept + "\r\n")(rfcKey), reasonAccept},
	{"101 with two accepts", switching("Sec-WebSocket-Accept: x\r\n")(rfcKey), reasonAccept},
	{"101 of HTTP/1.0", "HTTP/1.0 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonVersion},
	{"101 of HTTP/2.0", "HTTP/2.0 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rfcAccept + "\r\n\r\n", reasonVersion},
	{"101 with a length", switching("Content-Length: 5\r\n")(rfcKey), reasonBody},
	{"101 with length 00", switching("Content-Length: 00\r\n")(rfcKey), reasonBody},
	{"101 with length 0 and chunked", switching("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n")(rfcKey), reasonBody},
	{"101 with lengths 0 and 5", switching("Content-Length: 0\r\nContent-Length: 5\r\n")(rfcKey), reasonNoHTTP},
	{"101 with a list of lengths", switching("Content-Length: 0, 0\r\n")(rfcKey), reasonNoHTTP},
	{"101 chunked", switching("Transfer-Encoding: chunked\r\n")(rfcKey), reasonBody},
	{"101 with another transfer coding", switching("Transfer-Encoding: identity\r\n")(rfcKey), reasonNoHTTP},
	{"101 with a space before a colon", switching("Transfer-Encoding : chunked\r\n")(rfcKey), reasonNoHTTP},
	{"101 with an unoffered subprotocol", switching("Sec-WebSocket-Protocol: admin\r\n")(rfcKey), reasonProtocol},
	{"101 with a subprotocol in other case", switching("Sec-WebSocket-Protocol: Chat\r\n")(rfcKey), reasonProtocol},
	{"101 with two subprotocols", switching("Sec-WebSocket-Protocol: chat, superchat\r\n")(rfcKey), reasonProtocol},
	{"101 with a subprotocol twice", switching("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: chat\r\n")(rfcKey), reasonProtocol},
	{"101 with an empty subprotocol", switching("Sec-WebSocket-Protocol:\r\n")(rfcKey), reasonProtocol},
	{"101 with an unoffered extension", switching("Sec-WebSocket-Extensions: x-third\r\n")(rfcKey), reasonExtensions},
	{"101 with one extension too many", switching("Sec-WebSocket-Extensions: x-first, x-third\r\n")(rfcKey), reasonExtensions},
	{"101 with an extension twice", switching("Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate\r\n")(rfcKey), reasonExtensions},
	{"101 with a malformed extension", switching("Sec-WebSocket-Extensions: x-first; a=\"b, c\"\r\n")(rfcKey), reasonExtensions},
	{"101 with an empty extension", switching("Sec-WebSocket-Extensions:\r\n")(rfcKey), reasonExtensions},
}

func TestHostileAnswerNeverOpensATunnel(t *testing.T) {
	for _, tt := range hostileAnswers {
		t.Run(tt.name, func(t *testing.T) {
			address := startBackend(t, answering(t, func(key string) string {
				return strings.NewReplacer(rfcKey, key, rfcAccept, Accept(key)).Replace(tt.answer)
			}))
			u := newUpstream(t, Config{URL: "ws://" + address})
			_, err := u.Connect(t.Context(), &Request{Path: "/", Header: offer})
			wantHandshakeError(t, err, tt.reason)
		})
	}
}

func TestRightAnswers(t *testing.T) {
	tests := []struct {
		name                 string
		answer               func(key string) string
		protocol, extensions string
	}{
		{"plain", switching(""), "", ""},
		{"no reason phrase", func(key string) string {
			return strings.Replace(switching("")(key), " Switching Protocols", "", 1)
		}, "", ""},
		{"other case", func(key string) string {
			return "HTTP/1.1 101 x\r\nuPGRADE: WebSocket\r\nCONNECTION: keep-alive, upgrade\r\nsec-websocket-accept:\t" + Accept(key) + " \r\n\r\n"
		}, "", ""},
		{"length 0, of http-kit and ASP.NET", switching("Content-Length: 0\r\n"), "", ""},
		{"bare line feeds", func(key string) string {
			return strings.ReplaceAll(switching("")(key), "\r\n", "\n")
		}, "", ""},
		{"subprotocol", switching("Sec-WebSocket-Protocol: superchat\r\n"), "superchat", ""},
		{"extension", switching("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n"),
			"", "permessage-deflate; server_no_context_takeover"},
		{"extensions", switching("Sec-WebSocket-Extensions: x-second\r\nSec-WebSocket-Extensions: x-first; a=\"1\"\r\n"),
			"", `x-second, x-first; a="1"`},
		{"interim answers first", func(key string) string {
			return strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 4) + "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + switching("")(key)
		}, "", ""},
		{"60 KiB of header", switching("X: " + strings.Repeat("x", 60<<10) + "\r\n"), "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, Config{URL: "ws://" + startBackend(t, answering(t, tt.answer))})
			c := connect(t, u, &Request{Path: "/", Header: offer})
			if c.Protocol != tt.protocol || c.Extensions != tt.extensions {
				t.Errorf("got protocol %q and extensions %q, want %q and %q", c.Protocol, c.Extensions, tt.protocol, tt.extensions)
			}
			if c.Early != nil {
				t.Errorf("got early bytes %q", c.Early)
			}
			if c.Header["Content-Length"] != nil {
				t.Errorf("got Content-Length %q", c.Header["Content-Length"])
			}
		})
	}
}

func TestEarlyBytesAreKept(t *testing.T) {
	frames := strings.Repeat("\x81\x05early", 1000) // more than the read buffer takes
	u := newUpstream(t, Config{URL: "ws://" + startBackend(t, func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(c, switching("")(r.Header.Get("Sec-WebSocket-Key"))+frames)
	})})
	c := connect(t, u, &Request{Path: "/"})
	if len(c.Early) == 0 || len(c.Early) > readBuffer || cap(c.Early) != len(c.Early) {
		t.Errorf("got %d early bytes of capacity %d, want some, at most %d, of exact size", len(c.Early), cap(c.Early), readBuffer)
	}
	rest, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.Early) + string(rest); got != frames {
		t.Errorf("got %d bytes, want the %d that were sent", len(got), len(frames))
	}
}

func TestUpstreamThatDoesNotAnswer(t *testing.T) {
	// drain waits for the other side to close.
	drain := func(c net.Conn) { io.Copy(io.Discard, c) }
	tests := []struct {
		name   string
		serve  func(net.Conn)
		reason string
	}{
		{"stalls after accept", drain, reasonNoAnswer},
		{"stalls in the header", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 101 Sw"); drain(c) }, reasonNoAnswer},
		{"stalls after an interim answer", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 100 x\r\n\r\n"); drain(c) }, reasonNoAnswer},
		{"closes at once", func(c net.Conn) { c.(*net.TCPConn).CloseWrite(); drain(c) }, reasonClosed},
		{"closes in the header", func(c net.Conn) { io.WriteString(c, "HTTP/1.1 101 Sw"); c.(*net.TCPConn).CloseWrite(); drain(c) }, reasonClosed},
		{"resets in the header", func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 101 Sw")
			c.(*net.TCPConn).SetLinger(0)
		}, reasonClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, Config{URL: "ws://" + startBackend(t, tt.serve), HandshakeTimeout: 2 * time.Second})
			if tt.reason == reasonNoAnswer {
				u.handshakeTimeout = 30 * time.Millisecond
			}
			_, err := u.Connect(t.Context(), &Request{Path: "/"})
			wantHandshakeError(t, err, tt.reason)
		})
	}
}

func TestRequestThatIsNotTakenTimesOut(t *testing.T) {
	closed := make(chan struct{})
	u := newUpstream(t, Config{URL: "ws://" + startBackend(t, func(net.Conn) { <-closed }), HandshakeTimeout: 30 * time.Millisecond})
	_, err := u.Connect(t.Context(), &Request{Path: "/", Header: http.Header{"X": {strings.Repeat("x", 32<<20)}}})
	close(closed)
	e, ok := errors.AsType[*HandshakeError](err)
	if !ok || e.Reason != reasonWrite || !e.Timeout() {
		t.Errorf("got %v, want a timeout of the write", err)
	}
}

func TestCancelDuringHandshake(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	u := newUpstream(t, Config{URL: "ws://" + startBackend(t, func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		cancel()
		io.Copy(io.Discard, c) // ends only if Connect closes
	})})
	_, err := u.Connect(ctx, &Request{Path: "/"})
	wantHandshakeError(t, err, reasonCancelled)
}

// A backend that sends back what it gets would put the token into an error that quotes it.
func TestErrorsQuoteNeitherRequestNorAnswer(t *testing.T) {
	const secret = "s3cret"
	req := &Request{Path: "/" + secret, Query: "token=" + secret, Header: http.Header{protocolField: {secret}, "X-" + secret: {secret}}}
	for name, serve := range map[string]func(net.Conn){
		"echo":      func(c net.Conn) { io.Copy(c, c) },
		"as status": answering(t, fixed("HTTP/1.1 403 "+secret+"\r\nContent-Length: 0\r\n\r\n")),
		"as header": answering(t, fixed("HTTP/1.1 403 No\r\n"+secret+"\r\n\r\n")),
		"as length": answering(t, fixed("HTTP/1.1 403 No\r\nContent-Length: "+secret+"\r\n\r\n")),
		"as coding": answering(t, fixed("HTTP/1.1 403 No\r\nTransfer-Encoding: "+secret+"\r\n\r\n")),
		"as chosen": answering(t, switching("Sec-WebSocket-Protocol: "+secret+"2\r\n")),
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, Config{URL: "ws://" + startBackend(t, serve)})
			_, err := u.Connect(t.Context(), req)
			if err == nil || strings.Contains(fmt.Sprintf("%v", err), secret) {
				t.Errorf("got error %v", err)
			}
		})
	}
}

// FuzzAnswer asserts of any bytes an upstream may send that they make either a Conn or one of the two errors; a Conn
// only with the right accept value, only with what was offered, and with exactly the bytes behind the header; and that
// what is kept, and what an error says, is bounded.
func FuzzAnswer(f *testing.F) {
	for _, tt := range hostileAnswers {
		if len(tt.answer) < 1<<12 {
			f.Add([]byte(tt.answer))
		}
	}
	f.Add([]byte(switching("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n")(rfcKey) + "\x81\x00"))
	f.Add([]byte("HTTP/1.1 100 x\r\n\r\n" + switching("")(rfcKey)))
	f.Add([]byte("HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nshort"))
	f.Add([]byte("HTTP/1.1 302 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\nmore"))
	f.Fuzz(func(t *testing.T, data []byte) {
		x := handshakes.Get().(*handshake)
		defer x.release()
		src := bytes.NewReader(data)
		x.key, x.offered, x.limited = rfcKey, offer, limitedReader{src: src, left: maxHeader}
		c, refusal, err := x.readAnswer()
		if refusal != nil {
			err = x.readRefusal(refusal)
		}
		taken := len(data) - src.Len()

		if refused, ok := err.(*RefusedError); ok {
			if refused.Status < 200 || refused.Status > 599 || len(refused.Body) > maxRefusalBody || c != nil {
				t.Fatalf("got refusal %d with %d bytes, Conn %v", refused.Status, len(refused.Body), c)
			}
			return
		}
		if taken > maxHeader {
			t.Errorf("took %d bytes", taken)
		}
		if err != nil {
			e, ok := err.(*HandshakeError)
			if !ok || !slices.Contains(reasons, e.Reason) || e.Err != nil && e.Err != io.ErrUnexpectedEOF || c != nil {
				t.Fatalf("got error %#v, Conn %v", err, c)
			}
			return
		}
		head := data[:taken-len(c.Early)]
		if !bytes.Equal(c.Early, data[len(head):taken]) || !bytes.HasSuffix(head, []byte("\n")) || src.Len() > 0 && len(c.Early) > readBuffer {
			t.Errorf("got early bytes %q of %q", c.Early, data)
		}
		accept := c.Header["Sec-Websocket-Accept"] // another field may have that value, too
		if !slices.Equal(accept, []string{rfcAccept}) || !bytes.Contains(head, []byte(rfcAccept)) || !bytes.Contains(head, []byte("HTTP/1.1 101")) {
			t.Errorf("got a Conn of %q", data)
		}
		if c.Protocol != "" && c.Protocol != "chat" && c.Protocol != "superchat" {
			t.Errorf("got protocol %q", c.Protocol)
		}
		for e := range strings.SplitSeq(c.Extensions, ",") {
			if name := header.ExtensionName(e); c.Extensions != "" && !slices.Contains([]string{"permessage-deflate", "x-first", "x-second"}, name) {
				t.Errorf("got extension %q", name)
			}
		}
	})
}
