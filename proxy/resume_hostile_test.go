package proxy

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"
)

// What a client of the protocol may not do ends its own session with a clear answer, and no other's.
func TestHostileResumers(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit))
		other := opened(t, g, secure)
		for _, tt := range []struct {
			name   string
			do     func(c *resumer)
			code   int
			reason string
		}{
			{"acknowledges what was never sent", func(c *resumer) { c.say(`{"ack":2}`) }, 1002, "acknowledgement of what was never sent"},
			{"acknowledges all there can be", func(c *resumer) { c.say(`{"ack":18446744073709551615}`) }, 1002, "acknowledgement of what was never sent"},
			{"says what nobody knows", func(c *resumer) { c.say(`{"resume":true}`) }, 1002, "unknown or malformed message of the client library"},
			{"says nothing in many words", func(c *resumer) { c.say(strings.Repeat("x", 60_000)) }, 1002, "unknown or malformed message of the client library"},
			{"floods with acknowledgements", func(c *resumer) {
				for range 2000 {
					c.say(`{"ack":1}`)
				}
			}, 1008, "too many library messages"},
			{"sends too large a message", func(c *resumer) { c.write(strings.Repeat("x", 64<<10+1)) }, 1009, "message exceeds the largest one accepted"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				c := opened(t, g, secure)
				c.noAnswer = true
				tt.do(c)
				c.wantClose(tt.code, tt.reason)
				other.send("still")
				other.want("still")
			})
		}
		if n := g.metric(t, "portcullis_resume_kept_bytes", ""); n > 1000 { // the other's last messages
			t.Errorf("%v bytes are kept", n)
		}
	})
}

// A client that never acknowledges gets no more than a buffer holds; and its connection is given up.
func TestClientThatNeverAcknowledges(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit, func(c *Config) {
			c.Relay.Resume = 4 * time.Second
			c.Relay.ResumeBuffer, c.Relay.MessageMaxBytes, c.API.PushMaxBytes = 16<<10, 4<<10, 16<<10
		}))
		c := newResumer(t, g, "/?token=good")
		c.secure, c.noAnswer = secure, true
		c.open()
		go func() {
			for range 200 { // of 4 KiB, which come back
				if c.conn.WriteMessage(2, make([]byte, 4000)) != nil {
					return
				}
			}
		}()
		g.journal.next(t, "session detached")
		if n := g.metric(t, "portcullis_resume_kept_bytes", ""); n < 16<<10 || n > 2*(16<<10)+2*(4<<10)+64<<10 {
			t.Errorf("%v bytes are kept", n)
		}
	})
}

// A session is found by its newest token, however often it has come back, and by none of the old ones.
func TestOldTokens(t *testing.T) {
	g := newGate(t, newEcho(t), resuming())
	c := opened(t, g, nil)
	var old []string
	for i := range 20 {
		old = append(old, c.welcome.Resume)
		c.cut()
		c.mustBack()
		c.send(fmt.Sprint(i))
		c.want(fmt.Sprint(i))
	}
	for i, token := range old {
		if err := c.tries(token, c.count, 1); err == nil {
			t.Errorf("the token before %d others is good", len(old)-i)
		} else {
			wantClosed(t, err, 1013, "stale")
		}
	}
	c.send("last")
	c.want("last")
}
