package upstream

import (
	"net/url"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	tests := []struct {
		name, url string
		want      location
	}{
		{"ws", "ws://h", location{"h:80", "h", "h", false, "/", "", ""}},
		{"http", "http://h/", location{"h:80", "h", "h", false, "/", "", ""}},
		{"wss", "wss://h", location{"h:443", "h", "h", true, "/", "", ""}},
		{"https", "https://h", location{"h:443", "h", "h", true, "/", "", ""}},
		{"scheme in capitals", "WSS://h", location{"h:443", "h", "h", true, "/", "", ""}},
		{"port", "wss://h:8443", location{"h:8443", "h", "h:8443", true, "/", "", ""}},
		{"IPv4", "ws://127.0.0.1:81", location{"127.0.0.1:81", "127.0.0.1", "127.0.0.1:81", false, "/", "", ""}},
		{"IPv6", "ws://[::1]", location{"[::1]:80", "::1", "[::1]", false, "/", "", ""}},
		{"IPv6 with port", "wss://[::1]:81", location{"[::1]:81", "::1", "[::1]:81", true, "/", "", ""}},
		{"IPv6 with zone", "wss://[fe80::1%25eth0]:81", location{"[fe80::1%eth0]:81", "fe80::1", "[fe80::1]:81", true, "/", "", ""}},
		{"base path", "ws://h/app", location{"h:80", "h", "h", false, "/app", "/app", ""}},
		{"base path with a slash", "ws://h/app/", location{"h:80", "h", "h", false, "/app/", "/app", ""}},
		{"escaped base path", "ws://h/a%2Fb%20c", location{"h:80", "h", "h", false, "/a%2Fb%20c", "/a%2Fb%20c", ""}},
		{"query", "ws://h/?x=1&y=%20", location{"h:80", "h", "h", false, "/", "", "x=1&y=%20"}},
		{"query without path", "ws://h?x", location{"h:80", "h", "h", false, "/", "", "x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseTarget(tt.url, "UPSTREAM_URL")
			if err != nil {
				t.Fatal(err)
			}
			if got.location != tt.want || got.network != "tcp" || got.isName != strings.Contains(tt.url, "//h") {
				t.Errorf("got  %+v\nwant %+v", *got, tt.want)
			}
		})
	}
}

func TestParseTargetMistakes(t *testing.T) {
	tests := []struct {
		name, url string
		want      []string
	}{
		{"empty", "", []string{`"" is empty`}},
		{"no scheme", "localhost:8080", []string{`"localhost:8080" has another scheme or none`}},
		{"address", "127.0.0.1:8080", []string{`"127.0.0.1:8080" is not a URL`}},
		{"other scheme", "tcp://h", []string{"has another scheme"}},
		{"no host", "ws:///path", []string{"has no valid host"}},
		{"opaque", "ws:h", []string{"has no valid host"}},
		{"host not ASCII", "ws://h\u00e9", []string{"has no valid host"}},
		{"port too high", "ws://h:65536", []string{"has no valid port"}},
		{"port zero", "ws://h:0", []string{"has no valid port"}},
		{"port left out", "ws://h:", []string{"has no valid port"}},
		{"fragment", "ws://h/#f", []string{`"ws://h/#…" has a fragment`}},
		{"empty fragment", "ws://h/#", []string{"has a fragment"}},
		{"user and password", "ws://u:secret@h/", []string{`"ws://…@h/" holds user information`}},
		{"dot segment", "ws://h/a/../b", []string{"has a dot segment"}},
		{"escaped dot segment", "ws://h/a/%2e%2E", []string{"has a dot segment"}},
		{"query not escaped", "ws://h/?a b", []string{`"ws://h/?…" has a query that is not percent-encoded`}},
		{"several", "ws://u:secret@h:0/./?secret=1#f", []string{"user information", "fragment", "port", "dot segment"}},
		{"secrets in what is no URL", "ws://u:secret@h/%zz?secret", []string{`"ws://…@h/%zz?…" is not a URL`}},
		{"secrets without a scheme", "u:secret@h", []string{`"…@h" has another scheme`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseTarget(tt.url, "UPSTREAM_URL")
			if err == nil {
				t.Fatal("got no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("got %d mistakes, want %d: %v", len(lines), len(tt.want), err)
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, "UPSTREAM_URL: ") || !strings.Contains(line, tt.want[i]) || !strings.HasSuffix(line, wantURL) {
					t.Errorf("got %s, want it to hold %s", line, tt.want[i])
				}
				if strings.Contains(line, "secret") {
					t.Errorf("a secret is shown: %s", line)
				}
			}
		})
	}
}

var joins = []struct{ name, base, path, query, want string }{
	{"nothing to join", "ws://h", "/", "", "/"},
	{"empty path", "ws://h", "", "", "/"},
	{"path alone", "ws://h", "/a/b", "", "/a/b"},
	{"root base", "ws://h/", "/a", "", "/a"},
	{"escaped slash kept", "ws://h/app", "/a%2Fb", "", "/app/a%2Fb"},
	{"escapes kept as written", "ws://h/app", "/%61%2f%C3%a9", "", "/app/%61%2f%C3%a9"},
	{"bytes above ASCII kept", "ws://h/app", "/\u00e9", "", "/app/\u00e9"},
	{"base with slash", "ws://h/app/", "/a", "", "/app/a"},
	{"trailing slash kept", "ws://h/app", "/a/", "", "/app/a/"},
	{"root asks for the base as written", "ws://h/app", "/", "", "/app"},
	{"root asks for the base with its slash", "ws://h/app/", "/", "", "/app/"},
	{"empty segment kept", "ws://h/app/", "//a", "", "/app//a"},
	{"dot segment of the client's kept", "ws://h/app", "/../a", "", "/app/../a"},
	{"query of the request", "ws://h", "/", "y=2", "/?y=2"},
	{"query of the target", "ws://h/?x=1", "/", "", "/?x=1"},
	{"both queries", "ws://h/?x=1", "/", "y=2", "/?x=1&y=2"},
	{"both queries with the same name", "ws://h/app?x=1", "/a", "x=2&x=3", "/app/a?x=1&x=2&x=3"},
	{"question mark in a query", "ws://h/?x=?", "/", "?", "/?x=?&?"},
	{"odd query kept", "ws://h", "/a", "&&%zz;=\u00e9", "/a?&&%zz;=\u00e9"},
}

func TestAppendURI(t *testing.T) {
	for _, tt := range joins {
		t.Run(tt.name, func(t *testing.T) {
			target, err := parseTarget(tt.base, "UPSTREAM_URL")
			if err != nil {
				t.Fatal(err)
			}
			if got := string(target.appendURI([]byte("GET "), tt.path, tt.query)); got != "GET "+tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// FuzzRequestLine asserts of every request line that is composed at all that it is one line of three words, whose target
// holds the client's path and query byte for byte behind the base, no dot segment that neither had, and no fragment.
func FuzzRequestLine(f *testing.F) {
	for _, tt := range joins {
		f.Add(tt.base, tt.path, tt.query)
	}
	for _, path := range []string{"/a b", "/a\r\nX: y", "/a#b", "/a?b", "a", "*", "http://h/", "/\x00", "/.", "/%2e%2E/a"} {
		f.Add("ws://h/app", path, path)
	}
	f.Fuzz(func(t *testing.T, base, path, query string) {
		target, err := parseTarget(base, "UPSTREAM_URL")
		if err != nil {
			return
		}
		x := &handshake{}
		if err := x.compose(new(Upstream), target, &Request{Path: path, Query: query}); err != nil {
			return
		}
		line, _, _ := strings.Cut(string(x.request), "\r\n")
		words := strings.Split(line, " ")
		if len(words) != 3 || words[0] != "GET" || words[2] != "HTTP/1.1" || strings.ContainsAny(line, "\r\n\x00#") {
			t.Fatalf("got request line %q", line)
		}
		gotPath, gotQuery, _ := strings.Cut(words[1], "?")
		if root := path == "" || path == "/"; !root && gotPath != strings.TrimSuffix(target.basePath, "/")+path || root && gotPath != target.basePath {
			t.Errorf("base %q, path %q: got path %q", base, path, gotPath)
		}
		if !strings.HasSuffix(gotQuery, query) || !strings.HasPrefix(gotQuery, target.query) ||
			len(gotQuery) > len(target.query)+len("&")+len(query) {
			t.Errorf("base %q, query %q: got query %q", base, query, gotQuery)
		}
		if got, want := hasDotSegment(unescape(gotPath)), hasDotSegment(unescape(path)); got != want {
			t.Errorf("base %q, path %q: got dot segments in %q", base, path, gotPath)
		}
		if u, err := url.ParseRequestURI(words[1]); err == nil && u.Host == "" && u.Path != unescape(gotPath) {
			t.Errorf("%q is parsed as path %q", words[1], u.Path)
		}
	})
}

// unescape decodes a path; one that cannot be decoded stays.
func unescape(path string) string {
	if s, err := url.PathUnescape(path); err == nil {
		return s
	}
	return path
}
