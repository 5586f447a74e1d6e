package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"portcullis/proxy"
	"portcullis/proxy/gate"
	"portcullis/proxy/settings"
	"portcullis/ratelimit"
)

// routePrefix begins the name of each variable that is a route.
const routePrefix = "ROUTE_"

var (
	routeName = regexp.MustCompile(`^[A-Za-z0-9_]+$`)
	// kubernetes matches the names that Kubernetes gives every container for a service called route, or route-something.
	kubernetes  = regexp.MustCompile(`^ROUTE(_.*)?_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)
	commaTarget = regexp.MustCompile(`,(wss?|https?|unix):`)
	routeKey    = regexp.MustCompile(`^[a-z_]+=`)
)

const wantRoute = "want [host]/path target [target ...] [key=value ...], with blanks between them"

// readRoutes reads the ROUTE_<NAME> of environ, in order of their names. What a route does not say itself it has from c. The errors are
// a line for each mistake.
func readRoutes(environ map[string]string, c *proxy.Config) (routes []proxy.Route, mistakes []error) {
	for _, variable := range slices.Sorted(maps.Keys(environ)) {
		name, isRoute := strings.CutPrefix(variable, routePrefix)
		value := environ[variable]
		if !isRoute || value == "" {
			continue
		}
		if kubernetes.MatchString(variable) {
			if strings.Contains(value, " ") { // Kubernetes makes no such value
				mistakes = append(mistakes, fmt.Errorf("%s: %q would be a route, but Kubernetes makes variables of that name; want another name", variable, value))
			}
			continue
		}
		r := proxy.Route{Name: name, Setting: variable, HTTP: c.Gate.HTTP, Upstream: c.Upstream, Relay: c.Relay, Limits: c.Limits}
		p := routeParser{route: &r, global: c}
		if !routeName.MatchString(name) {
			p.note("%q is no name of a route; want letters, digits and _ behind %s", name, routePrefix)
		}
		p.parse(value)
		routes, mistakes = append(routes, r), append(mistakes, p.mistakes...)
	}
	return routes, mistakes
}

// routeParser reads the words of a route.
type routeParser struct {
	route    *proxy.Route
	global   *proxy.Config
	keys     []string // that have been there
	mistakes []error
}

func (p *routeParser) note(format string, a ...any) {
	p.mistakes = append(p.mistakes, fmt.Errorf(p.route.Setting+": "+format, a...))
}

func (p *routeParser) parse(value string) {
	p.route.Paths = []string{"/*"}
	p.route.Upstream.URL = "ws://localhost" // so that nobody complains about the lack of one again
	words := strings.Fields(value)
	if len(words) == 0 {
		p.note("%q is empty; %s", value, wantRoute)
		return
	}
	if !p.place(words[0]) {
		return
	}
	var targets []string
	for _, word := range words[1:] {
		switch isKey := routeKey.MatchString(word); {
		case isKey:
			p.key(word)
		case len(p.keys) > 0:
			p.note("%q stands behind a key; want the targets before the keys", word)
		case commaTarget.MatchString(word):
			p.note("%q has a comma; want blanks between targets", word)
			return
		default:
			targets = append(targets, word)
		}
	}
	if len(targets) == 0 {
		p.note("%q has no target; %s", value, wantRoute)
		return
	}
	p.route.Upstream.URL = strings.Join(targets, " ")
	p.checkLimits()
}

// place reads [host]/path. It reports false where that is missing.
func (p *routeParser) place(word string) bool {
	host, _, hasPath := strings.Cut(word, "/")
	switch {
	case strings.Contains(word, "://") || strings.HasPrefix(word, "unix:"):
		p.note("%q is a target, and the path is missing; %s", word, wantRoute)
		return false
	case !hasPath:
		p.note("%q has no path; %s", word, wantRoute)
	case host != "" && !gate.IsHost(host):
		p.note("%q does not begin with a host; want one in lower case and without a port, such as chat.example.com/ws/*", word)
	default:
		p.route.Host, p.route.Paths = host, []string{strings.TrimPrefix(word, host)}
	}
	return true
}

// key reads key=value.
func (p *routeParser) key(word string) {
	key, value, _ := strings.Cut(word, "=")
	switch {
	case slices.Contains(p.keys, key):
		p.note("%q is there twice; want each key once", word)
		return
	case value == "":
		p.note("%q has no value; want key=value", word)
		return
	}
	p.keys = append(p.keys, key)
	r := p.route
	var err error
	switch key {
	case "balance":
		err = r.Upstream.Balance.UnmarshalText([]byte(value))
	case "drain":
		err = r.Upstream.Drain.UnmarshalText([]byte(value))
	case "http":
		err = r.HTTP.UnmarshalText([]byte(value))
		if err == nil && r.HTTP == gate.HTTPAuth && p.global.Auth.Mode == "none" {
			err = fmt.Errorf("%q says nothing with AUTH_MODE=none; want open", value)
		}
	case "relay":
		r.Relay.Mode, err = oneOf(value, "passthrough", "terminate")
	case "auth":
		_, err = oneOf(value, "none")
		if r.Open = err == nil; r.Open && p.global.Auth.Mode == "none" {
			err = fmt.Errorf("%q says nothing with AUTH_MODE=none; want it left out", value)
		}
	case "message_rate":
		err = parseRate(&r.Limits.Messages, value)
		if !slices.Contains(p.keys, "message_burst") {
			r.Limits.MessagesBurst = 0 // that of MESSAGE_RATE
		}
	case "message_burst":
		r.Limits.MessagesBurst, err = parseCount(value)
	case "message_byte_rate":
		err = parseRate(&r.Limits.MessageBytes, value)
	case "message_max_bytes":
		r.Relay.MessageMaxBytes, err = settings.ParseSize(value)
	case "message_limit_action":
		r.Relay.LimitAction, err = oneOf(value, "close", "throttle")
	default:
		err = fmt.Errorf("%q is no key; want %s", key, strings.Join(routeKeys, ", "))
	}
	if err != nil {
		p.note("in %q: %w", word, err)
	}
}

// routeKeys are those that a route may have.
var routeKeys = []string{"auth", "balance", "drain", "http", "message_burst", "message_byte_rate", "message_limit_action", "message_max_bytes", "message_rate", "relay"}

// checkLimits finds the keys that have no effect.
func (p *routeParser) checkLimits() {
	l := &p.route.Limits
	if slices.Contains(p.keys, "message_burst") && l.Messages.N == 0 {
		p.note("\"message_burst=%d\" has no rate to go with; want message_rate, too", l.MessagesBurst)
		l.MessagesBurst = 0
	}
	if slices.Contains(p.keys, "message_limit_action") && l.Messages.N == 0 && l.MessageBytes.N == 0 {
		p.note("\"message_limit_action=%s\" has no effect without a rate; want message_rate or message_byte_rate, too", p.route.Relay.LimitAction)
	}
}

func oneOf(value string, allowed ...string) (string, error) {
	if !slices.Contains(allowed, value) {
		return allowed[0], fmt.Errorf("%q is not usable; want %s", value, strings.Join(allowed, " or "))
	}
	return value, nil
}

func parseRate(r *ratelimit.Rate, value string) error {
	var text encoding.TextUnmarshaler = r
	return text.UnmarshalText([]byte(value))
}

func parseCount(value string) (int, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil || n == 0 {
		return 0, errors.New(strconv.Quote(value) + " is no number of messages; want 1 or more")
	}
	return int(n), nil
}
