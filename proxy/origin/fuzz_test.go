package origin

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzAllows asks net/url for a second opinion: where a list of one origin and one wildcard lets a value pass, that value
// must be a URL of scheme and host alone, whose host is the one or below the other.
func FuzzAllows(f *testing.F) {
	for _, tt := range allowTests {
		f.Add(tt.origin)
	}
	l := newList(f, "https://app.example.com", "https://*.example.org")
	f.Fuzz(func(t *testing.T, value string) {
		if !l.Allows([]string{value}) {
			return
		}
		u, err := url.Parse(value)
		if err != nil {
			t.Fatalf("%q is allowed, but is no URL: %v", value, err)
		}
		host := strings.ToLower(u.Hostname())
		if host != "app.example.com" && !strings.HasSuffix(host, ".example.org") {
			t.Errorf("%q is allowed with host %q", value, host)
		}
		if rest := *u; u.Scheme != "https" || u.Port() != "" && u.Port() != "443" || rest != (url.URL{Scheme: u.Scheme, Host: u.Host}) {
			t.Errorf("%q is allowed, but is more than an origin of https", value)
		}
	})
}

// FuzzNew checks that every accepted pattern means what it says: an origin allows itself and no neighbour, a wildcard
// what is below its domain and not the domain. No pattern is both.
func FuzzNew(f *testing.F) {
	for _, s := range append(listed, "null", "*", "https://*", "https://*.com", "https://*.co.uk", "http://*.[::1]") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		l, err := New(Config{Origins: []string{pattern}})
		if err != nil {
			return
		}
		if l.allowAll {
			t.Fatalf("%q allows any origin", pattern)
		}
		self := pattern
		if !strings.Contains(self, "*") {
			if !l.Allows([]string{self}) {
				t.Errorf("%q does not allow itself", pattern)
			}
			if below := strings.Replace(self, "://", "://x.", 1); below != self && l.Allows([]string{below}) {
				t.Errorf("%q allows %q", pattern, below)
			}
			return
		}
		domain := strings.Replace(self, "*.", "", 1)
		if l.Allows([]string{self}) || l.Allows([]string{domain}) {
			t.Errorf("%q allows itself or its own domain", pattern)
		}
		below := strings.Replace(self, "*.", "x.", 1)
		if o, wrong := parse(below); wrong == "" && !l.Allows([]string{below}) {
			t.Errorf("%q does not allow %q (%v)", pattern, below, o)
		}
	})
}

// FuzzParse checks that an origin has one form: what was read, written out again, is read as the same.
func FuzzParse(f *testing.F) {
	for _, tt := range allowTests {
		f.Add(tt.origin)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, wrong := parse(s)
		if wrong != "" {
			if o != (origin{}) {
				t.Errorf("%q %s, but gives %v", s, wrong, o)
			}
			return
		}
		again, wrong := parse(o.String())
		if again != o {
			t.Errorf("%q is %v, which is read as %v (%s)", s, o, again, wrong)
		}
	})
}
