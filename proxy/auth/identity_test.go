package auth

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSpoofedIdentityHeaders(t *testing.T) {
	a := newFrom(t, Config{Mode: "none", Forward: []string{"sub:X-Auth-Subject", "sub:X-User"}})
	spoofed := []string{
		"X-Auth-Subject", "x-auth-subject", "X-AUTH-SUBJECT",
		"X_Auth_Subject", "X-Auth_Subject", "x_auth_subject",
		"X.Auth.Subject", "X.Auth-Subject", "x-auth.subject",
		"X!Auth~Subject", "X-User", "X_USER",
	}
	h := http.Header{}
	for _, name := range spoofed {
		h[name] = []string{"root", "admin"} // as it came: Set would write the canonical name
	}
	kept := http.Header{
		"X-Auth-Subjects": {"1"}, "X-Auth-Subjec": {"2"}, "Xauthsubject": {"3"}, "X-Auth-Subject-": {"4"}, "X-User-Agent": {"5"},
	}
	maps.Copy(h, kept)
	a.StripIdentity(h)
	if !maps.EqualFunc(h, kept, slices.Equal) {
		t.Errorf("left: %q\nwant: %q", h, kept)
	}
}

func TestSet(t *testing.T) {
	a := newFrom(t, Config{Mode: "none", Forward: []string{"sub:x-auth-subject", "sub:X-User"}})
	tests := []struct {
		name     string
		decision Decision
		want     http.Header
	}{
		{"a subject", Decision{Subject: "alice"}, http.Header{"X-Auth-Subject": {"alice"}, "X-User": {"alice"}}},
		{"a pseudonym", Decision{Subject: "hmac-x", Pseudonym: true}, http.Header{}},
		{"nobody", Decision{}, http.Header{}},
		{"a claim that is not asked for", Decision{Claims: map[string]string{"sub": "root", "email": "a@b"}}, http.Header{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{}
			a.SetIdentity(h, test.decision)
			if !maps.EqualFunc(h, test.want, slices.Equal) {
				t.Errorf("got %q, want %q", h, test.want)
			}
		})
	}
	h := http.Header{"X-User": {"root", "admin"}}
	a.SetIdentity(h, Decision{Subject: "alice"})
	if got := h["X-User"]; !slices.Equal(got, []string{"alice"}) {
		t.Errorf("over one that is there: %q; want ours alone", got)
	}
}

func TestCheckSubject(t *testing.T) {
	tests := []struct {
		name, subject string
		ok            bool
	}{
		{"a name", "alice", true},
		{"spaces and letters of the world", "Élodie 山田", true},
		{"256 bytes", strings.Repeat("x", 256), true},
		{"257 bytes", strings.Repeat("x", 257), false},
		{"newline", "alice\nlevel=ERROR", false},
		{"escape", "\x1b[2Jalice", false},
		{"DEL", "alice\x7f", false},
		{"C1 control", "alice\u0085", false},
		{"broken UTF-8", "alice\xff", false},
		{"line separator", "alice\u2028level=ERROR", false},
		{"paragraph separator", "alice\u2029", false},
		{"right-to-left override", "\u202emoor", false},
		{"isolate", "alice\u2067", false},
		{"right-to-left mark", "alice\u200f", false},
		{"Arabic letter mark", "\u061calice", false},
		{"right to left by its letters alone", "\u05d0\u05dc\u05d9\u05e1", true},
		{"a joiner, as Persian names have it", "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if err := checkSubject(test.subject); (err == nil) != test.ok {
				t.Errorf("got %v, want ok %t", err, test.ok)
			}
		})
	}
}

func TestPseudonyms(t *testing.T) {
	one, other := newTokenHash(""), newTokenHash("")
	alice := one.pseudonym("alice's token")
	if got := one.pseudonym("alice's token"); got != alice {
		t.Errorf("%s, then %s for one token", alice, got)
	}
	if one.pseudonym("bob's token") == alice || other.pseudonym("alice's token") == alice {
		t.Error("another token or another process has the same pseudonym")
	}
	if len(alice) != len("hmac-")+22 {
		t.Errorf("%s: want 22 characters of 128 bits", alice)
	}
}

func TestReservedHeaders(t *testing.T) {
	for name, want := range map[string]bool{
		"upgrade": true, "Sec-WebSocket-Key": true, "sec_websocket_foo": true, "X-Forwarded-For": true, "x.forwarded.user": true,
		"cookie": true, "content_length": true, "Portcullis-Via": true, "True-Client-IP": true,
		"Authorization": false, "X-Auth-Subject": false, "Sec-WebSocket": false, "X-Forward": false,
	} {
		if got := reserved(name); got != want {
			t.Errorf("%s: %t, want %t", name, got, want)
		}
	}
}

func BenchmarkCleanSet(b *testing.B) {
	a := newAuth(b, "query:token")
	h := http.Header{
		"Accept-Language": {"en"}, "Cache-Control": {"no-cache"}, "Cookie": {"a=1"}, "Origin": {"https://app.example"},
		"Pragma": {"no-cache"}, "Sec-Websocket-Protocol": {"chat"}, "User-Agent": {"Mozilla/5.0"},
	}
	d := Decision{Subject: "alice", Until: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		a.StripIdentity(h)
		a.SetIdentity(h, d)
	}
}
