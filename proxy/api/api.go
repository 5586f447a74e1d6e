// Package api is what the gate answers itself. On the front port, in place of an upstream: POST /.portcullis/ticket (ticket.go),
// POST /.portcullis/session (renew.go) and /token (token.go). A credential can be tried there as in an upgrade, so it costs as much:
// the same origins, rates and failure budget hold. On the operator's listener: /api (operator.go).
package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/gate"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
)

const (
	sessionPath = gate.OwnPaths + "session" // RENEWAL
	ticketPath  = gate.OwnPaths + "ticket"  // TICKETS
	tokenPath   = "/token"
)

// Config is what an API needs.
type Config struct {
	// Tickets answers POST /.portcullis/ticket: a ticket for the token in Authorization, which opens one session as ?ticket=.
	Tickets bool `env:"TICKETS" envDefault:"false" fixed:"true"`
	// TicketTTL is how long a ticket can be used. Zero is refused.
	TicketTTL time.Duration `env:"TICKET_TTL" envDefault:"30s" needs:"TICKETS" fixed:"true"`
	// TicketBindIP has a ticket used by the address alone that it was issued to; an IPv6 /64 is one.
	TicketBindIP bool `env:"TICKET_BIND_IP" envDefault:"true" needs:"TICKETS" fixed:"true"`

	// AdminToken opens /api on the operator's listener to whoever shows it. It has 16 characters or more. Empty: there is no /api.
	AdminToken string `env:"ADMIN_TOKEN" secret:"true" needs:"ADMIN_ADDR"`
	// PushMaxBytes is the largest message that is taken to be pushed. It must be positive, and with resumption it must fit the
	// buffer of a session, which is then what the environment has for a default.
	PushMaxBytes int64 `env:"PUSH_MAX_BYTES" envDefault:"1MiB" size:"true" needs:"ADMIN_TOKEN" fixed:"true"`

	// MaxTickets and MaxTicketsEach bound the tickets that are not used yet: all, and those of one address or one subject. Zero: 16,384
	// and 256. With each a token is kept: 128 MiB if all are as long as they may be, some 20 MiB if they are as usual.
	MaxTickets, MaxTicketsEach int `env:"-"`
	// OpenAPI describes /api, and is served there.
	OpenAPI []byte `env:"-"`
	// TokenEndpoint answers /token, unless PATHS serve that path: 400 for a token that is not accepted. It is held to the limits of
	// an upgrade. Nil: none.
	TokenEndpoint http.Handler `env:"-"`
	// Reached has this instance obey what is on the bus of its fleet.
	Reached bool `env:"-"`
	// Renewal answers POST /.portcullis/session.
	Renewal bool `env:"-"`
	// Logger gets what was issued, at debug level.
	Logger *slog.Logger `env:"-"`
}

// Check returns a line for each mistake in c, given how clients authenticate.
func (c *Config) Check(a *auth.Config) (mistakes []error) {
	mistakes = c.checkOperator()
	note := func(format string, args ...any) { mistakes = append(mistakes, fmt.Errorf(format, args...)) }
	if c.Tickets && !a.ByToken() {
		// In mode forward the acceptance of a request for a ticket would open paths about which the service was never asked.
		note("TICKETS: \"true\" needs an answer that holds for every request with the same token, which AUTH_MODE=%s does not give; want false, or another mode", a.Mode)
	}
	if c.Tickets && slices.Contains(a.TokenFrom, "query:"+gate.TicketParam) {
		note("AUTH_TOKEN_FROM: %q is where tickets are; want another name for tokens, or TICKETS=false", "query:"+gate.TicketParam)
	}
	if c.Tickets && c.TicketTTL <= 0 {
		note("TICKET_TTL: %q leaves no time to use a ticket; want more than 0s", c.TicketTTL)
	}
	return mistakes
}

// API answers the gate's own paths. It is safe for concurrent use.
type API struct {
	gate     *gate.Gate
	sessions *Instances   // nil: sessions cannot be renewed
	token    http.Handler // nil: no token endpoint
	log      *slog.Logger
}

// New returns an API whose requests take the checks of g, and whose tickets are in its store.
func New(c Config, g *gate.Gate, sessions *Instances) *API {
	a := &API{gate: g, token: c.TokenEndpoint, log: c.Logger}
	if c.Renewal {
		a.sessions = sessions
	}
	return a
}

// Handler returns what answers a path; nil where that is for the gate.
func (a *API) Handler(r *gate.Request) func(*gate.Request) {
	switch path := r.Path; {
	case path == sessionPath && a.sessions != nil:
		return a.post(a.renew)
	case path == ticketPath && a.gate.Tickets != nil:
		return a.post(a.issueTicket)
	case path == tokenPath && a.token != nil && !a.gate.Serves(r):
		return a.serveToken
	}
	return nil
}

// post takes a POST request through the checks that an upgrade takes too, and then to handle. What it carries is in its headers; a
// body is not read.
func (a *API) post(handle func(*gate.Request) *refusal.Refusal) func(*gate.Request) {
	return func(r *gate.Request) {
		no := a.gate.CheckOrigin(r)
		if no == nil {
			r.Answer = cors(r)
		}
		switch {
		case no != nil:
		case r.HTTP.Method == http.MethodOptions:
			answerPreflight(r) // it tries nothing; were it limited, the page could not read when to come back
			return
		case r.HTTP.Method != http.MethodPost:
			no = &refusal.Refusal{Reason: refusal.Method, Text: "the method is not allowed; want POST, with the token in Authorization: Bearer",
				Header: http.Header{"Allow": {"POST, OPTIONS"}}}
		default:
			if no = a.gate.CheckRates(r); no == nil {
				no = handle(r)
			}
		}
		if no != nil {
			a.gate.Refuse(r, no)
		}
	}
}

// cors lets the page that asks read the answer. That it may send cookies is not said: none are read.
func cors(r *gate.Request) http.Header {
	h := http.Header{"Vary": {"Origin"}}
	if origin := r.HTTP.Header["Origin"]; len(origin) == 1 {
		h["Access-Control-Allow-Origin"] = origin
		h["Access-Control-Expose-Headers"] = []string{"Retry-After"}
	}
	return h
}

// answerPreflight tells a browser that its page may ask what it is about to ask.
func answerPreflight(r *gate.Request) {
	r.Respond(http.StatusNoContent, http.Header{
		"Access-Control-Allow-Methods": {"POST"},
		"Access-Control-Allow-Headers": {"Authorization, Content-Type, " + session.Header},
		"Access-Control-Max-Age":       {"600"},
		"Cache-Control":                {"no-store"},
	}, nil)
}

// writeJSON answers 200.
func writeJSON(r *gate.Request, v any) {
	body, _ := json.Marshal(v) // structs of strings
	r.Respond(http.StatusOK, http.Header{
		"Content-Type":           {"application/json"},
		"Content-Length":         {strconv.Itoa(len(body))},
		"X-Content-Type-Options": {"nosniff"},
		"Cache-Control":          {"no-store"},
	}, body)
}
