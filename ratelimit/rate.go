package ratelimit

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// maxCount is the largest number of a rate and the largest burst. Beyond 1e9/s
// a token would be worth less than the nanosecond in which time is counted.
const maxCount = 1_000_000_000

// Rate is so many events in a time, as the operator writes it: "20/s",
// "600/m", "100/h". The zero Rate, written "0" or "", is no limit.
type Rate struct {
	N   int           // events, at most 1e9
	Per time.Duration // a second, a minute or an hour; 0 in the zero Rate
}

// UnmarshalText reads a rate. Its error quotes the text and says what is
// allowed.
func (r *Rate) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" || s == "0" {
		*r = Rate{}
		return nil
	}
	number, unit, _ := strings.Cut(s, "/")
	// ParseUint takes digits alone: no sign, no space, no exponent.
	n, err := strconv.ParseUint(number, 10, 32)
	per := perUnit(unit)
	if err != nil || n < 1 || n > maxCount || per == 0 {
		return rateError(s)
	}
	*r = Rate{N: int(n), Per: per}
	return nil
}

// String is the text that UnmarshalText reads as r.
func (r Rate) String() string {
	if r == (Rate{}) {
		return "0"
	}
	switch r.Per {
	case time.Second:
		return strconv.Itoa(r.N) + "/s"
	case time.Minute:
		return strconv.Itoa(r.N) + "/m"
	case time.Hour:
		return strconv.Itoa(r.N) + "/h"
	}
	return fmt.Sprintf("%d/%v", r.N, r.Per) // not valid
}

// perUnit is the time that a unit names; 0 if it names none.
func perUnit(unit string) time.Duration {
	switch unit {
	case "s":
		return time.Second
	case "m":
		return time.Minute
	case "h":
		return time.Hour
	}
	return 0
}

func rateError(value string) error {
	return fmt.Errorf("%q is not a rate; want 1 to %d per s, m or h, such as 20/s, or 0 for no limit", value, maxCount)
}

// valid reports whether UnmarshalText could have made r.
func (r Rate) valid() bool {
	var again Rate
	return again.UnmarshalText([]byte(r.String())) == nil && again == r
}

// limit is r in tokens per second. r is not zero.
func (r Rate) limit() rate.Limit {
	return rate.Limit(float64(r.N) / r.Per.Seconds())
}

// Burst is the size of r's bucket where the operator has set it to n.
func (r Rate) Burst(n int) int {
	if n == 0 {
		return r.N
	}
	return n
}
