package api

import (
	"errors"
	"net/http"

	"portcullis/proxy/auth"
	"portcullis/proxy/gate"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
)

// errNotRenewed does not say which: whoever has an id and no token of its subject learns nothing about it.
var errNotRenewed = errors.New("no session with that id and of that subject can be renewed")

// renewed is the answer to a renewal: until when the session lives on. If the verifier can be asked again, this is the latest time
// at which it will be.
type renewed struct {
	Expires session.Timestamp `json:"expires"`
}

// renew is POST /.portcullis/session: the session that Portcullis-Session names lives on by the token in Authorization, for
// as long as that holds, and by no other. Unknown ids, other subjects and bad tokens are refused alike.
func (a *API) renew(r *gate.Request) *refusal.Refusal {
	var answer renewed
	no := a.gate.Bearer(r, func(g auth.Grant) *refusal.Refusal {
		ids := r.HTTP.Header[http.CanonicalHeaderKey(session.Header)]
		if len(ids) != 1 {
			return &refusal.Refusal{Reason: refusal.TokenRefused, Err: errNotRenewed}
		}
		renewed, err := a.sessions.renew(r.HTTP.Context(), ids[0], g)
		if _, wrong := errors.AsType[*session.GroupsError](err); wrong {
			return &refusal.Refusal{Reason: refusal.Groups, Status: http.StatusBadRequest, Err: err}
		}
		if err != nil {
			return &refusal.Refusal{Reason: refusal.FleetUnavailable, Err: err}
		}
		if !renewed {
			return &refusal.Refusal{Reason: refusal.TokenRefused, Err: errNotRenewed}
		}
		answer.Expires = session.Timestamp(session.End(g.Decision))
		return nil
	})
	switch {
	case no == nil:
		writeJSON(r, answer)
		return nil
	case no.Reason.ChargesFailure():
		return &refusal.Refusal{Reason: refusal.TokenRefused, Err: no.Err, Header: refusal.Challenge("invalid_token")}
	}
	return no
}
