package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"portcullis/proxy/frame"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

// sessionList is the answer to GET /api/sessions.
type sessionList struct {
	Sessions []session.Status `json:"sessions"`
	Next     *string          `json:"next"` // the cursor of the following page; null: there is none
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
	var after int64
	if text := c.args["cursor"]; text != "" {
		var ok bool
		if after, ok = o.readCursor(text, &f); !ok {
			return problem(http.StatusBadRequest, "cursor: it is not of this process, or of another filter; want next of the page before, or none to begin anew")
		}
	}
	page, next := o.sessions.List(f, limit, after)
	list := sessionList{Sessions: page}
	if list.Sessions == nil {
		list.Sessions = []session.Status{}
	}
	if next != 0 {
		cursor := o.cursor(next, &f)
		list.Next = &cursor
	}
	a := jsonReply(http.StatusOK, list)
	a.attrs = []any{"sessions", len(page)}
	return a
}

// cursor names a place in the list of a filter. Whoever changes it learns nothing and gets nothing.
func (o *Operator) cursor(place int64, f *session.Filter) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(place))
	return base64.RawURLEncoding.EncodeToString(append(b, o.sign(b, f)...))
}

func (o *Operator) readCursor(text string, f *session.Filter) (place int64, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != 8+signature || !hmac.Equal(b[8:], o.sign(b[:8], f)) {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(b)), true
}

const signature = 16 // bytes of a cursor

func (o *Operator) sign(place []byte, f *session.Filter) []byte {
	mac := hmac.New(sha256.New, o.cursorKey)
	mac.Write(place)
	for _, part := range []string{f.Subject, f.Group, f.Path, f.Address} {
		mac.Write([]byte(part))
		mac.Write([]byte{0}) // which no part has
	}
	return mac.Sum(nil)[:signature]
}

// get is GET /api/sessions/{id}.
func (o *Operator) get(c *call) *reply {
	page, _ := o.sessions.List(session.Filter{Session: c.id}, 1, 0)
	if len(page) == 0 {
		return problem(http.StatusNotFound, "no session with that id is open")
	}
	return jsonReply(http.StatusOK, page[0])
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
	k, wrong := c.closing()
	if wrong != nil {
		return wrong
	}
	if text := c.args["for"]; text != "" {
		d, err := time.ParseDuration(text)
		switch {
		case err != nil || d <= 0 || d > maxKeepOut:
			return problem(http.StatusBadRequest, "for: want a duration up to %v such as 15m", maxKeepOut)
		case f.Subject == "" || f != session.Filter{Subject: f.Subject}:
			return problem(http.StatusBadRequest, "for: it keeps a subject out; want subject and no other filter")
		}
		k.KeepOut = d
	}
	out, wrong := o.everywhere(c.Context(), command{Filter: f, Kick: &kickCommand{k.Code, k.Reason, k.KeepOut}})
	reach := out.Reach
	switch {
	case wrong != nil:
		return wrong
	case out.Full:
		return problem(http.StatusServiceUnavailable, "too many subjects are kept out at once; nobody was kicked")
	case c.id != "" && reach.Reached+reach.Ending == 0:
		return problem(http.StatusNotFound, "no session with that id is open")
	}
	a := jsonReply(http.StatusOK, kicked{reach.Reached, reach.Ending, out.Silent})
	a.attrs = []any{"reached", reach.Reached, "code", k.Code}
	if k.KeepOut > 0 {
		a.attrs = append(a.attrs, "for", k.KeepOut.String())
	}
	return a
}

// closing is what the Close frames of a kick say.
func (c *call) closing() (k session.Kick, wrong *reply) {
	k.Closing = relay.Closing{Code: frame.CodeForbidden, Reason: "kicked"}
	if text := c.args["code"]; text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n != frame.CodeNormal && n != frame.CodePolicy && (n < 3000 || n > 4999) {
			return k, problem(http.StatusBadRequest, "code: want 1000, 1008, or one from 3000 to 4999 (RFC 6455, section 7.4)")
		}
		k.Closing = relay.Closing{Code: n}
	}
	if text := c.args["reason"]; text != "" {
		if len(text) > frame.MaxControlPayload-2 || !utf8.ValidString(text) {
			return k, problem(http.StatusBadRequest, "reason: want at most %d bytes", frame.MaxControlPayload-2)
		}
		k.Reason = text
	}
	return k, nil
}
