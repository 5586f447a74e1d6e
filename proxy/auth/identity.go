package auth

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"portcullis/proxy/header"
)

// An identityHeader tells the upstream one claim.
type identityHeader struct {
	claim string
	name  string // canonical
}

// subjectClaim is the claim that is [Decision.Subject], named as in RFC 7519
// section 4.1.2.
const subjectClaim = "sub"

// parseForward reads one pair of AUTH_FORWARD.
func parseForward(entry string) (identityHeader, error) {
	// The last colon: the name of a claim may be a URL, that of a header cannot.
	i := strings.LastIndexByte(entry, ':')
	claim, name := entry[:max(i, 0)], entry[i+1:]
	switch {
	case claim == "" || !header.IsToken(name):
		return identityHeader{}, mistake("AUTH_FORWARD", entry, "is not a pair; want claim:Header, as sub:X-Auth-Subject")
	case reserved(name):
		return identityHeader{}, mistake("AUTH_FORWARD", entry, "names a header that the handshake or the proxy needs; want another")
	}
	return identityHeader{claim, http.CanonicalHeaderKey(name)}, nil
}

// setsHeader reports whether a server behind may take name for a header that only we
// may set.
func (a *Auth) setsHeader(name string) bool {
	return slices.ContainsFunc(a.identity, func(id identityHeader) bool { return header.Same(name, id.name) }) ||
		slices.ContainsFunc(a.copied, func(copied string) bool { return header.Same(name, copied) })
}

// StripIdentity deletes the headers of AUTH_FORWARD and AUTH_COPY_HEADERS from h, in
// every spelling that a server behind may take for them; a client must not name
// itself.
func (a *Auth) StripIdentity(h http.Header) {
	for key := range h {
		if a.setsHeader(key) {
			delete(h, key)
		}
	}
}

// SetIdentity writes the headers of AUTH_FORWARD and AUTH_COPY_HEADERS that d knows
// into h, in place of any there. Call it last: a header that the client's
// Connection lists is removed as hop-by-hop, and ours must not be
// (CVE-2024-45410). What d does not know, and a pseudonym, is not written.
func (a *Auth) SetIdentity(h http.Header, d Decision) {
	for _, id := range a.identity {
		value := d.Claims[id.claim]
		if id.claim == subjectClaim {
			value = d.Subject
			if d.Pseudonym {
				value = ""
			}
		}
		if value != "" {
			h[id.name] = []string{value}
		}
	}
	for _, name := range a.copied {
		if values := d.Headers[name]; len(values) > 0 {
			h[name] = slices.Clone(values) // d may be another session's too
		}
	}
}

// reserved reports whether the handshake or the proxy itself needs the header,
// so that neither a token nor an identity can stand in it.
func reserved(name string) bool {
	switch header.Fold(name) {
	case "Cookie", "Host", "Origin", "Via":
		return true
	}
	return header.KindOf(name) != header.EndToEnd
}

// maxSubjectBytes bounds what a subject costs in every log line and limiter
// key; the longest e-mail address has 254 bytes.
const maxSubjectBytes = 256

var errSubject = errors.New("the subject is longer than 256 bytes or has characters that no header may carry")

// checkSubject returns errSubject unless s may stand in a header and a log line.
func checkSubject(s string) error {
	if len(s) > maxSubjectBytes || !fitsHeader(s) {
		return errSubject
	}
	return nil
}

// fitsHeader reports whether s arrives unchanged as the value of a header, and
// cannot be mistaken for another text in a log. Control characters and the line
// separators of Unicode break headers and logs. Bidirectional controls make one
// name look like another (CVE-2021-42574). White space at the ends is trimmed on
// the way, which would make one user of two.
func fitsHeader(s string) bool {
	return utf8.ValidString(s) && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(c rune) bool {
		return unicode.IsControl(c) || unicode.In(c, unicode.Bidi_Control, unicode.Zl, unicode.Zp)
	})
}
