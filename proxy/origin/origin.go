// Package origin decides whether a web page may open a WebSocket: the allow list for the Origin header.
//
// The same-origin policy does not cover WebSockets. Any page can open one to any server, and the browser adds the
// user's cookies; all that tells the server is the Origin header, which script cannot set (RFC 6455 section 10.2). A
// server that ignores it and authenticates by cookie lets every page that the user visits speak in the user's name
// (cross-site WebSocket hijacking). So a list MUST be set where a cookie carries the token, and SHOULD be set otherwise.
//
// It does not protect against programs, which can send any Origin; a request without one passes.
//
// Both sides are parsed into scheme, host and port (RFC 6454 section 4) and compared as such, never as text: comparing
// prefixes, suffixes or patterns lets https://app.example.com.evil.example or https://evil-example.com through. What is not
// exactly a serialized origin (RFC 6454 section 6.2) does not pass. Case does not matter, a default port may be left out.
//
// Patterns:
//
//	https://app.example.com         this origin
//	http://localhost:5173           another port is another origin
//	https://*.example.com           every name below example.com, at any depth, but not example.com itself
//	capacitor://localhost           what an app's web view sends
//	null                            the origin "null": see [Config]
package origin

import (
	"errors"
	"fmt"
	"strings"
)

// Config says which origins may connect.
type Config struct {
	// Origins are the patterns of the origins that may connect. Empty: any.
	//
	// Beware of "null": browsers send it for pages from files, and for every sandboxed frame or redirect that anyone can
	// make. Beware of "*." patterns: whoever gets hold of one name below, such as a forgotten one, is let in.
	Origins []string `env:"ORIGINS" guard:"true"`
}

// List is a compiled allow list. It is immutable and safe for concurrent use. The zero List allows no origin: only
// New makes one that allows any.
type List struct {
	allowAll  bool
	null      bool
	exact     map[origin]struct{}
	wildcards map[origin]struct{} // from "*." patterns: the host is the domain without "*."
}

// New compiles the list. The error joins all mistakes found, one line each. A "*." pattern on a domain under which anyone can
// get a name (*.com, *.co.uk, *.github.io: a public suffix, https://publicsuffix.org) is a mistake.
func New(c Config) (*List, error) {
	l := &List{
		allowAll:  len(c.Origins) == 0,
		exact:     make(map[origin]struct{}),
		wildcards: make(map[origin]struct{}),
	}
	var errs []error
	for _, s := range c.Origins {
		if wrong := l.add(s); wrong != "" {
			errs = append(errs, fmt.Errorf("ORIGINS: %q %s; want scheme://host[:port], scheme://*.domain[:port] or null, or nothing at all for any origin", s, wrong))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *List) add(pattern string) (wrong string) {
	if pattern == "null" {
		l.null = true
		return ""
	}
	o, wildcard, wrong := parsePattern(pattern)
	switch {
	case wrong != "":
		return wrong
	case wildcard:
		l.wildcards[o] = struct{}{}
	default:
		l.exact[o] = struct{}{}
	}
	return ""
}

// Allows reports whether a request with these values of the Origin header may connect. A request without
// values passes: it is not a browser's. More than one value never passes, whatever the list: no browser sends that, and two
// readers could differ on which one counts.
func (l *List) Allows(values []string) bool {
	switch {
	case len(values) == 0:
		return true
	case len(values) > 1:
		return false
	case l.allowAll:
		return true
	case values[0] == "null":
		return l.null
	}
	o, wrong := parse(values[0])
	if wrong != "" {
		return false
	}
	if _, ok := l.exact[o]; ok {
		return true
	}
	// Take one label after the other off the left and look for the rest.
	for {
		var ok bool
		if _, o.host, ok = strings.Cut(o.host, "."); !ok {
			return false
		}
		if _, ok = l.wildcards[o]; ok {
			return true
		}
	}
}

// Any reports whether every origin may connect, because nobody has listed any.
func (l *List) Any() bool { return l.allowAll }
