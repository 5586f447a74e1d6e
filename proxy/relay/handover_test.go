package relay

import (
	"runtime"
	"testing"
	"time"
	"weak"

	"portcullis/proxy/frame"
)

// A session that waits keeps nothing of what came with its handshakes: a buffer of 4 KiB was held for each that
// had begun with a first message, also where nothing was left in it.
func TestEarlyBytesAreLetGo(t *testing.T) {
	for _, tt := range []struct {
		name  string
		early []string // whole messages
	}{
		{"of length 0", nil},
		{"a message", []string{"first"}},
		{"messages", []string{"first", "second"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e engine) {
				var h Handover
				var held [2]weak.Pointer[[4 << 10]byte]
				for s, early := range [2]*[]byte{&h.ClientEarly, &h.UpstreamEarly} {
					buf := new([4 << 10]byte)
					held[s] = weak.Make(buf)
					*early = buf[:0]
					for _, m := range tt.early {
						*early = append(*early, side(s).text(m)...)
					}
				}
				s := newRig(t, e, e.config()).openWith(h)
				h = Handover{}
				for _, m := range tt.early {
					s.upstream.expect("text " + m)
					s.client.expect("text " + m)
				}
				for began := time.Now(); held[client].Value() != nil || held[upstream].Value() != nil; {
					if time.Since(began) > patience/10 {
						t.Fatalf("held: the client's %v, the upstream's %v", held[client].Value() != nil, held[upstream].Value() != nil)
					}
					runtime.GC()
				}
				s.client.send(frame.Text, "and on")
				s.upstream.expect("text and on")
				s.hangUp()
			})
		})
	}
}
