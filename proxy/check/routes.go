package check

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"portcullis/proxy"
	"portcullis/proxy/certificate"
	"portcullis/upstream"
)

// route is one of the settings, to be asked.
type route struct {
	name     string
	paths    []string // as PATHS
	rules    string   // as the keys of a route
	upstream upstream.Config
	bundled  bool // it is to the bundled backend, which is not there yet
}

// routes are those of the settings.
func (c *Config) routes() []route {
	p := &c.Settings.Proxy
	var all []route
	for _, r := range p.Routes {
		u := r.Upstream
		u.Setting, u.Secure = r.Setting, true // the settings have been found right as a whole
		all = append(all, route{r.Name, []string{r.Host + r.Paths[0]}, rules(&r, p.Auth.Mode), u, false})
	}
	if len(all) > 0 {
		return all
	}
	only := proxy.Route{HTTP: p.Gate.HTTP, Upstream: p.Upstream, Relay: p.Relay}
	return []route{{"", p.Gate.Paths, rules(&only, p.Auth.Mode), p.Upstream, c.Backend}}
}

// rules are the keys that a route comes to, but for its limits.
func rules(r *proxy.Route, auth string) string {
	if r.Open {
		auth = "none"
	}
	text := fmt.Sprintf("auth=%s balance=%s http=%s relay=%s", auth, r.Upstream.Balance, cmp.Or(string(r.HTTP), "off"), r.Relay.Mode)
	if drain := r.Upstream.Drain.String(); drain != "" {
		text += " drain=" + drain
	}
	return text
}

// ask connects to every target.
func (r *route) ask(ctx context.Context) Route {
	answer := Route{Name: r.name, Paths: r.paths, Rules: r.rules, Targets: []Target{}}
	switch {
	case len(r.paths) > 0:
	case r.bundled:
		answer.Paths = []string{"/"}
	default:
		answer.Paths = []string{"/*"}
	}
	if r.bundled {
		answer.Targets = append(answer.Targets, Target{URL: "the bundled backend", OK: true})
		return answer
	}
	found, err := upstream.Check(ctx, r.upstream)
	if err != nil { // the settings are right, so a file has changed just now
		answer.Targets = append(answer.Targets, Target{Problem: err.Error(), Want: "it checked again"})
	}
	names := upstreamNames
	names.server = cmp.Or(r.upstream.Setting, names.server)
	now := time.Now()
	for _, f := range found {
		t := Target{URL: f.Target, Address: f.Address, OK: f.Err == nil, Connected: f.Took.Seconds(), TLS: f.TLS, Health: f.Health}
		if f.TLS != "" {
			t.Until, t.ExpiresSoon = &f.Until, certificate.ExpiresSoon(f.Until, now)
		}
		if f.Err != nil {
			t.Problem, t.Want = f.Err.Error(), remedy(f.Err, names)
		}
		answer.Targets = append(answer.Targets, t)
	}
	return answer
}

var upstreamNames = names{
	server: "UPSTREAM_URL", timeout: "UPSTREAM_DIAL_TIMEOUT", authorities: "UPSTREAM_CA_FILE", client: "UPSTREAM_CERT_FILE and UPSTREAM_KEY_FILE",
	serverName: "UPSTREAM_SERVER_NAME", plain: "ws or http", otherwise: "a target in UPSTREAM_URL that takes connections from here and answers UPSTREAM_HEALTH_PATH, if that is set, with 200 to 399",
}
