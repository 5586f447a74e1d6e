package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

// Keys that sign tokens, made once.
var (
	rsaKey      = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	otherRSAKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	weakRSAKey  = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 1024)) })
	ecKey       = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	edKey       = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed([]byte(strings.Repeat("s", 32))) })
)

const hmacSecret = "a secret of thirty-two bytes, ok"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// goodClaims are those of a token that is good for an hour.
func goodClaims() jwt.MapClaims {
	return jwt.MapClaims{"sub": "alice", "aud": "chat", "iss": "https://issuer.example", "exp": time.Now().Add(time.Hour).Unix()}
}

// with returns the claims with one changed, or taken out when it is nil.
func with(name string, value any) jwt.MapClaims {
	c := goodClaims()
	if c[name] = value; value == nil {
		delete(c, name)
	}
	return c
}

// sign returns a JWT with kid in its header, unless it is "".
func sign(method jwt.SigningMethod, key any, kid string, c jwt.Claims) string {
	t := jwt.NewWithClaims(method, c)
	if kid != "" {
		t.Header["kid"] = kid
	}
	return must(t.SignedString(key))
}

// goodJWT is signed by the key with which a keyServer starts.
func goodJWT() string { return sign(jwt.SigningMethodRS256, rsaKey(), "one", goodClaims()) }

// pemFile writes a public key and returns the file's name.
func pemFile(t testing.TB, kind string, der []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func publicKeyFile(t testing.TB, key crypto.PublicKey) string {
	t.Helper()
	return pemFile(t, "PUBLIC KEY", must(x509.MarshalPKIXPublicKey(key)))
}

// A keyServer publishes keys, and misbehaves on demand.
type keyServer struct {
	*httptest.Server
	body    atomic.Pointer[string]           // the key set
	instead atomic.Pointer[http.HandlerFunc] // nil: the key set is served
	issuer  atomic.Pointer[string]           // that the discovery document names
	fetches atomic.Int32                     // of the key set
}

// keySet is the JSON of a set of public keys by kid.
func keySet(keys map[string]crypto.PublicKey) string {
	store := jwkset.NewMemoryStorage()
	for kid, key := range keys {
		options := jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: kid}}
		if err := store.KeyWrite(context.Background(), must(jwkset.NewJWKFromKey(key, options))); err != nil {
			panic(err)
		}
	}
	return string(must(store.JSONPublic(context.Background())))
}

// newKeyServer publishes the RSA key as "one".
func newKeyServer(t testing.TB) *keyServer {
	t.Helper()
	s := &keyServer{}
	s.Server = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if instead := s.instead.Load(); instead != nil {
			s.fetches.Add(1)
			(*instead)(w, r)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
			json.NewEncoder(w).Encode(map[string]string{"issuer": *s.issuer.Load(), "jwks_uri": s.URL + "/keys"})
			return
		}
		s.fetches.Add(1)
		w.Write([]byte(*s.body.Load()))
	})
	s.issuer.Store(&s.URL)
	s.publish(keySet(map[string]crypto.PublicKey{"one": rsaKey().Public()}))
	return s
}

func (s *keyServer) publish(body string) { s.body.Store(&body) }

func (s *keyServer) misbehave(h http.HandlerFunc) {
	if h == nil {
		s.instead.Store(nil)
		return
	}
	s.instead.Store(&h)
}

// fetched waits until a has the first keys.
func fetched(a *Auth) *Auth {
	<-a.verifier.(*jwtVerifier).keys.(*remoteKeys).done
	return a
}

// jwtConfig is mode jwt without a key.
func jwtConfig() Config {
	return Config{
		Mode: modeJWT, Timeout: 5 * time.Second, JWTLeeway: 30 * time.Second,
		TokenFrom: []string{"query:token"}, Forward: []string{"sub:X-Auth-Subject"},
	}
}

// ask finds token in a request's query and verifies it.
func ask(t testing.TB, a *Auth, token string) (Decision, error) {
	t.Helper()
	c, err := a.Find(upgrade("token=" + url.QueryEscape(token)))
	if err != nil {
		return Decision{}, err
	}
	return a.Verify(t.Context(), c)
}

// checkToken asks about token and checks the outcome.
func checkToken(t *testing.T, a *Auth, token, want string) Decision {
	t.Helper()
	d, err := ask(t, a, token)
	checkOutcome(t, d, err, want)
	if err != nil {
		for part := range strings.SplitSeq(token, ".") {
			if len(part) > 8 && strings.Contains(err.Error(), part) {
				t.Errorf("the error tells a part of the token: %v", err)
			}
		}
	}
	return d
}

func es256(c jwt.Claims) string { return sign(jwt.SigningMethodES256, ecKey(), "", c) }
