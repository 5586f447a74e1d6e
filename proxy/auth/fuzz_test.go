package auth

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// FuzzQuery compares with net/url, which reads a query as servers behind do.
func FuzzQuery(f *testing.F) {
	for _, test := range queryTests {
		f.Add(test.query)
	}
	a := newAuth(f, "query:token")
	f.Fuzz(func(t *testing.T, query string) {
		c, err := a.Find(upgrade(query))
		checkFound(t, c, err)
		left := a.StripToken(query, http.Header{})
		if _, err := a.Find(upgrade(left)); !errors.Is(err, ErrMissing) {
			t.Errorf("after Strip: %v; want ErrMissing", err)
		}
		// ParseQuery skips the pairs it cannot read and keeps the rest.
		if values, _ := url.ParseQuery(left); values.Has("token") {
			t.Errorf("a server still finds %q", values["token"])
		}
		var others []string
		for _, pair := range strings.Split(query, "&") {
			name, _, _ := strings.Cut(pair, "=")
			if decoded, err := url.QueryUnescape(name); err != nil || decoded != "token" {
				others = append(others, pair)
			}
		}
		if want := strings.Join(others, "&"); left != want {
			t.Errorf("Strip leaves %q, want %q", left, want)
		}
	})
}

// FuzzCookie compares with net/http.
func FuzzCookie(f *testing.F) {
	for _, test := range cookieTests {
		f.Add(strings.TrimPrefix(test.lines[0], "Cookie: "), "")
	}
	f.Add("a=1; session=x", `session="x"; b=2`)
	f.Add("\rsession", "")
	a := newAuth(f, "cookie:session")
	f.Fuzz(func(t *testing.T, one, two string) {
		h := http.Header{"Cookie": {one, two}}
		c, err := a.Find(&http.Request{URL: &url.URL{}, Header: h})
		checkFound(t, c, err)
		ours := func(c *http.Cookie) bool { return c.Name == "session" }
		want := slices.DeleteFunc((&http.Request{Header: h}).Cookies(), ours)
		stripped := strip(t, a, h)
		got := (&http.Request{Header: stripped}).Cookies()
		same := func(a, b *http.Cookie) bool { return a.Name == b.Name && a.Value == b.Value && a.Quoted == b.Quoted }
		if !slices.EqualFunc(got, want, same) {
			t.Errorf("Strip leaves %q of %q", stripped, h)
		}
	})
}

// FuzzHeader puts text into all the headers that may show a token.
func FuzzHeader(f *testing.F) {
	for _, test := range headerTests {
		name, value, _ := strings.Cut(test.lines[0], ": ")
		if name == "X-Token" {
			f.Add("", value)
		} else {
			f.Add(value, "")
		}
	}
	a := newAuth(f, "header:Authorization", "header:X-Token")
	f.Fuzz(func(t *testing.T, authorization, own string) {
		h := http.Header{"Authorization": {"Basic eA==", authorization}, "X-Token": {own}, "X-Other": {own}}
		c, err := a.Find(&http.Request{URL: &url.URL{}, Header: h})
		checkFound(t, c, err)
		stripped := strip(t, a, h)
		if stripped["Authorization"][0] != "Basic eA==" || stripped["X-Other"][0] != own {
			t.Errorf("Strip leaves %q of %q", stripped, h)
		}
	})
}

func FuzzProtocol(f *testing.F) {
	for _, test := range protocolTests {
		var values []string
		for _, line := range test.lines {
			values = append(values, strings.TrimPrefix(line, "Sec-WebSocket-Protocol: "))
		}
		f.Add(values[0], strings.Join(values[1:], ","))
	}
	a := newAuth(f, "protocol:base64url.bearer.authorization.k8s.io", "protocol:bearer")
	f.Fuzz(func(t *testing.T, one, two string) {
		h := http.Header{protocolHeader: {one, two}}
		c, err := a.Find(&http.Request{URL: &url.URL{}, Header: h})
		checkFound(t, c, err)
		if c.Subprotocol != "" && !slices.Contains(slices.Collect(offered(h)), c.Subprotocol) {
			t.Errorf("the answer %q was not offered", c.Subprotocol)
		}
		// What is left was offered, and in that order.
		all := slices.Collect(offered(h))
		for entry := range offered(strip(t, a, h)) {
			i := slices.Index(all, entry)
			if i < 0 {
				t.Fatalf("%q was not offered there in %q", entry, h[protocolHeader])
			}
			all = all[i+1:]
		}
	})
}

// strip returns what Strip leaves of h, and checks that Find finds nothing in
// it and that h itself is unchanged.
func strip(t *testing.T, a *Auth, h http.Header) http.Header {
	t.Helper()
	before := h.Clone()
	stripped := maps.Clone(h)
	a.StripToken("", stripped)
	if c, err := a.Find(&http.Request{URL: &url.URL{}, Header: stripped}); !errors.Is(err, ErrMissing) {
		t.Errorf("after Strip: %q, %v in %q; want ErrMissing", c.Token, err, stripped)
	}
	if !maps.EqualFunc(h, before, slices.Equal) {
		t.Errorf("Strip wrote to the client's header: %q, before %q", h, before)
	}
	again := maps.Clone(stripped)
	a.StripToken("", again)
	if !maps.EqualFunc(again, stripped, slices.Equal) {
		t.Errorf("Strip twice leaves %q, once %q", again, stripped)
	}
	return stripped
}

// checkFound checks that Find returns a good token or one of its errors.
func checkFound(t *testing.T, c Credential, err error) {
	t.Helper()
	if err == nil {
		if CheckToken(c.Token) != nil {
			t.Errorf("found %q, which is no token", c.Token)
		}
		return
	}
	_, malformed := errors.AsType[*MalformedError](err)
	if c != (Credential{}) || !malformed && !errors.Is(err, ErrMissing) && !errors.Is(err, ErrConflict) {
		t.Errorf("Find: %q, %v", c.Token, err)
	}
}
