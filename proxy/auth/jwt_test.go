package auth

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// rawJWT signs text that no library would make, by HS256 with the secret.
func rawJWT(header, payload string) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	signature := must(jwt.SigningMethodHS256.Sign(text, []byte(hmacSecret)))
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

const (
	hsHeader  = `{"alg":"HS256","typ":"JWT"}`
	hsPayload = `{"sub":"alice","exp":9000000000}`
)

func TestJWT(t *testing.T) {
	bySecret := jwtConfig()
	bySecret.JWTSecret = hmacSecret
	withRules := bySecret
	withRules.Audience, withRules.Issuer = []string{"chat", "news"}, "https://issuer.example"
	byFile := func(key crypto.PublicKey) Config {
		c := jwtConfig()
		c.JWTKeyFile = publicKeyFile(t, key)
		return c
	}
	rsaPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(rsaKey().Public()))})
	rsaDER := must(x509.MarshalPKIXPublicKey(rsaKey().Public()))
	hs := func(c jwt.Claims) string { return sign(jwt.SigningMethodHS256, []byte(hmacSecret), "", c) }
	rs := func(key any) string { return sign(jwt.SigningMethodRS256, key, "", goodClaims()) }
	now := time.Now().Unix()

	tests := []struct {
		name   string
		config Config
		token  string
		want   string
	}{
		{"HS256", bySecret, hs(goodClaims()), accepted},
		{"RS256", byFile(rsaKey().Public()), rs(rsaKey()), accepted},
		{"ES256", byFile(ecKey().Public()), sign(jwt.SigningMethodES256, ecKey(), "", goodClaims()), accepted},
		{"EdDSA", byFile(edKey().Public()), sign(jwt.SigningMethodEdDSA, edKey(), "", goodClaims()), accepted},
		{"a kid where there is one key", bySecret, sign(jwt.SigningMethodHS256, []byte(hmacSecret), "any", goodClaims()), accepted},

		{"alg none", bySecret, sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", goodClaims()), refused},
		{"alg None in another case", bySecret, rawJWT(`{"alg":"nOnE"}`, hsPayload), refused},
		{"no alg", bySecret, rawJWT(`{"typ":"JWT"}`, hsPayload), refused},
		{"alg of a wrong type", bySecret, rawJWT(`{"alg":["HS256"]}`, hsPayload), refused},
		{"another HMAC", bySecret, sign(jwt.SigningMethodHS512, []byte(hmacSecret), "", goodClaims()), refused},
		{"HS256 with the RSA key as PEM", byFile(rsaKey().Public()), sign(jwt.SigningMethodHS256, rsaPEM, "", goodClaims()), refused},
		{"HS256 with the RSA key as DER", byFile(rsaKey().Public()), sign(jwt.SigningMethodHS256, rsaDER, "", goodClaims()), refused},
		{"PS256 with an RSA key pinned to RS256", byFile(rsaKey().Public()), sign(jwt.SigningMethodPS256, rsaKey(), "", goodClaims()), refused},
		{"another key", byFile(rsaKey().Public()), rs(otherRSAKey()), refused},
		{"another secret", bySecret, sign(jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), "", goodClaims()), refused},
		{"a changed payload", bySecret, changed(hs(goodClaims())), refused},
		{"no signature", bySecret, hs(goodClaims())[:strings.LastIndexByte(hs(goodClaims()), '.')+1], refused},
		{"two dots too many", bySecret, hs(goodClaims()) + "..", refused},
		{"dots alone", bySecret, strings.Repeat(".", MaxTokenBytes), refused},
		{"no JWT", bySecret, secret, refused},
		{"a payload that is not base64url", bySecret, strings.Replace(hs(goodClaims()), ".", ".+", 1), refused},
		{"padding", bySecret, hs(goodClaims()) + "=", refused},
		{"another text of the same signature", bySecret, loose(hs(goodClaims())), refused},

		{"sub twice", bySecret, rawJWT(hsHeader, `{"sub":"alice","sub":"root","exp":9000000000}`), refused},
		{"exp twice", bySecret, rawJWT(hsHeader, `{"exp":1,"sub":"alice","exp":9000000000}`), refused},
		{"exp twice, once escaped", bySecret, rawJWT(hsHeader, `{"exp":1,"\u0065xp":9000000000}`), refused},
		{"a member twice deep inside", bySecret, rawJWT(hsHeader, `{"exp":9000000000,"a":[{"b":1,"b":2}]}`), refused},
		{"alg twice", bySecret, rawJWT(`{"alg":"HS256","alg":"none"}`, hsPayload), refused},
		{"an object after the payload", bySecret, rawJWT(hsHeader, hsPayload+`{"sub":"root"}`), refused},
		{"a payload that is no object", bySecret, rawJWT(hsHeader, `[1]`), refused},
		{"null", bySecret, rawJWT(hsHeader, `null`), refused},
		{"broken JSON", bySecret, rawJWT(hsHeader, `{"exp":9000000000`), refused},
		{"broken UTF-8", bySecret, rawJWT(hsHeader, "{\"sub\":\"\xff\",\"exp\":9000000000}"), refused},
		{"nested too deep", bySecret, rawJWT(hsHeader, `{"exp":9000000000,"a":`+strings.Repeat("[", 20)+strings.Repeat("]", 20)+`}`), refused},
		{"crit", bySecret, rawJWT(`{"alg":"HS256","crit":["b64"],"b64":false}`, hsPayload), refused},

		{"jku, x5u, jwk and x5c are ignored", bySecret, rawJWT(
			`{"alg":"HS256","jku":"http://127.0.0.1:1/","x5u":"http://127.0.0.1:1/","jwk":{"kty":"oct","k":"eA"},"x5c":["eA"]}`, hsPayload), accepted},

		{"expired", bySecret, hs(with("exp", now-31)), refused},
		{"expired within the leeway", bySecret, hs(with("exp", now-10)), accepted},
		{"not yet valid", bySecret, hs(with("nbf", now+60)), refused},
		{"valid within the leeway", bySecret, hs(with("nbf", now+10)), accepted},
		{"no exp", bySecret, hs(with("exp", nil)), refused},
		{"exp of a wrong type", bySecret, hs(with("exp", "9000000000")), refused},
		{"exp null", bySecret, rawJWT(hsHeader, `{"exp":null}`), refused},
		{"exp beyond all time", bySecret, rawJWT(hsHeader, `{"exp":1e300}`), refused},
		{"exp beyond all numbers", bySecret, rawJWT(hsHeader, `{"exp":1e999}`), refused},
		{"exp with a fraction", bySecret, rawJWT(hsHeader, `{"exp":9000000000.5}`), accepted},
		{"EXP is not exp", bySecret, rawJWT(hsHeader, `{"EXP":9000000000}`), refused},
		{"sub of a wrong type", bySecret, hs(with("sub", 7)), refused},
		{"a sub that breaks lines", bySecret, hs(with("sub", "alice\r\nX-Admin: 1")), refused},
		{"a sub that another becomes when trimmed", bySecret, hs(with("sub", "alice ")), refused},

		{"the audience and the issuer", withRules, hs(goodClaims()), accepted},
		{"one of its audiences", withRules, hs(with("aud", []string{"mail", "news"})), accepted},
		{"wrong audience", withRules, hs(with("aud", "mail")), refused},
		{"no audience", withRules, hs(with("aud", nil)), refused},
		{"an audience of a wrong type", withRules, hs(with("aud", []any{"chat", 7})), refused},
		{"an audience that is a number", withRules, hs(with("aud", 7)), refused},
		{"wrong issuer", withRules, hs(with("iss", "https://issuer.example/")), refused},
		{"no issuer", withRules, hs(with("iss", nil)), refused},
		{"an issuer of a wrong type", withRules, hs(with("iss", []string{"https://issuer.example"})), refused},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { checkToken(t, newFrom(t, test.config), test.token, test.want) })
	}
}

// changed returns token with one byte of its payload changed.
func changed(token string) string {
	parts := strings.Split(token, ".")
	parts[1] = strings.Replace(parts[1], "a", "b", 1)
	return strings.Join(parts, ".")
}

// loose returns token with a last character that decodes to the same bytes
// where decoding is not strict.
func loose(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + alphabet[last^1:][:1] // 32 bytes leave two bits of it unused
}

func TestTokenOfOneMiB(t *testing.T) {
	c := jwtConfig()
	c.JWTSecret = hmacSecret
	token := sign(jwt.SigningMethodHS256, []byte(hmacSecret), "", with("pad", strings.Repeat("x", 1<<20)))
	for _, err := range []error{
		second(newFrom(t, c).Verify(t.Context(), Credential{Token: token})),
		second(ask(t, newFrom(t, c), token)),
	} {
		if _, ok := errors.AsType[*MalformedError](err); !ok {
			t.Errorf("%v; want a MalformedError", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A session must end when its token does.
func TestJWTExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := jwtConfig()
		c.JWTSecret = hmacSecret
		a := newFrom(t, c)
		exp := time.Now().Add(time.Minute)
		token := sign(jwt.SigningMethodHS256, []byte(hmacSecret), "", with("exp", exp.Unix()))
		d := checkToken(t, a, token, accepted)
		if !d.Until.Equal(exp) || !d.Expires.Equal(exp) || !d.Final || d.Subject != "alice" || d.Pseudonym {
			t.Errorf("%+v; want alice until %v, finally", d, exp)
		}
		time.Sleep(time.Minute + 29*time.Second)
		if d := checkToken(t, a, token, accepted); !d.Until.Equal(exp.Add(30*time.Second)) || !d.Expires.Equal(d.Until) {
			t.Errorf("until %v; want the end of the leeway", d.Until)
		}
		time.Sleep(time.Second)
		checkToken(t, a, token, refused)
	})
}

func TestJWTClaimsAndRequirements(t *testing.T) {
	c := jwtConfig()
	c.JWTSecret = hmacSecret
	c.Forward = []string{"sub:X-Auth-Subject", "email:X-Auth-Email", "https://example.com/roles:X-Auth-Roles"}
	c.Require = []string{"scope:chat", "role=admin"}
	a := newFrom(t, c)
	token := func(edit jwt.MapClaims) string {
		claims := goodClaims()
		claims["scope"], claims["role"] = "mail chat", "admin"
		for name, value := range edit {
			claims[name] = value
		}
		return sign(jwt.SigningMethodHS256, []byte(hmacSecret), "", claims)
	}
	d := checkToken(t, a, token(jwt.MapClaims{"email": "a@b", "https://example.com/roles": []string{"a", "b"}}), accepted)
	h := http.Header{"X-Auth-Email": {"root@b"}}
	a.StripIdentity(h)
	a.SetIdentity(h, d)
	if h.Get("X-Auth-Subject") != "alice" || h.Get("X-Auth-Email") != "a@b" || h.Get("X-Auth-Roles") != "a,b" {
		t.Errorf("sent upstream: %q", h)
	}
	if d := checkToken(t, a, token(jwt.MapClaims{"email": "a@b\r\nX-Admin: 1"}), accepted); len(d.Claims) != 0 {
		t.Errorf("a claim that breaks lines: %q", d.Claims)
	}
	if d := checkToken(t, a, token(jwt.MapClaims{"sub": ""}), accepted); !d.Pseudonym {
		t.Errorf("nobody is %q", d.Subject)
	}
	_, err := ask(t, a, token(jwt.MapClaims{"scope": "mail"}))
	no, ok := errors.AsType[*DeniedError](err)
	if !ok || len(no.Challenge) != 1 || no.Challenge[0] != `Bearer realm="portcullis", error="insufficient_scope", scope="chat"` {
		t.Errorf("%v %+v; want a DeniedError with its challenge", err, no)
	}
	checkToken(t, a, token(jwt.MapClaims{"role": "user"}), denied)
}

func TestNewJWTRefuses(t *testing.T) {
	rsaFile := publicKeyFile(t, rsaKey().Public())
	tests := []struct {
		name string
		edit func(*Config)
		want []string
	}{
		{"no key", func(*Config) {}, []string{`AUTH_MODE: "jwt" has no key`}},
		{"two keys", func(c *Config) { c.JWTSecret, c.JWTKeyFile = hmacSecret, rsaFile }, []string{`AUTH_MODE: "jwt" has keys from more than one place`}},
		{"a short secret", func(c *Config) { c.JWTSecret = "hunter2-hunter2-hunter2-hunter2" }, []string{`AUTH_JWT_SECRET: "***" has 31 bytes; want 32`}},
		{"a secret shorter than the hash", func(c *Config) { c.JWTSecret, c.JWTAlgorithms = hmacSecret, []string{"HS256", "HS512"} },
			[]string{`AUTH_JWT_SECRET: "***" has 32 bytes; want 64`}},
		{"none", func(c *Config) { c.JWTSecret, c.JWTAlgorithms = hmacSecret, []string{"HS256", "none"} }, []string{`AUTH_JWT_ALGORITHMS: "none" does not fit`}},
		{"HS256 with a public key", func(c *Config) { c.JWTKeyFile, c.JWTAlgorithms = rsaFile, []string{"HS256"} }, []string{`AUTH_JWT_ALGORITHMS: "HS256" does not fit`}},
		{"HS256 with published keys", func(c *Config) {
			c.JWKSURL, c.JWTAlgorithms, c.Audience = "https://issuer.example/keys", []string{"HS256"}, []string{"*"}
		},
			[]string{`AUTH_JWT_ALGORITHMS: "HS256" does not fit`}},
		{"ES256 with an RSA key", func(c *Config) { c.JWTKeyFile, c.JWTAlgorithms = rsaFile, []string{"ES256"} }, []string{`AUTH_JWT_ALGORITHMS: "ES256" does not fit`}},
		{"published keys for anyone", func(c *Config) { c.JWKSURL = "https://issuer.example/keys" }, []string{`AUTH_AUDIENCE: "" would accept`}},
		{"an issuer's keys for anyone", func(c *Config) { c.Issuer = "https://issuer.example" }, []string{`AUTH_AUDIENCE: "" would accept`}},
		{"any audience beside one", func(c *Config) { c.JWTSecret, c.Audience = hmacSecret, []string{"chat", "*"} }, []string{`AUTH_AUDIENCE: "chat,*" mixes`}},
		{"an issuer that is no URL", func(c *Config) { c.Issuer, c.Audience = "issuer", []string{"*"} }, []string{`AUTH_ISSUER: "issuer" is not an http`}},
		{"a key URL that is none", func(c *Config) { c.JWKSURL, c.Audience = "issuer", []string{"*"} }, []string{`AUTH_JWKS_URL: "issuer" is not an http`}},
		{"an issuer's document for the issuer", func(c *Config) {
			c.Issuer, c.Audience = "https://a.example/x/.well-known/openid-configuration", []string{"*"}
		},
			[]string{`AUTH_ISSUER: "https://a.example/x/.well-known/openid-configuration" is where the issuer's document is`}},
		{"the same beside a secret", func(c *Config) {
			c.JWTSecret, c.Issuer = hmacSecret, "https://a.example/.well-known/openid-configuration/"
		},
			[]string{`AUTH_ISSUER: "https://a.example/.well-known/openid-configuration/" is where`}},
		{"a public key for a secret", func(c *Config) { c.JWTSecret = string(must(os.ReadFile(rsaFile))) }, []string{`AUTH_JWT_SECRET: "***" is a PEM text`}},
		{"TLS for keys without it", func(c *Config) {
			c.JWKSURL, c.Audience, c.CertFile, c.KeyFile = "http://a.example", []string{"*"}, "a", "b"
		},
			[]string{`AUTH_CERT_FILE: "a" cannot be used`, `AUTH_CERT_FILE: "a" has no effect without TLS`, `AUTH_KEY_FILE: "b" has no effect without TLS`}},
		{"a CA without a URL", func(c *Config) { c.JWTSecret, c.CAFile = hmacSecret, rsaFile }, []string{`AUTH_CA_FILE: `}},
		{"a CA file without one", func(c *Config) { c.JWKSURL, c.Audience, c.CAFile = "https://a.example", []string{"*"}, rsaFile },
			[]string{`AUTH_CA_FILE: "` + rsaFile + `" holds no certificate`}},
		{"a certificate without a URL", func(c *Config) { c.JWTSecret, c.CertFile, c.KeyFile = hmacSecret, "c", "k" },
			[]string{`AUTH_CERT_FILE: "c" has no effect without a URL`, `AUTH_KEY_FILE: "k" has no effect without a URL`}},
		{"a discovery document of RFC 8414 as the issuer", func(c *Config) {
			c.JWTSecret, c.Issuer = hmacSecret, "https://a.example/.well-known/oauth-authorization-server/x?k=hunter2"
		},
			[]string{`AUTH_ISSUER: "https://a.example/.well-known/oauth-authorization-server/x?…" is where`}},
		{"a discovery document as the keys", func(c *Config) {
			c.JWKSURL, c.Audience = "https://a.example/.well-known/openid-configuration", []string{"*"}
		},
			[]string{`AUTH_JWKS_URL: "https://a.example/.well-known/openid-configuration" is a discovery document`}},
		{"a negative leeway", func(c *Config) { c.JWTSecret, c.JWTLeeway = hmacSecret, -1 }, []string{`AUTH_JWT_LEEWAY: "-1ns" is negative`}},
		{"no time", func(c *Config) { c.JWTSecret, c.Timeout = hmacSecret, 0 }, []string{`AUTH_TIMEOUT: "0s" is not a time`}},
		{"requirements that are none", func(c *Config) {
			c.JWTSecret, c.Require = hmacSecret, []string{"scope:", "admin", "=x", `scope:a"b`, "scope:a b=c"}
		},
			[]string{`AUTH_REQUIRE: "scope:"`, `AUTH_REQUIRE: "admin"`, `AUTH_REQUIRE: "=x"`, `AUTH_REQUIRE: "scope:a\"b"`, `AUTH_REQUIRE: "scope:a b=c"`}},
		{"settings of other modes", func(c *Config) {
			c.JWTSecret, c.URL, c.ClientSecret, c.CacheTTL, c.Accept, c.CopyHeaders = hmacSecret, "http://a/?k=hunter2", "hunter2", time.Second, "2xx", []string{"A", "B"}
		}, []string{
			`AUTH_URL: "http://a/?…" is no setting of AUTH_MODE=jwt`, `AUTH_ACCEPT: "2xx"`, `AUTH_CLIENT_SECRET: "***"`,
			`AUTH_CACHE_TTL: "1s"`, `AUTH_COPY_HEADERS: "A,B"`,
		}},
		{"no such key file", func(c *Config) { c.JWTKeyFile = "/nowhere.pem" }, []string{`AUTH_JWT_KEY_FILE: "/nowhere.pem" cannot be read (no such file`}},
		{"a weak key", func(c *Config) { c.JWTKeyFile = publicKeyFile(t, weakRSAKey().Public()) }, []string{`AUTH_JWT_KEY_FILE: `}},
		{"a private key", func(c *Config) { c.JWTKeyFile = pemFile(t, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(rsaKey()))) }, []string{`AUTH_JWT_KEY_FILE: `}},
		{"a key that is none", func(c *Config) { c.JWTKeyFile = pemFile(t, "PUBLIC KEY", []byte("x")) }, []string{`AUTH_JWT_KEY_FILE: `}},
		{"no PEM", func(c *Config) { c.JWTKeyFile = "jwt_test.go" }, []string{`AUTH_JWT_KEY_FILE: "jwt_test.go" is not PEM`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := jwtConfig()
			test.edit(&c)
			checkMistakes(t, c, test.want)
		})
	}
}

// checkMistakes checks that New refuses c with these lines, and tells no secret.
func checkMistakes(t *testing.T, c Config, want []string) {
	t.Helper()
	a, err := New(c)
	if err == nil {
		a.Close()
		t.Fatal("New accepts it")
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("New tells a secret: %v", err)
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		if len(lines) != len(want) || !strings.HasPrefix(line, want[i]) || !strings.Contains(line, "; want ") {
			t.Fatalf("got\n%v\nwant %d lines\n%s", err, len(want), strings.Join(want, "\n"))
		}
	}
}

func TestKeyFileForms(t *testing.T) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	certificate := must(x509.CreateCertificate(rand.Reader, template, template, rsaKey().Public(), rsaKey()))
	one := publicKeyFile(t, rsaKey().Public())
	two := filepath.Join(t.TempDir(), "two.pem")
	if err := os.WriteFile(two, bytes.Repeat(must(os.ReadFile(one)), 2), 0o600); err != nil {
		t.Fatal(err)
	}
	c := jwtConfig()
	for _, file := range []string{
		one,
		pemFile(t, "RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey)),
		pemFile(t, "CERTIFICATE", certificate),
	} {
		c.JWTKeyFile = file
		checkToken(t, newFrom(t, c), goodJWT(), accepted)
	}
	c.JWTKeyFile = two
	checkMistakes(t, c, []string{`AUTH_JWT_KEY_FILE: "` + two + `" holds more than one key`})
}
