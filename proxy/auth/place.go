package auth

import (
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"portcullis/proxy/header"
)

// A place is where a client may show its token. strip removes everything that
// find would find.
type place interface {
	// find returns c with the tokens that stand here added. Its errors are
	// those of [Auth.Find], without ErrMissing.
	find(r *http.Request, c Credential) (Credential, error)
	// strip returns rawQuery without the tokens that stand here, and takes
	// them out of h.
	strip(rawQuery string, h http.Header) string
}

const wantPlace = "query:NAME, header:NAME, cookie:NAME, protocol:bearer or protocol:" + kubernetesName

// parsePlace reads one entry of AUTH_TOKEN_FROM.
func parsePlace(entry string) (place, error) {
	kind, name, _ := strings.Cut(entry, ":")
	switch {
	case kind == "query" && visible(name):
		return queryPlace(name), nil
	case kind == "header" && header.IsToken(name):
		if reserved(name) {
			return nil, mistake("AUTH_TOKEN_FROM", entry, "names a header that the handshake or the proxy needs; want another")
		}
		return headerPlace(http.CanonicalHeaderKey(name)), nil
	case kind == "cookie" && header.IsToken(name):
		return cookiePlace(name), nil
	case kind == "protocol" && name == bearerName:
		return bearerPlace{}, nil
	case kind == "protocol" && name == kubernetesName:
		return kubernetesPlace{}, nil
	}
	return nil, mistake("AUTH_TOKEN_FROM", entry, "is not a place; want "+wantPlace)
}

// visible reports whether s is one or more visible ASCII characters.
func visible(s string) bool { return CheckToken(s) == nil }

// A queryPlace is the query parameter of that name.
type queryPlace string

func (q queryPlace) find(r *http.Request, c Credential) (Credential, error) {
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if !q.matches(name) {
			continue
		}
		if len(value) > 3*MaxTokenBytes { // as long as the longest token escaped: not worth decoding
			return c, errLong
		}
		token, err := url.QueryUnescape(value)
		if err != nil {
			return c, errEscapes // the error itself quotes the value
		}
		if c, err = c.withToken(token); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (q queryPlace) strip(rawQuery string, _ http.Header) string {
	return without(rawQuery, "&", func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return q.matches(name)
	})
}

// matches reports whether the raw name is q once decoded: a server reads %74oken
// as token, so we must too. A name that cannot be decoded does not match.
func (q queryPlace) matches(name string) bool {
	if name == string(q) {
		return true
	}
	if len(name)-2*strings.Count(name, "%") != len(q) { // the length decoded: spares decoding the rest
		return false
	}
	decoded, err := url.QueryUnescape(name)
	return err == nil && decoded == string(q)
}

// A headerPlace is the header of that canonical name.
type headerPlace string

func (p headerPlace) find(r *http.Request, c Credential) (Credential, error) {
	for _, value := range r.Header[string(p)] {
		token, ok := p.token(value)
		if !ok {
			continue
		}
		var err error
		if c, err = c.withToken(token); err != nil {
			return c, err
		}
	}
	return c, nil
}

// strip also removes what a server behind might take for the header.
func (p headerPlace) strip(rawQuery string, h http.Header) string {
	key := string(p)
	p.stripAliases(h)
	if values := h[key]; len(values) > 0 {
		replace(h, key, slices.DeleteFunc(slices.Clone(values), func(value string) bool {
			_, ok := p.token(value)
			return ok
		}))
	}
	return rawQuery
}

// stripAliases removes other spellings that a server behind might take for the
// header. find does not read them.
func (p headerPlace) stripAliases(h http.Header) {
	for name := range h {
		if name != string(p) && header.Same(name, string(p)) {
			delete(h, name)
		}
	}
}

// token returns the token in value; ok is false if value has another scheme than
// Bearer. Schemes are compared without case (RFC 9110 section 11.1).
func (p headerPlace) token(value string) (token string, ok bool) {
	if p != "Authorization" {
		return value, true
	}
	scheme, rest := value, ""
	if i := strings.IndexAny(value, " \t"); i >= 0 {
		scheme, rest = value[:i], value[i:]
	}
	return header.Trim(rest), strings.EqualFold(scheme, "Bearer")
}

// A cookiePlace is the cookie of that name. Cookies of the same name and
// different values, as a hostile sibling domain can plant them, conflict.
type cookiePlace string

func (p cookiePlace) find(r *http.Request, c Credential) (Credential, error) {
	for _, line := range r.Header["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			value, ok := p.value(pair)
			if !ok {
				continue
			}
			var err error
			if c, err = c.withToken(value); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

func (p cookiePlace) strip(rawQuery string, h http.Header) string {
	lines := h["Cookie"]
	if len(lines) == 0 {
		return rawQuery
	}
	kept := make([]string, 0, len(lines))
	for _, line := range lines {
		rest := without(line, ";", func(pair string) bool {
			_, ok := p.value(pair)
			return ok
		})
		if rest != line {
			// The first cookie that is left may begin with the space after a semicolon.
			rest = strings.TrimLeft(rest, " \t")
		}
		if rest != "" {
			kept = append(kept, rest)
		}
	}
	replace(h, "Cookie", kept)
	return rawQuery
}

// value returns the value of one pair of a Cookie header; ok is false if the pair
// is another cookie. Quotes around a value are not part of it, as in net/http.
func (p cookiePlace) value(pair string) (value string, ok bool) {
	name, value, _ := strings.Cut(pair, "=")
	if textproto.TrimString(name) != string(p) {
		return "", false
	}
	value = textproto.TrimString(value)
	if n := len(value); n > 1 && value[0] == '"' && value[n-1] == '"' {
		value = value[1 : n-1]
	}
	return value, true
}

// without returns list without the elements that drop picks; the others, and
// their order, stay byte for byte.
func without(list, sep string, drop func(element string) bool) string {
	var kept strings.Builder
	kept.Grow(len(list))
	dropped, first := false, true
	for element := range strings.SplitSeq(list, sep) {
		if drop(element) {
			dropped = true
			continue
		}
		if !first {
			kept.WriteString(sep)
		}
		first = false
		kept.WriteString(element)
	}
	if !dropped {
		return list
	}
	return kept.String()
}

// replace sets h[key], a canonical name, to values, or deletes it when none are
// left.
func replace(h http.Header, key string, values []string) {
	if len(values) == 0 {
		delete(h, key)
		return
	}
	h[key] = values
}
