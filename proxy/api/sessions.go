package api

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"portcullis/proxy/frame"
	"portcullis/proxy/session"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

// sessionList is the answer to GET /api/sessions.
type sessionList struct {
	Sessions []json.RawMessage `json:"sessions"` // each a session.Status
	Next     *string           `json:"next"`     // the cursor of the following page; null: there is none

	Unanswered []string `json:"unanswered,omitempty"` // instances of the fleet that did not say in time what they have
}

// list is GET /api/sessions.
func (o *Operator) list(c *call) *reply {
	limit := defaultPage
	if text := c.args["limit"]; text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return problem(http.StatusBadRequest, "limit: want a number from 1 to %d", maxPage)
		}
		limit = n
	}
	f := c.filter()
	var after place
	if text := c.args["cursor"]; text != "" {
		var ok bool
		if after, ok = o.readCursor(text, &f); !ok {
			return problem(http.StatusBadRequest, "cursor: it is of another filter, or none; want next of the page before, or leave it out to begin anew")
		}
	}
	found, silent := o.instances.list(c.Context(), listQuestion{f, limit, after})
	list := sessionList{Sessions: []json.RawMessage{}, Unanswered: silent}
	for _, s := range found.Sessions {
		list.Sessions = append(list.Sessions, s.Status)
	}
	if n := len(found.Sessions); n > 0 && found.More {
		cursor := o.cursor(found.Sessions[n-1].Place, &f)
		list.Next = &cursor
	}
	a := jsonReply(http.StatusOK, list)
	a.attrs = []any{"sessions", len(found.Sessions)}
	return a
}

// cursor names a place in the list of a filter. Whoever changes it learns nothing and gets nothing.
func (o *Operator) cursor(p place, f *session.Filter) string {
	b := append(binary.BigEndian.AppendUint64(nil, uint64(p.Order)), p.Instance...)
	return base64.RawURLEncoding.EncodeToString(append(b, o.sign(b, f)...))
}

func (o *Operator) readCursor(text string, f *session.Filter) (p place, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 8+signature {
		return p, false
	}
	b, signed := b[:len(b)-signature], b[len(b)-signature:]
	if !hmac.Equal(signed, o.sign(b, f)) {
		return p, false
	}
	return place{int64(binary.BigEndian.Uint64(b)), string(b[8:])}, true
}

const signature = 16 // bytes of a cursor

func (o *Operator) sign(place []byte, f *session.Filter) []byte {
	mac := hmac.New(sha256.New, o.secrets.Load().cursorKey)
	for _, part := range []string{f.Subject, f.Group, f.Path, f.Address} {
		mac.Write([]byte(part))
		mac.Write([]byte{0}) // which no part has
	}
	mac.Write(place)
	return mac.Sum(nil)[:signature]
}

// get is GET /api/sessions/{id}.
func (o *Operator) get(c *call) *reply {
	found, silent := o.instances.list(c.Context(), listQuestion{Filter: session.Filter{Session: c.id}, Limit: 1})
	switch {
	case len(found.Sessions) > 0:
		return &reply{status: http.StatusOK, body: found.Sessions[0].Status}
	case len(silent) > 0:
		return away("no instance that has answered has a session with that id; these have not: " + strings.Join(silent, ", "))
	}
	return noSession()
}

// kicked is the answer to DELETE /api/sessions.
type kicked struct {
	Reached int `json:"reached"` // sessions that were told to go
	Ending  int `json:"ending"`  // and those that were on their way out already

	Unanswered []string `json:"unanswered,omitempty"` // instances of the fleet that did not say in time what came of it
}

// maxKeepOut is how long a subject can be kept out.
const maxKeepOut = 7 * 24 * time.Hour

// kick is DELETE /api/sessions and DELETE /api/sessions/{id}.
func (o *Operator) kick(c *call) *reply {
	f, wrong := c.target()
	if wrong != nil {
		return wrong
	}
	k, wrong := c.kick(f)
	if wrong != nil {
		return wrong
	}
	out, wrong := o.instances.everywhere(c.Context(), command{To: targetOf(f), Kick: k})
	reach := out.Reach
	switch {
	case wrong != nil:
		return wrong
	case out.Full:
		return problem(http.StatusServiceUnavailable, "too many subjects are kept out at once; nobody was kicked")
	case c.id != "" && reach.Reached+reach.Ending == 0 && len(out.Silent) > 0:
		return away("no instance that has answered has a session with that id; these have not: " + strings.Join(out.Silent, ", "))
	case c.id != "" && reach.Reached+reach.Ending == 0:
		return noSession()
	}
	a := jsonReply(http.StatusOK, kicked{reach.Reached, reach.Ending, out.Silent})
	a.attrs = []any{"reached", reach.Reached, "code", cmp.Or(k.Code, frame.CodeForbidden)}
	if k.For != nil {
		a.attrs = append(a.attrs, "for", time.Duration(*k.For).String())
	}
	return a
}

// kick is what the query says of the end of those sessions.
func (c *call) kick(f session.Filter) (k *kickCommand, wrong *reply) {
	k = &kickCommand{Reason: c.args["reason"]}
	if text := c.args["code"]; text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n == 0 {
			return nil, problem(http.StatusBadRequest, "%v", errCode)
		}
		k.Code = n
	}
	if _, err := closing(k.Code, k.Reason); err != nil {
		return nil, problem(http.StatusBadRequest, "%v", err)
	}
	if text := c.args["for"]; text != "" {
		d, err := time.ParseDuration(text)
		switch {
		case err != nil || d <= 0 || d > maxKeepOut:
			return nil, problem(http.StatusBadRequest, "for: want a duration up to %v such as 15m", maxKeepOut)
		case !keepsOut(f):
			return nil, problem(http.StatusBadRequest, "for: it keeps a subject out; want subject and no other filter")
		}
		k.For = new(duration(d))
	}
	return k, nil
}

func noSession() *reply { return problem(http.StatusNotFound, "no session with that id is open") }
