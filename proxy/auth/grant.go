package auth

import (
	"encoding/json"
	"strings"
)

// Grant is a credential and the verifier's acceptance of it: all that is kept of a client who has been authenticated, by a
// session that is to be verified again, or by a ticket. It can be copied. Printing it hides the token.
type Grant struct {
	Credential
	Decision
	Route string // which a ticket opens; empty: the only one
}

// Clone returns a copy that does not keep the memory of the request from which g was read.
func (g Grant) Clone() Grant {
	g.Token = strings.Clone(g.Token)
	g.Subject = strings.Clone(g.Subject)
	g.Route = strings.Clone(g.Route)
	return g
}

// shown is a grant with its token in the open.
type shown struct {
	Token       string `json:"token"`
	Subprotocol string `json:"subprotocol,omitempty"`
	Route       string `json:"route,omitempty"`
	Decision
}

// Reveal returns g as JSON with its token in the open, for another instance: no log, and no place that keeps it unless sealed. What mode
// forward shows of a request is left out.
func (g Grant) Reveal() []byte {
	text, err := json.Marshal(shown{g.Token, g.Subprotocol, g.Route, g.Decision})
	if err != nil {
		panic(err) // strings and times
	}
	return text
}

// ReadGrant reads what Reveal returned.
func ReadGrant(text []byte) (Grant, error) {
	var s shown
	err := json.Unmarshal(text, &s)
	return Grant{Credential: Credential{Token: s.Token, Subprotocol: s.Subprotocol}, Decision: s.Decision, Route: s.Route}, err
}
