package origin

import (
	"fmt"
	"strings"
	"testing"
)

func newList(t testing.TB, patterns ...string) *List {
	t.Helper()
	l, err := New(Config{Origins: patterns})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// listed are the patterns behind allowTests and the fuzz tests.
var listed = []string{
	"https://app.example.com",
	"https://*.example.org",
	"https://*.ports.example:8443",
	"http://localhost:5173",
	"http://192.0.2.1",
	"http://[2001:db8::1]:8080",
	"https://default.example:443",
	"capacitor://localhost",
	"https://xn--bcher-kva.example",
}

// allowTests also seed the fuzz tests.
var allowTests = []struct {
	name   string
	origin string
	want   bool
}{
	{"listed", "https://app.example.com", true},
	{"host in capitals", "https://APP.Example.COM", true},
	{"scheme in capitals", "HTTPS://app.example.com", true},
	{"default port written out", "https://app.example.com:443", true},
	{"default port in the list", "https://default.example", true},
	{"listed port", "http://localhost:5173", true},
	{"IPv4", "http://192.0.2.1", true},
	{"IPv6", "http://[2001:db8::1]:8080", true},
	{"IPv6 not in shortest form", "http://[2001:DB8:0::1]:8080", true},
	{"scheme of an app", "capacitor://localhost", true},
	{"international name", "https://xn--bcher-kva.example", true},
	{"subdomain", "https://a.example.org", true},
	{"deep subdomain", "https://a.b-c.d_e.example.org", true},
	{"subdomain and port", "https://a.ports.example:8443", true},

	{"other scheme", "http://app.example.com", false},
	{"other port", "https://app.example.com:8443", false},
	{"default port of another scheme", "https://app.example.com:80", false},
	{"port missing", "http://localhost", false},
	{"parent", "https://example.com", false},
	{"subdomain without wildcard", "https://x.app.example.com", false},
	{"wildcard's own domain", "https://example.org", false},
	{"wildcard, other scheme", "http://a.example.org", false},
	{"wildcard, other port", "https://a.example.org:8443", false},
	{"wildcard, port missing", "https://a.ports.example", false},
	{"null, not listed", "null", false},
	{"other address", "http://192.0.2.2", false},

	{"empty", "", false},
	{"no scheme", "app.example.com", false},
	{"empty scheme", "://app.example.com", false},
	{"relative to a scheme", "//app.example.com", false},
	{"slash at the end", "https://app.example.com/", false},
	{"path", "https://app.example.com/x", false},
	{"query", "https://app.example.com?x", false},
	{"fragment", "https://app.example.com#x", false},
	{"user", "https://user@app.example.com", false},
	{"trailing dot", "https://app.example.com.", false},
	{"trailing dot below a wildcard", "https://a.example.org.", false},
	{"empty port", "https://app.example.com:", false},
	{"port zero", "http://localhost:0", false},
	{"port with leading zero", "http://localhost:05173", false},
	{"port with sign", "http://localhost:+5173", false},
	{"port that overflows", "http://localhost:70709", false}, // 5173 modulo 65536
	{"IPv6 without brackets", "http://2001:db8::1:8080", false},
	{"IPv6 with zone", "http://[2001:db8::1%eth0]:8080", false},
	{"IPv6 unterminated", "http://[2001:db8::1:8080", false},
	{"IPv6 and more", "http://[2001:db8::1]x:8080", false},
	{"IPv4 in hexadecimal", "http://0xc0000201", false},
	{"IPv4 with leading zero", "http://192.0.2.01", false},
}

func TestAllows(t *testing.T) {
	l := newList(t, listed...)
	if l.allowAll {
		t.Error("a list allows any origin")
	}
	for _, tt := range allowTests {
		t.Run(tt.name, func(t *testing.T) {
			if got := l.Allows([]string{tt.origin}); got != tt.want {
				t.Errorf("Allows(%q) = %t, want %t", tt.origin, got, tt.want)
			}
		})
	}
}

func TestCountOfHeaders(t *testing.T) {
	const good = "https://app.example.com"
	for _, tt := range []struct {
		name   string
		list   *List
		values []string
		want   bool
	}{
		{"none: not a browser", newList(t, listed...), nil, true},
		{"none, no list", newList(t), nil, true},
		{"two", newList(t, listed...), []string{good, "https://evil.example"}, false},
		{"twice the same", newList(t, listed...), []string{good, good}, false},
		{"two, no list", newList(t), []string{good, good}, false},
		{"two in one value", newList(t, listed...), []string{good + " " + good}, false},
		{"two in one value, comma", newList(t, listed...), []string{good + ", " + good}, false},
		{"one, no list", newList(t), []string{"https://evil.example"}, true},
		{"nonsense, no list", newList(t), []string{"nonsense"}, true},
		{"zero List", new(List), []string{good}, false},
		{"zero List, null", new(List), []string{"null"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.list.Allows(tt.values); got != tt.want {
				t.Errorf("Allows(%q) = %t, want %t", tt.values, got, tt.want)
			}
		})
	}
}

func TestAny(t *testing.T) {
	if !newList(t).allowAll {
		t.Error("an empty ORIGINS does not allow any origin")
	}
	if new(List).allowAll {
		t.Error("the zero List allows any origin")
	}
}

func TestNull(t *testing.T) {
	l := newList(t, "null", "https://app.example.com")
	for origin, want := range map[string]bool{"null": true, "NULL": false, "null ": false, "null://null": false, "https://app.example.com": true} {
		if got := l.Allows([]string{origin}); got != want {
			t.Errorf("Allows(%q) = %t, want %t", origin, got, want)
		}
	}
}

// Cross-site WebSocket hijacking past a list that is compared as text: each of these has an allowed origin as a
// prefix, a suffix or a part, or would under a pattern whose dots match anything. The attacker owns evil.example.
func TestLookalikesAreRefused(t *testing.T) {
	l := newList(t, listed...)
	for _, origin := range []string{
		"https://app.example.com.evil.example",
		"https://app.example.com-evil.example",
		"https://app.example.comevil",
		"https://evil-app.example.com",
		"https://appxexample.com",
		"https://evil.example/https://app.example.com",
		"https://evil.example?https://app.example.com",
		"https://evil.example#.example.org",
		"https://evil.example/.example.org",
		`https://evil.example\.example.org`,
		"https://app.example.com@evil.example",
		"https://app.example.com:443@evil.example",
		"https://app.example.com:443.evil.example",
		"https://evil.example:443.example.org",
		"https://evil.example,https://app.example.com",
		"https://evilexample.org",
		"https://.example.org",
		"https://..example.org",
		"https://*.example.org",
		"https://evil.example%2eexample.org",
		"https://evil.example%00.example.org",
		"https://evil.example\x00.example.org",
		"https://evil.example\r\n.example.org",
		"https://evil.example .example.org",
		"https://evil.example&.example.org", // characters that DNS serves and some browsers have let through
		"https://evil.example`.example.org",
		"https://evil.example{.example.org",
		"https://[evil].example.org",
		"https://evil.example。example.org", // an ideographic full stop is a dot to IDNA
		"https://app.example.com\u200b",
		"https://ａpp.example.com",
		"https://app.example.com\u212a", // the Kelvin sign folds to k
		"httpſ://app.example.com",       // and the long s to s
		" https://app.example.com",
		"https://app.example.com\t",
		"https:/app.example.com",
		"https:app.example.com",
		"https:///app.example.com",
		"http://[::ffff:192.0.2.1]",
	} {
		if l.Allows([]string{origin}) {
			t.Errorf("%q is allowed", origin)
		}
	}
}

func TestHugeOriginIsBounded(t *testing.T) {
	l := newList(t, listed...)
	for name, origin := range map[string]string{
		"labels": "https://" + strings.Repeat("a.", 1<<19) + "example.org",
		"label":  "https://" + strings.Repeat("a", 1<<20) + ".example.org",
		"scheme": strings.Repeat("a", 1<<20) + "://app.example.com",
		"port":   "https://app.example.com:" + strings.Repeat("4", 1<<20),
		"bare":   strings.Repeat("A", 1<<20),
		"long":   "https://" + strings.Repeat("a.", 122) + "example.org", // 255 bytes of host
	} {
		if l.Allows([]string{origin}) {
			t.Errorf("%s: %d bytes are allowed", name, len(origin))
		}
		if n := testing.AllocsPerRun(10, func() { l.Allows([]string{origin}) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
	if longest := "https://" + strings.Repeat("a.", 121) + "example.org"; !l.Allows([]string{longest}) { // 253
		t.Errorf("the longest host name is refused")
	}
}

func TestNew(t *testing.T) {
	for _, tt := range []struct{ name, pattern, wrong string }{
		{"empty", "", "has no scheme"},
		{"any", "*", "would allow every web page"},
		{"blank", " https://app.example.com", "has a blank or a semicolon (a comma goes between two entries)"},
		{"two in one", "https://a.example https://b.example", "has a blank or a semicolon (a comma goes between two entries)"},
		{"two by semicolon", "https://a.example;https://b.example", "has a blank or a semicolon (a comma goes between two entries)"},
		{"any host", "https://*", `has a "*" that is not the whole first label`},
		{"any host, port", "https://*:8443", `has a "*" that is not the whole first label`},
		{"any scheme", "*://app.example.com", `has a "*" that is not the whole first label`},
		{"any port", "http://localhost:*", `has a "*" that is not the whole first label`},
		{"inside a label", "https://app-*.example.com", `has a "*" that is not the whole first label`},
		{"without a dot", "https://*example.com", `has a "*" that is not the whole first label`},
		{"in the middle", "https://app.*.example.com", `has a "*" that is not the whole first label`},
		{"twice", "https://*.*.example.com", `has a "*" that is not the whole first label`},
		{"wildcard alone", "https://*.", "has no host"},
		{"top-level domain", "https://*.com", `allows everyone who gets a name under "com"`},
		{"registry", "https://*.co.uk", `allows everyone who gets a name under "co.uk"`},
		{"registry in capitals", "https://*.CO.UK", `allows everyone who gets a name under "co.uk"`},
		{"hoster", "https://*.github.io", `allows everyone who gets a name under "github.io"`},
		{"one label", "http://*.localhost", `allows everyone who gets a name under "localhost"`},
		{"wildcard on IPv4", "http://*.192.0.2.1", "has a wildcard on an IP address"},
		{"wildcard on half an IPv4", "http://*.0.2.1", "has a malformed IPv4 address"},
		{"wildcard on IPv6", "http://*.[2001:db8::1]", "has a wildcard on an IP address"},
		{"no scheme", "app.example.com", "has no scheme"},
		{"WebSocket", "wss://app.example.com", "has the WebSocket's scheme, but an origin is the page's"},
		{"file", "file://", "has no host"},
		{"slash", "https://app.example.com/", "has a path or query (a slash at the end is a path)"},
		{"path", "https://app.example.com/chat", "has a path or query (a slash at the end is a path)"},
		{"user", "https://me@app.example.com", "has user information"},
		{"bad scheme", "1https://app.example.com", "has a malformed scheme"},
		{"bad port", "https://app.example.com:x", "has a malformed port"},
		{"empty port", "https://app.example.com:", "has a malformed port"},
		{"international", "https://bücher.example", "has a malformed host name (an international one is written in ASCII, as xn--)"},
		{"trailing dot", "https://app.example.com.", "has a malformed host name (an international one is written in ASCII, as xn--)"},
		{"long host", "https://" + strings.Repeat("a.", 130) + "example", "has a host name that is too long"},
		{"long", "https://" + strings.Repeat("a", 400), "is longer than any origin"},
		{"IPv4", "http://192.0.2", "has a malformed IPv4 address"},
		{"IPv6", "http://[2001:db8::1", "has a malformed IPv6 address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(Config{Origins: []string{"https://good.example", tt.pattern}})
			want := fmt.Sprintf("ORIGINS: %q %s; want scheme://host[:port], scheme://*.domain[:port] or null, or nothing at all for any origin", tt.pattern, tt.wrong)
			if got := fmt.Sprint(err); got != want {
				t.Errorf("error\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestNewReportsAllMistakes(t *testing.T) {
	_, err := New(Config{Origins: []string{"*", "https://good.example", "wss://x.example"}})
	if err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.Contains(err.Error(), `"*"`) || !strings.Contains(err.Error(), `"wss://x.example"`) {
		t.Errorf("error\n%v\nwant a line for each of the two mistakes", err)
	}
}
