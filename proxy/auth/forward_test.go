package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func forwardConfig(url string) Config {
	return Config{
		Mode: modeForward, URL: url, Timeout: 5 * time.Second,
		TokenFrom: []string{"query:token", "header:Authorization", "protocol:bearer"},
		Forward:   []string{"sub:X-Auth-Subject"}, CopyHeaders: []string{"remote-user", "X-Groups"},
	}
}

// fromServer is an upgrade as net/http hands it over.
func fromServer(target string, lines ...string) *http.Request {
	path, query, _ := strings.Cut(target, "?")
	r := upgrade(query, lines...)
	r.URL.Path, r.RequestURI, r.Host, r.RemoteAddr = path, target, "chat.example", "[::ffff:192.0.2.7]:1234"
	return r
}

// askForward finds and verifies r.
func askForward(t *testing.T, a *Auth, r *http.Request) (Decision, error) {
	t.Helper()
	c, err := a.Find(r)
	if err != nil {
		t.Fatalf("Find: %v", err)
	}
	return a.Verify(t.Context(), c)
}

func TestForwardShowsTheRequest(t *testing.T) {
	var got *http.Request
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		w.Header()["X-Auth-Subject"] = []string{"alice"}
		w.Header()["Remote-User"] = []string{"ali"}
		w.Header()["X-Groups"] = []string{"a", "b "}
		w.Header()["X-Other"] = []string{"c"}
		w.Header().Set("Cache-Control", "max-age=60")
		w.WriteHeader(http.StatusNoContent)
	})
	a := newFrom(t, forwardConfig(server.URL+"/verify?app=chat"))
	r := fromServer("/room/%7Eeins?token=s3cr3t&x=%2F",
		"Cookie: session=abc", "Cookie: theme=dark", "User-Agent: Mozilla", "Accept-Language: pt", "Authorization: Basic eDp5", "Origin: https://chat.example",
		"Connection: Upgrade, X-Hop", "Upgrade: websocket", "X-Hop: 1", "Sec-WebSocket-Key: k", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: chat",
		"Content-Type: text/plain", "Transfer-Encoding: chunked", "Keep-Alive: 1", "Proxy-Authorization: Basic x", "Te: trailers",
		"X-Forwarded-For: 10.0.0.1", "X-Forwarded-Uri: /public", "X-Forwarded-Method: OPTIONS", "X-Forwarded-User: root", "X_Forwarded_Uri: /public",
		"X-Original-Uri: /public", "X-Original-Url: https://a/public", "X.Original.Method: HEAD", "X-Real-Ip: 10.0.0.1", "Forwarded: for=10.0.0.1")
	before := r.Header.Clone()
	d, err := askForward(t, a, r)
	if err != nil {
		t.Fatal(err)
	}
	want := http.Header{
		"Cookie": {"session=abc", "theme=dark"}, "User-Agent": {"Mozilla"}, "Accept-Language": {"pt"}, "Authorization": {"Basic eDp5"},
		"Origin":             {"https://chat.example"},
		"X-Forwarded-Method": {"GET"}, "X-Original-Method": {"GET"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"chat.example"},
		"X-Forwarded-Uri": {"/room/%7Eeins?token=s3cr3t&x=%2F"}, "X-Original-Uri": {"/room/%7Eeins?token=s3cr3t&x=%2F"},
		"X-Forwarded-For": {"192.0.2.7"}, "X-Real-Ip": {"192.0.2.7"},
	}
	if got.Method != "GET" || got.RequestURI != "/verify?app=chat" || got.Host != strings.TrimPrefix(server.URL, "http://") {
		t.Errorf("asked %s %s of %s", got.Method, got.RequestURI, got.Host)
	}
	if !maps.EqualFunc(got.Header, want, slices.Equal) {
		t.Errorf("head:\n%q\nwant:\n%q", got.Header, want)
	}
	if !maps.EqualFunc(r.Header, before, slices.Equal) {
		t.Errorf("the client's header was written to: %q", r.Header)
	}
	if d.Subject != "alice" || d.Pseudonym || d.Until.IsZero() || d.Final {
		t.Errorf("%+v", d)
	}

	h := http.Header{"Remote_User": {"root"}, "Remote-User": {"root"}, "X.groups": {"root"}, "X-Other": {"root"}}
	a.StripIdentity(h)
	a.SetIdentity(h, d)
	up := http.Header{"X-Auth-Subject": {"alice"}, "Remote-User": {"ali"}, "X-Groups": {"a", "b"}, "X-Other": {"root"}}
	if !maps.EqualFunc(h, up, slices.Equal) {
		t.Errorf("upstream: %q\nwant %q", h, up)
	}
}

func TestForwardRoute(t *testing.T) {
	var got http.Header
	a := newFrom(t, forwardConfig(serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header }).URL))
	r := fromServer("/")
	r.TLS = &tls.ConnectionState{}
	c, err := a.Find(r)
	if err != nil {
		t.Fatal(err)
	}
	via := c.WithForwarded(Forwarded{Scheme: "http", Host: "public.example", For: "203.0.113.9, 10.0.0.1"})
	for _, test := range []struct {
		c    Credential
		want []string
	}{
		{c, []string{"https", "chat.example", "192.0.2.7", "192.0.2.7"}},
		{via, []string{"http", "public.example", "203.0.113.9, 10.0.0.1", "203.0.113.9"}},
	} {
		if _, err := a.Verify(t.Context(), test.c); err != nil {
			t.Fatal(err)
		}
		shown := []string{got.Get("X-Forwarded-Proto"), got.Get("X-Forwarded-Host"), got.Get("X-Forwarded-For"), got.Get("X-Real-Ip")}
		if !slices.Equal(shown, test.want) || got["User-Agent"] != nil {
			t.Errorf("shown %q and User-Agent %q; want %q and none", shown, got["User-Agent"], test.want)
		}
	}
	if (Credential{Token: "x"}).WithForwarded(Forwarded{Host: "a"}) != (Credential{Token: "x"}) {
		t.Error("Via changes a credential that shows no request")
	}
}

// Nothing is remembered of one path for another.
func TestForwardRefusesAPathAfterItAllowedAnother(t *testing.T) {
	a := newFrom(t, forwardConfig(serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Forwarded-Uri") != "/open?token=s3cr3t" {
			w.WriteHeader(http.StatusForbidden)
		}
	}).URL))
	for range 2 {
		d, err := askForward(t, a, fromServer("/open?token=s3cr3t"))
		checkOutcome(t, d, err, accepted)
		d, err = askForward(t, a, fromServer("/admin?token=s3cr3t", "X-Forwarded-Uri: /open?token=s3cr3t", "X_Forwarded-Uri: /open?token=s3cr3t"))
		checkOutcome(t, d, err, denied)
	}
}

func TestForwardAnswers(t *testing.T) {
	tests := []struct {
		status int
		want   string
	}{
		{200, accepted}, {202, accepted}, {204, accepted},
		{401, refused}, {403, denied},
		{302, unavailable}, {304, unavailable}, {400, unavailable}, {404, unavailable}, {429, unavailable}, {500, unavailable}, {503, unavailable},
	}
	challenge := []string{`Basic realm="a"`, `Bearer error="b"`, "not\tvisible", "not ASCII é", strings.Repeat("x", 2000), "", "C", "D", "E"}
	for _, test := range tests {
		t.Run(http.StatusText(test.status), func(t *testing.T) {
			a := newFrom(t, forwardConfig(serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Www-Authenticate"] = challenge
				w.Header()["Remote-User"], w.Header()["X-Groups"] = []string{"é"}, []string{"a", "\u202eb"}
				w.Header().Set("Retry-After", "7200")
				w.WriteHeader(test.status)
			}).URL))
			d, err := askForward(t, a, fromServer("/?token=s3cr3t"))
			checkOutcome(t, d, err, test.want)
			var got []string
			if refusal, ok := errors.AsType[*RefusedError](err); ok {
				got = refusal.Challenge
			}
			if denial, ok := errors.AsType[*DeniedError](err); ok {
				got = denial.Challenge
			}
			want := []string{`Basic realm="a"`, `Bearer error="b"`, "C", "D"}
			if (test.want == refused || test.want == denied) != slices.Equal(got, want) {
				t.Errorf("challenge %q", got)
			}
			if e, ok := errors.AsType[*UnavailableError](err); ok && e.RetryAfter > maxRetryAfter {
				t.Errorf("clients are sent away for %v", e.RetryAfter)
			}
			if want := (http.Header{"Remote-User": {"é"}}); test.want == accepted && !maps.EqualFunc(d.Headers, want, slices.Equal) {
				t.Errorf("copied %q; want what is whole", d.Headers)
			}
		})
	}
}

// Cookies may be what authenticates, so a request without a token is asked about.
func TestForwardWithoutAToken(t *testing.T) {
	c := forwardConfig(serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := r.Cookie("session"); err != nil {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}).URL)
	a := newFrom(t, c)
	if !a.Required() || !c.UsesCookie() {
		t.Errorf("Required %t, UsesCookie %t; want both", a.Required(), c.UsesCookie())
	}
	d, err := askForward(t, a, fromServer("/"))
	checkOutcome(t, d, err, refused)
	one, err := askForward(t, a, fromServer("/", "Cookie: session=a"))
	checkOutcome(t, one, err, accepted)
	two, err := askForward(t, a, fromServer("/", "Cookie: session=b"))
	checkOutcome(t, two, err, accepted)
	if !one.Pseudonym || one.Subject == two.Subject {
		t.Errorf("subjects %q and %q; want two pseudonyms", one.Subject, two.Subject)
	}
	if _, err := a.Verify(t.Context(), Credential{}); err == nil {
		t.Error("a credential that shows no request is accepted")
	}
}

func TestForwardNamesTwo(t *testing.T) {
	a := newFrom(t, forwardConfig(serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["X-Auth-Subject"] = []string{"alice", "bob"}
	}).URL))
	d, err := askForward(t, a, fromServer("/"))
	checkOutcome(t, d, err, unavailable)
}

// A session keeps what was shown, and must not tell it in a log line.
func TestCredentialHidesWhatIsShown(t *testing.T) {
	a := newFrom(t, forwardConfig("http://auth.internal/"))
	c, err := a.Find(fromServer("/?token=s3cr3t", "Cookie: session=s3cr3t"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&b, nil))
	log.Info("x", "credential", c, "pointer", &c)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&b, verb, c)
	}
	json.NewEncoder(&b).Encode(c)
	if strings.Contains(b.String(), "s3cr3t") {
		t.Errorf("told: %s", &b)
	}
}

func TestForwardTokens(t *testing.T) {
	var authorization []string
	a := newFrom(t, forwardConfig(serve(t, func(_ http.ResponseWriter, r *http.Request) { authorization = r.Header["Authorization"] }).URL))
	tests := []struct {
		name    string
		request *http.Request
		want    []string
	}{
		{"in the query", fromServer("/?token=s3cr3t"), nil},
		{"in the header", fromServer("/", "Authorization: Bearer s3cr3t"), []string{"Bearer s3cr3t"}},
		{"in the subprotocol, which is not shown", fromServer("/", "Sec-WebSocket-Protocol: chat, bearer, s3cr3t"), []string{"Bearer s3cr3t"}},
		{"in the subprotocol beside another scheme", fromServer("/", "Authorization: Basic eDp5", "Sec-WebSocket-Protocol: bearer, s3cr3t"), []string{"Basic eDp5"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, err := askForward(t, a, test.request)
			checkOutcome(t, d, err, accepted)
			if !slices.Equal(authorization, test.want) {
				t.Errorf("shown %q, want %q", authorization, test.want)
			}
		})
	}
	// The verifier might read the one and the upstream the other.
	if _, err := a.Find(fromServer("/?token=a", "Authorization: Bearer b")); !errors.Is(err, ErrConflict) {
		t.Errorf("Authorization and query disagree: %v; want ErrConflict", err)
	}
}

func TestNewForwardRefuses(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Config)
		want []string
	}{
		{"headers that are none or ours", func(c *Config) { c.CopyHeaders = []string{"X User", "Sec-WebSocket-Key", "X-Forwarded-User"} },
			[]string{`AUTH_COPY_HEADERS: "X User" is no header`, `AUTH_COPY_HEADERS: "Sec-WebSocket-Key" is no header`, `AUTH_COPY_HEADERS: "X-Forwarded-User" is no header`}},
		{"a header twice", func(c *Config) { c.CopyHeaders = []string{"X-User", "x_user", "X-Auth-Subject"} },
			[]string{`AUTH_COPY_HEADERS: "x_user" is set already`, `AUTH_COPY_HEADERS: "X-Auth-Subject" is set already`}},
		{"a cache", func(c *Config) { c.CacheTTL = time.Second }, []string{`AUTH_CACHE_TTL: "1s" is no setting of AUTH_MODE=forward`}},
		{"a credential of our own", func(c *Config) { c.ClientID, c.ClientSecret = "gate", "hunter2" },
			[]string{`AUTH_CLIENT_ID: "gate" is no setting`, `AUTH_CLIENT_SECRET: "***" is no setting`}},
		{"claims", func(c *Config) { c.Forward = []string{"email:X-Email"} }, []string{`AUTH_FORWARD: "email:X-Email" names a claim`}},
		{"numbers below zero", func(c *Config) { c.StaleTTL, c.MaxInflight = -1, -1 }, []string{`AUTH_STALE_TTL: "-1ns" is negative`, `AUTH_MAX_INFLIGHT: "-1" is negative`}},
		{"no URL", func(c *Config) { c.URL = "" }, []string{`AUTH_URL: "" names no endpoint`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := forwardConfig("http://auth.internal/")
			test.edit(&c)
			checkMistakes(t, c, test.want)
		})
	}
}
