package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// A jwtVerifier verifies JSON Web Tokens by their signature (RFC 7519, and the
// advice of RFC 8725). It ignores keys in a token's header (jku, x5u, jwk, x5c): a
// token must not choose who is believed. It refuses a token with crit, which
// demands an extension, because it knows none (RFC 7515 section 4.1.11).
type jwtVerifier struct {
	parser *jwt.Parser
	keys   keySource
	rules  claimRules
	leeway time.Duration
}

// A keySource knows the key of a token's signature.
type keySource interface {
	// key returns the key that the token's header asks for, or several as a
	// [jwt.VerificationKeySet]. The header's algorithm has been checked. The
	// errors are those of [Auth.Verify].
	key(ctx context.Context, t *jwt.Token) (any, error)
	close()
}

// A fixedKey is the same for every token.
type fixedKey struct{ verificationKey any }

func (k fixedKey) key(context.Context, *jwt.Token) (any, error) { return k.verificationKey, nil }
func (k fixedKey) close()                                       {}

// usesDiscovery reports whether the keys are those of AUTH_ISSUER's discovery
// document.
func (c *Config) usesDiscovery() bool {
	return c.Issuer != "" && c.JWTSecret == "" && c.JWTKeyFile == "" && c.JWKSURL == ""
}

// fetchesKeys reports whether the keys are fetched.
func (c *Config) fetchesKeys() bool { return c.JWKSURL != "" || c.usesDiscovery() }

// checkSource returns a mistake for each setting that does not fit the source of
// the keys.
func (c *Config) checkSource() error {
	var mistakes []error
	note := func(name, value, wrong string) { mistakes = append(mistakes, mistake(name, value, wrong)) }
	const want = "want one of AUTH_JWT_SECRET, AUTH_JWT_KEY_FILE, AUTH_JWKS_URL and AUTH_ISSUER"
	sources := 0
	for _, set := range []bool{c.JWTSecret != "", c.JWTKeyFile != "", c.JWKSURL != "", c.usesDiscovery()} {
		if set {
			sources++
		}
	}
	switch sources {
	case 0:
		note("AUTH_MODE", c.Mode, "has no key; "+want)
	case 1:
	default:
		note("AUTH_MODE", c.Mode, "has keys from more than one place; "+want+", the last beside any")
	}
	if c.fetchesKeys() && len(c.Audience) == 0 {
		note("AUTH_AUDIENCE", "", "would accept what the same keys sign for other services; want the aud of yours, or * for any")
	}
	mistakes = append(mistakes, c.checkIssuer())
	if !c.fetchesKeys() {
		mistakes = append(mistakes, c.withoutTLS("has no effect without a URL for keys; want it unset"))
	}
	return errors.Join(mistakes...)
}

// checkIssuer returns a mistake for an AUTH_ISSUER that is its own document's URL.
func (c *Config) checkIssuer() error {
	if !isDiscovery(c.Issuer) {
		return nil
	}
	return mistake("AUTH_ISSUER", maskURL(c.Issuer), "is where the issuer's document is; want the issuer, as in iss, without /.well-known/…")
}

// keyTransport is the transport that fetches keys; nil when none are fetched.
func (c *Config) keyTransport() (*http.Transport, error) {
	if !c.fetchesKeys() {
		return nil, nil
	}
	name, location := "AUTH_ISSUER", c.Issuer
	if c.JWKSURL != "" {
		name, location = "AUTH_JWKS_URL", c.JWKSURL
	}
	u, urlErr := parseURL(name, location)
	transport, err := newTransport(c)
	return transport, errors.Join(err, urlErr, c.checkTLSUse(name, u))
}

// newJWT returns an error of one line for each mistake. The keys of a URL are
// fetched from here on, in the background.
func newJWT(c *Config) (*jwtVerifier, error) {
	key, keyAlgorithms, keyErr := c.signingKey()
	audience, audienceErr := c.audience()
	rules, rulesErr := newClaimRules(c)
	transport, transportErr := c.keyTransport()
	err := errors.Join(c.checkSource(), keyErr, c.checkAlgorithms(keyAlgorithms), audienceErr, rulesErr, transportErr)
	if err != nil {
		return nil, err
	}

	methods := c.JWTAlgorithms
	if len(methods) == 0 {
		methods = keyAlgorithms.defaults
	}
	options := append(audience, // [jwt.WithAudience] or nothing
		jwt.WithValidMethods(methods),
		jwt.WithExpirationRequired(),
		jwt.WithLeeway(c.JWTLeeway),
		jwt.WithJSONNumber(),
		jwt.WithStrictDecoding(), // otherwise several texts are the same token
	)
	if c.Issuer != "" {
		options = append(options, jwt.WithIssuer(c.Issuer))
	}
	v := &jwtVerifier{jwt.NewParser(options...), fixedKey{key}, rules, c.JWTLeeway}
	if transport != nil {
		v.keys = newRemoteKeys(c, transport)
	}
	return v, nil
}

// algorithms are those of RFC 7518 and RFC 8037 that fit a kind of key.
type algorithms struct {
	allowed  []string
	defaults []string // what AUTH_JWT_ALGORITHMS is when it is empty
}

var (
	hmacAlgorithms   = algorithms{[]string{"HS256", "HS384", "HS512"}, []string{"HS256"}}
	rsaAlgorithms    = algorithms{[]string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, []string{"RS256"}}
	ed25519Algorithm = algorithms{[]string{"EdDSA"}, []string{"EdDSA"}}
	// publicAlgorithms are those that are verified with a public key. HS256 is
	// not among them: whoever can verify with its key can sign with it.
	publicAlgorithms = algorithms{
		slices.Concat(rsaAlgorithms.allowed, []string{"ES256", "ES384", "ES512", "EdDSA"}),
		[]string{"RS256", "ES256", "EdDSA"},
	}
)

// signingKey reads AUTH_JWT_SECRET or AUTH_JWT_KEY_FILE: the key, nil when it is
// fetched, and which algorithms it fits.
func (c *Config) signingKey() (any, algorithms, error) {
	switch {
	case c.JWTSecret != "":
		return []byte(c.JWTSecret), hmacAlgorithms, c.checkSecret()
	case c.JWTKeyFile != "":
		return readPublicKey(c.JWTKeyFile)
	}
	return nil, publicAlgorithms, nil
}

// checkSecret demands a secret as long as the hash (RFC 7518 section 3.2): whoever
// has one token can find a shorter secret by trying. It refuses a public key,
// which everybody knows and could then sign with (RFC 8725 section 2.1).
func (c *Config) checkSecret() error {
	if strings.HasPrefix(strings.TrimSpace(c.JWTSecret), "-----BEGIN") {
		return mistake("AUTH_JWT_SECRET", "***", "is a PEM text, and so a key or a certificate, with which everybody who knows it could sign; want a random secret, or AUTH_JWT_KEY_FILE for a public key")
	}
	want := 32
	for algorithm, size := range map[string]int{"HS384": 48, "HS512": 64} {
		if slices.Contains(c.JWTAlgorithms, algorithm) {
			want = max(want, size)
		}
	}
	if len(c.JWTSecret) < want {
		return mistake("AUTH_JWT_SECRET", "***", fmt.Sprintf("has %d bytes; want %d or more, random ones", len(c.JWTSecret), want))
	}
	return nil
}

// readPublicKey reads the PEM file of AUTH_JWT_KEY_FILE.
func readPublicKey(file string) (any, algorithms, error) {
	const want = "; want a PEM file with one public key: RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519"
	wrong := func(what string) (any, algorithms, error) {
		return nil, publicAlgorithms, mistake("AUTH_JWT_KEY_FILE", file, what+want)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return wrong(fmt.Sprintf("cannot be read (%v)", errors.Unwrap(err)))
	}
	block, rest := pem.Decode(text)
	if block == nil {
		return wrong("is not PEM")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return wrong("holds more than one key")
	}
	var key any
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		var certificate *x509.Certificate
		if certificate, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = certificate.PublicKey
		}
	default: // a private key among them, which has no place at a gate
		return wrong(fmt.Sprintf("holds a %s", block.Type))
	}
	if err != nil {
		return wrong("cannot be parsed")
	}
	fits, ok := algorithmsFor(key)
	if !ok {
		return wrong("holds a key that is too short or of another kind")
	}
	return key, fits, nil
}

// algorithmsFor returns the algorithms of a public key, and whether the key is of a
// known kind and long enough.
func algorithmsFor(key any) (algorithms, bool) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return rsaAlgorithms, key.N.BitLen() >= 2048 // RFC 7518 section 3.3
	case *ecdsa.PublicKey:
		for curve, name := range map[elliptic.Curve]string{elliptic.P256(): "ES256", elliptic.P384(): "ES384", elliptic.P521(): "ES512"} {
			if key.Curve == curve {
				return algorithms{[]string{name}, []string{name}}, true
			}
		}
	case ed25519.PublicKey:
		return ed25519Algorithm, true
	}
	return algorithms{}, false
}

// checkAlgorithms checks AUTH_JWT_ALGORITHMS against the key.
func (c *Config) checkAlgorithms(keyAlgorithms algorithms) error {
	var mistakes []error
	for _, name := range c.JWTAlgorithms {
		if !slices.Contains(keyAlgorithms.allowed, name) {
			mistakes = append(mistakes, mistake("AUTH_JWT_ALGORITHMS", name, "does not fit the key; want "+strings.Join(keyAlgorithms.allowed, ", ")))
		}
	}
	return errors.Join(mistakes...)
}

func (v *jwtVerifier) close() { v.keys.close() }

// ready says why no token can be verified yet.
func (v *jwtVerifier) ready() error {
	if remote, ok := v.keys.(*remoteKeys); ok && remote.keyfunc.Load() == nil {
		return remote.notFetched()
	}
	return nil
}

func (v *jwtVerifier) verify(ctx context.Context, c Credential) (Decision, error) {
	if err := CheckToken(c.Token); err != nil {
		return Decision{}, err
	}
	if err := checkJWT(c.Token); err != nil {
		return Decision{}, &RefusedError{Cause: err}
	}
	payload := claims{}
	_, err := v.parser.ParseWithClaims(c.Token, &payload, func(t *jwt.Token) (any, error) {
		if _, critical := t.Header["crit"]; critical {
			return nil, errCritical
		}
		return v.keys.key(ctx, t)
	})
	if err != nil {
		return Decision{}, v.explain(ctx, err)
	}
	d, err := v.rules.decide(payload)
	if err != nil {
		return Decision{}, err
	}
	// A token that only the leeway lets in would otherwise end at once.
	if !d.Expires.After(time.Now()) {
		d.Expires = d.Expires.Add(v.leeway)
	}
	d.Until, d.Final = d.Expires, true
	return d, nil
}

// explain turns an error of the parser, whose text may quote the token, into
// one of [Auth.Verify].
func (v *jwtVerifier) explain(ctx context.Context, err error) error {
	if unavailable, ok := errors.AsType[*UnavailableError](err); ok {
		return unavailable
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return aborted(ctx)
	}
	return &RefusedError{Cause: withoutToken(err)}
}

// withoutToken returns what is wrong with a token or its claims, in a text that quotes
// neither.
func withoutToken(err error) error {
	for _, known := range []error{
		jwt.ErrTokenExpired, jwt.ErrTokenNotValidYet, jwt.ErrTokenInvalidAudience, jwt.ErrTokenInvalidIssuer,
		jwt.ErrTokenRequiredClaimMissing, errUnknownKey, errCritical, errClaimType, jwt.ErrTokenSignatureInvalid,
		jwt.ErrTokenUnverifiable,
	} {
		if errors.Is(err, known) {
			return known
		}
	}
	return jwt.ErrTokenMalformed
}

var (
	errNoJWT    = errors.New("the token is not a JWT: header, payload and signature in base64url")
	errCritical = errors.New("the token's header has crit, and so demands an extension")
)

// checkJWT checks what the parser does not look at: that no member of header
// and payload stands there twice.
func checkJWT(token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errNoJWT
	}
	for i, name := range []string{"header", "payload"} {
		text, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err != nil {
			return errNoJWT
		}
		if err := checkObject(text); err != nil {
			return fmt.Errorf("the token's %s: %w", name, err)
		}
	}
	return nil
}
