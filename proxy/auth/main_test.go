package auth

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kubernetes is the entry that shows the token "secret".
const kubernetes = "base64url.bearer.authorization.k8s.io.c2VjcmV0"

// everyPlace configures all kinds of places at once.
var everyPlace = []string{
	"query:token", "header:Authorization", "header:X-Token", "cookie:session",
	"protocol:bearer", "protocol:base64url.bearer.authorization.k8s.io",
}

// newAuth returns an Auth of mode endpoint that takes tokens from these places.
func newAuth(t testing.TB, places ...string) *Auth {
	t.Helper()
	return newFrom(t, Config{
		Mode:      "endpoint",
		URL:       "http://127.0.0.1:9/",
		Timeout:   time.Second,
		TokenFrom: places,
		Forward:   []string{"sub:X-Auth-Subject"},
	})
}

func newFrom(t testing.TB, c Config) *Auth {
	t.Helper()
	a, err := New(c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(a.Close)
	return a
}

// upgrade is a request with that raw query and header lines like "Name: value".
func upgrade(rawQuery string, lines ...string) *http.Request {
	h := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ":")
		h.Add(name, strings.TrimSpace(value))
	}
	return &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/", RawQuery: rawQuery}, Header: h}
}
