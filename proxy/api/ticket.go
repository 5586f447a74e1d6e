package api

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/fleet"
	"portcullis/proxy/gate"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/proxy/ticket"
)

const (
	defaultMaxTickets     = 1 << 14
	defaultMaxTicketsEach = 256 // more than an office behind one address opens in half a minute
)

// tickets are those of a fleet, or of this instance where it is alone.
type tickets struct {
	own    *ticket.Store[auth.Grant]
	shared *fleet.Tickets // nil: this instance is alone
	bound  bool           // to the address that asked for it
}

// NewTickets returns the tickets; nil without TICKETS. f is nil where there is no fleet.
func (c *Config) NewTickets(f *fleet.Fleet) gate.Tickets {
	if !c.Tickets {
		return nil
	}
	total, each := cmp.Or(c.MaxTickets, defaultMaxTickets), cmp.Or(c.MaxTicketsEach, defaultMaxTicketsEach)
	own := ticket.New[auth.Grant](ticket.Config{TTL: c.TicketTTL, BindAddress: c.TicketBindIP, Total: total, PerOwner: each})
	t := &tickets{own: own, bound: c.TicketBindIP}
	if f != nil {
		t.shared = f.NewTickets(c.TicketTTL, total, each)
	}
	return t
}

// Issue implements [gate.Tickets]. While Redis is away a ticket is for this instance alone.
func (t *tickets) Issue(ctx context.Context, address netip.Prefix, g auth.Grant) (text string, until time.Time, err error) {
	if t.shared != nil {
		text, until, err = t.shared.Issue(ctx, fleet.Owner{Address: address.String(), Subject: g.Subject, Bound: t.bound}, g.Reveal())
		switch err {
		case nil:
			return text, until, nil
		case fleet.ErrTicketsOwner:
			return "", until, ticket.ErrOwner
		case fleet.ErrTicketsTotal:
			return "", until, ticket.ErrTotal
		}
	}
	return t.own.Issue(ticket.Owner{Address: address, Subject: g.Subject}, g.Clone())
}

var errTicket = errors.New("the ticket is not known, used, over or another address's")

// Redeem implements [gate.Tickets].
func (t *tickets) Redeem(ctx context.Context, text string, from netip.Prefix) (g auth.Grant, err error) {
	if g, ok := t.own.Redeem(text, from); ok {
		return g, nil
	}
	if t.shared == nil {
		return g, &auth.RefusedError{Cause: errTicket}
	}
	value, err := t.shared.Redeem(ctx, text, from.String())
	if err != nil {
		return g, err
	}
	if g, err = auth.ReadGrant(value); err != nil {
		return g, &auth.RefusedError{Cause: errTicket}
	}
	return g, nil
}

// Close implements [gate.Tickets].
func (t *tickets) Close() { t.own.Close() }

// issued is the answer to a request for a ticket.
type issued struct {
	Ticket  string            `json:"ticket"`
	Expires session.Timestamp `json:"expires"`
}

// issueTicket is POST /.portcullis/ticket?path=: a ticket for the token in Authorization, which opens one session of that path's route.
func (a *API) issueTicket(r *gate.Request) *refusal.Refusal {
	route, no := a.ticketRoute(r)
	if no != nil {
		return no
	}
	var answer issued
	no = a.gate.Bearer(r, func(g auth.Grant) *refusal.Refusal {
		g.Route = route.Name
		text, until, err := a.gate.Tickets.Issue(r.HTTP.Context(), r.Key, g)
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

// pathParam is the query parameter that says which path a ticket is for.
const pathParam = "path"

// ticketRoute finds the route that a ticket is asked for, by a path of it. Where there is only one route nobody has to say.
func (a *API) ticketRoute(r *gate.Request) (*gate.Route, *refusal.Refusal) {
	query, err := url.ParseQuery(r.Query)
	paths := query[pathParam]
	switch {
	case err != nil || len(paths) > 1:
		return nil, &refusal.Refusal{Reason: refusal.TicketPath, Detail: "the query is malformed"}
	case len(paths) == 0 && a.gate.Routes() > 1:
		return nil, &refusal.Refusal{Reason: refusal.TicketPath, Detail: "there are several routes; want ?path= with the path that the ticket is to open"}
	case len(paths) == 0:
		return a.gate.Only(), nil
	}
	route := a.gate.Find(r, paths[0])
	switch {
	case route == nil:
		return nil, &refusal.Refusal{Reason: refusal.Path}
	case route.Open:
		return nil, &refusal.Refusal{Reason: refusal.TicketPath, Detail: "that path needs no credential"}
	}
	return route, nil
}
