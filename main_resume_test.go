package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Of TestResumeStorm there is a short form for every day; the full one is go test . -run TestResumeStorm -storm 5000.
var storm = flag.Int("storm", 500, "resumable sessions that TestResumeStorm cuts at once")

// stormClient is one of many clients that come back together. It is small.
type stormClient struct {
	conn  net.Conn
	token string
	id    string
}

// upgrade opens a session, or returns to it, and reads the first message.
func (c *stormClient) upgrade(addr, target, offer string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: gate.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: portcullis.resume.v1%s\r\n\r\n", target, offer)
	r := bufio.NewReaderSize(conn, 1<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%+v, %w", resp, err)
	}
	head := make([]byte, 4) // a text message of 126 bytes to 64 KiB
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	text := make([]byte, int(head[2])<<8|int(head[3]))
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	text, ours := bytes.CutPrefix(text, []byte("\x00portcullis "))
	var first struct {
		Session, Resume string
		Resumed         bool
	}
	if err := json.Unmarshal(text, &first); err != nil || !ours || head[0] != 0x81 {
		return fmt.Errorf("first message %q: %w", text, err)
	}
	if c.id != "" && (first.Session != c.id || !first.Resumed) {
		return fmt.Errorf("not the same session: %q", text)
	}
	c.conn, c.token, c.id = conn, first.Resume, first.Session
	shown.Token(c.token)
	// An acknowledgement, which shows the token; masked with zeros.
	const ack = "\x00portcullis {\"ack\":0}"
	_, err = conn.Write(append([]byte{0x81, 0x80 | byte(len(ack)), 0, 0, 0, 0}, ack...))
	return err
}

// Thousands of sessions lose their connection at once and are back soon. The verifier is not asked, and the application sees no new
// connection.
func TestResumeStorm(t *testing.T) {
	var asked atomic.Int64
	endpoint := newTokenEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		acceptOpenSesame(w, r)
	})
	p := startProgram(t, "AUTH_URL="+endpoint, "RESUME=2m", "MESSAGE_MAX_BYTES=64KiB", "RATE_AUTH_FAILURES_PER_IP=0", "LOG_LEVEL=info")
	clients := make([]stormClient, *storm)
	atOnce := func(do func(c *stormClient) error) {
		t.Helper()
		var all sync.WaitGroup
		places := make(chan struct{}, 200) // as many as a listener's queue takes
		for i := range clients {
			places <- struct{}{}
			all.Go(func() {
				defer func() { <-places }()
				if err := do(&clients[i]); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	defer func() {
		for _, c := range clients {
			if c.conn != nil {
				c.conn.Close()
			}
		}
	}()
	atOnce(func(c *stormClient) error { return c.upgrade(p.front, "/?token=open%2Bsesame", "") })
	p.metrics = ""
	p.readMetrics()
	dials, questions := metricLine(p.metrics, `portcullis_upstream_dial_duration_seconds_count{result="connected"}`), asked.Load()
	for _, c := range clients {
		c.conn.(*net.TCPConn).SetLinger(0)
		c.conn.Close()
	}
	began := time.Now()
	atOnce(func(c *stormClient) error { return c.upgrade(p.front, "/", ", portcullis.resume.v1."+c.token+".0.1") })
	took := time.Since(began)
	t.Logf("%d sessions are back after %v", *storm, took.Round(time.Millisecond))
	if *storm >= 5000 && took > 10*time.Second {
		t.Error("want 10 s at most")
	}
	p.metrics = ""
	p.readMetrics()
	if got := metricLine(p.metrics, `portcullis_upstream_dial_duration_seconds_count{result="connected"}`); got != dials {
		t.Errorf("connections to the application: %s, want %s", got, dials)
	}
	if got := asked.Load(); got != questions {
		t.Errorf("%d questions to the verifier, want %d", got, questions)
	}
	if got, want := metricLine(p.metrics, `portcullis_resumptions_total{result="resumed"}`), fmt.Sprint(*storm); got != want {
		t.Errorf("%s were resumed, want %s", got, want)
	}
}

// metricLine is the value of a series in a text of metrics.
func metricLine(metrics, series string) string {
	_, rest, _ := strings.Cut(metrics, series+" ")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}
