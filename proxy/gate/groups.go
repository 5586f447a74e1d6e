package gate

import (
	"errors"
	"net/http"

	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
)

// findGroups finds the groups of the session that is to come.
func (g *Gate) findGroups(u *upgrade) *refusal.Refusal {
	groups, err := g.Groups.Of(u.grant.Decision, u.Query)
	if err != nil {
		return GroupsRefusal(err)
	}
	u.groups = groups
	return nil
}

// GroupsRefusal is the refusal of groups that cannot be used: the client's fault where it chose them.
func GroupsRefusal(err error) *refusal.Refusal {
	no := &refusal.Refusal{Reason: refusal.Groups, Err: err}
	if wrong, ok := errors.AsType[*session.GroupsError](err); ok && wrong.Query {
		no.Status, no.Detail = http.StatusBadRequest, wrong.Wrong
	}
	return no
}
