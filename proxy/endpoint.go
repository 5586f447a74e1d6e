package proxy

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// The gate's own endpoints on the front port. Nothing that a server may take for a path below ownPaths is ever an upstream's,
// whatever PATHS say.
const (
	ownName     = ".portcullis"
	ownPaths    = "/" + ownName + "/"
	sessionPath = ownPaths + "session" // RENEWAL
	ticketPath  = ownPaths + "ticket"  // TICKETS
)

// checkExchanges notes the mistakes in the settings of these endpoints.
func checkExchanges(c *Config, note func(format string, a ...any)) {
	byToken := c.Auth.ByToken()
	if c.Renewal && !byToken {
		note("RENEWAL: \"true\" needs to know whose a token is by the token alone, which AUTH_MODE=%s does not; want false, or another mode", c.Auth.Mode)
	}
	if c.SessionHello && !c.Renewal {
		note("SESSION_HELLO: \"true\" sends an id that is of no use without RENEWAL; want false, or RENEWAL=true")
	}
	if c.Tickets && !byToken {
		// In mode forward the yes to a request for a ticket would open paths for which the service was never asked.
		note("TICKETS: \"true\" needs an answer that holds for every request with the same token, which AUTH_MODE=%s does not give; want false, or another mode", c.Auth.Mode)
	}
	if c.Tickets && slices.Contains(c.Auth.TokenFrom, "query:"+ticketParam) {
		note("AUTH_TOKEN_FROM: %q is where tickets are; want another name for tokens, or TICKETS=false", "query:"+ticketParam)
	}
	if c.Tickets && c.TicketTTL <= 0 {
		note("TICKET_TTL: %q leaves no time to use a ticket; want more than 0s", c.TicketTTL)
	}
}

// endpoint is what answers a request for one of the gate's own paths; nil for all others.
func (p *Proxy) endpoint(u *upgrade) func(*Proxy, *upgrade) *refusal.Refusal {
	switch {
	case u.path == sessionPath && p.renewals != nil:
		return (*Proxy).renew
	case u.path == ticketPath && p.tickets != nil:
		return (*Proxy).issueTicket
	}
	return nil
}

// serveEndpoint takes a request to one of the gate's own endpoints through the steps that an upgrade takes there. What it
// carries is in its headers; a body is not read.
func (p *Proxy) serveEndpoint(u *upgrade, act func(*Proxy, *upgrade) *refusal.Refusal) {
	steps := []func(*Proxy, *upgrade) *refusal.Refusal{
		(*Proxy).findClient,
		(*Proxy).checkOrigin,
		(*Proxy).shareWithOrigin,
		(*Proxy).checkPost, // 405
		(*Proxy).checkRates,
		act,
	}
	if u.r.Method == http.MethodOptions {
		// A preflight tries nothing. Were it limited, the page could not read when to come back.
		steps = append(steps[:3], answerPreflight)
	}
	for _, step := range steps {
		if no := step(p, u); no != nil {
			p.refuse(u, no)
			return
		}
	}
}

// shareWithOrigin lets the page that asks read the answer (CORS). That it may send cookies is not said: none are read.
func (p *Proxy) shareWithOrigin(u *upgrade) *refusal.Refusal {
	h := u.w.Header()
	h["Vary"] = []string{"Origin"}
	if origin := u.r.Header["Origin"]; len(origin) == 1 {
		h["Access-Control-Allow-Origin"] = origin
		h["Access-Control-Expose-Headers"] = []string{"Retry-After"}
	}
	return nil
}

func (p *Proxy) checkPost(u *upgrade) *refusal.Refusal {
	if u.r.Method == http.MethodPost {
		return nil
	}
	return &refusal.Refusal{Reason: refusal.Method, Text: "the method is not allowed; want POST, with the token in Authorization: Bearer", Header: http.Header{"Allow": {"POST, OPTIONS"}}}
}

// answerPreflight tells a browser that its page may ask what it is about to ask.
func answerPreflight(_ *Proxy, u *upgrade) *refusal.Refusal {
	h := u.w.Header()
	h["Access-Control-Allow-Methods"] = []string{"POST"}
	h["Access-Control-Allow-Headers"] = []string{"Authorization, Content-Type, " + sessionHeader}
	h["Access-Control-Max-Age"] = []string{"600"}
	h["Cache-Control"] = []string{"no-store"}
	deliver(u.w, u.r, http.StatusNoContent, nil)
	return nil
}

// tryBearer verifies the token in the Authorization header as authenticate does that of an upgrade, and then has act make
// something of it. A no to the credential is charged to the address, whichever of the two says it.
func (p *Proxy) tryBearer(u *upgrade, act func() *refusal.Refusal) *refusal.Refusal {
	credential, err := auth.Bearer(u.r)
	if errors.Is(err, auth.ErrMissing) {
		return &refusal.Refusal{Reason: refusal.TokenMissing, Header: challenge("")}
	}
	attempt, no := p.attempt(u)
	if no != nil {
		return no
	}
	defer attempt.Release()
	if err == nil {
		u.credential = credential
		u.decision, err = p.verify(u)
	}
	if err != nil {
		return charge(attempt, p.tokenRefusal(u, err))
	}
	if no = p.checkSubjectRate(u); no == nil {
		no = act()
	}
	return charge(attempt, no)
}

// charge charges an attempt for a no to its credential, and returns that no.
func charge(attempt *ratelimit.Attempt, no *refusal.Refusal) *refusal.Refusal {
	if no != nil && no.Reason.ChargesFailure() {
		attempt.Charge()
	}
	return no
}

// answer is an endpoint's yes.
func (u *upgrade) answer(v any) {
	body, _ := json.Marshal(v) // structs of strings
	h := u.w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h["Cache-Control"] = []string{"no-store"}
	deliver(u.w, u.r, http.StatusOK, body)
}

// timestamp is a time in JSON, RFC 3339 in whole seconds, rounded down; null for never.
type timestamp time.Time

// MarshalJSON implements [json.Marshaler].
func (t timestamp) MarshalJSON() ([]byte, error) {
	if time.Time(t).IsZero() {
		return []byte("null"), nil
	}
	return time.Time(t).UTC().AppendFormat(nil, `"`+time.RFC3339+`"`), nil
}
