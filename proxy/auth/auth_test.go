package auth

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
)

// The defaults are in the tags, and only AUTH_URL is missing from them.
func TestDefaults(t *testing.T) {
	var c Config
	if err := env.ParseWithOptions(&c, env.Options{Environment: map[string]string{"AUTH_URL": "http://auth.internal/check"}}); err != nil {
		t.Fatal(err)
	}
	a := newFrom(t, c)
	if !a.Required() || !c.NamesSubject() || c.UsesCookie() {
		t.Errorf("Required %t, NamesSubject %t, UsesCookie %t; want true, true, false", a.Required(), c.NamesSubject(), c.UsesCookie())
	}
	if got, err := a.Find(upgrade("token=secret", "Authorization: Bearer secret")); err != nil || got.Token != "secret" {
		t.Errorf("Find: %q, %v", got.Token, err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Mode: "endpoint", URL: "http://auth.internal/", Timeout: time.Second, TokenFrom: []string{"query:token"}}
	with := func(edit func(*Config)) Config {
		c := good
		edit(&c)
		return c
	}
	place := func(entries ...string) Config { return with(func(c *Config) { c.TokenFrom = entries }) }
	forward := func(entries ...string) Config { return with(func(c *Config) { c.Forward = entries }) }
	at := func(url string) Config { return with(func(c *Config) { c.URL = url }) }

	tests := []struct {
		name   string
		config Config
		want   []string // what each line starts with
	}{
		{"the zero Config", Config{}, []string{`AUTH_TIMEOUT: "0s" `, `AUTH_MODE: "" is not a mode`}},
		{"a mode in capitals", with(func(c *Config) { c.Mode = "NONE" }), []string{`AUTH_MODE: "NONE" is not a mode`}},
		{"all mistakes at once", Config{Mode: "endpoint", TokenFrom: []string{"body:token"}, Forward: []string{"sub"}}, []string{
			`AUTH_TOKEN_FROM: "body:token" is not a place; want query:NAME`,
			`AUTH_FORWARD: "sub" is not a pair`,
			`AUTH_TIMEOUT: "0s" is not a time to wait`,
			`AUTH_URL: "" names no endpoint`,
		}},
		{"all mistakes at once, whatever the mode", Config{
			Mode: "endpont", URL: "auth.internal", Timeout: time.Second, Accept: "3xx", Method: "PUT", ClientSecret: "a secret", CAFile: "/nowhere",
			JWTSecret: "secret", JWKSURL: "keys.internal", Issuer: "https://issuer.example/.well-known/openid-configuration",
			Audience: []string{"chat", "*"}, Require: []string{"admin"}, CacheTTL: -1, TokenFrom: []string{"body:token"},
			Forward: []string{"sub"}, CopyHeaders: []string{"Host"},
		}, []string{
			`AUTH_TOKEN_FROM: "body:token" is not a place`, `AUTH_FORWARD: "sub" is not a pair`, `AUTH_COPY_HEADERS: "Host" is no header`,
			`AUTH_CACHE_TTL: "-1ns" is negative`, `AUTH_MODE: "endpont" is not a mode`, `AUTH_ACCEPT: "3xx" is no way`, `AUTH_METHOD: "PUT" is no method`,
			`AUTH_ISSUER: "https://issuer.example/.well-known/openid-configuration" is where`, `AUTH_URL: "auth.internal" is not an http`,
			`AUTH_JWKS_URL: "keys.internal" is not an http`, `AUTH_CA_FILE: "/nowhere" cannot be read`, `AUTH_CLIENT_SECRET: "***" cannot be sent`,
			`AUTH_JWT_SECRET: "***" has 6 bytes`, `AUTH_AUDIENCE: "chat,*" mixes`, `AUTH_REQUIRE: "admin" demands nothing`,
		}},
		// It answers 200 in JSON to whatever it is asked: with AUTH_ACCEPT=2xx everybody would be let in.
		{"a discovery document", at("https://issuer.example/.well-known/openid-configuration?key=secret"), []string{
			`AUTH_URL: "https://issuer.example/.well-known/openid-configuration?…" is a discovery document`,
		}},
		{"no place", place(), []string{`AUTH_TOKEN_FROM: "" leaves no place`}},
		{"a place without a name", place("query:"), []string{`AUTH_TOKEN_FROM: "query:" is not a place`}},
		{"a header name that is none", place("header:X Token"), []string{`AUTH_TOKEN_FROM: "header:X Token" is not a place`}},
		{"the cookie header as a whole", place("header:cookie"), []string{`AUTH_TOKEN_FROM: "header:cookie" names a header`}},
		{"the subprotocols as a whole", place("header:Sec-WebSocket-Protocol"), []string{`AUTH_TOKEN_FROM: "header:Sec-WebSocket-Protocol" names a header`}},
		{"an unknown subprotocol", place("protocol:token"), []string{`AUTH_TOKEN_FROM: "protocol:token" is not a place`}},
		{"a place twice", place("query:a", "query:a"), []string{`AUTH_TOKEN_FROM: "query:a" is listed twice`}},
		{"a claim nobody knows", forward("email:X-Email"), []string{`AUTH_FORWARD: "email:X-Email" names a claim`}},
		{"an identity in the handshake", forward("sub:Sec_WebSocket_Key"), []string{`AUTH_FORWARD: "sub:Sec_WebSocket_Key" names a header`}},
		{"one header for two", forward("sub:X-User", "sub:x_user"), []string{`AUTH_FORWARD: "sub:x_user" names a header that another pair names`}},
		{"a URL without a scheme", at("auth.internal/token"), []string{`AUTH_URL: "auth.internal/token" is not an http or https URL`}},
		{"a URL without a host", at("http:///token"), []string{`AUTH_URL: "http:///token" is not an http or https URL`}},
		{"a WebSocket URL", at("ws://auth.internal/"), []string{`AUTH_URL: "ws://auth.internal/" is not an http or https URL`}},
		{"a URL with a password", at("http://me:secret@auth.internal/"), []string{`AUTH_URL: "…@auth.internal/" has user information`}},
		{"a URL with a fragment", at("http://auth.internal/#a"), []string{`AUTH_URL: "http://auth.internal/#a" has a fragment`}},
		{"a URL that is none", at("http://auth.internal:x/?key=secret"), []string{`AUTH_URL: "http://auth.internal:x/?…" is not a URL`}},
		{"a URL whose query is malformed", at("http://auth.internal/?key=%zzsecret"), []string{`AUTH_URL: "http://auth.internal/?…" has a malformed query`}},
		// Whoever takes the first parameter would accept everybody.
		{"a URL with a token of its own", at("http://auth.internal/?%74oken=secret"), []string{`AUTH_URL: "http://auth.internal/?…" has a token parameter`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, err := New(test.config)
			if err == nil {
				a.Close()
				t.Fatal("New accepts it")
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("New tells a secret: %v", err)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(test.want) {
				t.Fatalf("got %d mistakes, want %d:\n%v", len(lines), len(test.want), err)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("got %s\nwant %s...", lines[i], want)
				}
				if !strings.Contains(lines[i], "; want ") {
					t.Errorf("%s: does not say what is allowed", lines[i])
				}
			}
		})
	}
}

// In mode none a token is the upstream's business, but nobody may forge an identity.
func TestModeNone(t *testing.T) {
	c := Config{Mode: "none", Forward: []string{"sub:X-Auth-Subject"}}
	a := newFrom(t, c)
	if a.Required() || c.NamesSubject() || c.UsesCookie() {
		t.Errorf("Required %t, NamesSubject %t, UsesCookie %t; want false for all", a.Required(), c.NamesSubject(), c.UsesCookie())
	}
	r := upgrade("token=a&token=b", "Cookie: session=c", "X-Auth-Subject: root")
	if c, err := a.Find(r); c != (Credential{}) || err != nil {
		t.Errorf("Find: %+v, %v; want nothing", c, err)
	}
	d, err := a.Verify(t.Context(), Credential{})
	if d.Subject != "" || !d.Until.IsZero() || err != nil {
		t.Errorf("Verify: %+v, %v; want the zero Decision", d, err)
	}
	if got := a.StripToken(r.URL.RawQuery, r.Header); got != "token=a&token=b" {
		t.Errorf("Strip leaves %q", got)
	}
	a.StripIdentity(r.Header)
	a.SetIdentity(r.Header, d)
	if got := slices.Sorted(maps.Keys(r.Header)); !slices.Equal(got, []string{"Cookie"}) {
		t.Errorf("left of the header: %q; want the cookie", got)
	}
}

func TestTokenPass(t *testing.T) {
	a := newFrom(t, Config{Mode: "endpoint", URL: "http://127.0.0.1:9/", Timeout: time.Second, TokenFrom: everyPlace, TokenPass: true})
	r := upgrade("token=secret", "Authorization: Bearer secret", "X-Token: secret", "Cookie: session=secret",
		"Sec-WebSocket-Protocol: bearer, secret", "Sec-WebSocket-Protocol: "+kubernetes)
	if c, err := a.Find(r); c.Token != "secret" || c.Subprotocol != "bearer" || err != nil {
		t.Errorf("Find: %q, %q, %v", c.Token, c.Subprotocol, err)
	}
	before := r.Header.Clone()
	r.Header.Set("X_Token", "of another") // which nobody has verified
	if got := a.StripToken(r.URL.RawQuery, r.Header); got != "token=secret" {
		t.Errorf("query %q; want it untouched", got)
	}
	if !maps.EqualFunc(before, r.Header, slices.Equal) {
		t.Errorf("header %q; want it untouched", r.Header)
	}
}

func TestFindNothing(t *testing.T) {
	a := newAuth(t, everyPlace...)
	for _, r := range []*http.Request{upgrade(""), upgrade("tok=1&Token=x", "Cookie: a=b", "Sec-WebSocket-Protocol: chat")} {
		if c, err := a.Find(r); !errors.Is(err, ErrMissing) || c != (Credential{}) {
			t.Errorf("Find: %+v, %v; want ErrMissing", c, err)
		}
	}
}
