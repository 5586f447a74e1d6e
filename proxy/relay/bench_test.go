package relay

import (
	"fmt"
	"io"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// The benchmarks have both peers in the same process, with prepared messages; they
// allocate nothing and look at frame headers alone. So the time of an operation
// includes both peers' system calls, four for an echo; "direct" is that alone, without
// a relay. What a relay costs is the difference, and the allocations are its own. They leave out
// handshakes, many connections at once, and a network: for those, and the CPU of a
// process that only relays, there is proxy/bench.

// benchEngines runs a benchmark without a relay and with every engine: as it is
// shipped, with its heartbeat, and with every limit.
func benchEngines(b *testing.B, bench func(b *testing.B, client, upstream *testPeer)) {
	b.Run("direct", func(b *testing.B) {
		c, u := tcpPair(b)
		defer c.Close()
		defer u.Close()
		bench(b, newPeer(b, frame.Client, c, c), newPeer(b, frame.Server, u, u))
	})
	for _, e := range engines {
		for _, rates := range []bool{false, true} {
			c := e.config()
			c.PingInterval, c.PongTimeout = 30*time.Second, 10*time.Second
			name := e.name
			if rates {
				c.MessageRate, c.MessageBurst, c.MessageByteRate = 1e9, 1e9, 1e15
				c.MessageMaxBytes = 1 << 30
				name += "-limited"
			}
			b.Run(name, func(b *testing.B) {
				s := newRig(b, e, c).open()
				bench(b, s.client, s.upstream)
			})
		}
	}
}

// BenchmarkEcho is one message there and back at a time.
func BenchmarkEcho(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"64B", 64}, {"4KiB", 4 << 10}} {
		b.Run(size.name, func(b *testing.B) {
			benchEngines(b, func(b *testing.B, client, upstream *testPeer) {
				h := frame.Header{Fin: true, Opcode: frame.Binary}
				there := appendBulk(nil, frame.Client, h, pattern(0, size.bytes))
				back := appendBulk(nil, frame.Server, h, pattern(0, size.bytes))
				client.forEver()
				upstream.forEver()
				go func() {
					for upstream.skipMessage() == nil {
						if _, err := upstream.conn.Write(back); err != nil {
							return
						}
					}
				}()
				b.SetBytes(int64(size.bytes))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := client.conn.Write(there); err != nil {
						b.Fatal(err)
					}
					if err := client.skipMessage(); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkEchoResumable is BenchmarkEcho of 64 bytes in a session that may be resumed, with the client's acknowledgements: each
// message is stored, framed anew, and kept until the other side has it.
func BenchmarkEchoResumable(b *testing.B) {
	for _, e := range engines {
		if e.terminates() {
			continue
		}
		b.Run(e.name, func(b *testing.B) {
			c := e.config()
			c.Resume, c.MessageMaxBytes, c.ResumeBuffer, c.ResumeTotal = time.Hour, 1<<10, 256<<10, 1<<30
			s := newRig(b, e, c).openWith(Handover{Resume: &Resumable{Owner: &scriptOwner{}}})
			h := frame.Header{Fin: true, Opcode: frame.Binary}
			there := appendBulk(nil, frame.Client, h, pattern(0, 64))
			back := appendBulk(nil, frame.Server, h, pattern(0, 64))
			s.client.forEver()
			s.upstream.forEver()
			go func() {
				for s.upstream.skipMessage() == nil {
					if _, err := s.upstream.conn.Write(back); err != nil {
						return
					}
				}
			}()
			b.ReportAllocs()
			for n := 1; b.Loop(); n++ {
				if _, err := s.client.conn.Write(there); err != nil {
					b.Fatal(err)
				}
				for {
					f, err := s.client.read()
					if err != nil {
						b.Fatal(err)
					}
					if f.Opcode == frame.Binary {
						break
					}
				}
				if n%ackMessages == 0 {
					if _, err := s.client.conn.Write(library(fmt.Sprintf(`{"ack":%d}`, n))); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// forEver has a peer look at no payload and know no deadline.
func (p *testPeer) forEver() {
	p.each = func([]byte) {}
	p.conn.SetDeadline(time.Time{})
}

// skipMessage reads a message to its last fragment.
func (p *testPeer) skipMessage() error {
	for {
		if f, err := p.read(); err != nil || f.Fin && !f.Opcode.Control() {
			return err
		}
	}
}

// BenchmarkStream is one direction as fast as it goes, in messages of 64 KiB.
func BenchmarkStream(b *testing.B) {
	benchEngines(b, func(b *testing.B, client, upstream *testPeer) {
		message := appendBulk(nil, frame.Client, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(0, 64<<10))
		b.SetBytes(int64(len(message)))
		b.ReportAllocs()
		client.forEver()
		upstream.forEver()
		read := make(chan struct{})
		go func() {
			defer close(read)
			io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{upstream.conn}, make([]byte, 256<<10))
		}()
		for b.Loop() {
			if _, err := client.conn.Write(message); err != nil {
				b.Fatal(err)
			}
		}
		client.closeWrite()
		<-read
	})
}
