package relay

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"github.com/koding/websocketproxy"
)

// terminate relays a session through koding/websocketproxy, which takes each
// message apart and makes it anew: a backend sees only frames that library
// wrote.
//
// Both handshakes are done when a session gets here, so the library is given a
// request, a response and two connections made up for it (inner). Between those and the
// real ones stands the same policy as in passthrough: it alone sees control
// frames, decides the end and speaks for us. Of the library remains what it is good at,
// carrying whole messages over; none of its dialling, ponging, closing or
// logging reaches a peer. Pings and pongs do not wait for the message that it
// still holds.
func (s *stream) terminate(h Handover) {
	back := &inner{Conn: h.Upstream, s: s, side: upstream, early: h.UpstreamEarly}
	front := &inner{Conn: h.Client, s: s, side: client, early: h.ClientEarly}
	library := websocketproxy.WebsocketProxy{
		Backend: func(*http.Request) *url.URL { return &url.URL{Scheme: "ws", Host: "upstream"} },
		Dialer: &websocket.Dialer{
			NetDial:         func(string, string) (net.Conn, error) { return back, nil },
			ReadBufferSize:  libraryBuffer,
			WriteBufferSize: libraryBuffer,
		},
		Upgrader: &websocket.Upgrader{
			CheckOrigin:     func(*http.Request) bool { return true }, // the gate has
			ReadBufferSize:  libraryBuffer,
			WriteBufferSize: libraryBuffer,
		},
	}
	library.ServeHTTP(hijacked{front}, &http.Request{
		Method: http.MethodGet,
		URL:    &url.URL{Path: "/"},
		Header: http.Header{
			"Connection":            {"Upgrade"},
			"Upgrade":               {"websocket"},
			"Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key":     {"AAAAAAAAAAAAAAAAAAAAAA=="},
		},
	})
	s.cut() // the library gives up only when the session is over; were it not so, nobody would read it any more
}

// libraryBuffer is the size of each of the library's four buffers, in bytes.
const libraryBuffer = 4 << 10

// hijacked is the response to the request made up for the library: there is
// nothing to do with it but to take its connection.
type hijacked struct{ front *inner }

func (hijacked) Header() http.Header         { return http.Header{} }
func (hijacked) WriteHeader(int)             {}
func (hijacked) Write(b []byte) (int, error) { return len(b), nil }
func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	// An empty reader: the library refuses a client that has sent early
	// bytes. They come with the first Read.
	empty := bufio.NewReadWriter(bufio.NewReaderSize(strings.NewReader(""), 16), bufio.NewWriterSize(h.front, libraryBuffer))
	return h.front, empty, nil
}

// inner is the library's end of one side's connection. Reading it gives the
// data frames that the policy lets pass and, when the session is over, an end
// that the library takes for a proper one. Writing goes out through the
// policy. Nothing that the library does to the connection itself has an effect.
type inner struct {
	net.Conn // for its addresses
	s        *stream
	side     side
	early    []byte // what came with the handshake
	reader   reader
	ready    []byte // for the library to read
	rest     []byte // to be shown to the policy again
	failed   error  // why reading ended, once what came before that is through
	spoken   bool   // the library has done its half of the made-up handshake
	request  []byte // that half, upstream, so far
}

// errOver ends the library's copying. It is a Close frame's error because the
// library logs any other to the global logger.
var errOver = &websocket.CloseError{Code: websocket.CloseNormalClosure}

func (c *inner) Read(b []byte) (int, error) {
	for len(c.ready) == 0 {
		if len(c.rest) == 0 {
			if err := c.fill(); err != nil {
				c.s.readEnded(c.side, c.s.conns[c.side], err)
				c.reader.release()
				<-c.s.over
				return 0, errOver
			}
		}
		c.s.mu.Lock()
		c.ready, c.rest = c.s.policy.receive(c.side, c.rest, now())
		c.s.settle()
		if len(c.ready) == 0 {
			c.s.thaw(c.side, c.s.conns[c.side])
		}
		c.s.mu.Unlock()
	}
	n := copy(b, c.ready)
	c.ready = c.ready[n:]
	return n, nil
}

// fill reads what the policy is to see next.
func (c *inner) fill() error {
	c.ready = nil // the end of a buffer, which would be held while this waits
	if c.early != nil {
		c.rest, c.early = c.early, nil
		return nil
	}
	if c.failed == nil {
		c.rest, c.failed = c.reader.read(c.s, c.side, c.s.conns[c.side])
		if len(c.rest) > 0 {
			return nil
		}
	}
	return c.failed
}

func (c *inner) Write(b []byte) (int, error) {
	if !c.spoken {
		return len(b), c.shake(b)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for rest := b; len(rest) > 0; {
		c.s.startWriting(c.side)
		var out []byte
		out, rest = c.s.policy.transmit(c.side, rest, now())
		c.s.write(c.side, out)
		c.s.serve(c.side)
	}
	return len(b), nil // what cannot be delivered is dropped: how the session ends is for the policy
}

// shake swallows the library's response to the client, and answers its request
// to the upstream.
func (c *inner) shake(b []byte) error {
	c.request = append(c.request, b...)
	if !bytes.HasSuffix(c.request, []byte("\r\n\r\n")) {
		return nil
	}
	c.spoken = true
	if c.side == upstream {
		request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(c.request)))
		if err != nil {
			return err
		}
		c.ready = []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
			"Sec-WebSocket-Accept: " + acceptKey(request.Header.Get("Sec-WebSocket-Key")) + "\r\n\r\n")
	}
	c.request = nil
	return nil
}

// acceptKey is Sec-WebSocket-Accept; RFC 6455, section 4.2.2.
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func (*inner) Close() error                     { return nil }
func (*inner) SetDeadline(time.Time) error      { return nil }
func (*inner) SetReadDeadline(time.Time) error  { return nil }
func (*inner) SetWriteDeadline(time.Time) error { return nil }
