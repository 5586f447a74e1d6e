package gate

import (
	"errors"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/session"
)

// TicketParam is the query parameter of an upgrade that holds a ticket.
const TicketParam = "ticket"

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
	grant, ok := g.Tickets.Redeem(text, u.Key)
	shown := u.grant.Credential
	switch {
	case !ok:
		return &auth.RefusedError{Cause: errTicket}
	case shown.Token != "" && shown.Token != grant.Token:
		return auth.ErrConflict // the upstream might go by a token that it finds
	}
	u.grant = grant
	u.grant.Subprotocol = shown.Subprotocol
	if end := session.End(u.grant.Decision); end.IsZero() || time.Now().Before(end) {
		return nil
	}
	// What the verifier said when it issued the ticket holds no longer.
	var err error
	u.grant.Decision, err = u.route.auth.Verify(g.Base, u.grant.Credential)
	return err
}

var errTicket = errors.New("the ticket is not known, used, over or another address's")
