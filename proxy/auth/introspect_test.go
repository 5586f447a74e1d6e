package auth

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func introspectConfig(url string) Config {
	return Config{
		Mode: modeIntrospect, URL: url, Timeout: 5 * time.Second, ClientID: "gate", ClientSecret: "p@ss word",
		TokenFrom: []string{"query:token"}, Forward: []string{"sub:X-Auth-Subject", "email:X-Auth-Email"},
	}
}

func TestIntrospection(t *testing.T) {
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	body := func(format string, args ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, format, args...) }
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		edit    func(*Config)
		want    string
	}{
		{"active", body(`{"active":true,"sub":"alice"}`), nil, accepted},
		{"not active", body(`{"active":false,"sub":"alice"}`), nil, refused},
		{"not said", body(`{"sub":"alice"}`), nil, unavailable},
		{"active as a string", body(`{"active":"true"}`), nil, unavailable},
		{"active twice", body(`{"active":false,"active":true}`), nil, unavailable},
		{"expired", body(`{"active":true,"exp":%d}`, in(-time.Second)), nil, refused},
		{"exp of a wrong type", body(`{"active":true,"exp":"soon"}`), nil, refused},
		{"not yet", body(`{"active":true,"nbf":%d}`, in(time.Minute)), nil, refused},
		{"for us", body(`{"active":true,"aud":["chat"]}`), func(c *Config) { c.Audience = []string{"chat"} }, accepted},
		{"wrong audience", body(`{"active":true,"aud":"mail"}`), func(c *Config) { c.Audience = []string{"chat"} }, refused},
		{"no audience", body(`{"active":true}`), func(c *Config) { c.Audience = []string{"chat"} }, refused},
		{"any audience", body(`{"active":true,"aud":"mail"}`), func(c *Config) { c.Audience = []string{"*"} }, accepted},
		{"the scope", body(`{"active":true,"scope":"mail chat"}`), func(c *Config) { c.Require = []string{"scope:chat"} }, accepted},
		{"not the scope", body(`{"active":true,"scope":"mail"}`), func(c *Config) { c.Require = []string{"scope:chat"} }, denied},
		{"a sub of a wrong type", body(`{"active":true,"sub":7}`), nil, refused},
		{"no JSON", body(`1`), nil, unavailable},
		{"too long", body(`{"active":true,"a":"%s"}`, strings.Repeat("x", maxIntrospectionBytes)), nil, unavailable},
		// It is our credential that is not good.
		{"401", status(401), nil, unavailable},
		{"403", status(403), nil, unavailable},
		{"400", status(400), nil, unavailable},
		{"204", status(204), nil, unavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := introspectConfig(serve(t, test.handler).URL)
			if test.edit != nil {
				test.edit(&c)
			}
			checkToken(t, newFrom(t, c), secret, test.want)
		})
	}
}

// Whoever reads the log must not look for the fault in the client's token.
func TestIntrospectionThatRefusesUs(t *testing.T) {
	for _, code := range []int{401, 403} {
		_, err := ask(t, newFrom(t, introspectConfig(serve(t, status(code)).URL)), secret)
		if err == nil || !strings.Contains(err.Error(), "refuses AUTH_CLIENT_ID and AUTH_CLIENT_SECRET") {
			t.Errorf("%d: %v", code, err)
		}
	}
}

func TestNewIntrospectionRefuses(t *testing.T) {
	c := introspectConfig("http://auth.internal/")
	c.Require, c.Audience, c.TokenFrom = []string{"admin"}, []string{"*", "chat"}, nil
	checkMistakes(t, c, []string{`AUTH_TOKEN_FROM: "" leaves no place`, `AUTH_REQUIRE: "admin"`, `AUTH_AUDIENCE: "*,chat"`})
}

// What an introspection says may not be stored is not, be it yes or no.
func TestIntrospectionIsCached(t *testing.T) {
	for name, test := range map[string]struct {
		cacheControl, body, require string
		calls                       int32
	}{
		"yes":                        {"", `{"active":true}`, "", 1},
		"no":                         {"", `{"active":false}`, "", 1},
		"not enough":                 {"", `{"active":true}`, "scope:chat", 1},
		"yes, not to be stored":      {"no-store", `{"active":true}`, "", 2},
		"no, not to be stored":       {"private, no-cache", `{"active":false}`, "", 2},
		"denied, not to be stored":   {"max-age=0", `{"active":true}`, "scope:chat", 2},
		"yes, but expires with this": {"", fmt.Sprintf(`{"active":true,"exp":%d}`, time.Now().Unix()+1000), "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			c := introspectConfig(serve(t, func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				if test.cacheControl != "" {
					w.Header().Set("Cache-Control", test.cacheControl)
				}
				io.WriteString(w, test.body)
			}).URL)
			c.CacheTTL = time.Hour
			if test.require != "" {
				c.Require = []string{test.require}
			}
			a := newFrom(t, c)
			_, one := ask(t, a, secret)
			_, two := ask(t, a, secret)
			if fmt.Sprint(one) != fmt.Sprint(two) || calls.Load() != test.calls {
				t.Errorf("%v, then %v, by %d calls; want the same by %d", one, two, calls.Load(), test.calls)
			}
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestIntrospectionQuestion(t *testing.T) {
	exp := time.Now().Add(time.Hour).Truncate(time.Second)
	var got *http.Request
	var form string
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got, form = r, string(body)
		w.Header().Set("Cache-Control", "max-age=60")
		fmt.Fprintf(w, `{"active":true,"sub":"alice","email":"a@b","exp":%d}`, exp.Unix())
	})
	a := newFrom(t, introspectConfig(server.URL+"/introspect?tenant=a"))
	before := time.Now()
	d := checkToken(t, a, secret, accepted)
	if got.Method != "POST" || got.RequestURI != "/introspect?tenant=a" || form != "token=s3cr3t%2B%2F%3D%22%3C%26%25%3F" ||
		got.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || got.ContentLength != int64(len(form)) {
		t.Errorf("asked %s %s with %q and %q", got.Method, got.RequestURI, got.Header, form)
	}
	if id, password, _ := got.BasicAuth(); id != "gate" || password != "p%40ss+word" {
		t.Errorf("our credential: %q, %q; want it form-encoded", id, password)
	}
	if d.Subject != "alice" || d.Claims["email"] != "a@b" || !d.Expires.Equal(exp) || d.Final {
		t.Errorf("%+v", d)
	}
	if left := d.Until.Sub(before); left < time.Minute || left > time.Minute+5*time.Second {
		t.Errorf("holds for %v, want the answer's minute", left)
	}
}

func TestCredentialOfTheCall(t *testing.T) {
	var got http.Header
	server := serve(t, func(w http.ResponseWriter, r *http.Request) { got = r.Header; io.WriteString(w, "1") })
	tests := []struct {
		name, id, secret string
		want             string
		mistake          string
	}{
		{"none", "", "", "", ""},
		{"both", "gate", "hunter2 ü", "Basic Z2F0ZTpodW50ZXIyIMO8", ""},
		{"the secret alone", "", "hunter2", "Bearer hunter2", ""},
		{"the ID alone", "gate", "", "", `AUTH_CLIENT_ID: "gate" has no`},
		{"a colon", "ga:te", "hunter2", "", `AUTH_CLIENT_ID: "ga:te" cannot be sent as Basic`},
		{"a line break", "gate", "hunter2\nX: 1", "", `AUTH_CLIENT_ID: "gate" cannot be sent as Basic`},
		{"a space in a bearer", "", "hunter2 hunter2", "", `AUTH_CLIENT_SECRET: "***" cannot be sent as Bearer`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := Config{Mode: modeEndpoint, URL: server.URL, Timeout: 5 * time.Second, TokenFrom: []string{"query:token"}, ClientID: test.id, ClientSecret: test.secret}
			if test.mistake != "" {
				checkMistakes(t, c, []string{test.mistake})
				return
			}
			checkToken(t, newFrom(t, c), secret, accepted)
			if got.Get("Authorization") != test.want {
				t.Errorf("sent %q, want %q", got.Get("Authorization"), test.want)
			}
		})
	}
}

// A POST on a connection that the service has closed meanwhile is made again.
func TestPostIsRepeatedOnAClosedConnection(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("token") != secret {
			w.WriteHeader(401)
		}
		io.WriteString(w, "1")
	})
	c := Config{Mode: modeEndpoint, URL: server.URL, Timeout: 5 * time.Second, TokenFrom: []string{"query:token"}, Method: "POST"}
	a := newFrom(t, c)
	for range 20 {
		if _, err := ask(t, a, secret); err != nil {
			t.Fatal(err)
		}
		server.CloseClientConnections()
	}
	if _, err := ask(t, a, "other"); !isRefusal(err) {
		t.Errorf("%v; want a refusal", err)
	}
}
