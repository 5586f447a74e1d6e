package relay

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// load writes messages of all sizes, some of them in fragments, without a
// pause until it is told to stop; then it writes the last frame.
func (p *testPeer) load(stop <-chan struct{}, last []byte) error {
	sizes := []int{0, 1, 125, 126, 4000, 65535, 65536, patternMax}
	var b []byte
	for at, i := int64(0), 0; ; i++ {
		select {
		case <-stop:
			_, err := p.conn.Write(last)
			return err
		default:
		}
		n := sizes[i%len(sizes)]
		h := frame.Header{Fin: i%3 > 0, Opcode: frame.Binary}
		b = appendBulk(b[:0], p.role, h, pattern(at, n))
		at += int64(n)
		if !h.Fin {
			b = appendBulk(b, p.role, frame.Header{}, pattern(at, n))
			at += int64(n)
			b = appendBulk(b, p.role, frame.Header{Fin: true}, nil)
		}
		if _, err := p.conn.Write(b); err != nil {
			return err
		}
	}
}

// compare reads what load writes, up to its last frame or a Close frame, and
// answers pings. Of each frame it tells how many pings and bytes there have been.
func (p *testPeer) compare(tell func(pings int, n int64)) (last string, err error) {
	pings := 0
	var at int64
	var wrong error
	p.each = func(piece []byte) {
		for len(piece) > 0 && wrong == nil {
			n := min(len(piece), patternMax)
			if !bytes.Equal(piece[:n], pattern(at, n)) {
				wrong = errors.New("another byte than was sent")
			}
			at += int64(n)
			piece = piece[n:]
		}
	}
	defer func() { p.each = nil }()
	for wrong == nil {
		f, err := p.read()
		if err != nil {
			return "", err
		}
		switch f.Opcode {
		case frame.Ping:
			if _, err := p.conn.Write(p.wire(frame.Header{Fin: true, Opcode: frame.Pong}, string(f.payload))); err != nil {
				return "", err
			}
			pings++
		case frame.Text, frame.Close:
			return f.name(), nil
		}
		tell(pings, at)
	}
	return "", wrong
}

// What the relay inserts stands between frames, however full the direction is,
// and nothing of what it stands between is lost. First pings, towards a side that is
// spoken to without a pause and says nothing but pongs.
func TestPingsUnderLoad(t *testing.T) {
	const pings = 3
	eachEngine(t, func(t *testing.T, e engine) {
		c := e.config()
		c.PingInterval = 20 * time.Millisecond
		s := newRig(t, e, c).open()
		for _, pair := range [][2]*testPeer{{s.client, s.upstream}, {s.upstream, s.client}} {
			busy, quiet := pair[0], pair[1]
			stop, stopped := make(chan struct{}), make(chan error, 1)
			go func() {
				stopped <- busy.load(stop, appendBulk(nil, busy.role, frame.Header{Fin: true, Opcode: frame.Text}, nil))
			}()
			enough := sync.OnceFunc(func() { close(stop) })
			last, err := quiet.compare(func(n int, _ int64) {
				if n == pings {
					enough()
				}
			})
			if err != nil || last != "text" {
				t.Fatalf("%s reads %q, %v", quiet, last, err)
			}
			if err := <-stopped; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Then a Close frame, to both sides while both speak: after it there is nothing.
func TestCloseUnderLoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		r := newRig(t, e, e.config())
		s := r.open()
		type result struct {
			read    string
			reading error
			writing error
		}
		results := make(chan result, 2)
		flowing := make(chan struct{}, 2)
		for _, p := range []*testPeer{s.client, s.upstream} {
			stop, stopped := make(chan struct{}), make(chan error, 1)
			go func() { stopped <- p.load(stop, p.wire(frame.Header{Fin: true, Opcode: frame.Close}, "\x03\xe9")) }()
			go func() {
				var res result
				flows := sync.OnceFunc(func() { flowing <- struct{}{} })
				res.read, res.reading = p.compare(func(_ int, n int64) {
					if n > 2<<20 {
						flows()
					}
				})
				close(stop)
				res.writing = <-stopped
				results <- res
			}()
		}
		<-flowing
		<-flowing
		r.Drain(t.Context(), 0)
		for range 2 {
			if res := <-results; res.reading != nil || res.writing != nil || res.read != drained {
				t.Errorf("a peer reads %q, %v, and writes: %v", res.read, res.reading, res.writing)
			}
		}
		s.client.expectEOF()
		s.client.conn.Close()
		s.upstream.conn.Close()
		if end := s.ended(); end.Reason != Drained {
			t.Errorf("end %+v", end)
		}
	})
}
