package relay

import (
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// trimDelay is how long no session must have been started before memory is given back.
	trimDelay = time.Second
	// trimInterval is the least time from one forced collection to the next. Where
	// clients come one by one there is a lull after each of them, and a
	// collection looks at the whole heap: a few milliseconds of CPU for every 10,000 sessions,
	// so for 100,000 of them less than a thousandth of a processor at this pace. Go's
	// own collector comes by every two minutes, whatever happens.
	trimInterval = time.Minute
)

// trimmer gives the system back what a wave of upgrades leaves behind. An upgrade
// allocates ten times what the session then keeps, and Go's collector lets the heap
// grow to twice what is live before it looks, which for a process that holds idle sessions
// and does nothing else takes long. So it is made to look once the wave has
// passed, and only where there is something to gain.
type trimmer struct {
	timer *time.Timer // runs trim
	// collect gives memory back, and reports whether there was any.
	collect func() bool

	mu   sync.Mutex // guards what follows
	next time.Time  // when it may be called again
}

func newTrimmer(collect func() bool) *trimmer {
	t := &trimmer{collect: collect}
	t.timer = time.AfterFunc(never, t.trim)
	return t
}

// started notes that a session has been.
func (t *trimmer) started() { t.timer.Reset(trimDelay) }

func (t *trimmer) trim() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if wait := time.Until(t.next); wait > 0 {
		t.timer.Reset(wait)
		return
	}
	if t.collect() {
		t.next = time.Now().Add(trimInterval)
	}
}

// collect has the collector look if the heap has grown by more than a quarter since it last did.
func collect() bool {
	sample := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, // after the last collection
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(sample)
	live := sample[0].Value.Uint64()
	resident := sample[1].Value.Uint64() + sample[2].Value.Uint64() + sample[3].Value.Uint64()
	if resident <= live+live/4+2<<20 {
		return false
	}
	debug.FreeOSMemory()
	return true
}
