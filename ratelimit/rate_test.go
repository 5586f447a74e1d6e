package ratelimit

import (
	"math"
	"strings"
	"testing"
	"time"
)

var rateTests = []struct {
	name string
	text string
	want Rate
	ok   bool
}{
	{"empty", "", Rate{}, true},
	{"zero", "0", Rate{}, true},
	{"seconds", "20/s", Rate{20, time.Second}, true},
	{"minutes", "600/m", Rate{600, time.Minute}, true},
	{"hours", "100/h", Rate{100, time.Hour}, true},
	{"leading zeros", "007/s", Rate{7, time.Second}, true},
	{"largest", "1000000000/s", Rate{maxCount, time.Second}, true},
	{"too large", "1000000001/s", Rate{}, false},
	{"beyond 64 bits", "99999999999999999999/s", Rate{}, false},
	{"none a second", "0/s", Rate{}, false}, // no limit, or nothing allowed?
	{"no unit", "20", Rate{}, false},
	{"no unit after slash", "20/", Rate{}, false},
	{"no number", "/s", Rate{}, false},
	{"long unit", "20/sec", Rate{}, false},
	{"days", "20/d", Rate{}, false},
	{"upper case", "20/S", Rate{}, false},
	{"two slashes", "20/s/s", Rate{}, false},
	{"negative", "-1/s", Rate{}, false},
	{"plus", "+1/s", Rate{}, false},
	{"fraction", "0.5/s", Rate{}, false},
	{"exponent", "1e3/s", Rate{}, false},
	{"hexadecimal", "0x10/s", Rate{}, false},
	{"underscore", "1_000/s", Rate{}, false},
	{"infinity", "Inf/s", Rate{}, false},
	{"not a number", "NaN/s", Rate{}, false},
	{"space", " 20/s", Rate{}, false},
	{"inner space", "20 /s", Rate{}, false},
	{"foreign digits", "２０/s", Rate{}, false},
	{"minus zero", "-0", Rate{}, false},
}

func TestRate(t *testing.T) {
	for _, test := range rateTests {
		t.Run(test.name, func(t *testing.T) {
			var got Rate
			err := got.UnmarshalText([]byte(test.text))
			if (err == nil) != test.ok || got != test.want {
				t.Errorf("%q: got %v, %v; want %v, ok %v", test.text, got, err, test.want, test.ok)
			}
			if err != nil && !strings.Contains(err.Error(), "20/s") {
				t.Errorf("error %q does not say how a rate is written", err)
			}
		})
	}
}

func FuzzRate(f *testing.F) {
	for _, test := range rateTests {
		f.Add(test.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var r Rate
		if err := r.UnmarshalText([]byte(text)); err != nil {
			if r != (Rate{}) {
				t.Fatalf("%q: refused, but set to %v", text, r)
			}
			return
		}
		var again Rate
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Fatalf("%q reads as %v, which reads as %v, %v", text, r, again, err)
		}
		if r == (Rate{}) {
			return
		}
		if r.N < 1 || r.N > maxCount || r.Burst(0) != r.N {
			t.Fatalf("%q: %d events", text, r.N)
		}
		if l := float64(r.limit()); !(l > 0) || math.IsInf(l, 0) {
			t.Fatalf("%q: %v tokens a second", text, l)
		}
		if d := timeFor(1, r.limit()); d < 1 || d > time.Hour {
			t.Fatalf("%q: %v for one token", text, d)
		}
		if d := timeFor(maxCount, r.limit()); d < time.Second {
			t.Fatalf("%q: %v for as many tokens as the largest burst", text, d)
		}
	})
}
