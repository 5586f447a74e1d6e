package origin

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// maxHost is the longest host name (RFC 1035 section 2.3.4), and maxLabel the longest label of one.
const (
	maxHost  = 253
	maxLabel = 63
)

// maxOrigin is the longest text that is parsed. It leaves plenty for the scheme and the port beside the longest host.
const maxOrigin = 400

// origin is the triple of RFC 6454 section 4, normalised so that equal origins are equal values.
type origin struct {
	scheme string // lower case
	host   string // lower case; an IPv6 address in brackets, as RFC 5952 writes it
	port   uint16 // 0: the scheme's default
}

// parsePattern reads one entry of ORIGINS other than "null", or says what is wrong with it. If wildcard is true, the
// origin's host is the domain whose subdomains may connect.
func parsePattern(s string) (o origin, wildcard bool, wrong string) {
	if scheme, domain, ok := strings.Cut(s, "://*."); ok {
		s, wildcard = scheme+"://"+domain, true
	}
	if s == "*" {
		return o, wildcard, "would allow every web page"
	}
	if strings.ContainsAny(s, " \t;") {
		return o, wildcard, "has a blank or a semicolon (a comma goes between two entries)"
	}
	if strings.Contains(s, "*") {
		return o, wildcard, `has a "*" that is not the whole first label`
	}
	o, wrong = parse(s)
	switch {
	case wrong != "":
	case o.scheme == "ws" || o.scheme == "wss":
		wrong = "has the WebSocket's scheme, but an origin is the page's"
	case wildcard && isIP(o.host):
		wrong = "has a wildcard on an IP address"
	case wildcard && isPublicSuffix(o.host):
		wrong = fmt.Sprintf("allows everyone who gets a name under %q", o.host)
	}
	return o, wildcard, wrong
}

// isPublicSuffix reports whether anyone can get a name directly below domain: top-level domains, those of registries such
// as co.uk, and those of hosters such as github.io, where an attacker needs only a free account. Every domain of one label is one.
func isPublicSuffix(domain string) bool {
	suffix, _ := publicsuffix.PublicSuffix(domain)
	return suffix == domain
}

// parse reads a serialized origin, scheme "://" host [ ":" port ] (RFC 6454 section 6.2), or says what is wrong with it.
// It allocates nothing for what browsers send, IPv6 hosts aside.
func parse(s string) (o origin, wrong string) {
	if len(s) > maxOrigin {
		return origin{}, "is longer than any origin"
	}
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case !ok:
		return origin{}, "has no scheme"
	case !isScheme(scheme):
		return origin{}, "has a malformed scheme"
	case strings.ContainsAny(rest, `/\?#`):
		return origin{}, "has a path or query (a slash at the end is a path)"
	case strings.Contains(rest, "@"):
		return origin{}, "has user information"
	}
	o.scheme = strings.ToLower(scheme)

	// The last colon is the port's, unless it is inside the brackets of an IPv6 address.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, ']') {
		if o.port, ok = parsePort(rest[i+1:]); !ok {
			return origin{}, "has a malformed port"
		}
		rest = rest[:i]
	}
	if o.scheme == "https" && o.port == 443 || o.scheme == "http" && o.port == 80 {
		o.port = 0
	}

	if o.host, wrong = parseHost(rest); wrong != "" {
		return origin{}, wrong
	}
	return o, ""
}

// parseHost reads a host name, an IPv4 address or an IPv6 address in brackets, and normalises it.
func parseHost(s string) (host, wrong string) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", "has a malformed IPv6 address"
		}
		return "[" + addr.String() + "]", ""
	}
	if s == "" {
		return "", "has no host"
	}
	if len(s) > maxHost {
		return "", "has a host name that is too long"
	}
	// A trailing dot makes an empty label. Browsers take https://example.com. for another origin, so it is refused here.
	for rest, more := s, true; more; {
		var label string
		if label, rest, more = strings.Cut(rest, "."); !isLabel(label) {
			return "", "has a malformed host name (an international one is written in ASCII, as xn--)"
		}
	}
	host = strings.ToLower(s)
	// Browsers turn 127.1 and 0x7f000001 into 127.0.0.1 before they send it (WHATWG URL section 3.5, "ends in a number").
	if isNumber(host[strings.LastIndexByte(host, '.')+1:]) && !isIP(host) {
		return "", "has a malformed IPv4 address"
	}
	return host, ""
}

// isIP reports whether a host that parseHost could have read is an address.
func isIP(host string) bool {
	if strings.HasPrefix(host, "[") {
		return true
	}
	if !isNumber(host[strings.LastIndexByte(host, '.')+1:]) {
		return false // names are the common case, and ParseAddr allocates an error for them
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// isNumber reports whether a label in lower case is decimal or, with 0x, hexadecimal.
func isNumber(label string) bool {
	if digits, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// isScheme reports whether s is a scheme: a letter, then letters, digits, "+", "-" and "." (RFC 3986 section 3.1).
func isScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isLetter(c) && (i == 0 || !isDigit(c) && c != '+' && c != '-' && c != '.') {
			return false
		}
	}
	return s != ""
}

// isLabel reports whether s is a label of a host name. An underscore is not allowed in one (RFC 952), but browsers accept it.
func isLabel(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && !isDigit(c) && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= maxLabel
}

// parsePort reads a port from 1 to 65535 in its one decimal form: no sign, no leading zero.
func parsePort(s string) (_ uint16, ok bool) {
	if s == "" || !isDigit(s[0]) || s[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
