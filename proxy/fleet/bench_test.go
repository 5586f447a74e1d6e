package fleet

import (
	"testing"
	"time"

	"portcullis/ratelimit"
)

// BenchmarkUpgrade is what a fleet adds to an upgrade with every limit: two calls of a Redis on the same machine, and the end of the
// session.
func BenchmarkUpgrade(b *testing.B) {
	s := newServer(b)
	rate := ratelimit.Rate{N: 1_000_000, Per: time.Second}
	f, _ := s.newInstance("a", ratelimit.Config{
		Upgrades: rate, UpgradesPerIP: rate, UpgradesPerSubject: rate, AuthFailuresPerIP: rate,
		Sessions: 1_000_000, SessionsPerIP: 1_000_000, SessionsPerSubject: 1_000_000,
	})
	s.known(1, f)
	b.ReportAllocs()
	for b.Loop() {
		if v := f.Admit(b.Context(), here); v.Scope != "" {
			b.Fatalf("%+v", v)
		}
		p, v := f.Enter(b.Context(), here, "Alice", false)
		if v.Scope != "" {
			b.Fatalf("%+v", v)
		}
		p.Release()
	}
}
