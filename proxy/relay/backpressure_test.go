package relay

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// large asks for the numbers that a machine is given an hour's thought about,
// instead of those that suit every run of the tests.
var large = os.Getenv("PORTCULLIS_LARGE") == "1"

// A fast writer and a slow reader: the writer is held back, what waits between
// them is bounded, and in the end all of it comes, in order.
func TestSlowReader(t *testing.T) {
	total, most := int64(4<<20), uint64(1<<20)
	if large {
		total = 1 << 30 / 8 // two directions, four engines
	}
	sizes := []int64{0, 1, 125, 126, 5000, 65535, 65536, patternMax, patternMax}
	eachEngine(t, func(t *testing.T, e engine) {
		for writing := range side(2) {
			t.Run("from-"+(&testPeer{role: 1 - frame.Role(writing)}).String(), func(t *testing.T) {
				r := newRig(t, e, e.config())
				s := r.open()
				from, to := s.client, s.upstream
				if writing == upstream {
					from, to = to, from
				}
				deadline := time.Now().Add(10 * patience)
				from.conn.SetDeadline(deadline)
				to.conn.SetDeadline(deadline)

				before := heap()
				var written atomic.Int64
				progress := make(chan struct{}, 1)
				failed := make(chan error, 1)
				go func() {
					var b []byte
					for at, i := int64(0), 0; at < total; i++ {
						// From a few bytes to more than any buffer, in one frame or in two.
						n := min(sizes[i%len(sizes)], total-at)
						h := frame.Header{Fin: i%2 == 0, Opcode: frame.Binary}
						b = appendBulk(b[:0], from.role, h, pattern(at, int(n)))
						if !h.Fin {
							b = appendBulk(b, from.role, frame.Header{Fin: true}, nil)
						}
						if _, err := from.conn.Write(b); err != nil {
							failed <- err
							return
						}
						at += n
						written.Store(at)
						select {
						case progress <- struct{}{}:
						default:
						}
					}
					failed <- nil
				}()

				// The reader begins when the writer has come to a stop.
				for stalled := false; !stalled; {
					select {
					case <-progress:
					case err := <-failed:
						if err != nil {
							t.Fatal(err)
						}
						stalled, failed = true, nil
					case <-time.After(200 * time.Millisecond):
						stalled = true
					}
				}
				if grown := heap(); grown > before+most {
					t.Errorf("%d bytes are kept while the reader pauses, want at most %d", grown-before, most)
				}
				t.Logf("stalled at %d of %d bytes", written.Load(), total)

				var at int64
				to.each = func(piece []byte) {
					for len(piece) > 0 {
						n := min(len(piece), patternMax)
						if !bytes.Equal(piece[:n], pattern(at, n)) {
							t.Fatalf("something else at byte %d", at)
						}
						at += int64(n)
						piece = piece[n:]
					}
				}
				for at < total {
					if _, err := to.read(); err != nil {
						t.Fatalf("after %d bytes: %v", at, err)
					}
				}
				if failed != nil {
					if err := <-failed; err != nil {
						t.Fatal(err)
					}
				}
				if grown := heap(); grown > before+most {
					t.Errorf("%d bytes are kept afterwards, want at most %d", grown-before, most)
				}
				s.hangUpAfterLastFragment()
				end := s.ended()
				if got := end.FromClient.Bytes + end.FromUpstream.Bytes; got != total {
					t.Errorf("%d bytes are counted, want %d", got, total)
				}
			})
		}
	})
}

// hangUpAfterLastFragment is hangUp where the empty end of a message may still come.
func (s *testSession) hangUpAfterLastFragment() {
	s.t.Helper()
	s.client.sendClose(1000, "")
	for !s.upstream.closed {
		if _, err := s.upstream.read(); err != nil {
			s.t.Fatal(err)
		}
	}
	s.upstream.sendClose(1000, "")
	s.upstream.conn.Close()
	for !s.client.closed {
		if _, err := s.client.read(); err != nil {
			s.t.Fatal(err)
		}
	}
	s.client.conn.Close()
	s.ended()
}

// heap is how many bytes are in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Both directions at once, as fast as it goes: neither waits for the other.
func TestFullDuplex(t *testing.T) {
	const messages, size = 200, 20_000
	eachEngine(t, func(t *testing.T, e engine) {
		s := newRig(t, e, e.config()).open()
		done := make(chan error, 4)
		for _, p := range []*testPeer{s.client, s.upstream} {
			go func() {
				for i := range messages {
					if _, err := p.conn.Write(appendBulk(nil, p.role, frame.Header{Fin: true, Opcode: frame.Binary}, pattern(int64(i), size))); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
			go func() {
				for i := range messages {
					got, err := readMessage(p)
					if err == nil && !bytes.Equal(got, pattern(int64(i), size)) {
						err = errors.New("another message than was sent")
					}
					if err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		s.hangUp()
	})
}

// A session has so many goroutines, whatever its peers do. Pings that came faster than the scheduler
// turns around once had one for each read of them, in their thousands.
func TestFloodStartsNoGoroutines(t *testing.T) {
	const sessions, most = 20, 8
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for flooding := range side(2) {
		t.Run("by-"+flooding.String(), func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				r := newRig(t, e, e.config())
				r.autotuned = true // what waits in the kernel is read without a pause
				var writing, reading sync.WaitGroup
				opened := make([]*testSession, sessions)
				for i := range opened {
					s := r.connect()
					from, to := s.client, s.upstream
					if flooding == upstream {
						from, to = to, from
					}
					flood := bytes.Repeat(from.wire(frame.Header{Fin: true, Opcode: frame.Ping}, string(pattern(0, 125))), 8000)
					flood = append(flood, from.wire(frame.Header{Fin: true, Opcode: frame.Text}, "last")...)
					writing.Go(func() { from.conn.Write(flood) })
					reading.Go(func() {
						for {
							if f, err := to.read(); err != nil || f.Opcode == frame.Text || f.Opcode == frame.Close {
								return
							}
						}
					})
					opened[i] = s
				}
				select {
				case <-closedAfter(&writing):
				case <-time.After(100 * time.Millisecond): // the kernel holds less
				}
				before := runtime.NumGoroutine()
				for _, s := range opened {
					r.start(s, Handover{})
				}
				peak := 0
				for read, over := closedAfter(&reading), false; !over; {
					peak = max(peak, runtime.NumGoroutine()-before)
					select {
					case <-read:
						over = true
					case <-time.After(time.Millisecond):
					}
				}
				if peak > sessions*most {
					t.Errorf("%d goroutines for %d sessions, want at most %d", peak, sessions, sessions*most)
				}
			})
		})
	}
}

// closedAfter is closed when all of them have ended.
func closedAfter(all *sync.WaitGroup) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	return done
}
