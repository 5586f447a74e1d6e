package proxy

import (
	"crypto/tls"
	"fmt"
	"testing"
	"time"
)

// resuming is a gate whose sessions are resumable.
func resuming(edits ...func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Relay.Resume = time.Minute
		c.Relay.MessageMaxBytes = 64 << 10
		c.API.PushMaxBytes = c.Relay.ResumeBuffer
		for _, edit := range edits {
			edit(c)
		}
	}
}

// eachDoor runs a test with every engine that moves resumable sessions.
func eachDoor(t *testing.T, test func(t *testing.T, edit func(*Config), secure *tls.Config)) {
	for _, engine := range []string{"loop", "stream"} {
		t.Run(engine, func(t *testing.T) {
			test(t, func(c *Config) { c.Relay.Engine = engine }, nil)
		})
	}
	t.Run("tls", func(t *testing.T) {
		certFile, keyFile, roots := selfSigned(t)
		test(t, func(c *Config) { c.Front.CertFile, c.Front.KeyFile = certFile, keyFile }, &tls.Config{RootCAs: roots})
	})
}

func TestResume(t *testing.T) {
	eachDoor(t, func(t *testing.T, edit func(*Config), secure *tls.Config) {
		g := newGate(t, newEcho(t), resuming(edit))
		c := newResumer(t, g, "/?token=good")
		c.secure = secure
		c.open()
		if c.answer != resumeOffer || c.welcome.Resumed || !c.welcome.Resumable {
			t.Fatalf("answer %q, first message %+v", c.answer, c.welcome)
		}
		c.send("one")
		c.want("one")
		for i := range 5 {
			c.cut()
			c.send(fmt.Sprint("while away ", i))
			c.mustBack()
			c.want(fmt.Sprint("while away ", i))
		}
		c.send("last")
		c.want("last")
	})
}
