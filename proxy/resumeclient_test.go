package proxy

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

const resumeOffer = "portcullis.resume.v1"

// welcome is the first message of a session whose client offers resumption.
type welcome struct {
	Session   string
	Resume    string
	Resumed   bool
	Resumable bool
	Received  uint64
	Window    float64
	Beat      float64
	Buffer    int
	Expires   *string
	Push      string
	Limits    struct{ Messages, Bytes float64 }
}

// resumer is a client of the protocol of docs/resume.md that does one thing at a time.
type resumer struct {
	t         testing.TB
	addr      string // of the gate, or of what stands between
	secure    *tls.Config
	target    string
	header    http.Header
	protocols []string // of the application, and tokens

	conn     *websocket.Conn
	answer   string // the subprotocol of the first answer
	welcome  welcome
	count    uint64   // counted messages received
	attempt  uint64   // with the newest token
	acked    uint64   // messages of ours that the gate has acknowledged
	unacked  []string // those after
	sent     int      // of unacked, on this connection
	library  []string // library messages since the last look, acknowledgements included
	noAnswer bool     // it does not answer library messages
}

func newResumer(t testing.TB, g *testGate, target string, protocols ...string) *resumer {
	return &resumer{t: t, addr: g.addr, target: target, protocols: protocols}
}

func (c *resumer) dial(protocols ...string) (*websocket.Conn, *http.Response, error) {
	return c.dialWithin(patience, protocols...)
}

func (c *resumer) dialWithin(timeout time.Duration, protocols ...string) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{Subprotocols: protocols, HandshakeTimeout: timeout, TLSClientConfig: c.secure}
	scheme := "ws://"
	if c.secure != nil {
		scheme = "wss://"
	}
	conn, resp, err := d.Dial(scheme+c.addr+c.target, c.header)
	if err == nil {
		c.t.Cleanup(func() { conn.Close() })
		conn.SetReadDeadline(time.Now().Add(patience))
	}
	return conn, resp, err
}

// open opens a session.
func (c *resumer) open() *resumer {
	c.t.Helper()
	if err := c.tryOpen(); err != nil {
		c.t.Fatalf("open: %v", err)
	}
	return c
}

func (c *resumer) tryOpen() error {
	conn, resp, err := c.dial(append(append([]string{}, c.protocols...), resumeOffer)...)
	if err != nil {
		return fmt.Errorf("%w (%v)", err, resp)
	}
	c.conn, c.answer = conn, conn.Subprotocol()
	return c.first()
}

// offer is the entry of a return.
func (c *resumer) offer() string {
	return fmt.Sprintf("%s.%s.%d.%d", resumeOffer, c.welcome.Resume, c.count, c.attempt)
}

// back returns to the session. The error is that of the first read: a [*websocket.CloseError] where the gate refuses.
func (c *resumer) back(beside ...string) error {
	c.t.Helper()
	c.attempt++
	return c.backWith(c.offer(), beside...)
}

func (c *resumer) backWith(offer string, beside ...string) error {
	c.t.Helper()
	offers := append([]string{}, beside...)
	if c.answer != resumeOffer && c.answer != "" {
		offers = append(offers, c.answer)
	}
	conn, resp, err := c.dial(append(offers, resumeOffer, offer)...)
	if err != nil {
		return fmt.Errorf("%w (%v)", err, resp)
	}
	c.conn = conn
	return c.first()
}

// mustBack returns and fails the test unless the session is the same.
func (c *resumer) mustBack() {
	c.t.Helper()
	id := c.welcome.Session
	err := c.back()
	for range 4 { // as a client has to: it may have come back before its session stands
		if !websocket.IsCloseError(err, 1013) {
			break
		}
		err = c.back()
	}
	if err != nil {
		c.t.Fatalf("return: %v", err)
	}
	if !c.welcome.Resumed || c.welcome.Session != id {
		c.t.Fatalf("return: got %+v", c.welcome)
	}
}

// first reads the first message, acknowledges it, and sends again what the gate has not.
func (c *resumer) first() error {
	kind, m, err := c.conn.ReadMessage()
	if err != nil {
		return err
	}
	text, ok := strings.CutPrefix(string(m), "\x00portcullis ")
	if kind != websocket.TextMessage || !ok {
		return fmt.Errorf("the first message is %q", m)
	}
	c.welcome = welcome{}
	if err := json.Unmarshal([]byte(text), &c.welcome); err != nil {
		return err
	}
	c.attempt = 0
	if !c.welcome.Resumed {
		c.count, c.acked, c.unacked = 0, 0, nil
	}
	if !c.welcome.Resumable {
		return nil
	}
	if w := c.welcome.Received; w < c.acked || w > c.acked+uint64(len(c.unacked)) {
		return fmt.Errorf("the gate has received %d messages, of %d to %d", w, c.acked, c.acked+uint64(len(c.unacked)))
	}
	if !c.noAnswer {
		c.ack()
	}
	for c.sent = int(c.welcome.Received - c.acked); c.sent < len(c.unacked); c.sent++ {
		if err := c.write(c.unacked[c.sent]); err != nil {
			return nil // which the next read tells
		}
	}
	return nil
}

func (c *resumer) write(m string) error {
	return c.conn.WriteMessage(websocket.TextMessage, []byte(m))
}

// ack acknowledges what has come.
func (c *resumer) ack() { c.say(fmt.Sprintf(`{"ack":%d}`, c.count)) }

// say sends a library message.
func (c *resumer) say(text string) { c.write("\x00portcullis " + text) }

// send sends a message of the application.
func (c *resumer) send(m string) {
	c.unacked = append(c.unacked, m)
	c.sent++
	c.write(m)
}

// next returns the next message of the application. Library messages before it are taken, and answered.
func (c *resumer) next() (string, error) {
	for {
		_, m, err := c.conn.ReadMessage()
		if err != nil {
			return "", err
		}
		text, ok := strings.CutPrefix(string(m), "\x00portcullis ")
		if !ok {
			c.count++
			return string(m), nil
		}
		c.library = append(c.library, text)
		var l struct{ Ack *uint64 }
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return "", err
		}
		if l.Ack == nil {
			continue
		}
		n := *l.Ack
		if n < c.acked {
			return "", fmt.Errorf("acknowledgement %d after %d", n, c.acked)
		}
		if n-c.acked > uint64(len(c.unacked)) {
			return "", fmt.Errorf("acknowledgement %d of %d messages", n, c.acked+uint64(len(c.unacked)))
		}
		c.unacked, c.sent = c.unacked[n-c.acked:], c.sent-int(n-c.acked)
		c.acked = n
		if !c.noAnswer {
			c.ack()
		}
	}
}

// want reads messages of the application.
func (c *resumer) want(messages ...string) {
	c.t.Helper()
	for _, want := range messages {
		if got, err := c.next(); err != nil || got != want {
			c.t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
}

// wantClose reads to the gate's Close.
func (c *resumer) wantClose(code int, reason string) {
	c.t.Helper()
	m, err := c.next()
	wantClosed(c.t, err, code, reason)
	if err == nil {
		c.t.Errorf("got %q before the Close", m)
	}
}

func wantClosed(t testing.TB, err error, code int, reason string) {
	t.Helper()
	closed, ok := errors.AsType[*websocket.CloseError](err)
	if !ok || closed.Code != code || closed.Text != reason {
		t.Fatalf("got %v, want Close %d %q", err, code, reason)
	}
}

// cut breaks the connection without a Close frame, and in no order.
func (c *resumer) cut() {
	conn := c.conn.NetConn()
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}
