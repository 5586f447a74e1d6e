package probe

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/gorilla/websocket"
)

const (
	maxHead = 64 << 10 // bytes of an answer's head, TLS's own included: what a server may make us hold
	maxBody = 1 << 10  // bytes of a refusal's body; gorilla/websocket keeps no more either
)

const wantURL = "want ws://host[:port]/path, or wss, http, https"

// parseURL reads a WebSocket URL. Its errors quote nothing: if a URL does not parse, any part of it could be the token.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("the URL does not parse; " + wantURL)
	}
	switch u.Scheme {
	case "ws", "wss":
	case "http":
		u.Scheme = "ws"
	case "https":
		u.Scheme = "wss"
	default:
		return nil, errors.New("the URL's scheme is not a WebSocket's; " + wantURL)
	}
	switch {
	case u.Hostname() == "":
		return nil, errors.New("the URL names no host; " + wantURL)
	case u.User != nil: // not in the grammar of RFC 6455 section 3
		return nil, errors.New("the URL has user information, which WebSocket URLs do not; " + wantURL)
	case u.Fragment != "":
		return nil, errors.New("the URL has a fragment, which WebSocket URLs do not (RFC 6455 section 3); " + wantURL)
	}
	return u, nil
}

// withoutQuery is u without its query.
func withoutQuery(u *url.URL) string {
	shown := u.Scheme + "://" + u.Host + u.EscapedPath()
	if u.RawQuery != "" {
		return shorten(shown) + "?" + hidden
	}
	return shorten(shown)
}

// session is one probe of a WebSocket server.
type session struct {
	Config
	url    *url.URL
	redact *redactor
}

func askWebSocket(ctx context.Context, c Config) error {
	u, err := parseURL(c.URL)
	if err != nil {
		return err
	}
	s := &session{c, u, newRedactor(u.RawQuery)}
	s.sayf("GET %s", withoutQuery(u))
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return s.pingAndClose(ctx, conn)
}

func (s *session) sayf(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }

// connect does the opening handshake.
func (s *session) connect(ctx context.Context) (*websocket.Conn, error) {
	var (
		start     = time.Now()
		raw       *boundConn // nil: not dialled
		connected bool       // dialled, and TLS done: the handshake can begin
	)
	dialer := websocket.Dialer{ // no Proxy: the probe is of the server that the URL names
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			raw = bind(ctx, conn)
			connected = s.url.Scheme == "ws"
			return raw, nil
		},
	}
	dialer.NetDialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.NetDialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		secure := tls.Client(conn, &tls.Config{ServerName: s.url.Hostname(), RootCAs: s.roots, NextProtos: []string{"http/1.1"}})
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		connected = true
		return secure, nil
	}
	conn, resp, err := dialer.DialContext(ctx, s.url.String(), nil)
	switch {
	case err == nil:
		raw.left = math.MaxInt // what follows is read in constant memory
		s.sayf("%s after %v", status(resp.StatusCode), since(start))
		return conn, nil
	case resp == nil && !connected:
		return nil, fmt.Errorf("no connection: %w", explain(ctx, err))
	case resp == nil:
		return nil, fmt.Errorf("no answer: %w", explain(ctx, notHTTP(err)))
	}
	return nil, s.reportRefusal(resp, start)
}

// reportRefusal prints an answer that is not a WebSocket handshake's.
func (s *session) reportRefusal(resp *http.Response, start time.Time) error {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody)) // a broken body does not change the status
	line := s.redact.line(string(body), len(body) == maxBody)
	if line != "" {
		line = ": " + line
	}
	s.sayf("%s after %v%s", status(resp.StatusCode), since(start), line)
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return errors.New("the 101 is not a WebSocket handshake's: its Upgrade, Connection, Sec-WebSocket-Accept or " +
			"Sec-WebSocket-Extensions is wrong (RFC 6455 section 4.1)")
	}
	return fmt.Errorf("the upgrade is refused: %s", status(resp.StatusCode))
}

// pingAndClose pings, closes when the pong comes, and reads until the Close answer. It skips messages.
func (s *session) pingAndClose(ctx context.Context, conn *websocket.Conn) error {
	deadline, _ := ctx.Deadline() // Run has set one
	payload, ponged := rand.Text(), false
	start := time.Now()
	conn.SetPongHandler(func(got string) error {
		if got != payload || ponged { // a pong that nobody asked for is allowed (RFC 6455 section 5.5.3)
			return nil
		}
		ponged = true
		s.sayf("pong after %v", since(start))
		return conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), deadline)
	})
	err := conn.WriteControl(websocket.PingMessage, []byte(payload), deadline)
	for err == nil {
		_, _, err = conn.NextReader()
	}

	step := "waiting for the pong"
	if ponged {
		step = "waiting for the Close answer"
	}
	var frame *websocket.CloseError
	// gorilla/websocket reports a connection that ended without a Close frame as 1006, a code that no frame can have.
	if !errors.As(err, &frame) || frame.Code == websocket.CloseAbnormalClosure {
		return fmt.Errorf("%s: %w", step, explain(ctx, err))
	}
	s.sayf("%s", s.describeClose(frame))
	if !ponged {
		return errors.New("the server closed before its pong")
	}
	return nil
}

// describeClose describes a Close frame.
func (s *session) describeClose(frame *websocket.CloseError) string {
	switch reason := s.redact.line(frame.Text, false); {
	case frame.Code == websocket.CloseNoStatusReceived:
		return "Close without a code"
	case reason != "":
		return fmt.Sprintf("Close %d: %s", frame.Code, reason)
	default:
		return fmt.Sprintf("Close %d", frame.Code)
	}
}

var (
	errHeadTooLong = fmt.Errorf("the head of the answer is over %d bytes", maxHead)
	errNotHTTP     = errors.New("what came is not HTTP")
)

// notHTTP is the error of reading an answer's head. Those of net/http quote the line they could not parse, in which a
// server may have repeated the query.
func notHTTP(err error) error {
	var network *net.OpError
	if errors.As(err, &network) || isEOF(err) || errors.Is(err, errHeadTooLong) {
		return err
	}
	return errNotHTTP
}

// boundConn is a connection that is closed when ctx ends: gorilla/websocket only watches ctx's deadline. It also bounds what is
// read of the answer's head, because neither gorilla/websocket nor http.ReadResponse does.
type boundConn struct {
	net.Conn
	left         int         // bytes that may still be read
	stopWatching func() bool // detaches the connection from ctx
}

func bind(ctx context.Context, conn net.Conn) *boundConn {
	return &boundConn{Conn: conn, left: maxHead, stopWatching: context.AfterFunc(ctx, func() { conn.Close() })}
}

func (c *boundConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errHeadTooLong
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (c *boundConn) Close() error {
	c.stopWatching()
	return c.Conn.Close()
}
