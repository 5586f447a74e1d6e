package auth

import "strings"

// Grant is a credential and the verifier's acceptance of it: all that is kept of a client who has been authenticated, by a
// session that is to be verified again, or by a ticket. It can be copied. Printing it hides the token.
type Grant struct {
	Credential
	Decision
}

// Clone returns a copy that does not keep the memory of the request from which g was read.
func (g Grant) Clone() Grant {
	g.Token = strings.Clone(g.Token)
	g.Subject = strings.Clone(g.Subject)
	return g
}
