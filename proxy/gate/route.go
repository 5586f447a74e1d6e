package gate

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"portcullis/proxy/auth"
	"portcullis/proxy/header"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
	"portcullis/upstream"
)

// Route is where the requests for some paths go, and by which rules. It does not change.
type Route struct {
	// Name is that of the log and the metrics. Empty: it is the only route.
	Name string
	// Setting names in mistakes where Paths were written.
	Setting string
	// Host is that of the requests, without a port and in lower case. Empty: any that has no route of its own for the path.
	Host string
	// Paths are patterns, as those of Config.Paths.
	Paths []string
	// Open says that clients need no credential.
	Open bool
	// HTTP is what becomes of requests that ask for no upgrade.
	HTTP HTTPMode
	// Upstream has the targets.
	Upstream *upstream.Upstream
	// Rules are those of the sessions. Nil: those of the relay. Limits is what of them a client's library is told; nil: nothing.
	Rules  *relay.Rules
	Limits *session.Limits
}

// route is a Route as the steps of a request see it.
type route struct {
	*Route
	auth       *auth.Auth
	upstream   *upstream.Upstream
	balance    upstream.Balance
	targets    string        // as the log names them
	extensions bool          // sessions may have extensions
	first      *firstMessage // nil: a token comes with the handshake
}

// needsCredential reports whether clients have to show who they are.
func (r *route) needsCredential() bool { return !r.Open && r.auth.Required() }

// isOpen and isOpenPlain report whether an upgrade, and a plain request, need no credential by the route's own word. A route that passes
// no plain requests is not open to them.
func (r *route) isOpen() bool      { return r.Open }
func (r *route) isOpenPlain() bool { return r.HTTP == HTTPOpen || r.HTTP == HTTPAuth && r.Open }

// table is which request goes by which route. Patterns and paths are compared as they are written, escapes and all, because that is what
// goes upstream: %61 is not a, and %2F is not /.
//
// That is safe with unsafe forms too. What a prefix lets through, a server that rewrites such forms (%2F and \ to /, // to /)
// still finds under that prefix: only dot segments lead out of it, and those are never let through. What it would have to
// rewrite first, to find it under the prefix, is not served. Beside a route that is open this is not enough; see leadsElsewhere.
type table struct {
	entries []entry // those with a host first, then by length: the first that matches is the best
	unsafe  bool    // odd forms are let through, dot segments excepted
	hosts   bool    // some have a host
	// Some are open, and some are not: for upgrades and for plain requests.
	mixed, mixedPlain bool
}

// entry is one pattern of a route.
type entry struct {
	host   string
	path   string
	prefix bool
	route  *route
}

// newTable compiles the patterns of routes. No pattern at all is every path, as with "/*". The error joins every mistake.
func newTable(routes []*route, unsafe bool) (*table, error) {
	var mistakes []error
	t := &table{unsafe: unsafe}
	for _, r := range routes {
		patterns := r.Paths
		if len(patterns) == 0 {
			patterns = []string{"/*"}
		}
		if slices.Equal(patterns, []string{"*"}) {
			t.unsafe = true
			t.entries = append(t.entries, entry{r.Host, "", true, r})
			continue
		}
		for _, pattern := range patterns {
			path, isPrefix := strings.CutSuffix(pattern, "*")
			if wrong := checkPattern(path, isPrefix, unsafe); wrong != "" {
				mistakes = append(mistakes, fmt.Errorf("%s: %q %s; want an escaped path such as /chat, a prefix such as /chat/*, or * alone", r.Setting, pattern, wrong))
				continue
			}
			e := entry{r.Host, path, isPrefix, r}
			if i := slices.IndexFunc(t.entries, e.equals); i >= 0 && t.entries[i].route != r {
				mistakes = append(mistakes, fmt.Errorf("%s: %q is that of %s, too; want each path in one route", r.Setting, r.Host+pattern, t.entries[i].route.Setting))
			}
			t.entries = append(t.entries, e)
		}
	}
	slices.SortStableFunc(t.entries, entry.compare)
	for _, e := range t.entries {
		t.hosts = t.hosts || e.host != ""
		t.mixed = t.mixed || e.route.isOpen() != t.entries[0].route.isOpen()
		t.mixedPlain = t.mixedPlain || e.route.isOpenPlain() != t.entries[0].route.isOpenPlain()
	}
	return t, errors.Join(mistakes...)
}

func (e entry) equals(other entry) bool {
	return e.host == other.host && e.path == other.path && e.prefix == other.prefix
}

// compare puts the better one first.
func (e entry) compare(other entry) int {
	rank := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(
		rank(e.host == "")-rank(other.host == ""),
		len(other.path)-len(e.path),
		rank(e.prefix)-rank(other.prefix),
	)
}

// matches reports whether a path is that of an entry.
func (e *entry) matches(path string) bool {
	return e.path == path || e.prefix && strings.HasPrefix(path, e.path)
}

// find returns the route that serves a path which is not suspicious; nil: none does. The gate's own are never served. host is as the
// request has it.
func (t *table) find(host, path string) *route {
	if meansOurs(path) {
		return nil
	}
	if t.hosts {
		host = hostname(host)
	}
	for i := range t.entries {
		e := &t.entries[i]
		if (e.host == "" || e.host == host) && e.matches(path) {
			return e.route
		}
	}
	return nil
}

// hostname is a Host header field as routes have it: without its port, and in lower case.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// leadsElsewhere reports whether a server may take a path of an open route for one of a route that is not: a server that decodes it, drops
// ;parameters and empty segments, takes \ for /, or tells no case apart.
func (t *table) leadsElsewhere(host, path string, isOpen func(*route) bool) bool {
	host, path = hostname(host), strings.ToLower(readLoosely(path))
	for i := range t.entries { // in the same order, which case does not change
		e := &t.entries[i]
		if e.host != "" && e.host != host {
			continue
		}
		loose := entry{path: strings.ToLower(e.path), prefix: e.prefix}
		if loose.matches(path) {
			return !isOpen(e.route)
		}
	}
	return false
}

// readLoosely is a path as the loosest of servers reads it.
func readLoosely(path string) string {
	var b strings.Builder
	decoded := unescapeAll(path)
	for segment := range strings.FieldsFuncSeq(decoded, isSlash) {
		name, _, _ := strings.Cut(segment, ";")
		b.WriteByte('/')
		b.WriteString(name)
	}
	if b.Len() == 0 || isSlash(rune(decoded[len(decoded)-1])) {
		b.WriteByte('/')
	}
	return b.String()
}

// Find returns the route of a request; nil: it has none.
func (g *Gate) Find(r *Request, path string) *Route {
	if suspicious(path, g.table.unsafe) != "" {
		return nil
	}
	if found := g.table.find(r.HTTP.Host, path); found != nil {
		return found.Route
	}
	return nil
}

// Routes is how many routes there are, and Only is the first of them.
func (g *Gate) Routes() int  { return len(g.routes) }
func (g *Gate) Only() *Route { return g.routes[0].Route }

// Serves reports whether the path of a request, which is not suspicious, is an upstream's.
func (g *Gate) Serves(r *Request) bool { return g.table.find(r.HTTP.Host, r.Path) != nil }

// IsHost reports whether s can be the host of a route.
func IsHost(s string) bool { return header.IsHost(s) && hostname(s) == s }
