package auth

import (
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"portcullis/proxy/header"
)

// maxDelta is the value that RFC 9111 section 1.2.2 gives to a number of seconds
// that is too large.
const maxDelta = 1 << 31

// holdsUntil returns until when an answer with the headers h holds, if it was
// asked for at asked; zero: open-ended. Its lifetime is max-age or else Expires
// (RFC 9111 section 4.2.1). One of zero or less, no-store and no-cache are what
// every framework puts on dynamic answers: they forbid keeping the answer and
// do not limit the session.
func holdsUntil(h http.Header, asked time.Time) time.Time {
	lifetime := freshness(h, asked)
	if lifetime <= 0 {
		return time.Time{}
	}
	// A cache on the way may have used up part of it, or all (section 4.2.3).
	age, _ := seconds(h.Get("Age"))
	return asked.Add(max(lifetime-age, 0))
}

// freshness returns the lifetime that h states, zero when it states none.
func freshness(h http.Header, asked time.Time) time.Duration {
	if d, ok := maxAge(h); ok {
		return d // overrides Expires, section 5.3
	}
	expires, err := http.ParseTime(h.Get("Expires"))
	if err != nil {
		return 0 // Expires: 0 is usual and means the past, section 5.3
	}
	// Expires is by the endpoint's clock, which Date tells and which may differ
	// from ours.
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		date = asked
	}
	return expires.Sub(date)
}

// storable reports whether an answer with the headers h may be remembered.
func storable(h http.Header, asked time.Time) bool {
	for name := range directives(h) {
		if strings.EqualFold(name, "no-store") || strings.EqualFold(name, "no-cache") {
			return false
		}
	}
	if _, ok := maxAge(h); !ok && len(h["Expires"]) == 0 {
		return true // nothing said
	}
	return freshness(h, asked) > 0
}

// directives yields the names and values in h's Cache-Control.
func directives(h http.Header) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for directive := range header.Elements(h["Cache-Control"]) {
			name, value, _ := strings.Cut(directive, "=")
			if !yield(name, value) {
				return
			}
		}
	}
}

// maxAge returns the max-age of h's Cache-Control and whether there is one. Of
// several the smallest above zero counts, because it ends a session first. An
// invalid one counts as zero.
func maxAge(h http.Header) (age time.Duration, ok bool) {
	for name, value := range directives(h) {
		if !strings.EqualFold(name, "max-age") {
			continue
		}
		ok = true
		// Quotes are wrong, but recipients should accept them, section 5.2.
		if d, valid := seconds(strings.Trim(value, `"`)); valid && d > 0 && (age == 0 || d < age) {
			age = d
		}
	}
	return age, ok
}

// seconds reads the delta-seconds of RFC 9111 section 1.2.2.
func seconds(s string) (d time.Duration, ok bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > maxDelta {
		n = maxDelta // all digits, so the error is that of range
	}
	return time.Duration(n) * time.Second, true
}
