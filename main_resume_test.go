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
	resumed := func() string {
		p.metrics = ""
		p.readMetrics()
		return metricLine(p.metrics, `portcullis_resumptions_total{result="resumed"}`)
	}
	for wait := time.Now().Add(patience); resumed() != fmt.Sprint(*storm) && time.Now().Before(wait); { // it is counted behind the client's first message
		time.Sleep(10 * time.Millisecond)
	}
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

// Of TestDetachedAgainstTotal there is a short form, too; the full one is go test . -run TestDetachedAgainstTotal -detached 8000.
var detached = flag.Int("detached", 400, "sessions that TestDetachedAgainstTotal leaves to wait for their clients")

// Thousands of sessions wait for clients that never acknowledged what they got, with little memory for all of them: who has been away
// for longest ends, and nobody else does.
func TestDetachedAgainstTotal(t *testing.T) {
	const total = 8 << 20
	p := startProgram(t, "RESUME=5m", "MESSAGE_MAX_BYTES=64KiB", fmt.Sprint("RESUME_TOTAL=", total), "LOG_LEVEL=info", "RATE_AUTH_FAILURES_PER_IP=0")
	message := append([]byte{0x81, 0x80 | 126, 0x4e, 0x20, 0, 0, 0, 0}, bytes.Repeat([]byte("x"), 20_000)...)
	var last stormClient
	for range *detached {
		var c stormClient
		if err := c.upgrade(p.front, "/?token=token", ""); err != nil {
			t.Fatal(err)
		}
		for range 4 { // 80 KB, which the bundled application sends back
			if _, err := c.conn.Write(message); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.CopyN(io.Discard, c.conn, 80_000); err != nil {
			t.Fatal(err)
		}
		c.conn.(*net.TCPConn).SetLinger(0)
		c.conn.Close()
		last = c
	}
	var kept, resident float64
	look := func() float64 {
		p.metrics = ""
		p.readMetrics()
		fmt.Sscan(metricLine(p.metrics, "\nportcullis_resume_kept_bytes"), &kept)
		fmt.Sscan(metricLine(p.metrics, "\nprocess_resident_memory_bytes"), &resident)
		return kept
	}
	for wait := time.Now().Add(patience); look() > total && time.Now().Before(wait); { // who has to end does so a moment later
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("%s sessions wait with %.1f of %d MiB, the process has %.0f MiB", metricLine(p.metrics, "\nportcullis_sessions_detached"), kept/(1<<20), total>>20, resident/(1<<20))
	if kept > total {
		t.Errorf("%.0f bytes are kept, want %d at most", kept, total)
	}
	if err := last.upgrade(p.front, "/", ", portcullis.resume.v1."+last.token+".0.1"); err != nil {
		t.Errorf("the last is not back: %v", err)
	}
	last.conn.Close()
	var old stormClient
	if err := old.upgrade(p.front, "/?token=token", ""); err != nil { // and there is room for others
		t.Error(err)
	}
	old.conn.Close()
}
