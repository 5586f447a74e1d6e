package api

import (
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"portcullis/proxy/session"
)

// pushed is the answer to POST /api/messages.
type pushed struct {
	ID        string `json:"id,omitempty"` // in the history of pushes; left out where there is none
	Reached   int    `json:"reached"`      // sessions whose queue took the message
	Ending    int    `json:"ending"`       // those that were on their way out
	TooSlow   int    `json:"too_slow"`     // those whose queue was full, and that are ended for it
	Extension int    `json:"extension"`    // those with an extension that the gate does not know
	Full      int    `json:"full"`         // resumable ones whose buffer was full; those whose client was away are ended for it

	Unanswered []string `json:"unanswered,omitempty"` // instances of the fleet that did not say in time what came of it
}

// send is POST /api/messages: its body is one message.
func (o *Operator) send(c *call) *reply {
	f, wrong := c.target()
	if wrong != nil {
		return wrong
	}
	kind, _, err := mime.ParseMediaType(c.Header.Get("Content-Type"))
	if err != nil && c.Header.Get("Content-Type") != "" {
		return problem(http.StatusBadRequest, "Content-Type: it cannot be read")
	}
	m := session.Message{Binary: kind != "application/json" && !strings.HasPrefix(kind, "text/"), Body: c.body}
	if !m.Binary && !utf8.Valid(m.Body) {
		return problem(http.StatusBadRequest, "a text message must be UTF-8; send another Content-Type for a binary one")
	}
	if !m.Binary && session.Reserved(m.Body) {
		return problem(http.StatusBadRequest, "a text message must not begin with U+0000 and \"portcullis \", as the gate's own do")
	}
	out, wrong := o.instances.everywhere(c.Context(), command{To: targetOf(f), Send: sendCommandOf(m)})
	if wrong != nil {
		return wrong
	}
	reach := out.Reach
	a := jsonReply(http.StatusOK, pushed{out.ID, reach.Reached, reach.Ending, reach.TooSlow, reach.Extension, reach.Full, out.Silent})
	a.attrs = []any{"bytes", len(m.Body), "reached", reach.Reached}
	if missed := reach.Ending + reach.TooSlow + reach.Extension + reach.Full; missed > 0 {
		a.attrs = append(a.attrs, "not_reached", missed)
	}
	return a
}
