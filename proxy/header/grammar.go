// Package header holds what all parts of the gate must read in the same way: RFC 9110's grammar of headers (grammar.go), the
// extensions of RFC 6455 (extension.go), and the header names that concern more than the application (names.go).
//
// Two parsers that differ are a security hole: what one has checked is not what the other acts on.
package header

import (
	"iter"
	"strings"
)

// IsToken reports whether s is a token, which the name of a header also is (RFC 9110 sections 5.1 and 5.6.2).
func IsToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// IsValue reports whether s holds no control character but tab (RFC 9110 section 5.5): above all no CR, LF or NUL.
func IsValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// IsHost reports whether s has the characters of one host, with or without a port: a name, an IPv4 address, or an IPv6 address
// in brackets, maybe with a zone. RFC 3986 section 3.2.2 has more for a registered name, such as the comma and the semicolon.
// No name in the DNS has them, and a server that reads X-Forwarded-Host as a list would take a part for the host.
func IsHost(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && strings.IndexByte("-._:[]%", c) < 0 {
			return false
		}
	}
	return s != ""
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// EqualFold compares s with an ASCII string without case, and folds ASCII only. Unicode also folds U+212A to k and U+017F to s,
// but those are longer in UTF-8, so the lengths differ.
func EqualFold(s, ascii string) bool { return len(s) == len(ascii) && strings.EqualFold(s, ascii) }

// Trim cuts the optional white space of RFC 9110 section 5.6.3, which is less than Unicode's.
func Trim(s string) string { return strings.Trim(s, " \t") }

// Elements yields the elements of the list that values make together (RFC 9110 section 5.6.1), trimmed, empty ones included.
// A comma in quotes divides too, so it is only for lists whose elements cannot contain one.
func Elements(values []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, value := range values {
			for element := range strings.SplitSeq(value, ",") {
				if !yield(Trim(element)) {
					return
				}
			}
		}
	}
}

// IsEmptyBody reports whether Content-Length is absent or exactly 0: no list, no sign, no second zero, which some reader may
// take for another length.
func IsEmptyBody(h map[string][]string) bool {
	lengths := h["Content-Length"]
	return len(lengths) == 0 || len(lengths) == 1 && lengths[0] == "0"
}

// HasToken reports whether the list that values make together holds an ASCII token, in any case.
func HasToken(values []string, token string) bool {
	for element := range Elements(values) {
		if EqualFold(element, token) {
			return true
		}
	}
	return false
}
