package auth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"portcullis/proxy/header"
)

// A forward shows the client's request to AUTH_URL, as nginx's auth_request and
// Traefik's forwardAuth do. Its answers depend on the whole of the request, so
// they are neither cached nor shared.
type forward struct {
	*client
	copied []string // of an answer that accepts, canonical
}

// newForward returns an error of one line for each mistake.
func newForward(c *Config, copied []string) (*forward, error) {
	caller, err := newClient(c)
	if err != nil {
		return nil, err
	}
	return &forward{caller, copied}, nil
}

// shown is the head of a client's request as far as the verifier is shown it.
type shown struct {
	method, uri string
	header      http.Header // end to end, nothing of which the gate knows better
	route       Route
}

// Route is how a request reached the gate, as far as the gate believes it.
type Route struct {
	Scheme string // http or https, never ws
	Host   string // that the client asked for
	For    string // X-Forwarded-For: the client first, then the trusted proxies that it came through
}

// Via returns c with r shown in place of what the request itself says: its
// peer, which may be a trusted proxy, and its Host. Modes other than forward
// show none of it.
func (c Credential) Via(r Route) Credential {
	if c.shown != nil {
		s := *c.shown
		s.route = r
		c.shown = &s
	}
	return c
}

// show copies what the verifier is shown of r. A token that r has only in its
// subprotocols is shown as Authorization: Bearer, unless r has its own.
func show(r *http.Request, token string) *shown {
	s := &shown{
		method: r.Method,
		uri:    r.RequestURI,
		header: make(http.Header, len(r.Header)),
		route:  Route{Scheme: "http", Host: r.Host},
	}
	if s.uri == "" { // not from a server
		s.uri = r.URL.RequestURI()
	}
	if r.TLS != nil {
		s.route.Scheme = "https"
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		s.route.For = peer.Addr().Unmap().WithZone("").String()
	}
	for name, values := range r.Header {
		if !unshown(name) {
			s.header[name] = slices.Clone(values)
		}
	}
	for name := range header.Elements(r.Header["Connection"]) {
		s.header.Del(name)
	}
	if token != "" && s.header["Authorization"] == nil {
		s.header["Authorization"] = []string{"Bearer " + token}
	}
	return s
}

// unshown reports whether a client's header is kept from the verifier: all that
// is not simply the client's word, in every spelling that a server may take for
// it, and what describes a body, for the call has none.
func unshown(name string) bool {
	switch header.Fold(name) {
	case "Content-Type", "Content-Encoding", "Content-Range", "Host":
		return true
	}
	return header.KindOf(name) != header.EndToEnd
}

func (f *forward) verify(ctx context.Context, c Credential) (Decision, error) {
	if c.shown == nil {
		return Decision{}, errors.New("a credential that Find did not return")
	}
	a, err := f.call(ctx, f.request(c.shown))
	if err != nil {
		return Decision{}, err
	}
	cause := fmt.Errorf("status %d", a.status)
	switch {
	case a.status == http.StatusUnauthorized:
		return Decision{}, &RefusedError{Cause: cause, Challenge: a.challenge()}
	case a.status == http.StatusForbidden:
		return Decision{}, &DeniedError{Cause: cause, Challenge: a.challenge()}
	case a.status/100 != 2:
		return Decision{}, a.unavailable()
	}
	d, err := f.accept(a)
	if err != nil {
		return Decision{}, err
	}
	for _, name := range f.copied {
		values := a.header[name]
		if len(values) == 0 || slices.ContainsFunc(values, func(v string) bool { return !fitsHeader(v) }) {
			continue // whole or not at all, as a claim is: see headerValue
		}
		if d.Headers == nil {
			d.Headers = http.Header{}
		}
		d.Headers[name] = values
	}
	return d, nil
}

// request asks about s. The URI goes with its query, token and all, for it is
// the verifier that reads it.
func (f *forward) request(s *shown) *http.Request {
	r := f.get()
	r.Header = maps.Clone(f.header)
	maps.Copy(r.Header, s.header)
	if s.header["User-Agent"] == nil {
		r.Header["User-Agent"] = nil // not ours in its place: the verifier may go by it
	}
	for name, value := range map[string]string{
		"X-Forwarded-Method": s.method,
		"X-Forwarded-Proto":  s.route.Scheme,
		"X-Forwarded-Host":   s.route.Host,
		"X-Forwarded-Uri":    s.uri,
		"X-Original-Method":  s.method,
		"X-Original-Uri":     s.uri,
	} {
		r.Header[name] = []string{value}
	}
	if s.route.For != "" {
		r.Header["X-Forwarded-For"] = []string{s.route.For}
		client, _, _ := strings.Cut(s.route.For, ",")
		r.Header["X-Real-Ip"] = []string{client}
	}
	return r
}

const (
	maxChallenges     = 4
	maxChallengeBytes = 1 << 10
)

// challenge returns what of the answer's WWW-Authenticate may go back to the
// client: short and of ASCII, as RFC 9110 section 5.5 wants new headers.
func (a answer) challenge() []string {
	values := slices.DeleteFunc(slices.Clone(a.header["Www-Authenticate"]), func(v string) bool {
		return v == "" || len(v) > maxChallengeBytes || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' })
	})
	return values[:min(len(values), maxChallenges)]
}
