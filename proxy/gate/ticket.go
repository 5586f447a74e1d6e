package gate

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/session"
)

// Tickets are good once, for whoever shows one. They are safe for concurrent use.
type Tickets interface {
	// Issue returns a new ticket for what a client was granted, and until when it can be used. The error is [ticket.ErrOwner] or
	// [ticket.ErrTotal].
	Issue(ctx context.Context, address netip.Prefix, g auth.Grant) (text string, until time.Time, err error)
	// Redeem returns what a ticket stands for. The error is an [*auth.RefusedError], or [fleet.ErrAway]: nobody knows.
	Redeem(ctx context.Context, text string, from netip.Prefix) (auth.Grant, error)
	// Close forgets those that are in memory.
	Close()
}

// TicketParam is the query parameter of an upgrade that holds a ticket.
const TicketParam = "ticket"

var errOtherRoute = errors.New("the ticket is for another route")

// hasTicket reports whether an upgrade shows a ticket, or tries to.
func (g *Gate) hasTicket(u *upgrade) bool {
	if g.Tickets == nil {
		return false
	}
	text, wrong := auth.FindParam(u.HTTP, TicketParam)
	return text != "" || wrong != nil
}

// findTicket returns the ticket that an upgrade shows, "" for none. err is that of the search for a token, which a ticket
// makes unnecessary.
func (g *Gate) findTicket(u *upgrade, err error) (string, error) {
	if g.Tickets == nil || err != nil && !errors.Is(err, auth.ErrMissing) {
		return "", err
	}
	text, wrong := auth.FindParam(u.HTTP, TicketParam)
	if text != "" || wrong != nil {
		err = wrong
	}
	return text, err
}

// redeem replaces u's grant by the ticket's. The ticket is used up, whatever comes of it.
func (g *Gate) redeem(u *upgrade, text string) error {
	grant, err := g.Tickets.Redeem(u.HTTP.Context(), text, u.Key)
	shown := u.grant.Credential
	switch {
	case err != nil:
		return err
	case grant.Route != u.route.Name:
		return &auth.RefusedError{Cause: errOtherRoute}
	case shown.Token != "" && shown.Token != grant.Token:
		return auth.ErrConflict // the upstream might go by a token that it finds
	}
	u.grant = grant
	u.grant.Subprotocol = shown.Subprotocol
	if end := session.End(u.grant.Decision); end.IsZero() || time.Now().Before(end) {
		return nil
	}
	// What the verifier said when it issued the ticket holds no longer.
	u.grant.Decision, err = u.route.auth.Verify(g.Base, u.grant.Credential)
	return err
}
