package upstream

import "strings"

// What may stand in a header field. These four lines of grammar are also in golang.org/x/net/http/httpguts, which brings
// the Unicode tables of golang.org/x/text along.

// isToken reports whether s is a token, which a field name also is (RFC 9110 sections 5.1 and 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// isFieldValue reports whether s holds no control character but tab (RFC 9110 section 5.5): above all no CR, LF or NUL.
func isFieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isHost reports whether s holds nothing but what a host with or without a port is made of (RFC 3986 section 3.2.2).
func isHost(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && strings.IndexByte("-._~!$&'()*+,;=%:[]", c) < 0 {
			return false
		}
	}
	return s != ""
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// hasToken reports whether the list that values make together holds an ASCII token, in any case.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if equalFold(trim(t), token) {
				return true
			}
		}
	}
	return false
}

// equalFold compares s with an ASCII string, folding ASCII alone: Unicode's folding makes a k of U+212A and an s of U+017F,
// but both are longer than what they would stand for.
func equalFold(s, ascii string) bool { return len(s) == len(ascii) && strings.EqualFold(s, ascii) }

// trim cuts what HTTP calls optional white space, which is less than Unicode does.
func trim(s string) string { return strings.Trim(s, " \t") }

// isHeader reports whether every name and value may be sent. Of what net/textproto has parsed it refuses a name with a
// space before its colon, which some read as the name without it (RFC 9112 section 5.1).
func isHeader(h map[string][]string) bool {
	for name, values := range h {
		if !isToken(name) {
			return false
		}
		for _, v := range values {
			if !isFieldValue(v) {
				return false
			}
		}
	}
	return true
}
