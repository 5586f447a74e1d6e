package auth

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Config is what [New] needs. Only a mode that is named lets anyone pass: the
// zero Config is refused. A setting that the mode does not have, as the modes
// tag lists them, is refused unless it is at its default.
type Config struct {
	// Mode names the verifier: endpoint, jwt, introspect, forward or none.
	Mode string `env:"AUTH_MODE" envDefault:"endpoint" fixed:"true"`
	// Secret is the key by which clients that nobody names have their subjects. Empty: one of this process.
	Secret string `env:"-"`
	// URL is whom to ask, http or https. Its query parameters are kept.
	URL string `env:"AUTH_URL" modes:"endpoint,introspect,forward"`
	// Timeout bounds one call of the verifier, from dialling to the last byte
	// of its answer. Zero is refused: a call without an end holds a client.
	Timeout time.Duration `env:"AUTH_TIMEOUT" envDefault:"3s" modes:"endpoint,jwt,introspect,forward" fixed:"true"`

	// Accept says which answers of an endpoint accept: one (200 with the body
	// 1) or 2xx (any such status). Empty is one.
	Accept string `env:"AUTH_ACCEPT" envDefault:"one" modes:"endpoint"`
	// Method is GET, with the token as a query parameter, or POST, with the
	// token as a form body. Empty is GET.
	Method string `env:"AUTH_METHOD" envDefault:"GET" modes:"endpoint"`
	// ClientID and ClientSecret are our own credential for a call: both are
	// sent as Basic, the secret alone as Bearer. Empty: none.
	ClientID     string `env:"AUTH_CLIENT_ID" modes:"endpoint,introspect"`
	ClientSecret string `env:"AUTH_CLIENT_SECRET" modes:"endpoint,introspect" secret:"true"`
	// CAFile is a PEM file of the certificate authorities to trust for https,
	// instead of the system's. CertFile and KeyFile are the PEM files of a
	// client certificate. They are read once, by New. Empty: the system's; none.
	CAFile   string `env:"AUTH_CA_FILE" modes:"endpoint,jwt,introspect,forward"`
	CertFile string `env:"AUTH_CERT_FILE" modes:"endpoint,jwt,introspect,forward"`
	KeyFile  string `env:"AUTH_KEY_FILE" modes:"endpoint,jwt,introspect,forward"`

	// JWTSecret is the key of HMAC signatures, at least as long as the hash.
	JWTSecret string `env:"AUTH_JWT_SECRET" modes:"jwt" secret:"true"`
	// JWTKeyFile is a PEM file with one public key: RSA of at least 2048 bits,
	// P-256, P-384, P-521 or Ed25519. It is read once, by New.
	JWTKeyFile string `env:"AUTH_JWT_KEY_FILE" modes:"jwt"`
	// JWKSURL is where a JSON Web Key Set is fetched and fetched again.
	JWKSURL string `env:"AUTH_JWKS_URL" modes:"jwt"`
	// Issuer is the iss that a token must have. Where no other setting names a
	// key, the keys are those of its OpenID Connect discovery document. Empty:
	// any issuer.
	Issuer string `env:"AUTH_ISSUER" modes:"jwt"`
	// Audience lists whom a token may be for: one of its aud must be among
	// them. Keys of a URL sign tokens for other services too, so there it must
	// be set; * accepts a token for anyone. Empty: not checked.
	Audience []string `env:"AUTH_AUDIENCE" modes:"jwt,introspect"`
	// JWTAlgorithms pins the algorithms of signatures. Empty: HS256 with a
	// secret, the one that fits with a key file, else RS256, ES256 and EdDSA.
	JWTAlgorithms []string `env:"AUTH_JWT_ALGORITHMS" modes:"jwt"`
	// JWTLeeway is by how much clocks may differ when exp and nbf are checked.
	JWTLeeway time.Duration `env:"AUTH_JWT_LEEWAY" envDefault:"30s" modes:"jwt"`
	// Require lists what a token must say, all of it: scope:NAME or
	// claim=value. Empty: nothing.
	Require []string `env:"AUTH_REQUIRE" modes:"jwt,introspect"`

	// CacheTTL is how long an answer that accepts is used again, and at most
	// [maxRefusalTTL] of it one that refuses. Zero: every client is asked about.
	CacheTTL time.Duration `env:"AUTH_CACHE_TTL" envDefault:"0s" modes:"endpoint,introspect"`
	// StaleTTL is how long after that an answer that accepted still admits
	// while the verifier is unavailable. Zero: not at all.
	StaleTTL time.Duration `env:"AUTH_STALE_TTL" envDefault:"0s" modes:"endpoint,introspect,forward" fixed:"true"`
	// Recheck is the longest time between two checks of an open session, which
	// its holder makes with [Auth.VerifyAgain]. Zero: it is checked only when its
	// answer is about to expire.
	Recheck time.Duration `env:"AUTH_RECHECK" envDefault:"0s" modes:"endpoint,introspect,forward" below:"SESSION_MAX" fixed:"true"`
	// MaxInflight bounds the calls in flight; further ones wait for up to
	// Timeout. Zero: the default.
	MaxInflight int `env:"AUTH_MAX_INFLIGHT" envDefault:"256" modes:"endpoint,introspect,forward"`

	// TokenFrom lists the places of the package comment. Empty is refused,
	// except in modes none and forward.
	TokenFrom []string `env:"AUTH_TOKEN_FROM" envDefault:"query:token,header:Authorization" modes:"endpoint,jwt,introspect,forward"`
	// TokenPass leaves the token in what goes upstream, in every place.
	TokenPass bool `env:"AUTH_TOKEN_PASS" envDefault:"false" modes:"endpoint,jwt,introspect,forward"`
	// Forward lists pairs claim:Header: what is known of the client and the
	// header that tells the upstream. These headers are deleted from every
	// client request. Empty: nothing is told, nothing is deleted.
	Forward []string `env:"AUTH_FORWARD" envDefault:"sub:X-Auth-Subject" empty:"no claim"`
	// CopyHeaders lists the headers of an answer that go upstream as they are,
	// and are deleted from every client request. Empty: none.
	CopyHeaders []string `env:"AUTH_COPY_HEADERS" modes:"forward"`

	// GroupClaims and GroupHeaders are the claims, and the headers of an answer, that are kept as [Decision.Groups]. In
	// a mode that has none of them they are a mistake, reported under SESSION_GROUPS.
	GroupClaims  []string `env:"-"`
	GroupHeaders []string `env:"-"`

	// Exhausted reports whether a call failed for want of something on this
	// side, such as a descriptor, which says nothing about the service. Nil:
	// none does.
	Exhausted func(error) bool `env:"-"`

	// Observe is told how long each call of the verifier took, or each check of
	// a JWT, and with which error of [Auth.Verify] it ended. An answer from the
	// cache or from a shared call does not count. Nil: nobody is told.
	Observe func(took time.Duration, err error) `env:"-"`

	// Idle has no keys fetched in the background: nobody is let in by them. It is for who wants to know the mistakes alone.
	Idle bool `env:"-"`

	// Logger is told when the keys cannot be fetched and when the verifier is
	// given up for a while, and when either is over. Nil: nobody is told.
	Logger *slog.Logger `env:"-"`
}

// The values of AUTH_MODE.
const (
	modeEndpoint   = "endpoint"
	modeJWT        = "jwt"
	modeIntrospect = "introspect"
	modeForward    = "forward"
	modeNone       = "none"
)

// defaultInflight is AUTH_MAX_INFLIGHT where a Config leaves it zero.
const defaultInflight = 256

// mistake is one line about one setting.
func mistake(name, value, wrong string) error {
	return fmt.Errorf("%s: %q %s", name, value, wrong)
}

// checkOtherModes returns a mistake for each setting of other modes. One that is set
// and ignored would let an operator believe in a check that nobody makes.
func (c *Config) checkOtherModes() error {
	var mistakes []error
	fields := reflect.ValueOf(*c)
	for i := range fields.NumField() {
		tag, value := fields.Type().Field(i).Tag, fields.Field(i)
		modes := tag.Get("modes")
		if modes == "" || slices.Contains(strings.Split(modes, ","), c.Mode) {
			continue
		}
		text := fmt.Sprint(value.Interface())
		if list, ok := value.Interface().([]string); ok {
			text = strings.Join(list, ",")
		}
		if text == "" || value.IsZero() || text == tag.Get("envDefault") {
			continue
		}
		name := tag.Get("env")
		switch {
		case tag.Get("secret") != "":
			text = "***"
		case strings.HasSuffix(name, "_URL"):
			text = maskURL(text)
		}
		mistakes = append(mistakes, mistake(name, text, fmt.Sprintf("is no setting of AUTH_MODE=%s; want it unset, or a mode of %s", c.Mode, modes)))
	}
	return errors.Join(mistakes...)
}

// checkForms returns a mistake for each setting that is wrong in every mode that
// has it. It is for an AUTH_MODE that is no mode, so that one start reports these
// mistakes together with that one.
func (c *Config) checkForms() error {
	mistakes := []error{c.checkAcceptAndMethod(), c.checkIssuer()}
	for _, s := range []struct{ name, url string }{{"AUTH_URL", c.URL}, {"AUTH_JWKS_URL", c.JWKSURL}} {
		if s.url != "" {
			_, err := parseURL(s.name, s.url)
			mistakes = append(mistakes, err)
		}
	}
	_, filesErr := c.tlsConfig()
	_, credentialErr := c.authorization()
	_, _, keyErr := c.signingKey()
	_, audienceErr := c.audience()
	_, rulesErr := newClaimRules(c)
	return errors.Join(append(mistakes, filesErr, credentialErr, keyErr, audienceErr, rulesErr)...)
}

// checkRanges returns a mistake for each duration and number that makes no sense.
func (c *Config) checkRanges() error {
	var mistakes []error
	if c.Timeout <= 0 && c.Mode != modeNone {
		mistakes = append(mistakes, mistake("AUTH_TIMEOUT", c.Timeout.String(), "is not a time to wait; want more than 0s"))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"AUTH_JWT_LEEWAY", c.JWTLeeway}, {"AUTH_CACHE_TTL", c.CacheTTL}, {"AUTH_STALE_TTL", c.StaleTTL},
		{"AUTH_RECHECK", c.Recheck},
	} {
		if d.value < 0 {
			mistakes = append(mistakes, mistake(d.name, d.value.String(), "is negative; want 0s or more"))
		}
	}
	if c.MaxInflight < 0 {
		mistakes = append(mistakes, mistake("AUTH_MAX_INFLIGHT", fmt.Sprint(c.MaxInflight), "is negative; want 1 or more"))
	}
	return errors.Join(mistakes...)
}

// Same reports whether other means the same as c, as the environment gave them, so that an Auth of the one serves for the other. Where
// files are named that may have changed since, it does not.
func (c *Config) Same(other *Config) bool {
	files := c.CAFile + c.CertFile + c.KeyFile + c.JWTKeyFile
	a, b := *c, *other
	a.Exhausted, a.Observe, b.Exhausted, b.Observe = nil, nil, nil, nil
	return files == "" && reflect.DeepEqual(a, b)
}
