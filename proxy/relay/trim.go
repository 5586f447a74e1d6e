package relay

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// calm is how long no session must have been started before memory is given back.
const calm = time.Second

// trim gives the system back what a wave of upgrades leaves behind. An upgrade
// allocates ten times what the session then keeps, and Go's collector lets the heap
// grow to twice what is live before it looks, which for a process that holds idle sessions
// and does nothing else may be never. So it is made to look once the wave has
// passed, and only where there is something to gain: the collection
// costs a few milliseconds for every 10,000 sessions.
func trim() {
	sample := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, // after the last collection
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(sample)
	live := sample[0].Value.Uint64()
	resident := sample[1].Value.Uint64() + sample[2].Value.Uint64() + sample[3].Value.Uint64()
	if resident > live+live/4+2<<20 {
		debug.FreeOSMemory()
	}
}
