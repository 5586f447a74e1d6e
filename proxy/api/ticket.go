package api

import (
	"errors"
	"log/slog"

	"portcullis/proxy/auth"
	"portcullis/proxy/gate"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/proxy/ticket"
)

const (
	// maxTickets bounds the tickets that are not used yet. With each a token is kept: 128 MiB if all are as long as they may
	// be, some 20 MiB if they are as usual.
	maxTickets = 1 << 14
	// maxTicketsEach is for one address or one subject: more than an office behind one address opens in half a minute.
	maxTicketsEach = 256
)

// NewTickets returns the store of tickets; nil without TICKETS.
func (c *Config) NewTickets() *ticket.Store[auth.Grant] {
	if !c.Tickets {
		return nil
	}
	return ticket.New[auth.Grant](ticket.Config{TTL: c.TicketTTL, BindAddress: c.TicketBindIP, Total: maxTickets, PerOwner: maxTicketsEach})
}

// issued is the answer to a request for a ticket.
type issued struct {
	Ticket  string            `json:"ticket"`
	Expires session.Timestamp `json:"expires"`
}

// issueTicket is POST /.portcullis/ticket: a ticket for the token in Authorization.
func (a *API) issueTicket(r *gate.Request) *refusal.Refusal {
	var answer issued
	no := a.gate.Bearer(r, func(g auth.Grant) *refusal.Refusal {
		text, until, err := a.gate.Tickets.Issue(ticket.Owner{Address: r.Key, Subject: g.Subject}, g.Clone())
		switch {
		case errors.Is(err, ticket.ErrOwner):
			return &refusal.Refusal{Reason: refusal.Tickets}
		case err != nil:
			return &refusal.Refusal{Reason: refusal.TicketsTotal}
		}
		a.log.LogAttrs(r.HTTP.Context(), slog.LevelDebug, "ticket issued",
			slog.String("subject", g.Subject), slog.String("client", r.From.Addr.String()))
		answer = issued{text, session.Timestamp(until)}
		return nil
	})
	if no == nil {
		writeJSON(r, answer)
	}
	return no
}
