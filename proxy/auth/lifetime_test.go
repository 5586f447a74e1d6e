package auth

import (
	"net/http"
	"testing"
	"time"
)

func TestHoldsUntil(t *testing.T) {
	const openEnded = -1
	asked := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) string { return asked.Add(d).Format(http.TimeFormat) }
	tests := []struct {
		name  string
		lines []string
		want  time.Duration // after asked
	}{
		{"nothing said", nil, openEnded},
		{"max-age", []string{"Cache-Control: max-age=60"}, time.Minute},
		{"among directives", []string{"Cache-Control: private,MAX-AGE=60 , must-revalidate"}, time.Minute},
		{"over several lines", []string{"Cache-Control: private", "Cache-Control: max-age=60"}, time.Minute},
		{"quoted", []string{`Cache-Control: max-age="60"`}, time.Minute},
		{"the smallest of several", []string{"Cache-Control: max-age=90, max-age=60, max-age=0"}, time.Minute},
		{"zero", []string{"Cache-Control: max-age=0"}, openEnded},
		{"zero over Expires", []string{"Cache-Control: max-age=0", "Expires: " + at(time.Hour)}, openEnded},
		{"no-store", []string{"Cache-Control: no-store"}, openEnded},
		{"no-store with a lifetime", []string{"Cache-Control: no-store, no-cache, max-age=60"}, time.Minute},
		{"negative", []string{"Cache-Control: max-age=-60"}, openEnded},
		{"a unit", []string{"Cache-Control: max-age=60s"}, openEnded},
		{"no value", []string{"Cache-Control: max-age"}, openEnded},
		{"a cache shared by many", []string{"Cache-Control: s-maxage=60"}, openEnded},
		{"more seconds than anyone counts", []string{"Cache-Control: max-age=99999999999999999999"}, maxDelta * time.Second},
		{"more than fit a Duration", []string{"Cache-Control: max-age=9223372036854775807"}, maxDelta * time.Second},
		{"Expires", []string{"Expires: " + at(time.Hour)}, time.Hour},
		{"Expires under max-age", []string{"Expires: " + at(time.Hour), "Cache-Control: max-age=60"}, time.Minute},
		{"Expires by a clock that is ahead", []string{"Expires: " + at(25*time.Hour), "Date: " + at(24*time.Hour)}, time.Hour},
		{"Expires in the past", []string{"Expires: " + at(-time.Hour)}, openEnded},
		{"Expires: 0", []string{"Expires: 0"}, openEnded},
		{"Expires: -1", []string{"Expires: -1"}, openEnded},
		{"aged in a cache", []string{"Cache-Control: max-age=60", "Age: 20"}, 40 * time.Second},
		{"stale from a cache is not open-ended", []string{"Cache-Control: max-age=60", "Age: 60"}, 0},
		{"Age alone", []string{"Age: 60"}, openEnded},
		{"an Age that is none", []string{"Cache-Control: max-age=60", "Age: -20"}, time.Minute},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := holdsUntil(upgrade("", test.lines...).Header, asked)
			if test.want == openEnded {
				if !got.IsZero() {
					t.Errorf("got %v later, want open-ended", got.Sub(asked))
				}
				return
			}
			if want := asked.Add(test.want); !got.Equal(want) {
				t.Errorf("got %v later, want %v later", got.Sub(asked), test.want)
			}
		})
	}
}

func TestStorable(t *testing.T) {
	asked := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		name  string
		lines []string
		want  bool
	}{
		{"nothing said", nil, true},
		{"private", []string{"Cache-Control: private"}, true},
		{"max-age", []string{"Cache-Control: max-age=60"}, true},
		{"max-age of zero", []string{"Cache-Control: max-age=0"}, false},
		{"no-store", []string{"Cache-Control: max-age=60, No-Store"}, false},
		{"no-cache on another line", []string{"Cache-Control: private", "Cache-Control: no-cache"}, false},
		{"Expires in the past", []string{"Expires: 0"}, false},
		{"Expires in the future", []string{"Expires: " + asked.Add(time.Hour).Format(http.TimeFormat)}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := storable(upgrade("", test.lines...).Header, asked); got != test.want {
				t.Errorf("%t, want %t", got, test.want)
			}
		})
	}
}

func FuzzHoldsUntil(f *testing.F) {
	f.Add("max-age=60", "Thu, 01 Dec 2036 16:00:00 GMT", "5")
	f.Add(`private, max-age="60"`, "0", "99999999999999999999")
	f.Add("max-age=9223372036854775807, no-store", "", "-1")
	f.Fuzz(func(t *testing.T, cacheControl, expires, age string) {
		asked := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		h := http.Header{"Cache-Control": {cacheControl}, "Expires": {expires}, "Age": {age}}
		// Nothing an endpoint sends makes an answer end before it was asked for.
		if until := holdsUntil(h, asked); !until.IsZero() && until.Before(asked) {
			t.Errorf("%q holds until %v", h, until)
		}
	})
}
