package proxy

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"

	"portcullis/proxy/frame"
	"portcullis/proxy/refusal"
)

// sessionHeader has a session's id: in the 101, and in a request to renew it.
const sessionHeader = "Portcullis-Session"

// renewals are the open sessions that another token of the same subject may renew. Nil, without RENEWAL, has none.
type renewals struct {
	mu   sync.Mutex
	open map[string]*session // by id; guarded by mu
}

func newRenewals() *renewals { return &renewals{open: make(map[string]*session)} }

// renewable reports whether the session that u becomes can be renewed: not if its subject is only a hash of its token.
func (p *Proxy) renewable(u *upgrade) bool { return p.renewals != nil && !u.decision.Pseudonym }

func (r *renewals) add(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[s.id] = s
}

func (r *renewals) remove(s *session) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, s.id)
	}
}

// find returns nil for an id that is no open session's.
func (r *renewals) find(id string) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open[id]
}

// errNotRenewed does not say which: whoever has an id and no token of its subject learns nothing about it.
var errNotRenewed = errors.New("no session with that id and of that subject can be renewed")

// renew is POST /.portcullis/session: the session that Portcullis-Session names lives on by the token in Authorization, for
// as long as that holds, and by no other. Unknown ids, other subjects and bad tokens are refused alike.
func (p *Proxy) renew(u *upgrade) *refusal.Refusal {
	no := p.tryBearer(u, func() *refusal.Refusal {
		if !p.extend(u) {
			return &refusal.Refusal{Reason: refusal.TokenRefused, Err: errNotRenewed}
		}
		return nil
	})
	switch {
	case no == nil:
		u.answer(renewed{timestamp(termsOf(u.decision).End())})
		return nil
	case no.Reason.ChargesFailure():
		return &refusal.Refusal{Reason: refusal.TokenRefused, Err: no.Err, Header: challenge("invalid_token")}
	}
	return no
}

// extend reports whether there was such a session, and it was not over.
func (p *Proxy) extend(u *upgrade) bool {
	ids := u.r.Header[http.CanonicalHeaderKey(sessionHeader)]
	if len(ids) != 1 || u.decision.Pseudonym {
		return false
	}
	s := p.renewals.find(ids[0])
	if s == nil || s.subject != u.decision.Subject {
		return false
	}
	if !p.keeper.Renew(&s.tenure.Lease, termsOf(u.decision), p.asker(u)) {
		return false
	}
	p.log.LogAttrs(u.r.Context(), slog.LevelDebug, "session renewed", s.attrs()...)
	return true
}

// renewed is the answer to a renewal: until when the session lives on. Where the verifier can be asked again, that is when at
// the latest it is.
type renewed struct {
	Expires timestamp `json:"expires"`
}

// greeting is the first message of a session (SESSION_HELLO): a browser's script cannot read the headers of a 101.
type greeting struct {
	Portcullis struct {
		Session string    `json:"session"`
		Expires timestamp `json:"expires"`
	} `json:"portcullis"`
}

// greet returns the greeting as a frame; nil where there is to be none. Whatever extensions were negotiated, a frame need not
// use them.
func (p *Proxy) greet(u *upgrade) []byte {
	if !p.hello {
		return nil
	}
	var g greeting
	g.Portcullis.Session, g.Portcullis.Expires = u.id, timestamp(termsOf(u.decision).End())
	text, _ := json.Marshal(g) // strings alone
	return append(frame.Header{Fin: true, Opcode: frame.Text, Length: int64(len(text))}.Append(nil), text...)
}
