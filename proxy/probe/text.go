package probe

import (
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxText = 200 // characters of a text that is printed
	hidden  = "…" // instead of what is not shown
)

// printable leaves out of text what does not print: control characters, the invisible ones that reorder a line, and what is
// not UTF-8, as a character that was truncated in two.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, text)
}

// shorten makes a text printable and cuts it to maxText characters.
func shorten(text string) string {
	text = printable(text)
	if utf8.RuneCountInString(text) <= maxText {
		return text
	}
	return string([]rune(text)[:maxText]) + hidden
}

// firstLine is the text before the first line break.
func firstLine(text string) string {
	if i := strings.IndexAny(text, "\r\n"); i >= 0 {
		return text[:i]
	}
	return text
}

// redactor hides a URL's query in a server's text, because the server may repeat what it was sent.
type redactor struct {
	secrets []string // printable, longest first
	replace *strings.Replacer
}

// newRedactor hides a raw query: the whole, each value, and each parameter without a value, as written and decoded.
func newRedactor(rawQuery string) *redactor {
	written := []string{rawQuery}
	for parameter := range strings.SplitSeq(rawQuery, "&") {
		_, value, ok := strings.Cut(parameter, "=")
		if !ok {
			value = parameter
		}
		written = append(written, value)
	}
	r := &redactor{}
	for _, text := range written {
		r.add(text)
		for _, decode := range []func(string) (string, error){url.QueryUnescape, url.PathUnescape} { // + may be a space or a +
			if decoded, err := decode(text); err == nil {
				r.add(decoded)
			}
		}
	}
	slices.SortFunc(r.secrets, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, secret := range r.secrets {
		pairs = append(pairs, secret, hidden)
	}
	r.replace = strings.NewReplacer(pairs...)
	return r
}

// add takes a secret in the form in which it would be printed.
func (r *redactor) add(secret string) {
	if secret = printable(secret); secret != "" {
		r.secrets = append(r.secrets, secret)
	}
}

// line makes a server's text fit to print. With truncated the text may go on after its end, so that a secret can have lost its tail.
func (r *redactor) line(text string, truncated bool) string {
	first := firstLine(text)
	truncated = truncated && len(first) == len(text)
	shown := r.replace.Replace(printable(first))
	if truncated {
		shown = r.trimBeginning(shown)
	}
	return shorten(shown)
}

// trimBeginning hides the longest beginning of a secret at the end of text.
func (r *redactor) trimBeginning(text string) string {
	longest := 0
	for _, secret := range r.secrets {
		for n := min(len(secret), len(text)); n > longest; n-- {
			if strings.HasSuffix(text, secret[:n]) {
				longest = n
			}
		}
	}
	if longest == 0 {
		return text
	}
	return text[:len(text)-longest] + hidden
}
