package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

// parsed is the claim "c" of an object.
func parsed(t testing.TB, claim string) claims {
	t.Helper()
	c, err := parseClaims([]byte(`{"c":` + claim + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHeaderValue(t *testing.T) {
	tests := []struct {
		name, claim string
		want        string // "": not told
	}{
		{"a string", `"alice"`, "alice"},
		{"letters of the world", `"山田"`, "山田"},
		{"a number", `7`, "7"},
		{"a number of many digits", `12345678901234567890`, "12345678901234567890"},
		{"a fraction as it was written", `1.50`, "1.50"},
		{"booleans", `[true,false]`, "true,false"},
		{"a list", `["a","b"]`, "a,b"},
		{"a string with commas", `"a,b"`, "a,b"},
		{"nothing", `""`, ""},
		{"an empty list", `[]`, ""},
		{"null", `null`, ""},
		{"an object", `{"a":1}`, ""},
		{"a list in a list", `[["a"]]`, ""},
		{"a line break", `"a\r\nX-Admin: 1"`, ""},
		{"a NUL", `"a\u0000"`, ""},
		{"a C1 control", `"a\u0085"`, ""},
		{"space at the end", `"root "`, ""},
		{"space at the start in a list", `["a"," root"]`, ""},
		{"a comma in a list makes two of one", `["a,root"]`, ""},
		{"an empty element", `["a",""]`, ""},
		{"too long", `"` + strings.Repeat("x", maxClaimBytes+1) + `"`, ""},
		{"too long together", `["` + strings.Repeat(`x","`, maxClaimBytes) + `x"]`, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := headerValue(parsed(t, test.claim)["c"])
			if ok != (test.want != "") || ok && got != test.want {
				t.Errorf("%q, %t; want %q", got, ok, test.want)
			}
		})
	}
}

func TestRequirement(t *testing.T) {
	tests := []struct {
		name, entry, claims string
		met                 bool
	}{
		{"a scope among words", "scope:chat", `{"scope":"mail chat"}`, true},
		{"a scope in a list", "scope:chat", `{"scope":["mail","chat"]}`, true},
		{"a scope in scp", "scope:chat", `{"scp":"chat"}`, true},
		{"part of a scope", "scope:chat", `{"scope":"chat:read chats"}`, false},
		{"a scope with a colon", "scope:chat:read", `{"scope":"chat:read"}`, true},
		{"no scope", "scope:chat", `{}`, false},
		{"scopes as an object", "scope:chat", `{"scope":{"chat":true}}`, false},
		{"a claim", "role=admin", `{"role":"admin"}`, true},
		{"a claim in a list", "role=admin", `{"role":["user","admin"]}`, true},
		{"words are no list in a claim", "role=admin", `{"role":"user admin"}`, false},
		{"another case", "role=admin", `{"role":"Admin"}`, false},
		{"a boolean", "email_verified=true", `{"email_verified":true}`, true},
		{"a number", "level=3", `{"level":3}`, true},
		{"a value with =", "a=b=c", `{"a":"b=c"}`, true},
		{"no claim", "role=admin", `{}`, false},
		{"null", "role=null", `{"role":null}`, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, err := parseRequirement(test.entry)
			if err != nil {
				t.Fatal(err)
			}
			c, err := parseClaims([]byte(test.claims))
			if err != nil {
				t.Fatal(err)
			}
			if got := r.met(c); got != test.met {
				t.Errorf("met: %t, want %t", got, test.met)
			}
		})
	}
}

var objectTests = []struct {
	name, text string
	want       error
}{
	{"empty", `{}`, nil},
	{"nested", ` {"a":{"a":[1,{"a":null}]},"b":"a"} `, nil},
	{"names that differ in case", `{"a":1,"A":2}`, nil},
	{"a name as a value", `{"a":"a","b":["a","a"]}`, nil},
	{"twice", `{"a":1,"a":1}`, errDuplicate},
	{"twice by an escape", `{"a":1,"\u0061":1}`, errDuplicate},
	{"twice in a list of objects", `{"l":[{"a":1},{"b":1,"b":2}]}`, errDuplicate},
	{"the same name in two objects", `{"l":[{"a":1},{"a":2}]}`, nil},
	{"as deep as may be", `{"a":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `}`, nil},
	{"too deep", `{"a":` + strings.Repeat("[", 16) + strings.Repeat("]", 16) + `}`, errTooDeep},
	{"a list", `[]`, errNoObject},
	{"nothing", ``, errNoObject},
	{"no end", `{"a":1`, errNoObject},
	{"no end of a list", `{"a":[1`, errNoObject},
	{"no value", `{"a":}`, errNoObject},
	{"no name", `{1:1}`, errNoObject},
	{"a name alone", `{"a"`, errNoObject},
	{"something after", `{} {}`, errTrailing},
	{"broken UTF-8", "{\"a\":\"\xff\"}", errNotUnicode},
}

func TestCheckObject(t *testing.T) {
	for _, test := range objectTests {
		t.Run(test.name, func(t *testing.T) {
			if got := checkObject([]byte(test.text)); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

// FuzzCheckObject: decoding keeps one of two members of a name, so what comes
// of an object without such has as many tokens as it.
func FuzzCheckObject(f *testing.F) {
	for _, test := range objectTests {
		f.Add([]byte(test.text))
	}
	count := func(b []byte) (n int) {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		for {
			if _, err := d.Token(); err != nil {
				return n
			}
			n++
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		err := checkObject(text)
		c, decodeErr := parseClaims(text)
		if (err == nil) != (decodeErr == nil) {
			t.Fatalf("checkObject: %v, parseClaims: %v", err, decodeErr)
		}
		if err != nil {
			return
		}
		if got, want := count(must(json.Marshal(c))), count(text); got != want {
			t.Errorf("%s has %d tokens, decoded %d", text, want, got)
		}
		for _, claim := range c {
			if value, ok := headerValue(claim); ok && (value == "" || !fitsHeader(value)) {
				t.Errorf("%q is no value of a header", value)
			}
		}
	})
}

// FuzzCheckJWT: what passes is three parts that decode to two objects, and no
// error quotes the token.
func FuzzCheckJWT(f *testing.F) {
	f.Add(rawJWT(hsHeader, hsPayload))
	f.Add(rawJWT(`{"alg":"HS256","crit":[]}`, hsPayload))
	f.Add(rawJWT(hsHeader, `{"a":1,"a":2}`))
	f.Add("..")
	f.Add(secret)
	f.Fuzz(func(t *testing.T, token string) {
		err := checkJWT(token)
		parts := strings.Split(token, ".")
		if err != nil {
			for _, part := range parts {
				if len(part) > 20 && strings.Contains(err.Error(), part) {
					t.Errorf("%v quotes the token", err)
				}
			}
			return
		}
		if len(parts) != 3 {
			t.Fatalf("%q passes", token)
		}
		for _, part := range parts[:2] {
			var c claims
			text, err := base64.RawURLEncoding.DecodeString(part)
			if err != nil || json.Unmarshal(text, &c) != nil || c == nil {
				t.Errorf("%q passes with %q in it, %v", token, text, err)
			}
		}
	})
}
