package auth

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

func jwksConfig(url string) Config {
	c := jwtConfig()
	c.JWKSURL, c.Audience = url, []string{"chat"}
	return c
}

// forgetCooldown lets a look at the keys happen now, as after refreshCooldown.
func forgetCooldown(a *Auth) {
	k := a.verifier.(*jwtVerifier).keys.(*remoteKeys)
	k.refetchLimit.SetLimit(rate.Inf)
}

func rs256(key any, kid string) string {
	return sign(jwt.SigningMethodRS256, key, kid, goodClaims())
}

func TestPublishedKeys(t *testing.T) {
	s := newKeyServer(t)
	a := fetched(newFrom(t, jwksConfig(s.URL+"/keys")))
	none := jwt.MapClaims{"sub": "alice"}
	tests := []struct {
		name, token string
		want        string
	}{
		{"the key of the kid", goodJWT(), accepted},
		{"no kid", rs256(rsaKey(), ""), accepted},
		{"no kid, another key", rs256(otherRSAKey(), ""), refused},
		{"another key under the kid", rs256(otherRSAKey(), "one"), refused},
		{"HS256 with the RSA key", sign(jwt.SigningMethodHS256, []byte(keySet(map[string]crypto.PublicKey{"one": rsaKey().Public()})), "one", goodClaims()), refused},
		{"kid path traversal", rs256(rsaKey(), "../../../../dev/null"), refused},
		{"kid injection", rs256(rsaKey(), "one' OR '1'='1"), refused},
		{"a kid of another type", rawJWT(`{"alg":"RS256","kid":7}`, hsPayload), refused},
		{"no exp", sign(jwt.SigningMethodRS256, rsaKey(), "one", none), refused},
		{"wrong audience", sign(jwt.SigningMethodRS256, rsaKey(), "one", with("aud", "mail")), refused},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { checkToken(t, a, test.token, test.want) })
	}
}

// A server that publishes a private key has other worries, but is understood.
func TestPrivateKeyIsPublished(t *testing.T) {
	store := jwkset.NewMemoryStorage()
	options := jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: "two"}}
	store.KeyWrite(t.Context(), must(jwkset.NewJWKFromKey(ecKey(), options)))
	s := newKeyServer(t)
	s.publish(string(must(store.JSONPrivate(t.Context()))))
	a := fetched(newFrom(t, jwksConfig(s.URL)))
	checkToken(t, a, sign(jwt.SigningMethodES256, ecKey(), "two", goodClaims()), accepted)
}

// A key that comes along with a token is not fetched from where the token says.
func TestKeyURLsOfATokenAreIgnored(t *testing.T) {
	evil := newKeyServer(t)
	evil.publish(keySet(map[string]crypto.PublicKey{"one": otherRSAKey().Public(), "evil": otherRSAKey().Public()}))
	a := fetched(newFrom(t, jwksConfig(newKeyServer(t).URL)))
	for _, kid := range []string{"one", "evil", ""} {
		token := jwt.NewWithClaims(jwt.SigningMethodRS256, goodClaims())
		token.Header["jku"], token.Header["x5u"], token.Header["kid"] = evil.URL, evil.URL, kid
		checkToken(t, a, must(token.SignedString(otherRSAKey())), refused)
	}
	if n := evil.fetches.Load(); n != 0 {
		t.Errorf("the token's URL was fetched %d times", n)
	}
}

func TestKeysRotate(t *testing.T) {
	s := newKeyServer(t)
	a := fetched(newFrom(t, jwksConfig(s.URL)))
	checkToken(t, a, goodJWT(), accepted)
	s.publish(keySet(map[string]crypto.PublicKey{"two": otherRSAKey().Public()}))
	checkToken(t, a, rs256(otherRSAKey(), "two"), accepted)
	checkToken(t, a, goodJWT(), refused) // withdrawn
	if n := s.fetches.Load(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
}

// When keys rotate every client comes with the new kid at once.
func TestManyWaitForOneFetch(t *testing.T) {
	s := newKeyServer(t)
	a := fetched(newFrom(t, jwksConfig(s.URL)))
	release := make(chan struct{})
	s.misbehave(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		io.WriteString(w, keySet(map[string]crypto.PublicKey{"two": otherRSAKey().Public(), "three": edKey().Public()}))
	})
	var clients sync.WaitGroup
	for i := range 20 {
		token := rs256(otherRSAKey(), "two")
		if i%2 == 0 {
			token = sign(jwt.SigningMethodEdDSA, edKey(), "three", goodClaims())
		}
		clients.Go(func() { checkToken(t, a, token, accepted) })
	}
	close(release)
	clients.Wait()
	if n := s.fetches.Load(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
}

func TestMadeUpKidsDoNotMakeUsFetch(t *testing.T) {
	s := newKeyServer(t)
	a := fetched(newFrom(t, jwksConfig(s.URL)))
	for i := range 100 {
		checkToken(t, a, rs256(rsaKey(), fmt.Sprint("made-up-", i)), refused)
	}
	if n := s.fetches.Load(); n != 2 {
		t.Errorf("%d fetches for 100 made-up kids; want the first and one more", n)
	}
	checkToken(t, a, goodJWT(), accepted)
}

func TestKeyServerFails(t *testing.T) {
	failures := map[string]http.HandlerFunc{
		"dies": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"500":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"stalls": func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		},
		"lies with HTML":    func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
		"lies with nothing": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"keys":[]}`) },
		"lies with a weak key": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, keySet(map[string]crypto.PublicKey{"one": weakRSAKey().Public()}))
		},
		"lies with a symmetric key": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"keys":[{"kty":"oct","kid":"one","k":"c2VjcmV0"}]}`)
		},
		"redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"never ends": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"keys":[`)
			for {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<14)); err != nil {
					return
				}
			}
		},
		"encrypts": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, strings.Replace(keySet(map[string]crypto.PublicKey{"one": rsaKey().Public()}), `"kid"`, `"use":"enc","kid"`, 1))
		},
	}
	for name, failure := range failures {
		t.Run(name, func(t *testing.T) {
			s := newKeyServer(t)
			c := jwksConfig(s.URL)
			c.Timeout = 200 * time.Millisecond
			a := fetched(newFrom(t, c))
			forgetCooldown(a)
			s.misbehave(failure)
			checkToken(t, a, rs256(otherRSAKey(), "two"), unavailable) // may be a new key
			checkToken(t, a, goodJWT(), accepted)                      // by the stale ones
			s.misbehave(nil)
			s.publish(keySet(map[string]crypto.PublicKey{"two": otherRSAKey().Public()}))
			checkToken(t, a, rs256(otherRSAKey(), "two"), accepted)
			checkToken(t, a, rs256(otherRSAKey(), "three"), refused)
		})
	}
}

// A client that gives up does not wait for the key server.
func TestClientGoesWhileKeysAreFetched(t *testing.T) {
	s := newKeyServer(t)
	a := fetched(newFrom(t, jwksConfig(s.URL)))
	ctx, cancel := context.WithCancel(t.Context())
	s.misbehave(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := a.Verify(ctx, Credential{Token: rs256(otherRSAKey(), "two")})
	if _, blamed := errors.AsType[*UnavailableError](err); blamed || !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want context.Canceled", err)
	}
}

func TestDiscovery(t *testing.T) {
	answers := func(s *keyServer, format string, args ...any) {
		s.misbehave(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, format, args...) })
	}
	tests := []struct {
		name   string
		edit   func(*keyServer) (issuer string)
		failed string // why there are no keys; "": there are
	}{
		{"found", func(s *keyServer) string { return s.URL }, ""},
		{"an issuer with a path and a slash", func(s *keyServer) string {
			issuer := s.URL + "/realm/"
			s.issuer.Store(&issuer)
			return issuer
		}, ""},
		{"of another issuer", func(s *keyServer) string { return s.URL + "/realm" }, "the document is of the issuer"},
		{"a file", func(s *keyServer) string {
			answers(s, `{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, s.URL)
			return s.URL
		}, "not an https URL"},
		{"no JSON", func(s *keyServer) string { answers(s, "<html>"); return s.URL }, "invalid character"},
		{"not found", func(s *keyServer) string { s.misbehave(http.NotFound); return s.URL }, "status 404"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newKeyServer(t)
			c := jwtConfig()
			c.Issuer, c.Audience = test.edit(s), []string{"*"}
			logged := make(lines, 10)
			c.Logger = slog.New(slog.NewTextHandler(logged, nil))
			a := newFrom(t, c)
			token := sign(jwt.SigningMethodRS256, rsaKey(), "one", with("iss", c.Issuer))
			if test.failed != "" {
				line := <-logged
				_, err := ask(t, a, token)
				if !strings.Contains(line, test.failed) || err == nil || !strings.Contains(err.Error(), test.failed) {
					t.Errorf("logged %s, then %v; want in both: %s", line, err, test.failed)
				}
				checkToken(t, a, token, unavailable)
				return
			}
			fetched(a)
			checkToken(t, a, token, accepted)
			checkToken(t, a, goodJWT(), refused) // of another issuer
		})
	}
}

// lines are what a handler of slog writes.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

// fakeKeyServer is a key server without a network, for the fake clock.
type fakeKeyServer struct {
	mu      sync.Mutex // guards the rest
	status  int
	body    string
	fetches int
}

func (s *fakeKeyServer) RoundTrip(*http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches++
	return &http.Response{StatusCode: s.status, Body: io.NopCloser(strings.NewReader(s.body))}, nil
}

func (s *fakeKeyServer) answer(status int, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.body = status, body
}

func (s *fakeKeyServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

func TestKeysOverTime(t *testing.T) {
	one := keySet(map[string]crypto.PublicKey{"one": rsaKey().Public()})
	two := keySet(map[string]crypto.PublicKey{"two": otherRSAKey().Public()})
	synctest.Test(t, func(t *testing.T) {
		server := &fakeKeyServer{status: 500}
		var logged bytes.Buffer
		c := jwksConfig("http://issuer.example/keys")
		c.Logger = slog.New(slog.NewTextHandler(&logged, nil))
		keys := newRemoteKeys(&c, server)
		defer func() { keys.close(); synctest.Wait() }()
		checked := 0
		check := func(kid string, want error) {
			t.Helper()
			checked++
			_, err := keys.key(t.Context(), &jwt.Token{Header: map[string]any{"kid": kid, "alg": "RS256"}})
			if unavailable, ok := errors.AsType[*UnavailableError](err); ok && want == errUnavailable && unavailable.RetryAfter > 0 {
				return
			}
			if err != want {
				t.Errorf("check %d: key %s: %v, want %v", checked, kid, err, want)
			}
		}

		synctest.Wait()
		check("one", errUnavailable) // not fetched at start
		wantReady(t, keys, fmt.Sprintf("AUTH_JWKS_URL: %q: the keys are not fetched yet: ", c.JWKSURL))
		time.Sleep(10 * time.Second) // tries after 1, 3 and 7 s
		if n := server.count(); n != 4 {
			t.Errorf("%d fetches in 10 s, want 4", n)
		}
		server.answer(200, one)
		time.Sleep(5*time.Second + time.Millisecond)
		check("one", nil)
		wantReady(t, keys, "")
		check("two", errUnknownKey) // looked
		server.answer(200, two)
		check("two", errUnknownKey) // not looked again
		time.Sleep(refreshCooldown)
		check("two", nil)
		check("one", errUnknownKey) // withdrawn

		server.answer(500, one)
		time.Sleep(refreshInterval + time.Second)
		check("two", nil)              // stale
		check("three", errUnavailable) // nobody could tell
		wantReady(t, keys, "")         // for those with a key that is known
		server.answer(200, one)
		time.Sleep(refreshInterval)
		check("one", nil) // found without being asked for
		check("two", errUnknownKey)

		for _, want := range []string{"cannot be fetched", "can be fetched again"} {
			if n := strings.Count(logged.String(), want); n != 2 {
				t.Errorf("%d lines say that the keys %s, want 2:\n%s", n, want, &logged)
			}
		}
	})
}

// wantReady checks why a verifier with these keys is not ready; "": it is.
func wantReady(t *testing.T, keys keySource, want string) {
	t.Helper()
	if err := (&jwtVerifier{keys: keys}).ready(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
		t.Errorf("ready: %v, want %q", err, want)
	}
}

// errUnavailable stands for an UnavailableError.
var errUnavailable = errors.New("unavailable")

// Start and stop do not wait for a key server that stalls.
func TestStalledKeyServerBlocksNeitherStartNorClose(t *testing.T) {
	asked := make(chan struct{})
	s := newKeyServer(t)
	s.misbehave(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})
	c := jwksConfig(s.URL)
	c.Timeout = time.Hour
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	checkToken(t, a, goodJWT(), unavailable)
	a.Close()
}
