package origin

import (
	"strconv"
	"strings"
	"testing"
)

// String serializes an origin (RFC 6454 section 6.2).
func (o origin) String() string {
	s := o.scheme + "://" + o.host
	if o.port != 0 {
		s += ":" + strconv.Itoa(int(o.port))
	}
	return s
}

// BenchmarkAllows measures one decision, parsing included, against the list of the tests. The last origin is the worst that a
// client can send: 124 labels, each of which is looked up.
func BenchmarkAllows(b *testing.B) {
	l := newList(b, listed...)
	for _, bb := range []struct{ name, origin string }{
		{"listed", "https://app.example.com"},
		{"subdomain", "https://a.example.org"},
		{"refused", "https://evil.example"},
		{"hostile", "https://" + strings.Repeat("a.", 123) + "example"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			values := []string{bb.origin}
			b.ReportAllocs()
			for b.Loop() {
				l.Allows(values)
			}
		})
	}
}
