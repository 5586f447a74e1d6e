package auth

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A contender is a verifier with a service that it depends on.
type contender struct {
	name   string
	config func(url string) Config
	// service is how that service answers when all is well.
	service   http.HandlerFunc
	good, bad string
	// once: the service is asked before there are clients, so that a client
	// neither waits for it nor makes it do anything.
	once bool
}

func contenders() []contender {
	byToken := func(yes, no http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			token := r.FormValue("token")
			if original, err := url.Parse(r.Header.Get("X-Original-Uri")); err == nil && original.Query().Has("token") {
				token = original.Query().Get("token")
			}
			if token == secret {
				yes(w, r)
				return
			}
			no(w, r)
		}
	}
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s) }
	}
	endpointConfig := func(url string) Config {
		return Config{Mode: modeEndpoint, URL: url, Timeout: 5 * time.Second, TokenFrom: []string{"query:token"}}
	}
	keys := keySet(map[string]crypto.PublicKey{"one": rsaKey().Public()})
	return []contender{
		{"endpoint", endpointConfig, byToken(text("1"), text("0")), secret, "bad-" + secret, false},
		{"endpoint by POST and status", func(url string) Config {
			c := endpointConfig(url)
			c.Method, c.Accept = "POST", "2xx"
			return c
		}, byToken(status(204), status(401)), secret, "bad-" + secret, false},
		{"endpoint with a cache", func(url string) Config {
			c := endpointConfig(url)
			c.CacheTTL, c.StaleTTL = time.Minute, time.Minute
			return c
		}, byToken(text("1"), text("0")), secret, "bad-" + secret, false},
		{"introspect", introspectConfig, byToken(text(`{"active":true,"sub":"alice"}`), text(`{"active":false}`)), secret, "bad-" + secret, false},
		{"forward", forwardConfig, byToken(status(200), status(401)), secret, "bad-" + secret, false},
		{"jwt with published keys", jwksConfig, text(keys), goodJWT(), rs256(otherRSAKey(), "one"), true},
		{"jwt with a secret", func(string) Config {
			c := jwtConfig()
			c.JWTSecret = hmacSecret
			return c
		}, nil, rawJWT(hsHeader, hsPayload), rawJWT(hsHeader, `{"exp":1}`), true},
	}
}

// TestVerifiers is what every verifier must do.
func TestVerifiers(t *testing.T) {
	echo := func(r *http.Request) string {
		r.ParseForm()
		return fmt.Sprint(r.Form, r.RequestURI, r.Header)
	}
	broken := map[string]http.HandlerFunc{
		"500":        func(w http.ResponseWriter, r *http.Request) { http.Error(w, echo(r), 500) },
		"404":        http.NotFound,
		"rate limit": status(429),
		"hangs":      func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-r.Context().Done() },
		"hangs in the header": func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			io.Copy(io.Discard, conn)
		},
		"redirects": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere?"+r.URL.RawQuery, http.StatusFound)
		},
		"breaks off":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"endless error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); endless(w) },
		"endless headers": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["X-Huge"] = []string{strings.Repeat("x", 1<<20)}
		},
		"garbage": func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			defer conn.Close()
			io.WriteString(conn, echo(r)+"\r\n\r\n")
		},
	}
	for _, c := range contenders() {
		t.Run(c.name, func(t *testing.T) {
			open := func(t *testing.T, service http.HandlerFunc, timeout time.Duration) *Auth {
				url := ""
				if service != nil {
					url = serve(t, service).URL
				}
				config := c.config(url)
				config.Timeout = timeout
				return newFrom(t, config)
			}
			t.Run("accepts and refuses", func(t *testing.T) {
				a := open(t, c.service, 5*time.Second)
				if c.once && c.service != nil {
					fetched(a)
				}
				for range 2 {
					if d := checkToken(t, a, c.good, accepted); d.Subject == "" || strings.Contains(d.Subject, c.good) {
						t.Errorf("subject %q", d.Subject)
					}
					checkToken(t, a, c.bad, refused)
				}
				if c.name != "forward" { // there no token is a credential too
					if _, err := a.Find(upgrade("")); !errors.Is(err, ErrMissing) {
						t.Errorf("no token: %v; want ErrMissing", err)
					}
				}
				for _, token := range []string{strings.Repeat("s3cr3t", 1<<18), "s3cr3t s3cr3t", "s3cr3t\n", "s3cr3té"} {
					_, err := ask(t, a, token)
					if _, ok := errors.AsType[*MalformedError](err); !ok || strings.Contains(err.Error(), "s3cr3t") {
						t.Errorf("%.20q: %v; want a MalformedError", token, err)
					}
				}
				if _, err := a.Verify(t.Context(), Credential{Token: "s3cr3t\n"}); err == nil || strings.Contains(err.Error(), "s3cr3t") {
					t.Errorf("a token that Find did not return: %v", err)
				}
				if d, err := a.VerifyAgain(t.Context(), must(a.Find(upgrade("token="+url.QueryEscape(c.good))))); err != nil || d.Subject == "" {
					t.Errorf("again: %+v, %v", d, err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				credential, err := a.Find(upgrade("token=fresh-" + url.QueryEscape(c.good)))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := a.Verify(ctx, credential); !c.once && !errors.Is(err, context.Canceled) {
					t.Errorf("with a client that has gone: %v; want context.Canceled", err)
				}
			})
			for name, service := range broken {
				if c.service == nil {
					break
				}
				t.Run(name, func(t *testing.T) {
					timeout := 5 * time.Second
					if strings.HasPrefix(name, "hangs") {
						timeout = 100 * time.Millisecond
					}
					checkToken(t, open(t, service, timeout), c.good, unavailable)
				})
			}
			t.Run("nobody listens", func(t *testing.T) {
				if c.service == nil {
					return // asks nobody
				}
				listener := must(net.Listen("tcp", "127.0.0.1:0"))
				listener.Close()
				checkToken(t, newFrom(t, c.config("http://"+listener.Addr().String())), c.good, unavailable)
			})
			t.Run("the client goes away", func(t *testing.T) {
				if c.once {
					return // nobody waits for it
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				a := open(t, func(_ http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body) // else net/http does not see the connection close
					cancel()
					<-r.Context().Done()
					close(ended)
				}, time.Minute)
				credential := must(a.Find(upgrade("token=" + url.QueryEscape(c.good))))
				_, err := a.Verify(ctx, credential)
				if _, blamed := errors.AsType[*UnavailableError](err); blamed || !errors.Is(err, context.Canceled) {
					t.Errorf("%v; want context.Canceled", err)
				}
				<-ended // the call was given up with it
			})
		})
	}
}

func endless(w io.Writer) {
	for {
		if _, err := io.WriteString(w, strings.Repeat("1", 1<<10)); err != nil {
			return
		}
	}
}

// Where the status says it all, a body without an end delays and changes nothing.
func TestBodyThatDoesNotMatter(t *testing.T) {
	handler := func(w http.ResponseWriter, _ *http.Request) { endless(w) }
	c := Config{Mode: modeEndpoint, URL: serve(t, handler).URL, Timeout: time.Minute, Accept: "2xx", TokenFrom: []string{"query:token"}}
	checkToken(t, newFrom(t, c), secret, accepted)
	checkToken(t, newFrom(t, forwardConfig(serve(t, handler).URL)), secret, accepted)
}

// A dead endpoint must cost its clients nothing, and come back.
func TestDeadEndpointIsGivenUp(t *testing.T) {
	var calls atomic.Int32
	c := Config{Mode: modeEndpoint, Timeout: 5 * time.Second, TokenFrom: []string{"query:token"}}
	c.URL = serve(t, func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	}).URL
	a := newFrom(t, c)
	for range 100 {
		checkToken(t, a, secret, unavailable)
	}
	if n := calls.Load(); n != breakerFailures {
		t.Errorf("%d calls, want %d", n, breakerFailures)
	}
}

// A status 500 that one token provokes must not shut out everybody.
func TestOddTokenDoesNotOpenTheBreaker(t *testing.T) {
	c := Config{Mode: modeEndpoint, Timeout: 5 * time.Second, TokenFrom: []string{"query:token"}}
	c.URL = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("token") == "odd" {
			w.WriteHeader(500)
		}
		io.WriteString(w, "1")
	}).URL
	a := newFrom(t, c)
	for range 10 * breakerFailures {
		checkToken(t, a, "odd", unavailable)
	}
	checkToken(t, a, secret, accepted)
}

// Both ends of TLS: a private authority, and a certificate of our own.
func TestCertificates(t *testing.T) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, ecKey().Public(), ecKey()))
	certFile := pemFile(t, "CERTIFICATE", der)
	keyFile := pemFile(t, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ecKey())))

	clients := x509.NewCertPool()
	clients.AddCert(must(x509.ParseCertificate(der)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "1") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.StartTLS()
	t.Cleanup(server.Close)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}

	c := Config{Mode: modeEndpoint, URL: server.URL, Timeout: 5 * time.Second, TokenFrom: []string{"query:token"}, CAFile: caFile, CertFile: certFile, KeyFile: keyFile}
	checkToken(t, newFrom(t, c), secret, accepted)
	c.CertFile, c.KeyFile = "", ""
	checkToken(t, newFrom(t, c), secret, unavailable)

	for want, edit := range map[string]func(*Config){
		`AUTH_KEY_FILE: "" is missing`:                               func(c *Config) { c.CertFile = certFile },
		`AUTH_CERT_FILE: "" is missing`:                              func(c *Config) { c.KeyFile = keyFile },
		`AUTH_CERT_FILE: "` + certFile + `" cannot be used`:          func(c *Config) { c.CertFile, c.KeyFile = certFile, certFile },
		`AUTH_CA_FILE: "/nowhere" cannot be read (no such file or d`: func(c *Config) { c.CAFile = "/nowhere" },
		`AUTH_CA_FILE: "` + keyFile + `" holds no certificate`:       func(c *Config) { c.CAFile = keyFile },
		`AUTH_ACCEPT: "3xx" is no way to accept`:                     func(c *Config) { c.Accept = "3xx" },
		`AUTH_METHOD: "PUT" is no method`:                            func(c *Config) { c.Method = "PUT" },
	} {
		bad := c
		edit(&bad)
		checkMistakes(t, bad, []string{want})
	}
}

func TestWarnings(t *testing.T) {
	at := func(url string) Config {
		return Config{Mode: modeEndpoint, URL: url, Timeout: time.Second, TokenFrom: []string{"query:token"}}
	}
	issuer := func(url string, edit func(*Config)) Config {
		c := jwtConfig()
		c.Issuer, c.Audience = url, []string{"*"}
		edit(&c)
		return c
	}
	introspection := func(edit func(*Config)) Config {
		c := introspectConfig("https://auth.example/")
		edit(&c)
		return c
	}
	tests := []struct {
		name   string
		config Config
		want   string // "": no warning
	}{
		{"https", at("https://auth.example/"), ""},
		{"loopback by name", at("http://localhost:8080/"), ""},
		{"loopback by a name below", at("http://auth.LocalHost./"), ""},
		{"loopback by address", at("http://127.8.0.1/"), ""},
		{"loopback in IPv6", at("http://[::1]:80/"), ""},
		{"http", at("http://auth.internal/?key=hunter2"), `AUTH_URL: "http://auth.internal/?…" is not encrypted`},
		{"a name that only begins so", at("http://localhost.example/"), `AUTH_URL: "http://localhost.example/" is not encrypted`},
		{"an issuer that is not asked", issuer("http://issuer.invalid", func(c *Config) { c.JWTSecret = hmacSecret }), ""},
		{"an issuer", issuer("http://issuer.invalid", func(*Config) {}), `AUTH_ISSUER: "http://issuer.invalid" is not encrypted`},
		{"introspection without a credential", introspection(func(c *Config) { c.ClientID, c.ClientSecret = "", "" }), `AUTH_CLIENT_SECRET: "" asks without a credential`},
		{"introspection with one", introspection(func(*Config) {}), ""},
		{"keys", issuer("", func(c *Config) { c.JWKSURL = "http://issuer.invalid/keys" }), `AUTH_JWKS_URL: "http://issuer.invalid/keys" is not encrypted`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := newFrom(t, test.config).Warnings()
			if (test.want == "") != (len(got) == 0) || len(got) > 0 && !strings.HasPrefix(got[0], test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// BenchmarkVerify is one authentication. What is asked listens on loopback, and
// its own work, a net/http server's, is included: a call's rows say what
// changes, not what a call costs.
func BenchmarkVerify(b *testing.B) {
	c := contenders()
	for _, row := range []contender{
		c[0], c[1], c[2], c[3], c[4], c[5], c[6],
		{"jwt ES256", func(string) Config {
			c := jwtConfig()
			c.JWTKeyFile = publicKeyFile(b, ecKey().Public())
			return c
		}, nil, es256(goodClaims()), es256(with("exp", 1)), true},
	} {
		for _, outcome := range []string{accepted, refused} {
			b.Run(row.name+"/"+outcome, func(b *testing.B) {
				service := ""
				if row.service != nil {
					service = serve(b, row.service).URL
				}
				a := newFrom(b, row.config(service))
				if row.once && row.service != nil {
					fetched(a)
				}
				token := row.good
				if outcome == refused {
					token = row.bad
				}
				credential := must(a.Find(upgrade("token=" + url.QueryEscape(token))))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := a.Verify(b.Context(), credential); (err == nil) != (outcome == accepted) {
						b.Fatal(err)
					}
				}
			})
		}
	}
	b.Run("endpoint that is dead", func(b *testing.B) {
		a := newFrom(b, c[0].config(serve(b, status(503)).URL))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Verify(b.Context(), Credential{Token: "x"}); err == nil {
				b.Fatal("accepted")
			}
		}
	})
}
