package auth

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	says := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/login")
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	for _, test := range []struct {
		name, mode string
		handler    http.HandlerFunc
		answer     string // the beginning
		accepted   bool
		wrong      string // a part of the error
		edit       func(*Config)
	}{
		{"refuses with 0", modeEndpoint, says(200, "0"), "status 200 with a body other than 1", false, "", nil},
		{"refuses with 401", modeEndpoint, says(401, ""), "status 401", false, "", nil},
		{"accepts everything", modeEndpoint, says(200, "1"), "", true, "", nil},
		{"accepts everything by its status", modeEndpoint, says(204, ""), "", true, "", func(c *Config) { c.Accept = "2xx" }},
		{"is not there", modeEndpoint, says(404, ""), "", false, "status 404", nil},
		{"sends to a page", modeEndpoint, says(302, ""), "", false, "status 302", nil},
		{"is broken", modeEndpoint, says(500, ""), "", false, "status 500", nil},
		{"has no active token", modeIntrospect, says(200, `{"active":false}`), "the token is not active", false, "", nil},
		{"does not know us", modeIntrospect, says(401, ""), "", false, "refuses AUTH_CLIENT_ID", nil},
		{"is no introspection", modeIntrospect, says(200, `{"ok":true}`), "", false, "does not say whether", nil},
		{"has everything active", modeIntrospect, says(200, `{"active":true,"sub":"a"}`), "", true, "", nil},
		{"wants a credential", modeForward, says(401, ""), "status 401", false, "", nil},
		{"denies", modeForward, says(403, ""), "status 403", false, "", nil},
		{"lets in", modeForward, says(200, ""), "", true, "", nil},
		{"sends to the log-in", modeForward, says(302, ""), "", false, "status 302", nil},
	} {
		t.Run(test.mode+" "+test.name, func(t *testing.T) {
			var calls atomic.Int64
			var shown atomic.Pointer[string]
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				r.ParseForm()
				token := r.Form.Get("token")
				shown.Store(&token)
				test.handler(w, r)
			})
			c := Config{Mode: test.mode, URL: server.URL + "/check?key=hunter2", Timeout: 20 * time.Second, CacheTTL: time.Hour, Forward: []string{"sub:X-Auth-Subject"}}
			if test.mode == modeForward {
				c.CacheTTL = 0
			} else {
				c.TokenFrom = []string{"query:token"}
			}
			if test.edit != nil {
				test.edit(&c)
			}
			found, err := Check(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if found.Setting != "AUTH_URL" || found.Asked != server.URL+"/check?…" || found.Took <= 0 || found.Keys != 0 || calls.Load() != 1 {
				t.Errorf("got %+v, and %d calls", found, calls.Load())
			}
			if found.Accepted != test.accepted || !strings.HasPrefix(found.Answer, test.answer) || (found.Answer == "") != (test.answer == "") {
				t.Errorf("got %+v, want %q, accepted %t", found, test.answer, test.accepted)
			}
			if (found.Err != nil) != (test.wrong != "") || found.Err != nil && !strings.Contains(found.Err.Error(), test.wrong) {
				t.Errorf("got error %v, want %q", found.Err, test.wrong)
			}
			if token := *shown.Load(); (test.mode == modeForward) != (token == "") || found.Err != nil && token != "" && strings.Contains(found.Err.Error(), token) {
				t.Errorf("the token %q was shown; the error is %v", token, found.Err)
			}
		})
	}
}

func TestCheckOfKeys(t *testing.T) {
	s := newKeyServer(t)
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc // nil: it serves its key
		keys    int
		wrong   string
	}{
		{"one key", nil, 1, ""},
		{"no keys", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"keys":[]}`) }, 0, errNoKeys.Error()},
		{"not there", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 0, "404"},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }, 0, "invalid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.misbehave(test.handler)
			before := s.fetches.Load()
			c := jwksConfig(s.URL + "/keys?key=hunter2")
			found, err := Check(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if found.Setting != "AUTH_JWKS_URL" || found.Keys != test.keys || found.Answer != "" || found.Accepted || strings.Contains(found.Asked, "hunter2") {
				t.Errorf("got %+v", found)
			}
			if (found.Err != nil) != (test.wrong != "") || found.Err != nil && (!strings.Contains(found.Err.Error(), test.wrong) || strings.Contains(found.Err.Error(), "hunter2")) {
				t.Errorf("got error %v, want %q", found.Err, test.wrong)
			}
			if n := s.fetches.Load() - before; n != 1 {
				t.Errorf("%d fetches, want 1", n)
			}
		})
	}
	s.misbehave(nil)
	c := jwtConfig()
	c.Issuer, c.Audience = s.URL, []string{"chat"}
	if found, err := Check(t.Context(), c); err != nil || found.Err != nil || found.Setting != "AUTH_ISSUER" || found.Keys != 1 {
		t.Errorf("by discovery: %+v, %v", found, err)
	}
}

func TestCheckAsksNobody(t *testing.T) {
	secret := jwtConfig()
	secret.JWTSecret = strings.Repeat("s", 32)
	for _, c := range []Config{{Mode: modeNone}, secret} {
		if found, err := Check(t.Context(), c); err != nil || found.Setting != "" || found.Err != nil {
			t.Errorf("%s: %+v, %v", c.Mode, found, err)
		}
	}
	if _, err := Check(t.Context(), Config{Mode: "saml"}); err == nil {
		t.Error("a mode that is none is no mistake")
	}
}

func TestCheckOfWhoDoesNotAnswer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	endpoint := Config{Mode: modeEndpoint, URL: "http://" + silent.Addr().String(), Timeout: 50 * time.Millisecond, TokenFrom: []string{"query:token"}}
	keys := jwksConfig(endpoint.URL)
	keys.Timeout = endpoint.Timeout
	for _, c := range []Config{endpoint, keys} {
		found, err := Check(t.Context(), c)
		timeout, ok := found.Err.(interface{ Unwrap() error })
		if err != nil || !ok || timeout.Unwrap() == nil {
			t.Errorf("%s: %+v, %v", c.Mode, found, err)
		}
	}
}

// Nobody is asked for the keys of an idle Auth, and it closes.
func TestIdle(t *testing.T) {
	s := newKeyServer(t)
	c := jwksConfig(s.URL)
	c.Idle = true
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if n := s.fetches.Load(); n > 0 {
		t.Errorf("%d fetches", n)
	}
}
