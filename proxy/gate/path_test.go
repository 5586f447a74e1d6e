package gate

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"portcullis/proxy/refusal"
)

func TestCompilePaths(t *testing.T) {
	odd := []string{"//a", `/a\b`, "/a%2fb", "/a%5Cb/*"}
	for _, tt := range []struct {
		name     string
		patterns []string
		unsafe   bool
		mistakes int
	}{
		{"none", nil, false, 0},
		{"exact and prefix", []string{"/", "/chat", "/rooms/*", "/a%20b"}, false, 0},
		{"all", []string{"*"}, false, 0},
		{"all but odd forms", []string{"/*"}, false, 0},
		{"all beside others", []string{"/chat", "*"}, false, 1},
		{"empty", []string{""}, false, 1},
		{"relative, query, fragment, star within, escape, control character", []string{"chat", "/a?b", "/a#b", "/*/a", "/%zz", "/\n"}, false, 6},
		{"refused in requests", append([]string{"/a/../b", "/%2e/*"}, odd...), false, 6},
		{"the gate's own", []string{"/.portcullis/", "/.portcullis/*", "/.portcullis", "/%2ePortcullis/x"}, false, 4},
		{"unsafe forms", append([]string{"/a", "/*"}, odd...), true, 0},
		{"refused among unsafe forms too", []string{"/a%2f../b", "/%zz", "//.portcullis/*"}, true, 3},
		{"unsafe forms of every path", nil, true, 1},
		{"unsafe forms twice", []string{"*"}, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newPathGate(tt.patterns, tt.unsafe)
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != tt.mistakes {
				t.Errorf("got %d mistakes %q, want %d", len(lines), lines, tt.mistakes)
			}
			for _, line := range lines {
				if !strings.HasPrefix(line, `PATHS: "`) && !strings.HasPrefix(line, `PATHS_UNSAFE_FORMS: "true" `) || !strings.Contains(line, "; want ") {
					t.Errorf("line %q: want PATHS, the value, and what is allowed", line)
				}
			}
		})
	}
}

// newPathGate is a Gate with one route, of those patterns.
func newPathGate(patterns []string, unsafe bool) (*Gate, error) {
	return New(Config{Paths: patterns, PathsUnsafeForms: unsafe}, Parts{}, []Route{{Setting: "PATHS", Paths: patterns}}, nil)
}

var pathTests = []struct {
	name     string
	patterns string // separated by spaces
	path     string
	want     refusal.Reason // "": served
}{
	{"exact", "/ /chat", "/chat", ""},
	{"exact root", "/", "/", ""},
	{"not a prefix", "/chat", "/chat/1", refusal.Path},
	{"case", "/chat", "/Chat", refusal.Path},
	{"an escape is not what it stands for", "/chat", "/%63hat", refusal.Path},
	{"trailing slash", "/chat", "/chat/", refusal.Path},
	{"prefix", "/chat/*", "/chat/1/2", ""},
	{"prefix itself", "/chat/*", "/chat/", ""},
	{"prefix without its slash", "/chat/*", "/chat", refusal.Path},
	{"prefix of a name", "/chat*", "/chatroom", ""},
	{"none: every path", "", "/any/thing%20", ""},
	{"dot is not root", "/", "/.", refusal.PathSuspicious},
	{"dots", "", "/a/..", refusal.PathSuspicious},
	{"dots in a name", "", "/a..b/...", ""},
	{"a file with a dot", "", "/.well-known", ""},
	{"escaped dots", "", "/a/%2e%2E/b", refusal.PathSuspicious},
	{"half escaped dots", "*", "/a/.%2e", refusal.PathSuspicious},
	{"dots behind an escaped slash", "*", "/a%2f..", refusal.PathSuspicious},
	{"dots behind a backslash", "*", `/a\..`, refusal.PathSuspicious},
	{"dots with a parameter", "*", "/a/..;b/c", refusal.PathSuspicious},
	{"twice escaped dots are a name", "", "/%252e%252e", ""},
	{"empty segment", "", "/a//b", refusal.PathSuspicious},
	{"empty segment first", "/*", "//a", refusal.PathSuspicious},
	{"backslash", "", `/a\b`, refusal.PathSuspicious},
	{"escaped backslash", "", "/a%5Cb", refusal.PathSuspicious},
	{"escaped slash", "", "/a%2fb", refusal.PathSuspicious},
	{"odd forms with *", "*", `//a%2Fb\c%5c/`, ""},
	{"our own", "*", "/.portcullis/ticket", refusal.Path},
	{"our own without its slash", "*", "/.portcullis", refusal.Path},
	{"our own in other case", "", "/.PORTCULLIS/x", refusal.Path},
	{"our own with an escape", "", "/%2eportcullis/ticket", refusal.Path},
	{"our own with a letter escaped", "", "/.portc%75llis/ticket", refusal.Path},
	{"our own, escaped twice", "", "/%252eportcullis/ticket", refusal.Path},
	{"our own, an escape of escapes", "", "/%25%32%65portcullis/ticket", refusal.Path},
	{"our own, escaped many times", "", "/%" + strings.Repeat("25", 1000) + "2eportcullis/ticket", refusal.Path},
	{"our own with a parameter", "", "/.portcullis;v=1/ticket", refusal.Path},
	{"our own with an escaped parameter", "", "/.portcullis%3Bv=1/ticket", refusal.Path},
	{"our own behind an empty segment", "*", "//.portcullis/ticket", refusal.Path},
	{"our own behind a parameter", "*", "/;a%2fb/.portcullis/ticket", refusal.Path},
	{"our own behind an escaped slash", "*", "/%2f.portcullis/ticket", refusal.Path},
	{"our own behind a backslash", "*", `/\.portcullis\ticket`, refusal.Path},
	{"our own with an escaped slash", "*", "/.portcullis%2Fticket", refusal.Path},
	{"our own behind a slash escaped twice", "", "/%252f%2525252f.portcullis/ticket", refusal.Path},
	{"our own behind dots escaped twice", "", "/x/%252e%252e/.portcullis/ticket", refusal.Path},
	{"our own behind a dot", "*", "/./.portcullis/ticket", refusal.PathSuspicious},
	{"our own behind dots", "*", "/x/../.portcullis/ticket", refusal.PathSuspicious},
	{"our own where a prefix is stripped", "", "/app/.portcullis/ticket", refusal.Path},
	{"not quite our own", "", "/.portcullis2/portcullis/x.portcullis", ""},
	{"fragment", "*", "/a#b", refusal.PathSuspicious},
	{"control character", "*", "/a\x7f", refusal.PathSuspicious},
	{"escaped control character", "*", "/a%0a", refusal.PathSuspicious},
	{"bad escape", "*", "/a%2", refusal.PathSuspicious},
	{"not ASCII", "", "/caf\xc3\xa9", ""},
	{"no slash", "*", "chat", refusal.PathSuspicious},
	{"empty", "*", "", refusal.PathSuspicious},
	{"another scheme", "*", "ftp://gate.example/", refusal.PathSuspicious},
	{"authority", "*", "gate.example:443", refusal.PathSuspicious},
	{"asterisk", "*", "*", refusal.PathSuspicious},
}

func checkOnePath(patterns, target string) refusal.Reason {
	return checkOneForm(patterns, false, target)
}

func checkOneForm(patterns string, unsafe bool, target string) refusal.Reason {
	g, err := newPathGate(strings.Fields(patterns), unsafe)
	if err != nil {
		panic(err)
	}
	u := &upgrade{Request: &Request{HTTP: &http.Request{}}}
	u.Path, u.Query, _ = strings.Cut(target, "?")
	if no := g.chooseRoute(u); no != nil {
		return no.Reason
	}
	return ""
}

func TestCheckPath(t *testing.T) {
	for _, tt := range pathTests {
		t.Run(tt.name, func(t *testing.T) {
			if got := checkOnePath(tt.patterns, tt.path); got != tt.want {
				t.Errorf("PATHS %q, path %q: got %q, want %q", tt.patterns, tt.path, got, tt.want)
			}
		})
	}
}

// With PATHS_UNSAFE_FORMS a pattern is still compared byte for byte: what only a server that rewrites would find under it is
// not served.
func TestUnsafeForms(t *testing.T) {
	for _, tt := range []struct {
		name, patterns, path string
		want                 refusal.Reason
	}{
		{"escaped slash under a prefix", "/files/*", "/files/a%2Fb", ""},
		{"others of the kind", "/files/*", `/files//a\b%5cc`, ""},
		{"escaped slash in a pattern", "/a%2Fb", "/a%2Fb", ""},
		{"escaped in other case", "/a%2Fb", "/a%2fb", refusal.Path},
		{"a slash is no escaped one", "/a%2Fb", "/a/b", refusal.Path},
		{"an escaped slash is no slash", "/a/b", "/a%2Fb", refusal.Path},
		{"an escaped slash does not end a prefix", "/files/*", "/files%2Fa", refusal.Path},
		{"two slashes do not begin one", "/files/*", "//files/a", refusal.Path},
		{"a backslash does not begin one", "/files/*", `\files/a`, refusal.PathSuspicious},
		{"up, out of a prefix", "/files/*", "/files/..%2fadmin", refusal.PathSuspicious},
		{"up, over an escaped slash", "/files/*", "/files/a%2f..%2f..%2fadmin", refusal.PathSuspicious},
		{"up, over a backslash", "/files/*", `/files/..\admin`, refusal.PathSuspicious},
		{"up, with a parameter", "/files/*", "/files/..;%2fadmin", refusal.PathSuspicious},
		{"control character", "/files/*", "/files/%2f%0a", refusal.PathSuspicious},
		{"our own", "/*", "//.portcullis/ticket", refusal.Path},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := checkOneForm(tt.patterns, true, tt.path); got != tt.want {
				t.Errorf("PATHS %q, path %q: got %q, want %q", tt.patterns, tt.path, got, tt.want)
			}
		})
	}
}

func TestCutAuthority(t *testing.T) {
	for _, tt := range []struct {
		target          string
		authority, rest string
		absolute        bool
	}{
		{"http://a.example/b?c=/d", "a.example", "/b?c=/d", true},
		{"HTTPS://a.example:8443/b", "a.example:8443", "/b", true},
		{"ws://[::1]:80/", "[::1]:80", "/", true},
		{"wss://a", "a", "/", true},
		{"ws://a?b=http://c/", "a", "/?b=http://c/", true},
		{"http:///a", "", "/a", true},
		{"http://", "", "/", true},
		{"http://u:p@a/b", "u:p@a", "/b", true},
		{`http://a\b/c`, `a\b`, "/c", true},
		{"http://a#b/c", "a#b", "/c", true},
		{"http://a//b/../c", "a", "//b/../c", true},
		{"/a", "", "/a", false},
		{"/?a=http://b/", "", "/?a=http://b/", false},
		{"//a/b", "", "//a/b", false},
		{"http:/a", "", "http:/a", false},
		{"ftp://a/b", "", "ftp://a/b", false},
		{"://a/b", "", "://a/b", false},
		{"a:80", "", "a:80", false},
		{"*", "", "*", false},
		{"", "", "", false},
	} {
		authority, rest, absolute := cutAuthority(tt.target)
		if authority != tt.authority || rest != tt.rest || absolute != tt.absolute {
			t.Errorf("%q: got %q, %q, %v, want %q, %q, %v", tt.target, authority, rest, absolute, tt.authority, tt.rest, tt.absolute)
		}
	}
}

func TestQueryIsAlmostFree(t *testing.T) {
	for target, want := range map[string]refusal.Reason{
		"/?a=//..%2f\\&b=%zz?;c": "", "/?a=\xff": "", "/?a=#b": refusal.PathSuspicious, "/?a=\x00": refusal.PathSuspicious, "/?a b": refusal.PathSuspicious,
	} {
		if got := checkOnePath("", target); got != want {
			t.Errorf("%q: got %q, want %q", target, got, want)
		}
	}
}

// FuzzCheckPath: what is let through means the same to a server that resolves and decodes paths as to one that does not.
func FuzzCheckPath(f *testing.F) {
	for _, tt := range pathTests {
		f.Add(tt.path, tt.patterns == "*")
	}
	f.Fuzz(func(t *testing.T, target string, odd bool) {
		patterns := "/*"
		if odd {
			patterns = "*"
		}
		if checkOnePath(patterns, target) != "" {
			return
		}
		if below := "/files/" + target; checkOneForm("/files/*", true, below) == "" {
			raw, _, _ := strings.Cut(below, "?")
			if seen, _ := url.PathUnescape(raw); !strings.HasPrefix(path.Clean(strings.ReplaceAll(seen, `\`, "/"))+"/", "/files/") {
				t.Fatalf("%q is let through, and leads out of /files/", raw)
			}
		}
		raw, _, _ := strings.Cut(target, "?")
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			t.Fatalf("%q is let through with a bad escape", raw)
		}
		if strings.ContainsAny(target, "\r\n\x00 #") || strings.ContainsAny(decoded, "\r\n\x00") {
			t.Fatalf("%q is let through with a character that ends lines", target)
		}
		for again := decoded; err == nil; again, err = url.PathUnescape(again) {
			seen := strings.ToLower(path.Clean(strings.ReplaceAll(again, `\`, "/")) + "/")
			if strings.HasPrefix(seen, OwnPaths) {
				t.Fatalf("%q is let through, and %q is our own", raw, seen)
			}
			if !strings.Contains(again, "%") {
				break
			}
		}
		if odd {
			// Once slashes are one, there must be nothing left to resolve.
			decoded = strings.ReplaceAll(decoded, `\`, "/")
			for strings.Contains(decoded, "//") {
				decoded = strings.ReplaceAll(decoded, "//", "/")
			}
		}
		resolved := path.Clean(decoded)
		if strings.HasSuffix(decoded, "/") && resolved != "/" {
			resolved += "/"
		}
		if resolved != decoded {
			t.Fatalf("%q is let through, but resolves to %q", raw, resolved)
		}
	})
}
