// Package auth decides who may pass: it finds the token a client shows, asks
// a verifier about it, says how long the answer holds, and keeps both the token
// and forged identities away from the upstream.
//
// # Modes
//
// AUTH_MODE names the verifier.
//
//   - endpoint asks GET AUTH_URL?token=<escaped>. Status 200 with the body 1
//     (white space around it ignored) accepts. Any other 200, and 400, 401 and
//     403, refuse. Everything else says that the endpoint is not working:
//     another status, redirects included, an answer that is too long, or none
//     within AUTH_TIMEOUT. The gate then fails closed but does not blame the
//     client.
//   - none lets everybody pass. Tokens are not looked for and not taken out,
//     for they can only be meant for the upstream.
//
// An endpoint may name the client in its answer's X-Auth-Subject; otherwise the
// subject is a pseudonym, fit for limits and logs alone. It may limit how long
// its yes holds by Cache-Control: max-age or Expires above zero.
//
// # Places
//
// AUTH_TOKEN_FROM lists where a client may show its token. A place that holds
// nothing, or an empty value, shows none; one token in several places is one
// token; two different tokens anywhere are a conflict, since the upstream might
// go by the one that nobody verified.
//
//   - query:NAME is a query parameter. Its name is compared after
//     percent-decoding, case-sensitively.
//   - header:NAME is a header's whole value. Authorization is special: it shows
//     a token as "Bearer <token>" alone, and other schemes are none of ours.
//   - cookie:NAME is one cookie. Browsers send it from any site, so the caller
//     must check the Origin (see [Auth.UsesCookie]).
//   - protocol:bearer is the pair "bearer, <token>" in Sec-WebSocket-Protocol,
//     which browser script can set.
//   - protocol:base64url.bearer.authorization.k8s.io is the entry of Kubernetes,
//     base64url.bearer.authorization.k8s.io.<base64url without padding>.
//
// # Order of calls
//
// [Auth.Find] and [Auth.Verify] before anything is dialled; [Auth.Strip] and
// [Auth.Clean] on the headers that go upstream; [Auth.Set] last, after whatever
// else edits those headers. Every mode takes the same calls.
//
// No error of this package contains a token, not even one that a broken
// endpoint sends back. One thing is out of its reach: net/http prints what an
// endpoint sends after the end of its answer through package log, which a
// program should therefore not show as it is.
package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Config is what [New] needs. Only a mode that is named lets anyone pass: the
// zero Config is refused.
type Config struct {
	// Mode names the verifier: endpoint or none.
	Mode string `env:"AUTH_MODE" envDefault:"endpoint"`
	// URL is the token endpoint of mode endpoint, http or https. Its query
	// parameters are kept, and token is added to them.
	URL string `env:"AUTH_URL"`
	// Timeout bounds one call of the verifier, from dialling to the last byte
	// of its answer. Zero is refused: a call without an end holds a client.
	Timeout time.Duration `env:"AUTH_TIMEOUT" envDefault:"3s"`
	// TokenFrom lists the places of the package comment. Empty is refused,
	// except in mode none.
	TokenFrom []string `env:"AUTH_TOKEN_FROM" envDefault:"query:token,header:Authorization"`
	// TokenPass leaves the token in what goes upstream, in every place.
	TokenPass bool `env:"AUTH_TOKEN_PASS" envDefault:"false"`
	// Forward lists pairs claim:Header: what is known of the client and the
	// header that tells the upstream. These headers are deleted from every
	// client request. Empty: nothing is told, nothing is deleted.
	Forward []string `env:"AUTH_FORWARD" envDefault:"sub:X-Auth-Subject"`
}

// The values of AUTH_MODE.
const (
	modeEndpoint = "endpoint"
	modeNone     = "none"
)

// Auth is a compiled [Config]. Its methods may be called concurrently.
type Auth struct {
	verifier  verifier // nil: everybody passes (mode none)
	places    []place
	cookie    bool // one of places is a cookie
	keep      bool // TokenPass
	identity  []identityHeader
	pseudonym pseudonyms
}

// New compiles c. Its error joins every mistake, one line each.
func New(c Config) (*Auth, error) {
	a := &Auth{keep: c.TokenPass, pseudonym: newPseudonyms()}
	var mistakes []error
	note := func(err error) { mistakes = append(mistakes, err) }

	for i, entry := range c.TokenFrom {
		p, err := parsePlace(entry)
		switch {
		case err != nil:
			note(err)
		case slices.Contains(c.TokenFrom[:i], entry):
			note(mistake("AUTH_TOKEN_FROM", entry, "is listed twice; want each place once"))
		default:
			a.places = append(a.places, p)
			_, cookie := p.(cookiePlace)
			a.cookie = a.cookie || cookie
		}
	}
	for _, entry := range c.Forward {
		h, err := parseForward(entry)
		same := func(other identityHeader) bool { return sameHeader(other.name, h.name) }
		switch {
		case err != nil:
			note(err)
		case slices.ContainsFunc(a.identity, same):
			note(mistake("AUTH_FORWARD", entry, "names a header that another pair names; want one claim for each header"))
		default:
			a.identity = append(a.identity, h)
		}
	}

	switch c.Mode {
	case modeEndpoint:
		if len(c.TokenFrom) == 0 {
			note(mistake("AUTH_TOKEN_FROM", "", "leaves no place for a token; want at least one, as "+wantPlace))
		}
		e, err := newEndpoint(c.URL, c.Timeout)
		if err != nil {
			note(err)
			break
		}
		a.verifier = e
	case modeNone:
		a.places, a.cookie = nil, false
	case "jwt", "introspect", "forward":
		note(mistake("AUTH_MODE", c.Mode, "is not built yet; want endpoint or none"))
	default:
		note(mistake("AUTH_MODE", c.Mode, "is not a mode; want endpoint or none"))
	}
	if err := errors.Join(mistakes...); err != nil {
		return nil, err
	}
	return a, nil
}

// mistake is one line about one setting.
func mistake(name, value, wrong string) error {
	return fmt.Errorf("%s: %q %s", name, value, wrong)
}

// Required reports whether a client must show a token: in every mode but none.
func (a *Auth) Required() bool { return a.verifier != nil }

// NamesSubject reports whether each accepted client has a subject, so that
// limits per subject mean something: in every mode but none.
func (a *Auth) NamesSubject() bool { return a.verifier != nil }

// UsesCookie reports whether a token may come as a cookie. A browser sends
// cookies with the WebSocket handshakes of any site (cross-site WebSocket
// hijacking), so an Origin allow list is then a must.
func (a *Auth) UsesCookie() bool { return a.cookie }

// Find looks for the token in every configured place of r, an upgrade request.
// Its errors are [ErrMissing], [ErrConflict] and [*MalformedError]; the first
// problem in the order of the places is told. In mode none it returns the zero
// Credential.
func (a *Auth) Find(r *http.Request) (Credential, error) {
	if a.verifier == nil {
		return Credential{}, nil
	}
	var c Credential
	var err error
	for _, p := range a.places {
		if c, err = p.find(r, c); err != nil {
			return Credential{}, err
		}
	}
	if c.Token == "" {
		return Credential{}, ErrMissing
	}
	return c, nil
}

// Strip takes the credential out of what goes upstream: it returns rawQuery
// without the token's parameters and edits h in place, where it removes only
// what [Auth.Find] would take for a token. All else stays byte for byte; a
// header of which nothing is left is deleted. Slices of h are replaced, never
// written to, so h may be a shallow copy of the client's headers. With
// AUTH_TOKEN_PASS, and in mode none, nothing is taken out.
func (a *Auth) Strip(rawQuery string, h http.Header) string {
	if a.keep {
		return rawQuery
	}
	for _, p := range a.places {
		rawQuery = p.strip(rawQuery, h)
	}
	return rawQuery
}

// Verify asks the verifier about c. Its errors are
//
//   - [*RefusedError]: the credential is not good;
//   - [*UnavailableError]: nobody could tell; not the client's doing;
//   - [*MalformedError]: c.Token was not fit to be asked about;
//   - one that wraps ctx's error, when ctx ended first.
//
// In mode none it returns the zero Decision.
func (a *Auth) Verify(ctx context.Context, c Credential) (Decision, error) {
	if a.verifier == nil {
		return Decision{}, nil
	}
	d, err := a.verifier.verify(ctx, c)
	if err != nil {
		return Decision{}, err
	}
	// A service that names the user by the token would put the token into
	// every log line; such a name is as good as none.
	if d.Subject == "" || strings.EqualFold(d.Subject, c.Token) {
		d.Subject, d.Pseudonym = a.pseudonym.of(c.Token), true
	}
	return d, nil
}

// Close closes idle connections. Calls in flight finish.
func (a *Auth) Close() {
	if a.verifier != nil {
		a.verifier.close()
	}
}
