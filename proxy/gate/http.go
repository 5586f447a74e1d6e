package gate

import (
	"fmt"
	"net/http"
	"time"

	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
)

// HTTPMode is what becomes of requests that ask for no upgrade. The zero value refuses them with 426.
type HTTPMode string

// The modes.
const (
	HTTPOff  HTTPMode = ""     // off: they are refused
	HTTPAuth HTTPMode = "auth" // they pass as upgrades do
	HTTPOpen HTTPMode = "open" // they pass without authentication
)

// UnmarshalText implements [encoding.TextUnmarshaler].
func (m *HTTPMode) UnmarshalText(text []byte) error {
	switch mode := HTTPMode(text); mode {
	case HTTPAuth, HTTPOpen:
		*m = mode
	case "off":
		*m = HTTPOff
	default:
		return fmt.Errorf("%q is no way to treat plain requests; want off, auth or open", text)
	}
	return nil
}

// serveHTTP takes a plain request, which is one that asks for no upgrade, through its steps to the upstream and back. One that asks for
// whatever upgrade is for the steps of Serve alone: passed on as plain, it would become a tunnel that nobody has checked.
func (g *Gate) serveHTTP(u *upgrade) *refusal.Refusal {
	if u.route.HTTP == HTTPOff || asksForUpgrade(u.HTTP) {
		return nil
	}
	u.plain = true
	u.Client.Keep()
	for _, step := range [...]func(*Gate, *upgrade) *refusal.Refusal{
		(*Gate).checkRequest,        // CONNECT or TRACE 405; not HTTP/1.1 505; malformed or suspicious 400
		(*Gate).checkOrigin,         // 403
		(*Gate).admitPage,           // the page may read what it is refused for from here on
		(*Gate).checkLoop,           // has been here before 508
		(*Gate).checkRequestRates,   // by address 429
		(*Gate).authenticateRequest, // as an upgrade, unless it is a preflight or HTTP_MODE=open
		(*Gate).checkKeptOut,        // 403
		(*Gate).pass,                // no connection 502; no target 503; the upstream's answer
	} {
		if no := step(g, u); no != nil {
			return no
		}
	}
	u.done = true
	return nil
}

// asksForUpgrade reports whether a server may see a request for another protocol in r, be it WebSocket or h2c.
func asksForUpgrade(r *http.Request) bool {
	_, upgrades := r.Header["Upgrade"]
	return upgrades || header.HasToken(r.Header["Connection"], "upgrade")
}

// checkRequest refuses what cannot be passed on. An answer to HTTP/1.0 that breaks off looks like a whole one.
func (g *Gate) checkRequest(u *upgrade) *refusal.Refusal {
	switch r := u.HTTP; {
	case r.Method == http.MethodConnect, r.Method == http.MethodTrace:
		return &refusal.Refusal{Reason: refusal.Method, Text: "the method is not allowed",
			Header: http.Header{"Allow": {"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}}}
	case r.ProtoMajor != 1 || r.ProtoMinor != 1:
		return &refusal.Refusal{Reason: refusal.Request, Status: http.StatusHTTPVersionNotSupported, Detail: "not HTTP/1.1"}
	case u.route.isOpenPlain() && g.table.mixedPlain && g.table.leadsElsewhere(r.Host, u.Path, (*route).isOpenPlain):
		return leadsElsewhere()
	case !header.IsHost(r.Host):
		return &refusal.Refusal{Reason: refusal.Request, Detail: "Host is not a host, with or without a port"}
	}
	return nil
}

// admitPage has a page of an allowed origin read the refusals of its requests, and when to come back. What is refused says nothing of
// anybody; that the browser may show it where it has sent cookies is said to the origins that are listed, and not where all are allowed.
func (g *Gate) admitPage(u *upgrade) *refusal.Refusal {
	u.Answer = http.Header{"Vary": {"Origin"}}
	origin := u.HTTP.Header["Origin"]
	if len(origin) != 1 {
		return nil
	}
	u.Answer["Access-Control-Expose-Headers"] = []string{"Retry-After"}
	if g.Origins.Any() {
		u.Answer["Access-Control-Allow-Origin"] = []string{"*"}
		return nil
	}
	u.Answer["Access-Control-Allow-Origin"] = origin
	u.Answer["Access-Control-Allow-Credentials"] = []string{"true"}
	return nil
}

// checkRequestRates counts a plain request by its address. It also refuses an address that has used up its failed authentications, where
// the request is to be authenticated.
func (g *Gate) checkRequestRates(u *upgrade) *refusal.Refusal {
	now := time.Now()
	if wait, ok := g.Limits.RequestFromAddress(u.Key, now); !ok {
		return &refusal.Refusal{Reason: refusal.RateRequests, RetryAfter: wait, Header: http.Header{
			"RateLimit-Policy": {g.Limits.RequestPolicy()},
			"RateLimit":        {fmt.Sprintf(`"requests";r=0;t=%d`, refusal.Seconds(wait))},
		}}
	}
	if !u.authenticates() {
		return nil
	}
	if wait, ok := g.Limits.FailuresLeft(u.Key, now); !ok {
		return &refusal.Refusal{Reason: refusal.AuthFailures, RetryAfter: wait}
	}
	if g.Fleet == nil {
		return nil
	}
	if u.unasked = u.route.auth.Local(); u.unasked {
		return nil // it is asked about a credential that is refused
	}
	return g.admit(u)
}

// authenticates reports whether a plain request is to be authenticated. A browser sends no credentials with a preflight, whose answer says
// only what pages may ask.
func (u *upgrade) authenticates() bool {
	return u.route.HTTP != HTTPOpen && u.route.needsCredential() && !isPreflight(u.HTTP)
}

// isPreflight reports whether r is a CORS preflight (https://fetch.spec.whatwg.org/#cors-preflight-request).
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) == 1 && len(r.Header["Access-Control-Request-Method"]) == 1 &&
		r.ContentLength == 0
}

func (g *Gate) authenticateRequest(u *upgrade) *refusal.Refusal {
	if !u.authenticates() {
		return nil
	}
	return g.authenticate(u)
}

// checkKeptOut refuses a subject that was kicked and is kept out. Its rate is of upgrades.
func (g *Gate) checkKeptOut(u *upgrade) *refusal.Refusal {
	if g.Sessions.KeptOut(u.grant.Subject) {
		return &refusal.Refusal{Reason: refusal.Kicked}
	}
	return nil
}
