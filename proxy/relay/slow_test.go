package relay

import (
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// A client on a slow link takes what it is sent all the time, and answers each ping as
// soon as it has got to it. The kernel may hold megabytes for it, which the ping has to wait behind, and
// has room for more only when a third of them are gone: none of that is silence.
func TestSlowLinkIsNotSilence(t *testing.T) {
	t.Parallel()
	const total, rate = 10 << 20, 640 << 10 // bytes, and bytes a second
	eachEngine(t, func(t *testing.T, e engine) {
		t.Parallel()
		c := e.config()
		c.PingInterval, c.PongTimeout = 100*time.Millisecond, 4*time.Second
		r := newRig(t, e, c)
		r.autotuned = true
		s := r.open()
		s.client.tcp.SetReadBuffer(128 << 10) // more than a segment of the loopback, or it stalls by itself
		s.client.buf = make([]byte, 8<<10)
		go s.upstream.reads()
		go func() {
			b := appendBulk(nil, frame.Server, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, patternMax))
			for range total / patternMax {
				if _, err := s.upstream.conn.Write(b); err != nil {
					return
				}
			}
		}()
		got, began := 0, time.Now()
		link := time.NewTicker(5 * time.Millisecond)
		defer link.Stop()
		s.client.each = func(piece []byte) {
			// By the clock, so that what a crowded machine holds up is made up for.
			for got += len(piece); time.Since(began) < time.Duration(got)*time.Second/rate; {
				<-link.C
			}
		}
		for got < total {
			f, err := s.client.read()
			if err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			switch f.Opcode {
			case frame.Close:
				t.Fatalf("after %d bytes the client reads %q", got, f.name())
			case frame.Ping:
				s.client.send(frame.Pong, string(f.payload))
			}
		}
	})
}
