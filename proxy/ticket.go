package proxy

import (
	"errors"
	"log/slog"
	"strings"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/refusal"
	"portcullis/proxy/ticket"
)

const (
	// ticketParam is the query parameter of an upgrade that holds a ticket.
	ticketParam = "ticket"
	// maxTickets bounds the tickets that are not used yet. With each a token is kept: 128 MiB if all are as long as they may
	// be, some 20 MiB if they are as usual.
	maxTickets = 1 << 14
	// maxTicketsEach is for one address or one subject: more than an office behind one address opens in half a minute.
	maxTicketsEach = 256
)

// grant is what a ticket stands for.
type grant struct {
	credential auth.Credential
	decision   auth.Decision
}

// newTickets returns nil without TICKETS.
func newTickets(c *Config) *ticket.Store[grant] {
	if !c.Tickets {
		return nil
	}
	return ticket.New[grant](ticket.Config{TTL: c.TicketTTL, Bind: c.TicketBindIP, Total: maxTickets, Each: maxTicketsEach})
}

// issueTicket is POST /.portcullis/ticket: a ticket for the token in Authorization.
func (p *Proxy) issueTicket(u *upgrade) *refusal.Refusal {
	var a issued
	no := p.tryBearer(u, func() *refusal.Refusal {
		g := grant{u.credential, u.decision}
		g.credential.Token = strings.Clone(g.credential.Token) // not the request with it
		text, until, err := p.tickets.Issue(ticket.Owner{Address: u.address, Subject: u.decision.Subject}, g)
		switch {
		case errors.Is(err, ticket.ErrOwner):
			return &refusal.Refusal{Reason: refusal.Tickets}
		case err != nil:
			return &refusal.Refusal{Reason: refusal.TicketsTotal}
		}
		p.log.LogAttrs(u.r.Context(), slog.LevelDebug, "ticket issued",
			slog.String("subject", u.decision.Subject), slog.String("client", u.client.Addr.String()))
		a = issued{text, timestamp(until)}
		return nil
	})
	if no == nil {
		u.answer(a)
	}
	return no
}

// issued is the answer to a request for a ticket.
type issued struct {
	Ticket  string    `json:"ticket"`
	Expires timestamp `json:"expires"`
}

// findTicket returns the ticket that an upgrade shows, "" for none. err is that of the search for a token, which a ticket
// makes unnecessary.
func (p *Proxy) findTicket(u *upgrade, err error) (string, error) {
	if p.tickets == nil || err != nil && !errors.Is(err, auth.ErrMissing) {
		return "", err
	}
	text, wrong := auth.FindParam(u.r, ticketParam)
	if text != "" || wrong != nil {
		err = wrong
	}
	return text, err
}

// redeem has u go by a ticket in place of its token. The ticket is used up, whatever comes of it.
func (p *Proxy) redeem(u *upgrade, text string) error {
	g, ok := p.tickets.Redeem(text, u.address)
	shown := u.credential
	switch {
	case !ok:
		return &auth.RefusedError{Cause: errTicket}
	case shown.Token != "" && shown.Token != g.credential.Token:
		return auth.ErrConflict // the upstream might go by a token that it finds
	}
	u.credential, u.decision = g.credential, g.decision
	u.credential.Answer = shown.Answer
	if end := termsOf(u.decision).End(); end.IsZero() || time.Now().Before(end) {
		return nil
	}
	// What the verifier said when it issued the ticket holds no longer.
	var err error
	u.decision, err = p.verify(u)
	return err
}

var errTicket = errors.New("the ticket is not known, used, over or another address's")
