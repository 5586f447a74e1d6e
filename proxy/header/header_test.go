package header

import (
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

func TestCharacters(t *testing.T) {
	for c := range 256 {
		s := "a" + string([]byte{byte(c)}) + "b"
		visible := c > ' ' && c < 0x7f
		if got, want := IsToken(s), visible && !strings.ContainsRune(`"(),/:;<=>?@[\]{}`, rune(c)); got != want {
			t.Errorf("IsToken(%q): got %v, want %v", s, got, want)
		}
		if got, want := IsValue(s), visible || c == ' ' || c == '\t' || c >= 0x80; got != want {
			t.Errorf("IsValue(%q): got %v, want %v", s, got, want)
		}
	}
	if IsToken("") || !IsValue("") {
		t.Error("a token holds something, a value need not")
	}
}

func TestIsHost(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "app.example:8443": true, "a_b-c": true, "xn--caf-dma.example": true, "192.0.2.1": true, "192.0.2.1:80": true,
		"[2001:db8::1]": true, "[2001:db8::1]:80": true, "[fe80::1%25eth0]:80": true,
		"": false, " ": false, "a b": false, "a\r\n": false, "caf\u00e9": false, "http://a": false, "a/b": false, "a@b": false, `a\b`: false,
		"a?b": false, "a#b": false,
		// RFC 3986 has these in a registered name, but they make a list of it, or a command, for some.
		"a,b": false, "a;b": false, "a=b": false, "a'b": false, "a~b": false, "a!b": false, "a$b": false, "a&b": false, "a(b)": false, "a*b": false, "a+b": false,
	} {
		if got := IsHost(s); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

func TestEqualFold(t *testing.T) {
	for s, want := range map[string]bool{
		"websocket": true, "WebSocket": true, "websocke": false, "websoc\u212aet": false, "web\u017focket": false, "": false,
	} {
		if got := EqualFold(s, "websocket"); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

func TestElements(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []string
		want   []string
	}{
		{"none", nil, nil},
		{"empty", []string{""}, []string{""}},
		{"one", []string{"a"}, []string{"a"}},
		{"white space", []string{" a\t,b ", "\t"}, []string{"a", "b", ""}},
		{"not Unicode's", []string{"\u00a0a, b\v"}, []string{"\u00a0a", "b\v"}},
		{"two lines are one list", []string{"a, b", "c"}, []string{"a", "b", "c"}},
		{"empty elements", []string{",a,,b,"}, []string{"", "a", "", "b", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := slices.Collect(Elements(tt.values)); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			for range Elements(tt.values) {
				break // must be allowed
			}
		})
	}
}

func TestHasToken(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []string
		want   bool
	}{
		{"alone", []string{"upgrade"}, true},
		{"in other case", []string{"Upgrade"}, true},
		{"Firefox", []string{"keep-alive, Upgrade"}, true},
		{"in the second line", []string{"keep-alive", "close ,\tupgrade\t"}, true},
		{"none", nil, false},
		{"part of another", []string{"upgraded, not-upgrade, up grade"}, false},
		{"quoted", []string{`"upgrade"`}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := HasToken(tt.values, "upgrade"); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestExtensionName(t *testing.T) {
	for _, tt := range []struct{ name, element, want string }{
		{"alone", "a", "a"},
		{"Chrome's", "permessage-deflate; client_max_window_bits", "permessage-deflate"},
		{"values", `a;b=10; c="d";e`, "a"},
		{"white space", "\ta ;\tb ", "a"},
		{"white space around =", `a; b = 10; c	=	"d"; e =f; g= h`, "a"},
		{"empty", "", ""},
		{"no name", ";a", ""},
		{"a name of two words", "a b", ""},
		{"empty parameter", "a;", ""},
		{"parameter without a name", "a; =1", ""},
		{"empty value", "a; b=", ""},
		{"blank value", "a; b= ; c", ""},
		{"quotes with nothing in them", `a; b=""`, ""},
		{"a lone quote", `a; b="`, ""},
		{"open quotes", `a; b="c`, ""},
		{"quotes within", `a; b=c"d"`, ""},
		{"quoted space", `a; b="c d"`, ""},
		{"quoted semicolon", `a; b="c;d"`, ""},
		{"quoted pair", `a; b="c\d"`, ""},
		{"two values", "a; b=c=d", ""},
		{"not ASCII", "\u00e9", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ExtensionName(tt.element); got != tt.want {
				t.Errorf("%q: got %q, want %q", tt.element, got, tt.want)
			}
		})
	}
}

func TestKindOf(t *testing.T) {
	for name, want := range map[string]Kind{
		"Connection": Hop, "TE": Hop, "keep_alive": Hop, "PROXY_CONNECTION": Hop, "Proxy": Hop, "HTTP2.Settings": Hop,
		"Content-Length": Framing, "Content_Length": Framing, "transfer.encoding": Framing, "Expect": Framing,
		"X-Forwarded-For": Address, "x_forwarded.for": Address, "X-Real-IP": Address, "Forwarded": Address, "X-Original-Forwarded-For": Address,
		"Forwarded-For": Address, "X-Remote-IP": Address, "X-Remote-Addr": Address, "X-Azure-ClientIP": Address, "X-AppEngine-User-IP": Address,
		"DO-Connecting-IP": Address, "HTTP_X_FORWARDED_FOR": Address, "CF-Connecting-IPv6": Address, "X-Forwarded": Address,
		"Front-End-Https": Scheme, "X-Forwarded-Proto": Scheme, "x_scheme": Scheme,
		"X-Forwarded-Host": Target, "X-Original-URL": Target, "X_Original_Anything": Target, "X-Rewrite-URL": Target,
		"X-Forwarded-Prefix": Forwarded, "X.Forwarded.User": Forwarded,
		"Sec-WebSocket-Key": Handshake, "Sec_WebSocket_Foo": Handshake,
		"Portcullis-Session": Own, "portcullis_via": Own,
		"": EndToEnd, "-": EndToEnd, "Cookie": EndToEnd, "Origin": EndToEnd, "Content-Type": EndToEnd, "X-Auth-Subject": EndToEnd,
		"X-Forwarded-": EndToEnd, "Portcullis": EndToEnd, "Sec-WebSocket": EndToEnd, "XForwardedFor": EndToEnd,
	} {
		if got := KindOf(name); got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
}

// A name in the table that is not as net/http spells it would never be found.
func TestNamesAreCanonical(t *testing.T) {
	seen := map[string]bool{}
	for kind, list := range names {
		for _, name := range list {
			if canonical := textproto.CanonicalMIMEHeaderKey(name); canonical != name {
				t.Errorf("%s: want %s", name, canonical)
			}
			if seen[name] {
				t.Errorf("%s has two places", name)
			}
			seen[name] = true
			if got := KindOf(name); got != kind {
				t.Errorf("%s: KindOf is %d, and it stands with %d", name, got, kind)
			}
		}
	}
}

// FuzzFold: Fold and Same draw the same line, and a name that is folded stays.
func FuzzFold(f *testing.F) {
	f.Add("X_Auth.Subject", "x-auth-subject")
	f.Add("X-Auth-Subject", "XAuthSubject")
	f.Add("\u212a", "k")
	f.Fuzz(func(t *testing.T, a, b string) {
		folded := Fold(a)
		if Fold(folded) != folded {
			t.Errorf("%q folds to %q, and that to %q", a, folded, Fold(folded))
		}
		if (folded == Fold(b)) != Same(a, b) {
			t.Errorf("%q and %q: folded %q and %q, but Same is %v", a, b, folded, Fold(b), Same(a, b))
		}
	})
}

func BenchmarkKindOf(b *testing.B) {
	for name, header := range map[string]string{"usual": "Accept-Language", "folded": "X_Forwarded_For"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				KindOf(header)
			}
		})
	}
}
