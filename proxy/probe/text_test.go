package probe

import (
	"io"
	"log"
	"strings"
	"testing"
	"unicode/utf8"
)

var discardLog = log.New(io.Discard, "", 0)

func TestRedactedLine(t *testing.T) {
	tests := []struct {
		name, query, text string
		cut               bool
		want              string
	}{
		{"no query", "", "as it is", false, "as it is"},
		{"no query, cut", "", "as it is", true, "as it is"},
		{"first line", "", "one\r\ntwo", false, "one"},
		{"value", "token=abc", "abc is bad: xabcx", false, "… is bad: x…x"},
		{"name is no secret", "token=abc", "token is bad", false, "token is bad"},
		{"whole query", "token=abc", "bad query token=abc", false, "bad query …"},
		{"parameter without a value", "abc", "bad query abc", false, "bad query …"},
		{"empty values", "a=&b=&&=", "a b", false, "a b"},
		{"the longer of two values", "a=abc&b=abcdef", "abcdef abc", false, "… …"},
		{"value split by what does not print", "token=abc", "a\x00b\u200bc", false, "…"},
		{"value that does not print", "token=a%00b", "a\x00b ab", false, "… …"},
		{"escape that does not decode", "token=100%", "100% bad", false, "… bad"},
		{"cut value", "token=abcdef", "bad abc", true, "bad …"},
		{"cut at a line's end is no cut", "token=abcdef", "bad abc\nmore", true, "bad abc"},
		{"the longest cut value", "a=cdefgh&b=abcd", "bad abc", true, "bad …"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := newRedactor(tt.query).line(tt.text, tt.cut); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Whatever a server says to whatever query: one short line that prints and holds no part of the query that is a secret.
func FuzzRedactedLine(f *testing.F) {
	f.Add("token=abc&v=1", "bad token abc\nmore")
	f.Add("tok%2Ben+1", "tok+en 1 tok%2Ben+1\x1b[2J")
	f.Add("a=abc&b=bcd", "abcd")
	f.Add("a=%C3%A9&%zz", "\xc3")
	f.Fuzz(func(t *testing.T, query, text string) {
		if strings.Contains(query, hidden) || strings.Contains(strings.ToUpper(query), "%E2%80%A6") {
			t.Skip("a secret that is what hides it")
		}
		r := newRedactor(query)
		for _, cut := range []bool{false, true} {
			line := r.line(text, cut)
			checkText(t, "line", line)
			if n := utf8.RuneCountInString(line); n > maxText+1 {
				t.Errorf("%d characters", n)
			}
			for _, secret := range r.secrets {
				if strings.Contains(line, secret) {
					t.Errorf("line(%q, %v) = %q holds %q of %q", text, cut, line, secret, query)
				}
			}
		}
	})
}
