package frame

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// recorded keeps what goes over a connection.
type recorded struct {
	net.Conn
	read, written bytes.Buffer
}

func (r *recorded) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.read.Write(b[:n])
	return n, err
}

func (r *recorded) Write(b []byte) (int, error) {
	r.written.Write(b)
	return r.Conn.Write(b)
}

// TestScannerFollowsGorilla scans both directions of a connection between two ends of gorilla/websocket.
func TestScannerFollowsGorilla(t *testing.T) {
	for _, compressed := range []bool{false, true} {
		t.Run(fmt.Sprintf("compressed=%v", compressed), func(t *testing.T) {
			read, written := gorillaSession(t, compressed)
			for _, from := range []struct {
				name  string
				rules Rules
				wire  []byte
			}{
				{"client", Rules{From: Client}, written},
				{"server", Rules{From: Server}, read},
			} {
				if compressed {
					from.rules.MessageRSV = RSV1
				}
				whole := scan(t, &from.rules, from.wire)
				if whole.err != nil || whole.left != 0 || whole.inside {
					t.Errorf("%s: %v", from.name, whole)
				}
				count := func(prefix string) (n int) {
					for _, e := range whole.events {
						if strings.HasPrefix(e, prefix) {
							n++
						}
					}
					return n
				}
				if n := count("message"); n != gorillaMessages {
					t.Errorf("%s: %d messages, want %d", from.name, n, gorillaMessages)
				}
				if count("control 8 \x03\xe8") != 1 {
					t.Errorf("%s: no Close frame", from.name)
				}
				if !compressed && count("frame 0") == 0 {
					t.Errorf("%s: no fragments", from.name)
				}
				for _, sizes := range [][]byte{{0}, {1}, {0, 6, 2}, {99}} {
					if pieces := scanInPieces(t, &from.rules, from.wire, sizes); !slices.Equal(pieces.events, whole.events) {
						t.Errorf("%s, pieces of %v: other events", from.name, sizes)
					}
				}
			}
		})
	}
}

// gorillaMessages is how many messages go each way in gorillaSession.
const gorillaMessages = 9

// gorillaSession has messages of many sizes echoed, and returns what the client read and wrote after the handshake.
func gorillaSession(t *testing.T, compressed bool) (read, written []byte) {
	t.Helper()
	const buffer = 1 << 10 // longer messages that are written in pieces are fragmented
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{EnableCompression: compressed, WriteBufferSize: buffer}
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for {
			kind, m, err := c.NextReader()
			if err != nil {
				return
			}
			if w, err := c.NextWriter(kind); err != nil {
				t.Error(err)
			} else if _, err := io.Copy(w, m); err != nil {
				t.Error(err)
			} else if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
	}))
	defer server.Close()

	var wire *recorded
	dialer := websocket.Dialer{
		EnableCompression: compressed,
		WriteBufferSize:   buffer,
		NetDial: func(network, addr string) (net.Conn, error) {
			c, err := net.Dial(network, addr)
			wire = &recorded{Conn: c}
			return wire, err
		},
	}
	c, _, err := dialer.Dial("ws"+strings.TrimPrefix(server.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{0, 1, 125, 126, 127, 1000, 65535, 65536, 100_000} {
		w, err := c.NextWriter(websocket.BinaryMessage)
		if err != nil {
			t.Fatal(err)
		}
		for chunk := range slices.Chunk(bytes.Repeat([]byte("abc\xff"), size)[:size], 700) {
			if _, err := w.Write(chunk); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.WriteMessage(websocket.PingMessage, []byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, m, err := c.ReadMessage(); err != nil || len(m) != size {
			t.Fatalf("%d bytes came back as %d: %v", size, len(m), err)
		}
	}
	if err := c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "bye")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 1000) {
		t.Fatal(err)
	}
	body := func(b []byte) []byte {
		_, after, _ := bytes.Cut(b, []byte("\r\n\r\n"))
		return after
	}
	return body(wire.read.Bytes()), body(wire.written.Bytes())
}
