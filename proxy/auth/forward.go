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

// requestHead is the head of a client's request as far as the verifier is shown it.
type requestHead struct {
	method, uri string
	header      http.Header // end-to-end headers only, and none that the gate sets itself
	forwarded   Forwarded
}

// Forwarded is how a request reached the gate, as far as the gate believes it.
type Forwarded struct {
	Scheme string // http or https, never ws
	Host   string // that the client asked for
	For    string // X-Forwarded-For: the client first, then the trusted proxies that it came through
}

// WithForwarded returns c with f in place of what the request itself says: its
// peer, which may be a trusted proxy, and its Host. It matters in mode forward
// only.
func (c Credential) WithForwarded(f Forwarded) Credential {
	if c.head != nil {
		head := *c.head
		head.forwarded = f
		c.head = &head
	}
	return c
}

// copyHead copies what the verifier is shown of r. A token that r has only in its
// subprotocols is shown as Authorization: Bearer, unless r has its own.
func copyHead(r *http.Request, token string) *requestHead {
	s := &requestHead{
		method:    r.Method,
		uri:       r.RequestURI,
		header:    make(http.Header, len(r.Header)),
		forwarded: Forwarded{Scheme: "http", Host: r.Host},
	}
	if s.uri == "" { // not from a server
		s.uri = r.URL.RequestURI()
	}
	if r.TLS != nil {
		s.forwarded.Scheme = "https"
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		s.forwarded.For = peer.Addr().Unmap().WithZone("").String()
	}
	for name, values := range r.Header {
		if !withheld(name) {
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

// withheld reports whether a client's header is kept from the verifier. That is
// every header that is not end-to-end, in every spelling that a server may take
// for it, and those that describe a body, because the call has none.
func withheld(name string) bool {
	switch header.Fold(name) {
	case "Content-Type", "Content-Encoding", "Content-Range", "Host":
		return true
	}
	return header.KindOf(name) != header.EndToEnd
}

func (f *forward) verify(ctx context.Context, c Credential) (Decision, error) {
	if c.head == nil {
		return Decision{}, errors.New("a credential that Find did not return")
	}
	a, err := f.call(ctx, f.request(c.head))
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

// request asks about s. The URI keeps its query, the token included, because the
// verifier is to read it.
func (f *forward) request(s *requestHead) *http.Request {
	r := f.get()
	r.Header = maps.Clone(f.header)
	maps.Copy(r.Header, s.header)
	if s.header["User-Agent"] == nil {
		r.Header["User-Agent"] = nil // not ours in its place: the verifier may decide by it
	}
	for name, value := range map[string]string{
		"X-Forwarded-Method": s.method,
		"X-Forwarded-Proto":  s.forwarded.Scheme,
		"X-Forwarded-Host":   s.forwarded.Host,
		"X-Forwarded-Uri":    s.uri,
		"X-Original-Method":  s.method,
		"X-Original-Uri":     s.uri,
	} {
		r.Header[name] = []string{value}
	}
	if s.forwarded.For != "" {
		r.Header["X-Forwarded-For"] = []string{s.forwarded.For}
		client, _, _ := strings.Cut(s.forwarded.For, ",")
		r.Header["X-Real-Ip"] = []string{client}
	}
	return r
}

const (
	maxChallenges     = 4
	maxChallengeBytes = 1 << 10
)

// challenge returns those values of the answer's WWW-Authenticate that may go back
// to the client: short ones of ASCII, as RFC 9110 section 5.5 wants new headers.
func (a answer) challenge() []string {
	values := slices.DeleteFunc(slices.Clone(a.header["Www-Authenticate"]), func(v string) bool {
		return v == "" || len(v) > maxChallengeBytes || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' })
	})
	return values[:min(len(values), maxChallenges)]
}
