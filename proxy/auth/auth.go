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
//     client. AUTH_ACCEPT=2xx accepts by the status alone.
//   - jwt checks a JSON Web Token (RFC 7519) here, against a secret, a public
//     key, or the keys that a URL publishes. It must be signed by one of
//     AUTH_JWT_ALGORITHMS and have an exp.
//   - introspect asks an authorization server (RFC 7662).
//   - forward shows the client's request, whatever token or cookie it has, to
//     AUTH_URL, as nginx's auth_request and Traefik's forwardAuth do: 2xx
//     accepts, 401 and 403 refuse. See [Credential.WithForwarded].
//   - certificate takes the subject from the certificate that the client has
//     shown in its TLS handshake, where it was verified. Tokens are not looked
//     for, as in mode none.
//   - none lets everybody pass. Tokens are not looked for and not taken out,
//     for they can only be meant for the upstream.
//
// An answer of endpoint and forward may name the client in X-Auth-Subject;
// where nobody is named the subject is a pseudonym, for limits and logs only.
// An answer may limit how long it holds by Cache-Control: max-age or Expires
// above zero. An exp limits it as well.
//
// # What stands before a verifier
//
//	cache      AUTH_CACHE_TTL, AUTH_STALE_TTL     endpoint, introspect
//	share      one call for concurrent questions  endpoint, introspect
//	inflight   AUTH_MAX_INFLIGHT                  endpoint, introspect, forward
//	breaker    a dead service is not asked        endpoint, introspect, forward
//
// Each is a verifier around the next. A JWT is not cached: its signature is
// checked once in a session's life, RS256 at half the CPU of a call to an
// endpoint on loopback and ES256 at as much (BenchmarkVerify), and a table of
// answers would be one more thing that outlives a withdrawn key.
//
// # Places
//
// AUTH_TOKEN_FROM lists where a client may show its token. A place that is
// absent or empty is skipped. The same token in several places is one token.
// Two different tokens anywhere are a conflict, since the upstream might act on
// the one that nobody verified.
//
//   - query:NAME is a query parameter. Its name is compared after
//     percent-decoding, case-sensitively.
//   - header:NAME is a header's whole value. Authorization is special: only
//     "Bearer <token>" is a token there, and other schemes are left alone.
//   - cookie:NAME is one cookie. Browsers send it from any site, so the caller
//     must check the Origin (see [Config.UsesCookie]).
//   - protocol:bearer is the pair "bearer, <token>" in Sec-WebSocket-Protocol,
//     which browser script can set.
//   - protocol:base64url.bearer.authorization.k8s.io is the entry of Kubernetes,
//     base64url.bearer.authorization.k8s.io.<base64url without padding>.
//
// # Order of calls
//
// [Auth.Find] and [Auth.Verify] before anything is dialled; [Auth.StripToken]
// and [Auth.StripIdentity] on the headers that go upstream; [Auth.SetIdentity]
// last, after whatever else edits those headers. Every mode takes the same calls. [Auth.VerifyAgain]
// is for a session that is open.
//
// No error of this package contains a token, not even one that a broken
// endpoint sends back. One thing is out of its reach: net/http prints what an
// endpoint sends after the end of its answer through package log, which a
// program should therefore not show as it is.
package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"portcullis/proxy/header"
)

// Auth is a compiled [Config]. Its methods may be called concurrently.
type Auth struct {
	verifier        verifier     // nil: everybody passes (mode none)
	cache           *cache       // the verifier, where it is a cache; nil otherwise
	ready           func() error // nil: always
	places          []place
	forwardsRequest bool // the verifier is shown the request (mode forward)
	passToken       bool // TokenPass
	identity        []identityHeader
	copied          []string      // headers of an answer that go upstream, canonical
	certificates    *certificates // the verifier in mode certificate; nil otherwise
	local           bool          // nobody is asked about a credential
	hash            tokenHash
	warnings        []string
}

// New compiles c. Its error joins every mistake, one line each. In mode jwt it
// starts to fetch keys in the background, until [Auth.Close].
func New(c Config) (*Auth, error) {
	a := &Auth{passToken: c.TokenPass, hash: newTokenHash(c.Secret), local: slices.Contains([]string{modeJWT, modeCertificate, modeNone}, c.Mode)}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Exhausted == nil {
		c.Exhausted = func(error) bool { return false }
	}
	mistakes := []error{a.compilePlaces(&c), a.compileHeaders(&c), c.checkRanges(), c.checkGroups(), c.checkOtherModes()}
	var err error
	switch c.Mode {
	case modeEndpoint, modeIntrospect, modeJWT:
		if len(c.TokenFrom) == 0 {
			err = mistake("AUTH_TOKEN_FROM", "", "leaves no place for a token; want at least one, as "+wantPlace)
		}
		mistakes = append(mistakes, err, a.buildVerifier(&c))
	case modeForward:
		a.forwardsRequest = true
		mistakes = append(mistakes, a.buildVerifier(&c))
	case modeCertificate:
		a.places = nil
		if a.certificates, err = newCertificates(&c, a.identity); err == nil {
			a.verifier = a.certificates
		}
		mistakes = append(mistakes, err)
	case modeNone:
		a.places = nil
	default:
		wrong := mistake("AUTH_MODE", c.Mode, "is not a mode; want endpoint, jwt, introspect, forward, certificate or none")
		mistakes = append(mistakes[:3], wrong, c.checkForms()) // without a mode, no setting belongs to another mode
	}
	if err := errors.Join(mistakes...); err != nil {
		a.Close()
		return nil, err
	}
	a.warnings = c.warnings()
	return a, nil
}

// compilePlaces compiles AUTH_TOKEN_FROM.
func (a *Auth) compilePlaces(c *Config) error {
	var mistakes []error
	for i, entry := range c.TokenFrom {
		p, err := parsePlace(entry)
		switch {
		case err != nil:
			mistakes = append(mistakes, err)
		case slices.Contains(c.TokenFrom[:i], entry):
			mistakes = append(mistakes, mistake("AUTH_TOKEN_FROM", entry, "is listed twice; want each place once"))
		default:
			a.places = append(a.places, p)
		}
	}
	return errors.Join(mistakes...)
}

// compileHeaders compiles AUTH_FORWARD and AUTH_COPY_HEADERS.
func (a *Auth) compileHeaders(c *Config) error {
	var mistakes []error
	for _, entry := range c.Forward {
		h, err := parseForward(entry)
		switch {
		case err != nil:
			mistakes = append(mistakes, err)
		case a.setsHeader(h.name):
			mistakes = append(mistakes, mistake("AUTH_FORWARD", entry, "names a header that another pair names; want one claim for each header"))
		case h.claim != subjectClaim && c.Mode == modeCertificate && certificateNames[h.claim] == nil:
			mistakes = append(mistakes, mistake("AUTH_FORWARD", entry, "names no part of a certificate; want sub, or one of "+certificatePlaces()))
		case h.claim != subjectClaim && slices.Contains([]string{modeEndpoint, modeForward, modeNone}, c.Mode):
			mistakes = append(mistakes, mistake("AUTH_FORWARD", entry, fmt.Sprintf("names a claim, of which AUTH_MODE=%s has none; want sub", c.Mode)))
		default:
			a.identity = append(a.identity, h)
		}
	}
	for _, name := range c.CopyHeaders {
		switch {
		case !header.IsToken(name) || reserved(name):
			mistakes = append(mistakes, mistake("AUTH_COPY_HEADERS", name, "is no header, or one that the handshake or the proxy needs; want another, as Remote-User"))
		case a.setsHeader(name):
			mistakes = append(mistakes, mistake("AUTH_COPY_HEADERS", name, "is set already, by AUTH_FORWARD or twice here; want each header once"))
		default:
			a.copied = append(a.copied, http.CanonicalHeaderKey(name))
		}
	}
	return errors.Join(mistakes...)
}

// buildVerifier makes the verifier of the mode and wraps it in what stands
// before it.
func (a *Auth) buildVerifier(c *Config) error {
	var v verifier
	var err error
	switch c.Mode {
	case modeJWT:
		v, err = newJWT(c)
	case modeEndpoint:
		v, err = newEndpoint(c)
	case modeIntrospect:
		v, err = newIntrospection(c)
	case modeForward:
		v, err = newForward(c, a.copied)
	}
	if err != nil {
		return err
	}
	if j, ok := v.(*jwtVerifier); ok {
		a.ready = j.ready
	}
	if c.Observe != nil {
		v = &observed{v, c.Observe}
	}
	a.verifier = v
	if c.Mode == modeJWT { // checking a signature again is cheap, and calls no service
		return nil
	}
	v = newBreaker(v, c.Exhausted, c.Logger)
	v = newInflight(v, cmp.Or(max(c.MaxInflight, 0), defaultInflight), c.Timeout)
	if c.Mode != modeForward { // whose answer depends on more than the token
		v = newShare(v, a.hash)
		if c.CacheTTL > 0 || c.StaleTTL > 0 {
			a.cache = newCache(v, a.hash, cacheTimes{c.CacheTTL, c.StaleTTL})
			v = a.cache
		}
	}
	a.verifier = v
	return nil
}

// Required reports whether a client must be authenticated: in every mode but
// none.
func (a *Auth) Required() bool { return a.verifier != nil }

// Local reports whether a credential is verified without asking anybody: in mode
// jwt, unless its keys have to be fetched, and in modes certificate and none.
func (a *Auth) Local() bool { return a.local }

// NamesSubject reports whether each accepted client has a subject, so that
// limits per subject mean something: in every mode but none.
func (c *Config) NamesSubject() bool { return c.Mode != modeNone }

// UsesCookie reports whether a cookie may authenticate: one is a place for the
// token, or the verifier is shown all of them. A browser sends cookies with the
// WebSocket handshakes of any site (cross-site WebSocket hijacking), so an
// Origin allow list is then a must.
func (c *Config) UsesCookie() bool {
	return c.Mode == modeForward || c.TakesToken() && slices.ContainsFunc(c.TokenFrom, func(entry string) bool {
		return strings.HasPrefix(entry, "cookie:")
	})
}

// UsesCertificate reports whether a certificate authenticates that the client has
// shown in its TLS handshake. A browser shows it for the WebSocket handshakes of any
// site, as it sends cookies.
func (c *Config) UsesCertificate() bool { return c.Mode == modeCertificate }

// TakesToken reports whether a client may be asked for a token: in every mode but
// certificate and none.
func (c *Config) TakesToken() bool { return c.Mode != modeCertificate && c.Mode != modeNone }

// Warnings returns what an operator should be told at start, a line each: what
// works and is not safe.
func (a *Auth) Warnings() []string { return a.warnings }

// Ready says why no client can be let in yet, although the gate serves: the keys
// of mode jwt have never been fetched. Nil: it can be. The error names the
// setting and the URL, and nothing secret.
func (a *Auth) Ready() error {
	if a.ready == nil {
		return nil
	}
	return a.ready()
}

// Find looks for the token in every configured place of r, an upgrade request.
// Its errors are [ErrMissing], [ErrConflict] and [*MalformedError]; the first
// problem in the order of the places is told. In mode forward no token is a
// credential too, so ErrMissing is not returned; in mode none the zero
// Credential is; in mode certificate there is [*CertificateError], too.
func (a *Auth) Find(r *http.Request) (Credential, error) {
	if a.verifier == nil {
		return Credential{}, nil
	}
	if a.certificates != nil {
		return a.certificates.find(r)
	}
	var c Credential
	var err error
	for _, p := range a.places {
		if c, err = p.find(r, c); err != nil {
			return Credential{}, err
		}
	}
	if a.forwardsRequest {
		c.head = copyHead(r, a.subprotocolToken(r))
		return c, nil
	}
	if c.Token == "" {
		return Credential{}, ErrMissing
	}
	return c, nil
}

// subprotocolToken returns the token that r shows in its subprotocols, which belong
// to the handshake and are not shown to a verifier; "" for none.
func (a *Auth) subprotocolToken(r *http.Request) string {
	var c Credential
	for _, p := range a.places {
		switch p.(type) {
		case bearerPlace, kubernetesPlace:
			c, _ = p.find(r, c) // Find has seen to the errors
		}
	}
	return c.Token
}

// StripToken takes the credential out of what goes upstream. It returns rawQuery
// without the token's parameters, and edits h in place, where it removes only
// what [Auth.Find] would take for a token. All else stays byte for byte. A header
// with nothing left is deleted. Slices of h are replaced, never written to, so h
// may be a shallow copy of the client's headers. With AUTH_TOKEN_PASS it removes
// only other spellings of the token's headers, and in mode none nothing.
func (a *Auth) StripToken(rawQuery string, h http.Header) string {
	if a.passToken {
		for _, p := range a.places {
			if header, ok := p.(headerPlace); ok {
				header.stripAliases(h) // nobody has verified what stands there
			}
		}
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
//   - [*DeniedError]: it is good, but does not allow this;
//   - [*UnavailableError]: the verifier gave no usable answer, which is not
//     the client's fault;
//   - [*MalformedError]: c.Token has the wrong form, and nobody was asked;
//   - [*CertificateError]: the certificate has expired;
//   - one that wraps ctx's error, when ctx ended first.
//
// In mode none it returns the zero Decision.
func (a *Auth) Verify(ctx context.Context, c Credential) (Decision, error) {
	if a.verifier == nil {
		return Decision{}, nil
	}
	d, err := a.verifier.verify(ctx, c)
	return a.withSubject(c, d, err)
}

// VerifyAgain is Verify for a client that was accepted and whose session is
// open. It never returns a cached answer, because the session may already rest
// on that one, but it caches the new answer. In an outage it returns an
// [*UnavailableError]: the caller then applies AUTH_STALE_TTL to the session.
func (a *Auth) VerifyAgain(ctx context.Context, c Credential) (Decision, error) {
	if a.cache == nil {
		return a.Verify(ctx, c)
	}
	d, err := a.cache.ask(ctx, c)
	return a.withSubject(c, d, err)
}

// withSubject gives an accepted client a pseudonym if the verifier named nobody,
// or named the client by its own token: as a subject, the token would stand in
// every log line.
func (a *Auth) withSubject(c Credential, d Decision, err error) (Decision, error) {
	if err != nil {
		return Decision{}, err
	}
	if d.Subject == "" || strings.EqualFold(d.Subject, c.Token) {
		d.Subject, d.Pseudonym = a.hash.pseudonym(c.pseudonymInput()), true
	}
	return d, nil
}

// Close closes idle connections and ends what runs in the background. Calls in
// flight finish.
func (a *Auth) Close() {
	if a.verifier != nil {
		a.verifier.close()
	}
}
