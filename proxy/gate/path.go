package gate

import (
	"cmp"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"

	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
)

// checkPattern says what is wrong with a pattern that could never match, lest an operator take it for one that does.
func checkPattern(path string, isPrefix, unsafe bool) (wrong string) {
	switch {
	case path == "" && isPrefix:
		return "stands beside others"
	case path == "":
		return "is empty"
	case strings.Contains(path, "*"):
		return "has a * that is not its end"
	case strings.Contains(path, "?"):
		return "has a query"
	case meansOurs(path):
		return "is among the gate's own, below " + OwnPaths
	}
	if why := suspicious(path, unsafe); why != "" {
		return "is refused in requests (" + why + ")"
	}
	return ""
}

// meansOurs reports whether a server behind may take an escaped path for one of the gate's own: one that decodes it, even
// again and again, takes \ for /, drops ;parameters and empty segments, resolves dots, strips a prefix, or tells no case apart.
// So no segment may have our name, wherever it stands.
func meansOurs(path string) bool {
	for segment := range strings.FieldsFuncSeq(unescapeAll(path), isSlash) {
		if name, _, _ := strings.Cut(segment, ";"); strings.EqualFold(name, OwnName) {
			return true
		}
	}
	return false
}

func isSlash(c rune) bool { return c == '/' || c == '\\' }

// unescapeAll undoes all escapes, those that come out of others too, in one pass. What is no escape stays.
func unescapeAll(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		b = append(b, s[i])
		for n := len(b); n >= 3 && b[n-3] == '%'; n = len(b) {
			var c [1]byte
			if _, err := hex.Decode(c[:], b[n-2:]); err != nil {
				break
			}
			b = append(b[:n-3], c[0])
		}
	}
	return string(b)
}

// chooseRoute finds the route that serves the path.
func (g *Gate) chooseRoute(u *upgrade) *refusal.Refusal {
	if why := cmp.Or(suspicious(u.Path, g.table.unsafe), strange(u.Query)); why != "" {
		return &refusal.Refusal{Reason: refusal.PathSuspicious, Detail: why}
	}
	u.route = g.table.find(u.HTTP.Host, u.Path)
	switch {
	case u.route == nil:
		return &refusal.Refusal{Reason: refusal.Path}
	case u.route.isOpen() && g.table.mixed && g.table.leadsElsewhere(u.HTTP.Host, u.Path, (*route).isOpen):
		return leadsElsewhere()
	}
	return nil
}

func leadsElsewhere() *refusal.Refusal {
	return &refusal.Refusal{Reason: refusal.PathSuspicious, Detail: "a server may take it for a path that needs a credential"}
}

// suspicious says, in words that echo nothing of it, why an escaped path is refused whether served or not: servers differ in
// what they take it for, so that what this gate checked need not be what the upstream opens (GHSA-fvhj-4qfh-q2hm). "" is
// no objection. With unsafe, forms that only some servers rewrite are let through: // and \ and their escapes.
func suspicious(path string, unsafe bool) string {
	if !strings.HasPrefix(path, "/") {
		// CONNECT and OPTIONS * have no path at all, and what follows another scheme than ours need not be one.
		return "the request target does not begin with /"
	}
	if why := strange(path); why != "" {
		return why
	}
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return "a bad escape"
	}
	for _, c := range []byte(decoded) {
		if c < ' ' || c == 0x7f {
			return "an escaped control character"
		}
	}
	for segment := range strings.FieldsFuncSeq(decoded, isSlash) {
		// Tomcat and its kind drop ;parameters before they resolve dots: /..;/ is a way up.
		name, _, _ := strings.Cut(segment, ";")
		if name == "." || name == ".." {
			return "a dot segment"
		}
	}
	switch {
	case unsafe:
		return ""
	case strings.Contains(path, "//"):
		return "an empty segment"
	case strings.Contains(decoded, `\`), strings.Count(decoded, "/") > strings.Count(path, "/"):
		return "a backslash, or an escaped slash"
	}
	return ""
}

// cutAuthority cuts a request target in absolute form in two, as a server must accept it and some proxies send it (RFC 9112
// section 3.2.2): the authority, yet unchecked, and the target in origin form. Others it leaves as they are.
func cutAuthority(target string) (authority, rest string, absolute bool) {
	scheme, rest, absolute := strings.Cut(target, "://")
	ours := func(s string) bool { return header.EqualFold(scheme, s) }
	if !absolute || !slices.ContainsFunc([]string{"http", "https", "ws", "wss"}, ours) {
		return "", target, false
	}
	if end := strings.IndexAny(rest, "/?"); end >= 0 {
		authority, rest = rest[:end], rest[end:]
	} else {
		authority, rest = rest, ""
	}
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest // RFC 9112 section 3.2.1: an empty path
	}
	return authority, rest, true
}

// strange refuses the bytes that end a request target for some parser: control characters, and # behind which a fragment
// would begin. Bytes above ASCII are no part of a URI (RFC 3986 section 2) but in use, and harm nothing.
func strange(target string) string {
	for _, c := range []byte(target) {
		if c <= ' ' || c == 0x7f || c == '#' {
			return "a character that must be escaped"
		}
	}
	return ""
}

// The gate's own paths: nothing that a server may take for a path below OwnPaths is ever an upstream's, whatever PATHS say.
const (
	OwnName  = ".portcullis"
	OwnPaths = "/" + OwnName + "/"
)
