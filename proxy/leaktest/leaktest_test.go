package leaktest

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A check that cannot fail proves nothing.
func TestLeaksAreFound(t *testing.T) {
	const odd = `o"dd/t+k=n`
	long := "eyJhbGciOiJIUzI1NiJ9." + strings.Repeat("claims", 20) + ".signature"
	s := &Secrets{Public: []string{"token"}}
	s.Request("/room?token=good&x=1&private=a%2Fb%2Fc", http.Header{
		"Authorization":          {"Bearer " + long},
		"Cookie":                 {"a=1; session=crumbs"},
		"Sec-Websocket-Protocol": {"chat, bearer, offered", "base64url.bearer.authorization.k8s.io.c2VjcmV0"},
	})
	s.Token(odd, "token", "ab")
	for _, tt := range []struct{ name, said string }{
		{"token", `{"msg":"refused","error":"no good"}`},
		{"in a metric", `portcullis_upgrades_total{reason="good"} 1`},
		{"query as written", `{"path":"/room?x=1"}`},
		{"another parameter, decoded", `a/b/c`},
		{"another parameter, as written", `a%2Fb%2Fc`},
		{"cookie", `crumbs`},
		{"subprotocol", `offered`},
		{"subprotocol of Kubernetes", `secret`},
		{"base64url", base64.URLEncoding.EncodeToString([]byte("crumbs"))},
		{"base64", base64.StdEncoding.EncodeToString([]byte(odd))},
		{"percent-encoded", url.QueryEscape(odd)},
		{"percent-encoded in a path", url.PathEscape(odd)},
		{"quoted", `{"error":"o\"dd/t+k=n"}`},
		{"long", long},
		{"long, cut short", long[:40] + "…"},
		{"long, in base64url", base64.RawURLEncoding.EncodeToString([]byte(long))},
		{"on a further line", "listening\ngood\n"},
		{"a word behind one that only begins so", "goods good"},
	} {
		if got := s.Leaks(tt.said); len(got) == 0 {
			t.Errorf("%s: not found in %q", tt.name, tt.said)
		}
	}
	const fine = `{"msg":"refused","reason":"token_refused","path":"/chat","detail":"the token has goods, a bearer, 1 ab and a query"}`
	if got := s.Leaks(fine); got != nil {
		t.Errorf("found %q", got)
	}
	if got := new(Secrets).Leaks("good"); got != nil {
		t.Errorf("without secrets: found %q", got)
	}
}
