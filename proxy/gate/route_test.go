package gate

import (
	"net/http"
	"strings"
	"testing"

	"portcullis/proxy/auth"
	"portcullis/proxy/refusal"
)

// newRouteGate is a Gate with those routes: NAME [host]/path, and open behind it for one without credentials.
func newRouteGate(t *testing.T, routes ...string) *Gate {
	t.Helper()
	a, err := auth.New(auth.Config{Mode: "jwt", JWTSecret: strings.Repeat("s", 32), TokenFrom: []string{"query:token"}, Timeout: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	var all []Route
	for _, text := range routes {
		words := strings.Fields(text)
		host, _, _ := strings.Cut(words[1], "/")
		all = append(all, Route{Name: words[0], Setting: "ROUTE_" + words[0], Host: host, Paths: []string{strings.TrimPrefix(words[1], host)}, Open: len(words) > 2})
	}
	g, err := New(Config{}, Parts{Auth: a}, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// The longest match wins, a host before none.
func TestChooseRoute(t *testing.T) {
	g := newRouteGate(t, "ALL /*", "CHAT /chat/*", "ROOM /chat/room", "ROOMS /chat/room*", "HOST a.example/*", "HOSTCHAT a.example/chat/*", "ONLY b.example/x", "V6 [::1]/*")
	for _, tt := range []struct{ host, path, want string }{
		{"c.example", "/", "ALL"},
		{"c.example", "/chat", "ALL"},
		{"c.example", "/chat/", "CHAT"},
		{"c.example", "/chat/other", "CHAT"},
		{"c.example", "/chat/room", "ROOM"},
		{"c.example", "/chat/rooms", "ROOMS"},
		{"a.example", "/chat/room", "HOSTCHAT"},
		{"a.example", "/", "HOST"},
		{"A.Example:3000", "/", "HOST"},
		{"a.example.", "/chat/x", "HOSTCHAT"},
		{"x.a.example", "/", "ALL"},
		{"b.example", "/x", "ONLY"},
		{"b.example", "/y", "ALL"},
		{"[::1]:3000", "/", "V6"},
		{"", "/", "ALL"},
	} {
		u := &upgrade{Request: &Request{Path: tt.path, HTTP: &http.Request{Host: tt.host}}}
		if no := g.chooseRoute(u); no != nil || u.route.Name != tt.want {
			t.Errorf("%s%s: got %+v, %v, want %s", tt.host, tt.path, u.route, no, tt.want)
		}
	}
}

// An open route is no way around the credential of another: what a server may read as that one's path is refused.
func TestOpenRouteLeadsNowhereElse(t *testing.T) {
	for _, tt := range []struct {
		name, routes, path string
		want               string // the route; "": refused as suspicious
	}{
		{"its own", "A /admin/*|O /* open", "/public", "O"},
		{"the other's", "A /admin/*|O /* open", "/admin/x", "A"},
		{"the other's, encoded", "A /admin/*|O /* open", "/%61dmin/x", ""},
		{"the other's, encoded twice", "A /admin/*|O /* open", "/%2561dmin/x", ""},
		{"in other case", "A /admin/*|O /* open", "/Admin/x", ""},
		{"with a parameter", "A /admin/*|O /* open", "/admin;v=1/x", ""},
		{"without its last slash", "A /admin/*|O /* open", "/admin", "O"},
		{"a longer name", "A /admin/*|O /* open", "/administrator", "O"},
		{"an exact one, encoded", "A /admin|O /* open", "/admi%6e", ""},
		{"an open one within a closed one", "A /*|O /public/* open", "/public/%61", "O"},
		{"the closed one around an open one", "A /*|O /public/* open", "/PUBLIC/x", "A"},
		{"an open one within, in other case, of a closed one", "A /api/*|O /api/public/* open", "/api/public/X", "O"},
		{"a closed one within an open one within", "A /a/b/*|O /a/* open", "/a/%62/c", ""},
		{"of another host", "A a.example/admin/*|O /* open", "/Admin/x", "O"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newRouteGate(t, strings.Split(tt.routes, "|")...)
			u := &upgrade{Request: &Request{Path: tt.path, HTTP: &http.Request{Host: "c.example"}}}
			no := g.chooseRoute(u)
			switch {
			case tt.want == "" && (no == nil || no.Reason != refusal.PathSuspicious):
				t.Errorf("got %v by route %v, want it refused", no, u.route.Name)
			case tt.want != "" && (no != nil || u.route.Name != tt.want):
				t.Errorf("got %v, want route %s", no, tt.want)
			}
		})
	}
}

// What another server makes of a path of an open route is the business of that route alone.
func FuzzOpenRoute(f *testing.F) {
	for _, path := range []string{"/", "/admin/x", "/%61dmin/x", "/a;b/c", "/ADMIN/", "/admin%2fx", "//admin/x"} {
		f.Add(path)
	}
	table, err := newTable([]*route{
		{Route: &Route{Name: "A", Paths: []string{"/admin/*", "/secret"}}},
		{Route: &Route{Name: "O", Paths: []string{"/*"}, Open: true}},
	}, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if suspicious(path, false) != "" {
			return
		}
		found := table.find("", path)
		if found == nil || !found.Open || table.leadsElsewhere("", path, (*route).isOpen) {
			return
		}
		loose := strings.ToLower(readLoosely(path))
		if strings.HasPrefix(loose, "/admin/") || loose == "/secret" {
			t.Errorf("%q goes by the open route, and reads %q", path, loose)
		}
	})
}

func BenchmarkChooseRoute(b *testing.B) {
	var routes []*route
	for _, name := range strings.Fields("a b c d e f g h i") {
		routes = append(routes, &route{Route: &Route{Name: name, Host: name + ".example", Paths: []string{"/" + name + "/*"}, Open: name == "a"}})
	}
	routes = append(routes, &route{Route: &Route{Name: "all", Paths: []string{"/*"}}})
	table, err := newTable(routes, false)
	if err != nil {
		b.Fatal(err)
	}
	g := &Gate{table: table}
	u := &upgrade{Request: &Request{Path: "/chat/room", HTTP: &http.Request{Host: "gate.example"}}}
	b.ReportAllocs()
	for b.Loop() {
		if no := g.chooseRoute(u); no != nil {
			b.Fatal(no)
		}
	}
}
