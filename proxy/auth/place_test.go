package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// placeTest is one request: what Find says of it, and what Strip leaves of it.
type placeTest struct {
	name  string
	query string
	lines []string // of the header
	want  string   // the token; "" when err is set
	err   error
	left  string   // of the query
	rest  []string // of the header
}

var (
	long    = strings.Repeat("x", MaxTokenBytes)
	tooLong = strings.Repeat("x", 1<<20)
)

var queryTests = []placeTest{
	{name: "alone", query: "token=secret", want: "secret", left: ""},
	{name: "first", query: "token=secret&a=1", want: "secret", left: "a=1"},
	{name: "last", query: "a=1&token=secret", want: "secret", left: "a=1"},
	{name: "in the middle", query: "a=%20+b&token=secret&c", want: "secret", left: "a=%20+b&c"},
	{name: "empty pairs stay", query: "&&token=secret&&", want: "secret", left: "&&&"},
	{name: "escaped", query: "token=a%2Fb%3d", want: "a/b=", left: ""},
	{name: "the name encoded", query: "%74oken=secret&%61=1", want: "secret", left: "%61=1"},
	{name: "the name all encoded", query: "%74%6F%6b%65%6E=secret", want: "secret", left: ""},
	{name: "in capitals", query: "Token=secret", err: ErrMissing, left: "Token=secret"},
	{name: "encoded twice", query: "%2574oken=secret", err: ErrMissing, left: "%2574oken=secret"},
	{name: "a name with a bad escape", query: "%7oken=secret", err: ErrMissing, left: "%7oken=secret"},
	{name: "another parameter's bad escape", query: "a=%zz&token=secret", want: "secret", left: "a=%zz"},
	{name: "a semicolon separates nothing", query: "a=1;token=secret", err: ErrMissing, left: "a=1;token=secret"},
	{name: "a semicolon in the token", query: "token=a;b=c", want: "a;b=c", left: ""},
	{name: "equals sign in the token", query: "token=c2VjcmV0==", want: "c2VjcmV0==", left: ""},
	{name: "twice the same", query: "token=secret&a&token=secret", want: "secret", left: "a"},
	{name: "twice the same, encoded", query: "token=secret&%74oken=%73ecret", want: "secret", left: ""},
	{name: "two tokens", query: "token=secret&token=other", err: ErrConflict, left: ""},
	{name: "no value", query: "token", err: ErrMissing, left: ""},
	{name: "an empty value", query: "token=&a=1", err: ErrMissing, left: "a=1"},
	{name: "an empty value beside one", query: "token=&token=secret", want: "secret", left: ""},
	{name: "bad escape", query: "token=%zz", err: errEscapes, left: ""},
	{name: "half an escape", query: "token=secret%2", err: errEscapes, left: ""},
	{name: "a plus is a space", query: "token=a+b", err: errBytes, left: ""},
	{name: "control characters", query: "token=a%0d%0aX-Auth-Subject:%20root", err: errBytes, left: ""},
	{name: "a NUL", query: "token=secret%00", err: errBytes, left: ""},
	{name: "not ASCII", query: "token=%C3%A9", err: errBytes, left: ""},
	{name: "as long as may be", query: "token=" + long, want: long, left: ""},
	{name: "as long as may be, escaped", query: "token=" + strings.Repeat("%78", MaxTokenBytes), want: long, left: ""},
	{name: "a byte too long", query: "token=x" + long, err: errLong, left: ""},
	{name: "a token of 1 MiB", query: "a=1&token=" + tooLong, err: errLong, left: "a=1"},
	{name: "a name of 1 MiB", query: strings.Repeat("%74", 1<<18) + "=secret", err: ErrMissing, left: strings.Repeat("%74", 1<<18) + "=secret"},
}

var headerTests = []placeTest{
	{name: "bearer", lines: []string{"Authorization: Bearer secret"}, want: "secret"},
	{name: "scheme in any case", lines: []string{"authorization: bEARER  secret "}, want: "secret"},
	{name: "another scheme stays", lines: []string{"Authorization: Basic c2VjcmV0"}, err: ErrMissing, rest: []string{"Authorization: Basic c2VjcmV0"}},
	{name: "a scheme that begins alike", lines: []string{"Authorization: Bearers secret"}, err: ErrMissing, rest: []string{"Authorization: Bearers secret"}},
	{name: "no scheme", lines: []string{"Authorization: secret"}, err: ErrMissing, rest: []string{"Authorization: secret"}},
	{name: "no token", lines: []string{"Authorization: Bearer"}, err: ErrMissing},
	{name: "two words", lines: []string{"Authorization: Bearer secret other"}, err: errBytes},
	{name: "two lines, one token", lines: []string{"Authorization: Bearer secret", "Authorization: Bearer secret"}, want: "secret"},
	{name: "two lines, two tokens", lines: []string{"Authorization: Bearer secret", "Authorization: Bearer other"}, err: ErrConflict},
	{name: "beside another scheme", lines: []string{"Authorization: Basic eA==", "Authorization: Bearer secret"}, want: "secret", rest: []string{"Authorization: Basic eA=="}},
	{name: "another header", lines: []string{"X-Token: secret", "X-Tokens: 1"}, want: "secret", rest: []string{"X-Tokens: 1"}},
	{name: "what servers take for it", lines: []string{"X-Token: secret", "X_Token: other", "x.token: other"}, want: "secret"},
	{name: "what servers take for it alone", lines: []string{"X_Token: secret"}, err: ErrMissing},
	{name: "another header has no scheme", lines: []string{"X-Token: Bearer secret"}, err: errBytes},
	{name: "control characters in the header", lines: []string{"X-Token: sec\x01ret"}, err: errBytes},
	{name: "1 MiB in the header", lines: []string{"Authorization: Bearer " + tooLong}, err: errLong},
}

var cookieTests = []placeTest{
	{name: "alone", lines: []string{"Cookie: session=secret"}, want: "secret"},
	{name: "first", lines: []string{"Cookie: session=secret; a=1"}, want: "secret", rest: []string{"Cookie: a=1"}},
	{name: "cookie among cookies", lines: []string{`Cookie: a="1"; session=secret;b=%3B; c`}, want: "secret", rest: []string{`Cookie: a="1";b=%3B; c`}},
	{name: "last", lines: []string{"Cookie: a=1; session=secret"}, want: "secret", rest: []string{"Cookie: a=1"}},
	{name: "several lines", lines: []string{"Cookie: a=1", "Cookie: session=secret", "Cookie: b=2; c=3"}, want: "secret", rest: []string{"Cookie: a=1", "Cookie: b=2; c=3"}},
	{name: "quoted", lines: []string{`Cookie: session="secret"`}, want: "secret"},
	{name: "in capitals", lines: []string{"Cookie: Session=secret"}, err: ErrMissing, rest: []string{"Cookie: Session=secret"}},
	{name: "a longer name", lines: []string{"Cookie: xsession=secret; session2=secret"}, err: ErrMissing, rest: []string{"Cookie: xsession=secret; session2=secret"}},
	{name: "in a value", lines: []string{"Cookie: a=session=secret"}, err: ErrMissing, rest: []string{"Cookie: a=session=secret"}},
	{name: "logged out", lines: []string{"Cookie: session=; a=1"}, err: ErrMissing, rest: []string{"Cookie: a=1"}},
	{name: "a cookie tossed by a sibling domain", lines: []string{"Cookie: session=secret; session=evil"}, err: ErrConflict},
	{name: "no ASCII", lines: []string{"Cookie: session=é"}, err: errBytes},
}

func TestPlaces(t *testing.T) {
	for kind, tests := range map[string][]placeTest{
		"query": queryTests, "header": headerTests, "cookie": cookieTests, "protocol": protocolTests,
	} {
		t.Run(kind, func(t *testing.T) {
			for _, test := range tests {
				t.Run(test.name, func(t *testing.T) { test.run(t) })
			}
		})
	}
}

func (test placeTest) run(t *testing.T) {
	t.Helper()
	a := newAuth(t, everyPlace...)
	r := upgrade(test.query, test.lines...)
	before := r.Header.Clone()
	c, err := a.Find(r)
	if c.Token != test.want || !errors.Is(err, test.err) {
		t.Errorf("Find: %.40q, %v; want %.40q, %v", c.Token, err, test.want, test.err)
	}
	if err != nil && strings.Contains(err.Error(), "secret") {
		t.Errorf("the error tells the token: %v", err)
	}
	upstream := maps.Clone(r.Header)
	left := a.StripToken(test.query, upstream)
	if left != test.left {
		t.Errorf("Strip leaves the query %.40q; want %.40q", left, test.left)
	}
	if want := upgrade("", test.rest...).Header; !maps.EqualFunc(upstream, want, slices.Equal) {
		t.Errorf("Strip leaves %.80q; want %.80q", upstream, want)
	}
	if !maps.EqualFunc(r.Header, before, slices.Equal) {
		t.Errorf("Strip wrote to the slices of the client's header")
	}
}

func TestTokenInTwoPlaces(t *testing.T) {
	show := map[string]func(r *http.Request, token string){
		"query":      func(r *http.Request, token string) { r.URL.RawQuery += "&token=" + token },
		"header":     func(r *http.Request, token string) { r.Header.Add("Authorization", "Bearer "+token) },
		"own header": func(r *http.Request, token string) { r.Header.Add("X-Token", token) },
		"cookie":     func(r *http.Request, token string) { r.Header.Add("Cookie", "session="+token) },
		"bearer":     func(r *http.Request, token string) { r.Header.Add(protocolHeader, "bearer, "+token) },
		"kubernetes": func(r *http.Request, token string) {
			encoded := base64.RawURLEncoding.EncodeToString([]byte(token))
			r.Header.Add(protocolHeader, "chat, "+kubernetesName+"."+encoded)
		},
	}
	a := newAuth(t, everyPlace...)
	for one := range show {
		for two := range show {
			if one == two {
				continue
			}
			t.Run(one+" and "+two, func(t *testing.T) {
				same := upgrade("")
				show[one](same, "secret")
				show[two](same, "secret")
				if c, err := a.Find(same); c.Token != "secret" || err != nil {
					t.Errorf("one token: %q, %v", c.Token, err)
				}
				different := upgrade("")
				show[one](different, "secret")
				show[two](different, "other")
				if c, err := a.Find(different); c != (Credential{}) || !errors.Is(err, ErrConflict) {
					t.Errorf("two tokens: %q, %v; want ErrConflict", c.Token, err)
				}
			})
		}
	}
}

func TestCheckToken(t *testing.T) {
	tests := []struct {
		name, token string
		want        error
	}{
		{"one byte", "!", nil},
		{"the whole range", "!\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~", nil},
		{"the longest", long, nil},
		{"empty", "", errEmpty},
		{"too long", long + "x", errLong},
		{"1 MiB", tooLong, errLong},
		{"space", "a b", errBytes},
		{"tab", "a\tb", errBytes},
		{"newline", "secret\n", errBytes},
		{"NUL", "\x00", errBytes},
		{"DEL", "a\x7f", errBytes},
		{"UTF-8", "é", errBytes},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := CheckToken(test.token); !errors.Is(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestCredentialHidesItsToken(t *testing.T) {
	c := Credential{Token: "secret"}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, c, &c, struct{ C Credential }{c})
	}
	encoded, err := json.Marshal(map[string]any{"credential": c})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(encoded)
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("asked", "credential", c)
	}
	for _, form := range []string{"secret", "736563726574"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the token is in %s", out.String())
		}
	}
}
