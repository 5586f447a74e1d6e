package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"portcullis/proxy/header"
)

// target is one of UPSTREAM_URL, compiled.
type target struct {
	location
	raw     string      // as it was written
	name    string      // as the log and the metrics name it, unlike any other
	network string      // tcp or unix
	isName  bool        // its host may have several addresses
	tls     *tls.Config // nil: without TLS
}

// location is what a URL says.
type location struct {
	address         string // to dial: host:port, IPv6 in brackets, its zone kept; or the path of a socket
	serverName      string // to verify a certificate for
	authority       string // for the Host header field, unless the request names another
	secure          bool
	basePath        string // what a request for "/" asks for: the base path as it was written
	basePathNoSlash string // what any other path is appended to: the base path without its last slash
	query           string
}

const wantURL = "want ws://, wss://, http:// or https://, then host[:port][/path][?query], or unix:/path"

// parseTargets compiles UPSTREAM_URL, or whatever setting it was written in: one or more, with blanks between them.
func parseTargets(raw, setting string) (all []*target, mistakes []error) {
	fields := strings.Fields(raw)
	if len(fields) == 0 {
		fields = []string{""}
	}
	for i, field := range fields {
		t, err := parseTarget(field, setting)
		switch {
		case err != nil:
			mistakes = append(mistakes, err)
		case slices.Contains(fields[:i], field):
			mistakes = append(mistakes, fmt.Errorf("%s: %q is there twice; want each target once", setting, redact(field)))
		default:
			t.name = t.authority
			if t.network == "unix" {
				t.name = t.address
			}
			if slices.ContainsFunc(all, func(other *target) bool { return other.name == t.name }) {
				t.name += "#" + strconv.Itoa(len(all)+1) // of one server, by another path or scheme
			}
			all = append(all, t)
		}
	}
	return all, mistakes
}

// parseSocket compiles unix:/path.
func parseSocket(raw, path, setting string) (*target, error) {
	if !strings.HasPrefix(path, "/") || len(path) > maxSocketPath || strings.ContainsAny(path, "?#\x00") {
		return nil, fmt.Errorf("%s: %q is no socket; want unix: and an absolute path of up to %d bytes", setting, redact(raw), maxSocketPath)
	}
	return &target{location: location{address: path, authority: "localhost", basePath: "/"}, raw: raw, network: "unix"}, nil
}

// maxSocketPath is what an address of a unix socket takes on every system.
const maxSocketPath = 103

// parseTarget compiles one. Its error lists everything that is wrong with it.
func parseTarget(raw, setting string) (*target, error) {
	mistake := func(what string) error {
		return fmt.Errorf("%s: %q %s; %s", setting, redact(raw), what, wantURL)
	}
	if raw == "" {
		return nil, mistake("is empty")
	}
	if path, isSocket := strings.CutPrefix(raw, "unix:"); isSocket {
		return parseSocket(raw, path, setting)
	}
	u, err := url.Parse(raw)
	if err != nil { // its text quotes raw, with its password and its query
		return nil, mistake("is not a URL")
	}

	t := &target{raw: raw, network: "tcp"}
	var port string
	switch u.Scheme {
	case "ws", "http":
		port = "80"
	case "wss", "https":
		port, t.secure = "443", true
	default:
		return nil, mistake("has another scheme or none")
	}

	var errs []error
	if u.User != nil {
		errs = append(errs, mistake("holds user information"))
	}
	if strings.Contains(raw, "#") {
		errs = append(errs, mistake("has a fragment"))
	}
	if u.Hostname() == "" || !header.IsHost(u.Host) {
		errs = append(errs, mistake("has no valid host"))
	}
	if p := u.Port(); p != "" {
		port = p
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strings.HasSuffix(u.Host, ":") {
		errs = append(errs, mistake("has no valid port"))
	}
	if hasDotSegment(u.Path) {
		errs = append(errs, mistake("has a dot segment in its path"))
	}
	if !sendable(u.RawQuery) {
		errs = append(errs, mistake("has a query that is not percent-encoded"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	t.address = net.JoinHostPort(u.Hostname(), port)
	// A zone has a meaning on this machine only (RFC 6874 section 4).
	host, zone, _ := strings.Cut(u.Hostname(), "%")
	t.serverName = host
	_, err = netip.ParseAddr(host)
	t.isName = err != nil
	t.authority = u.Host
	if zone != "" {
		t.authority = strings.Replace(u.Host, "%"+zone, "", 1)
	}
	t.basePath = u.EscapedPath()
	if t.basePath == "" {
		t.basePath = "/"
	}
	t.basePathNoSlash = strings.TrimSuffix(t.basePath, "/")
	t.query = u.RawQuery
	return t, nil
}

// appendURI appends the request target for an escaped path and a raw query. Nothing is decoded, cleaned or encoded again: the
// upstream gets exactly what the gate has checked.
//
//	base     path      target
//	/app     /a%2Fb    /app/a%2Fb
//	/app/    /a        /app/a
//	/app     /         /app      the base path as it was written, so that UPSTREAM_URL can name one endpoint,
//	/app/    /         /app/     with or without its slash
//	?x=1     ?y=2      ?x=1&y=2
func (t *location) appendURI(b []byte, path, query string) []byte {
	if path == "" || path == "/" {
		b = append(b, t.basePath...)
	} else {
		b = append(b, t.basePathNoSlash...)
		b = append(b, path...)
	}
	if t.query != "" || query != "" {
		b = append(b, '?')
		b = append(b, t.query...)
		if t.query != "" && query != "" {
			b = append(b, '&')
		}
		b = append(b, query...)
	}
	return b
}

// sendable reports whether s can stand in a request line without ending it, splitting it or turning what follows into a
// fragment. Bytes above ASCII are not allowed in a URI, but browsers and servers exchange them, and they do no harm.
func sendable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f || c == '#' {
			return false
		}
	}
	return true
}

func hasDotSegment(path string) bool {
	for s := range strings.SplitSeq(path, "/") {
		if s == "." || s == ".." {
			return true
		}
	}
	return false
}

// redact returns a URL, valid or not, without what may be secret in it: user information, query and fragment.
func redact(raw string) string {
	if i := strings.IndexAny(raw, "?#"); i >= 0 {
		raw = raw[:i] + raw[i:i+1] + "…"
	}
	if at := strings.LastIndexByte(raw, '@'); at >= 0 {
		scheme := strings.Index(raw, "://") // not found: -1, and what stands before the @ is hidden whole
		if scheme += len("://"); scheme < len("://") || scheme > at {
			scheme = 0
		}
		raw = raw[:scheme] + "…" + raw[at:]
	}
	return raw
}
