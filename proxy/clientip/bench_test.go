package clientip

import (
	"strings"
	"testing"
)

// BenchmarkResolve measures the address alone, as each upgrade request pays for it: without reading the request or
// parsing RemoteAddr. The trusted list has four entries. The last two are what a hostile client may send.
func BenchmarkResolve(b *testing.B) {
	for _, bb := range []struct {
		name, peer string
		forwarded  []string
	}{
		{"no header", "203.0.113.9", nil},
		{"three hops", "10.0.0.1", []string{"203.0.113.9, 10.0.0.3, 10.0.0.2"}},
		{"64 KiB forged", "10.0.0.1", []string{strings.Repeat("10.0.0.2,", 7281), "203.0.113.9"}},
		{"64 KiB trusted", "10.0.0.1", []string{strings.Repeat("10.0.0.2,", 7281) + "10.0.0.2"}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			r := newResolver(b, proxies...)
			from := peer(bb.peer)
			b.ReportAllocs()
			for b.Loop() {
				r.Resolve(from, bb.forwarded)
			}
		})
	}
}
