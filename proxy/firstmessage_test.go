package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/frame"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
)

// masked is a frame as a client sends it.
func masked(fin bool, op frame.Opcode, payload string) string {
	h := frame.Header{Fin: fin, Opcode: op, Masked: true, Key: [4]byte{1, 2, 3, 250}, Length: int64(len(payload))}
	b := h.Append(nil)
	start := len(b)
	b = append(b, payload...)
	frame.Mask(h.Key, 0, b[start:])
	return string(b)
}

func text(payload string) string { return masked(true, frame.Text, payload) }

// served is a frame as a server sends it.
func served(op frame.Opcode, payload string) string {
	return string(frame.Header{Fin: true, Opcode: op, Length: int64(len(payload))}.Append(nil)) + payload
}

// upgraded is an answer that has to be 101.
func (g *testGate) upgraded(t testing.TB, raw string) *answer {
	t.Helper()
	a := g.send(t, raw)
	if a.StatusCode != 101 {
		t.Fatalf("got %d %q, want 101", a.StatusCode, a.body)
	}
	return a
}

// write writes to the gate. What it does not take it has answered.
func (a *answer) write(s string) { io.WriteString(a.conn, s) }

// lastWords are the code and the reason of a Close frame, the last that comes.
func (a *answer) lastWords(t testing.TB) (code int, reason string) {
	t.Helper()
	got, err := io.ReadAll(a.rest)
	if err != nil {
		t.Errorf("the end of the connection: %v", err)
	}
	for len(got) > 0 {
		h, size, err := frame.Parse(got)
		if err != nil || size == 0 {
			t.Fatalf("no frame: %q, %v", got, err)
		}
		payload := got[size : size+int(h.Length)]
		got = got[size+int(h.Length):]
		if h.Opcode == frame.Close {
			if code, reason, err = frame.ParseClose(payload); err != nil || len(got) > 0 {
				t.Fatalf("%v; behind the Close came %q", err, got)
			}
		}
	}
	return code, reason
}

func firstMessages(edits ...func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Gate.FirstMessage = true
		c.Limits = ratelimit.Config{}
		for _, edit := range edits {
			edit(c)
		}
	}
}

func inJSON(c *Config) { c.Gate.FirstMessageFormat = "/token" }

func TestFirstMessage(t *testing.T) {
	for _, tt := range []struct {
		name, message string
		edit          func(*Config)
	}{
		{"raw", "wonder", func(*Config) {}},
		{"JSON", `{"type":"auth","token":"w\u006fnder"}`, inJSON},
		{"stream engine", "wonder", func(c *Config) { c.Relay.Engine = "stream" }},
		{"terminating", "wonder", func(c *Config) { c.Relay.Mode = "terminate" }},
		{"token passed on", "wonder", func(c *Config) { c.Auth.TokenPass = true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			echo := newEcho(t)
			g := newGate(t, echo, firstMessages(tt.edit))
			d := websocket.Dialer{Subprotocols: []string{"chat", "other"}, EnableCompression: true, HandshakeTimeout: patience}
			conn, resp, err := d.Dial("ws://"+g.addr+"/room", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(patience))
			if got := resp.Header.Get("Sec-Websocket-Protocol"); got != "chat" {
				t.Errorf("subprotocol: got %q, want the first", got)
			}
			if got := resp.Header["Sec-Websocket-Extensions"]; got != nil {
				t.Errorf("extensions: got %q, want none", got)
			}
			conn.WriteMessage(websocket.TextMessage, []byte(tt.message))
			echoes(t, conn, "Olá")
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(4000, ""))
			if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 4000) {
				t.Errorf("close: got %v, want the answer 4000", err)
			}
			conn.Close()
			line := g.journal.next(t, "session ended")
			if line["subject"] != "Alice" || line["client_messages"] != 1.0 || line["path"] != "/room" {
				t.Errorf("line: got %v, want Alice's, of one message", line)
			}
			if g.journal.contains("wonder") {
				t.Error("the log has the token")
			}
		})
	}
}

// The session's greeting answers the token, not the handshake.
func TestFirstMessageThenGreeting(t *testing.T) {
	g := newGate(t, newEcho(t), firstMessages(func(c *Config) { c.Session.Renewal, c.Session.Hello = true, true }))
	conn, resp, err := g.tryConnect("/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	conn.WriteMessage(websocket.TextMessage, []byte("wonder"))
	_, greeting, err := conn.ReadMessage()
	if id := resp.Header.Get(session.Header); err != nil || id == "" || !strings.Contains(string(greeting), id) {
		t.Errorf("greeting: got %q, %v; want the id %q", greeting, err, id)
	}
	echoes(t, conn, "Olá")
}

func TestFirstMessageOverTLS(t *testing.T) {
	certFile, keyFile, roots := selfSigned(t)
	g := newGate(t, newEcho(t), firstMessages(func(c *Config) { c.Front.CertFile, c.Front.KeyFile = certFile, keyFile }))
	open := func() *websocket.Conn {
		d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: roots}, HandshakeTimeout: patience}
		conn, _, err := d.Dial("wss://"+g.addr+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetReadDeadline(time.Now().Add(patience))
		return conn
	}
	conn := open()
	conn.WriteMessage(websocket.TextMessage, []byte("good"))
	echoes(t, conn, "Olá")

	conn = open()
	conn.WriteMessage(websocket.TextMessage, []byte("bad"))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 3000) {
		t.Errorf("got %v, want Close 3000", err)
	}
	// On TLS the interruption by Drain must leave the connection fit to carry the Close frame.
	conn = open()
	drained := g.drain(t.Context())
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 1001) {
		t.Errorf("got %v, want Close 1001", err)
	}
	conn.Close()
	g.Cut() // the first session
	result(t, drained)
}

// What comes with the token, before it and behind it.
func TestFirstMessageInPieces(t *testing.T) {
	const behind = "\x81\x83\x00\x00\x00\x00abc\x89\x80\x00\x00\x00\x00\x82" // a message, a ping, and the beginning of a frame
	ping := masked(true, frame.Ping, "are you there?")
	pong := served(frame.Pong, "are you there?")
	split := masked(false, frame.Text, "g") + ping + masked(false, frame.Continuation, "") +
		masked(false, frame.Continuation, "oo") + masked(true, frame.Pong, "unasked") + masked(true, frame.Continuation, "d")
	for _, tt := range []struct {
		name   string
		early  string   // sent with the handshake
		writes []string // one by one, each once the answer to the one before is there
		pongs  []string // that answer each
	}{
		{"all with the handshake", text("good") + behind, nil, nil},
		{"part of it with the handshake", text("good")[:3], []string{text("good")[3:] + behind}, []string{""}},
		{"ping first", "", []string{ping, text("good") + behind}, []string{pong, ""}},
		{"ping and token at once", "", []string{ping + text("good") + behind}, []string{pong}},
		{"split over fragments with control frames between", "", []string{split + behind}, []string{pong}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			received := make(chan string, 1)
			b := newBackend(t, func(conn net.Conn, r *http.Request) {
				io.WriteString(conn, accepted(r)+"\r\n")
				got := make([]byte, len(behind)-1) // the relay holds the half header back
				n, _ := io.ReadFull(conn, got)
				received <- string(got[:n])
				io.Copy(io.Discard, conn)
			})
			g := newGate(t, b.url, firstMessages())
			a := g.upgraded(t, handshake("/")+tt.early)
			for i, write := range tt.writes {
				a.write(write)
				got := make([]byte, len(tt.pongs[i]))
				if _, err := io.ReadFull(a.rest, got); err != nil || string(got) != tt.pongs[i] {
					t.Fatalf("got %q, %v; want %q", got, err, tt.pongs[i])
				}
			}
			if got, want := <-received, behind[:len(behind)-1]; got != want {
				t.Errorf("upstream came %q, want %q", got, want)
			}
		})
	}
}

func TestFirstMessageByteByByte(t *testing.T) {
	g := newGate(t, newEcho(t), firstMessages())
	a := g.upgraded(t, handshake("/"))
	for i := range len(text("good")) {
		a.write(text("good")[i : i+1])
	}
	a.write(text("Olá"))
	got := make([]byte, len(served(frame.Text, "Olá")))
	if _, err := io.ReadFull(a.rest, got); err != nil || string(got) != served(frame.Text, "Olá") {
		t.Errorf("got %q, %v; want the echo", got, err)
	}
}

// TestFirstMessageRefused has every way in which the token does not come, attacks among them.
func TestFirstMessageRefused(t *testing.T) {
	quick := func(c *Config) { c.Gate.FirstMessageTimeout = 50 * time.Millisecond }
	flood := strings.Repeat(masked(true, frame.Ping, ""), 16+1)
	const unfit = "the first message carries no token: "
	for _, tt := range []struct {
		name   string
		edit   func(*Config)
		send   string
		code   int
		text   string // how the Close frame's reason begins
		reason refusal.Reason
		free   bool // it is not charged
	}{
		{"silent", quick, "", 3000, "no token came in time", refusal.FirstMessageTimeout, false},
		{"half a frame", quick, text("good")[:7], 3000, "no token came in time", refusal.FirstMessageTimeout, false},
		{"half a message", quick, masked(false, frame.Text, "good"), 3000, "no token came in time", refusal.FirstMessageTimeout, false},
		{"wrong token", nil, text("bad"), 3000, "the token is not accepted", refusal.TokenRefused, false},
		{"verifier down", nil, text("down"), 1013, "authentication is not available at the moment; retry in ", refusal.AuthUnavailable, true},
		{"empty", nil, text(""), 3000, "the token is malformed: the token is empty", refusal.TokenMalformed, false},
		{"characters that no token has", nil, text("good\r\nX: y"), 3000, "the token is malformed: ", refusal.TokenMalformed, false},
		{"binary", nil, masked(true, frame.Binary, "good"), 1003, unfit + "it is not text", refusal.FirstMessage, false},
		{"not UTF-8", nil, text("\xff"), 1007, unfit + "it is not UTF-8", refusal.FirstMessage, false},
		{"unmasked", nil, served(frame.Text, "good"), 1002, unfit + "frame masked wrongly", refusal.FirstMessage, false},
		{"compressed without an extension", nil, "\xc1\x80\x00\x00\x00\x00", 1002, unfit + "reserved bit", refusal.FirstMessage, false},
		{"continuation of nothing", nil, masked(true, frame.Continuation, "good"), 1002, unfit + "continuation frame", refusal.FirstMessage, false},
		{"reserved opcode", nil, masked(true, 0x3, ""), 1002, unfit + "reserved opcode", refusal.FirstMessage, false},
		{"long ping", nil, masked(true, frame.Ping, strings.Repeat("x", 126)), 1002, unfit + "control frame", refusal.FirstMessage, false},
		{"ping flood before the token", nil, flood + text("good"), 1008, unfit + "too many control frames", refusal.FirstMessage, false},
		{"endless fragments", nil, masked(false, frame.Text, "") + strings.Repeat(masked(false, frame.Continuation, ""), 8192), 1008,
			unfit + "too many fragments", refusal.FirstMessage, false},
		{"a length of 2^62 declared", nil, "\x81\xff\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 1009, unfit + "message exceeds", refusal.FirstMessage, false},
		{"a length of 2^63 declared", nil, "\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 1002, unfit + "payload length", refusal.FirstMessage, false},
		{"one byte too long, in fragments", nil, masked(false, frame.Text, strings.Repeat("x", 8192)) + masked(true, frame.Continuation, "x"), 1009,
			unfit + "message exceeds", refusal.FirstMessage, false},
		{"Close", nil, masked(true, frame.Close, "\x0f\xa0bye"), 4000, "", refusal.ClientGone, false},
		{"Close without a code", nil, masked(true, frame.Close, ""), 1005, "", refusal.ClientGone, false},
		{"malformed Close", nil, masked(true, frame.Close, "\x03\xed"), 1002, unfit + "malformed close frame", refusal.FirstMessage, false},
		{"no JSON", inJSON, text("good"), 1008, unfit + "it is not JSON", refusal.FirstMessage, false},
		{"JSON and more", inJSON, text(`{"token":"good"}{}`), 1008, unfit + "it is not JSON", refusal.FirstMessage, false},
		{"JSON bomb of depth", inJSON, text(strings.Repeat("[", 9000)), 1008, unfit + "it is not JSON", refusal.FirstMessage, false},
		{"JSON bomb of depth, closed", inJSON, text(`{"x":` + strings.Repeat("[", 4000) + strings.Repeat("]", 4000) + "}"), 3000, "a token is required",
			refusal.TokenMissing, false},
		{"JSON with the token twice", inJSON, text(`{"token":"good","t\u006fken":"bad"}`), 1008, unfit + "a member occurs twice", refusal.FirstMessage, false},
		{"JSON without the token", inJSON, text(`{"Token":"good"}`), 3000, "a token is required", refusal.TokenMissing, false},
		{"JSON with a number for a token", inJSON, text(`{"token":17}`), 3000, "a token is required", refusal.TokenMissing, false},
		{"JSON beyond its room", inJSON, text(`{"token":"good","x":"` + strings.Repeat("x", 9<<10) + `"}`), 1009, unfit + "message exceeds", refusal.FirstMessage, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, nil)
			g := newGate(t, b.url, firstMessages(func(c *Config) {
				c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: 1, Per: time.Hour}
				c.Limits.SessionsPerIP = 1
				if tt.edit != nil {
					tt.edit(c)
				}
			}))
			a := g.upgraded(t, handshake("/?private="+secret))
			a.write(tt.send)
			code, reason := a.lastWords(t)
			if code != tt.code || !strings.HasPrefix(reason, tt.text) || tt.text == "" && reason != "" {
				t.Errorf("got Close %d %q, want %d %q", code, reason, tt.code, tt.text)
			}
			line := g.journal.next(t, "refused")
			if line["reason"] != string(tt.reason) || line["code"] != float64(tt.code) || line["client"] != "127.0.0.1" {
				t.Errorf("line: got %v, want %s and %d", line, tt.reason, tt.code)
			}
			if got := g.refused(t, tt.reason); got != 1 {
				t.Errorf("counted %v times, want once", got)
			}
			if _, left := g.limits.FailuresLeft(ratelimit.AddressKey(netip.MustParseAddr("127.0.0.1")), time.Now()); left != tt.free {
				t.Errorf("not charged: got %t, want %t", left, tt.free)
			}
			for _, hidden := range []string{"good", "bad", secret} {
				if g.journal.contains(hidden) || strings.Contains(reason, hidden) {
					t.Errorf("%q came out", hidden)
				}
			}
			b.untouched(t)
		})
	}
}

// The refusals of the further steps, once the token is there.
func TestFirstMessageThenRefused(t *testing.T) {
	answers := func(status string, lines ...string) func(net.Conn, *http.Request) {
		return func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, request(append([]string{"HTTP/1.1 " + status, "Content-Length: 0"}, lines...)...))
		}
	}
	for _, tt := range []struct {
		name   string
		script func(net.Conn, *http.Request)
		edit   func(*Config)
		code   int
		text   string
		reason refusal.Reason
	}{
		{"the upstream's 403", answers("403 Forbidden"), nil, 1011, "the upstream refuses the connection", refusal.UpstreamRefused},
		{"the upstream's redirect", answers("302 Found", "Location: /internal"), nil, 1011, "the upstream refuses the connection", refusal.UpstreamRefused},
		{"the upstream's 503", answers("503 Busy", "Retry-After: 60"), nil, 1013, "the upstream refuses the connection; retry in 60 s", refusal.UpstreamRefused},
		{"no handshake", func(conn net.Conn, _ *http.Request) { io.WriteString(conn, "SSH-2.0\r\n\r\n") }, nil, 1011,
			"the upstream's answer is not a WebSocket handshake", refusal.UpstreamHandshake},
		{"no answer", func(conn net.Conn, _ *http.Request) { io.Copy(io.Discard, conn) },
			func(c *Config) { c.Upstream.HandshakeTimeout = 50 * time.Millisecond }, 1013, "the upstream does not answer", refusal.UpstreamTimeout},
		{"another subprotocol", func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, accepted(r)+"Sec-WebSocket-Protocol: other\r\n\r\n")
			io.Copy(io.Discard, conn)
		}, nil, 1011, "the upstream's answer is not a WebSocket handshake", refusal.UpstreamHandshake},
		{"no subprotocol", func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, accepted(r)+"\r\n")
			io.Copy(io.Discard, conn)
		}, nil, 1011, "the upstream's answer is not a WebSocket handshake", refusal.UpstreamHandshake},
		{"an extension", func(conn net.Conn, r *http.Request) {
			io.WriteString(conn, accepted(r)+"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
			io.Copy(io.Discard, conn)
		}, nil, 1011, "the upstream's answer is not a WebSocket handshake", refusal.UpstreamHandshake},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, tt.script)
			g := newGate(t, b.url, firstMessages(func(c *Config) {
				c.Limits.Sessions = 1
				if tt.edit != nil {
					tt.edit(c)
				}
			}))
			a := g.upgraded(t, handshake("/", "Sec-WebSocket-Protocol: chat, other", "Sec-WebSocket-Extensions: permessage-deflate"))
			a.write(text("wonder"))
			r := b.next(t)
			if got := r.Header["Sec-Websocket-Protocol"]; !slices.Equal(got, []string{"chat"}) {
				t.Errorf("the upstream was offered %q, want chat alone", got)
			}
			if got := r.Header["Sec-Websocket-Extensions"]; got != nil {
				t.Errorf("the upstream was offered the extensions %q, want none", got)
			}
			if got := r.Header.Get("X-Auth-Subject"); got != "Alice" {
				t.Errorf("X-Auth-Subject: got %q, want Alice", got)
			}
			// The client has not closed yet, and its slot is free again.
			if code, reason := a.lastWords(t); code != tt.code || reason != tt.text {
				t.Errorf("got Close %d %q, want %d %q", code, reason, tt.code, tt.text)
			}
			if scope := g.limits.SessionsFull(ratelimit.AddressKey(netip.MustParseAddr("127.0.0.1"))); scope != "" {
				t.Errorf("a slot is still held: %s", scope)
			}
			if line := g.journal.next(t, "refused"); line["reason"] != string(tt.reason) || line["subject"] != "Alice" {
				t.Errorf("line: got %v, want %s", line, tt.reason)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		g := newGate(t, "ws://"+l.Addr().String(), firstMessages())
		a := g.upgraded(t, handshake("/"))
		a.write(text("good"))
		if code, reason := a.lastWords(t); code != 1013 || reason != "the upstream cannot be reached" {
			t.Errorf("got Close %d %q, want 1013", code, reason)
		}
	})
	t.Run("no room for the subject", func(t *testing.T) {
		g := newGate(t, newEcho(t), firstMessages(func(c *Config) { c.Limits.SessionsPerSubject = 1 }))
		g.connect(t, "/?token=wonder", nil)
		a := g.upgraded(t, handshake("/"))
		a.write(text("wonder"))
		if code, reason := a.lastWords(t); code != 1013 || !strings.HasPrefix(reason, "too many open connections of yours; retry in ") {
			t.Errorf("got Close %d %q, want 1013", code, reason)
		}
	})
}

// What was wrong with a handshake stays an HTTP answer, and so does all else that was known before there was a socket.
func TestFirstMessageOnlyWithoutAnyToken(t *testing.T) {
	g := newGate(t, newEcho(t), firstMessages(func(c *Config) { c.Origin.Origins = []string{"https://a.example"} }))
	for _, tt := range []struct {
		name, raw string
		status    int
	}{
		{"wrong token", handshake("/?token=bad"), 401},
		{"malformed token", handshake("/?token=a%20b"), 401},
		{"half a pair", handshake("/", "Sec-WebSocket-Protocol: bearer"), 401},
		{"another origin", handshake("/", "Origin: https://b.example"), 403},
		{"no handshake", request("GET / HTTP/1.1", "Host: a"), 426},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if a := g.send(t, tt.raw); a.StatusCode != tt.status {
				t.Errorf("got %d, want %d", a.StatusCode, tt.status)
			}
		})
	}
	t.Run("good token", func(t *testing.T) { echoes(t, g.connect(t, "/?token=good", nil), "Olá") })
}

func TestSilentClientsUpToTheCap(t *testing.T) {
	g := newGate(t, newEcho(t), firstMessages(func(c *Config) {
		c.Gate.FirstMessageMax = 2
		c.Gate.FirstMessageTimeout = time.Minute
	}))
	silent := []*answer{g.upgraded(t, handshake("/")), g.upgraded(t, handshake("/"))}
	a := g.send(t, handshake("/"))
	if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
		t.Errorf("got %d, want 503 with Retry-After", a.StatusCode)
	}
	if got := g.refused(t, refusal.FirstMessageFull); got != 1 {
		t.Errorf("counted %v times, want once", got)
	}
	echoes(t, g.connect(t, "/?token=good", nil), "with a token there is room")

	silent[0].conn.Close()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		if a := g.send(t, handshake("/")); a.StatusCode == 101 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place is not given back")
		}
	}
	silent[1].write(text("good")) // a session does not keep its place
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		if a := g.send(t, handshake("/")); a.StatusCode == 101 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place is not given back")
		}
	}
}

// An address may have as many silent sockets as it may have failures, and then has had them.
func TestSilentClientsUseUpTheFailureBudget(t *testing.T) {
	g := newGate(t, newEcho(t), firstMessages(func(c *Config) {
		c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: 2, Per: time.Hour}
		c.Gate.FirstMessageTimeout = time.Minute
		c.Auth.Timeout = 50 * time.Millisecond
	}))
	silent := []*answer{g.upgraded(t, handshake("/")), g.upgraded(t, handshake("/"))}
	if a := g.send(t, handshake("/")); a.StatusCode != 429 {
		t.Errorf("the third: got %d, want 429", a.StatusCode)
	}
	for _, a := range silent {
		a.conn.Close()
	}
	for range silent {
		for g.journal.next(t, "refused")["reason"] != string(refusal.ClientGone) {
		}
	}
	if a := g.send(t, handshake("/?token=good")); a.StatusCode != 429 {
		t.Errorf("after both have gone: got %d, want 429", a.StatusCode)
	}
}

func TestClosingEndsSocketsWithoutAToken(t *testing.T) {
	for name, end := range map[string]func(*testGate) <-chan error{
		"Drain": func(g *testGate) <-chan error { return g.drain(t.Context()) },
		"Cut": func(g *testGate) <-chan error {
			done := make(chan error, 1)
			go func() { g.Cut(); done <- nil }()
			return done
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, newEcho(t), firstMessages(func(c *Config) {
				c.Gate.FirstMessageTimeout, c.DrainTimeout = time.Minute, time.Minute
				c.Limits.AuthFailuresPerIP = ratelimit.Rate{N: 2, Per: time.Hour}
			}))
			silent, half := g.upgraded(t, handshake("/")), g.upgraded(t, handshake("/"))
			half.write(masked(false, frame.Text, "go"))
			ended := end(g)
			for _, a := range []*answer{silent, half} {
				if code, _ := a.lastWords(t); code != 1001 {
					t.Errorf("got Close %d, want 1001", code)
				}
				a.conn.Close()
			}
			if err := result(t, ended); err != nil {
				t.Error(err)
			}
			if got := g.refused(t, refusal.Draining); got != 2 {
				t.Errorf("counted %v times, want twice", got)
			}
			if _, left := g.limits.FailuresLeft(ratelimit.AddressKey(netip.MustParseAddr("127.0.0.1")), time.Now()); !left {
				t.Error("the clients are charged for our end")
			}
		})
	}
}

// A client that does not take its Close frame is cut after CLOSE_TIMEOUT.
func TestRefusedClientThatStays(t *testing.T) {
	g := newGate(t, newEcho(t), firstMessages(func(c *Config) {
		c.Relay.CloseTimeout = 50 * time.Millisecond
		c.DrainTimeout = time.Minute
	}))
	a := g.upgraded(t, handshake("/"))
	a.write(text("bad"))
	g.journal.next(t, "refused")
	if err := result(t, g.drain(t.Context())); err != nil { // which waits for it
		t.Errorf("Drain: %v", err)
	}
}

// Cut does not wait for clients that are told no.
func TestCutEndsTheLinger(t *testing.T) {
	g := newGate(t, newEcho(t), firstMessages(func(c *Config) { c.Relay.CloseTimeout = time.Hour }))
	a := g.upgraded(t, handshake("/"))
	a.write(text("bad"))
	if code, _ := a.lastWords(t); code != 3000 {
		t.Errorf("got Close %d, want 3000", code)
	}
	began := time.Now()
	g.Cut()
	if took := time.Since(began); took >= closeTimeout {
		t.Errorf("Cut took %v", took)
	}
}

func TestFirstMessageSettings(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Config)
		want []string // how each line begins
	}{
		{"as they are", func(*Config) {}, nil},
		{"off", func(c *Config) { c.Gate.FirstMessage, c.Gate.FirstMessageTimeout = false, 0 }, nil},
		{"no format", func(c *Config) { c.Gate.FirstMessageFormat = "json" }, []string{`AUTH_FIRST_MESSAGE_FORMAT: "json"`}},
		{"all at once", func(c *Config) {
			c.Gate.FirstMessageFormat, c.Gate.FirstMessageTimeout, c.Gate.FirstMessageMax = "/~2", 0, 0
		}, []string{`AUTH_FIRST_MESSAGE_FORMAT: "/~2"`, `AUTH_FIRST_MESSAGE_TIMEOUT: "0s"`, `AUTH_FIRST_MESSAGE_MAX: "0"`}},
		{"nobody needs a token", func(c *Config) { c.Auth.Mode, c.Auth.URL = "none", "" }, []string{`AUTH_FIRST_MESSAGE: "true"`}},
		{"everybody is shown", func(c *Config) {
			c.Auth.Mode, c.Origin.Origins = "forward", []string{"https://a.example"}
		}, []string{`AUTH_FIRST_MESSAGE: "true"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := defaults(t)
			c.Auth.URL, c.Upstream.URL, c.Gate.FirstMessage = "http://127.0.0.1", "ws://127.0.0.1", true
			tt.edit(&c)
			_, err := New(c)
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(tt.want) {
				t.Fatalf("got %q, want %q", lines, tt.want)
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, tt.want[i]) || !strings.Contains(line, "; want ") {
					t.Errorf("got %q, want %q and what is allowed", line, tt.want[i])
				}
			}
		})
	}
}
