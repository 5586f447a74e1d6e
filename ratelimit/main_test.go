package ratelimit

import (
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// t0 is when scripts begin. Times in them count from there.
var t0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return t0.Add(d) }

// key is the key of an address.
func key(addr string) netip.Prefix { return AddressKey(netip.MustParseAddr(addr)) }

// nthKey is the nth of 2^32 different keys: IPv6 networks in 2001:db8::/32.
func nthKey(n uint32) netip.Prefix {
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	return AddressKey(netip.AddrFrom16(a))
}

// rateOf reads a rate as the operator writes it.
func rateOf(tb testing.TB, text string) Rate {
	tb.Helper()
	var r Rate
	if err := r.UnmarshalText([]byte(text)); err != nil {
		tb.Fatal(err)
	}
	return r
}

// tableOf makes a table for a rate whose burst is the rate's number.
func tableOf[K comparable](tb testing.TB, text string, size int) *buckets[K] {
	tb.Helper()
	r := rateOf(tb, text)
	return newBuckets[K](r.limit(), r.N, size)
}

func newLimits(tb testing.TB, c Config) *Limits {
	tb.Helper()
	l, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}
