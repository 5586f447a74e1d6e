package session

import (
	"encoding/json"
	"time"

	"portcullis/proxy/frame"
)

// Header has a session's id: in the 101, and in a request to renew it.
const Header = "Portcullis-Session"

// hello is the first message of a session (SESSION_HELLO): a browser's script cannot read the headers of a 101.
type hello struct {
	Portcullis struct {
		Session string    `json:"session"`
		Expires Timestamp `json:"expires"`
		// Push is the id of the newest push as the session was opened. A client that has none yet begins with it.
		Push string `json:"push,omitempty"`
	} `json:"portcullis"`
}

// Hello is that message as a frame; nil where there is to be none. Whatever extensions were negotiated, a frame need not use
// them. end is when the session's credential ends; zero: never.
func (s *Session) Hello(end time.Time) []byte {
	m := s.manager
	if !m.rules.hello {
		return nil
	}
	var h hello
	h.Portcullis.Session, h.Portcullis.Expires = s.ID, Timestamp(end)
	switch {
	case m.history == nil:
	case s.control.history != nil:
		h.Portcullis.Push = s.control.history.newest
	default:
		h.Portcullis.Push = m.history.newest()
	}
	text, _ := json.Marshal(h) // strings alone
	return frame.AppendMessage(nil, frame.Text, text)
}

// Timestamp is a time in JSON, RFC 3339 in whole seconds, rounded down; null for never.
type Timestamp time.Time

// MarshalJSON implements [json.Marshaler].
func (t Timestamp) MarshalJSON() ([]byte, error) {
	if time.Time(t).IsZero() {
		return []byte("null"), nil
	}
	return time.Time(t).UTC().AppendFormat(nil, `"`+time.RFC3339+`"`), nil
}
