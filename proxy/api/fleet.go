package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
	"unicode/utf8"

	"portcullis/proxy/frame"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
)

// Bus carries commands to all instances, this one included, and their answers back.
type Bus interface {
	// Command returns the answers, in JSON, and names the instances that did not answer. An error means that nobody was told.
	Command(ctx context.Context, command any) (answers [][]byte, silent []string, err error)
}

// Share has what the API ends and sends reach the sessions of all instances on the bus. Each of them obeys by Obey.
func (o *Operator) Share(b Bus) { o.bus = b }

// command is what goes over the bus.
type command struct {
	Filter session.Filter `json:"filter"`
	All    bool           `json:"all,omitempty"` // the filter leaves nobody out, and is to
	Kick   *kickCommand   `json:"kick,omitempty"`
	Send   *sendCommand   `json:"send,omitempty"`
}

type kickCommand struct {
	Code   int           `json:"code"`
	Reason string        `json:"reason"`
	For    time.Duration `json:"for"` // nanoseconds
}

type sendCommand struct {
	Binary bool   `json:"binary"`
	Body   []byte `json:"body"` // in base64
}

// outcome is what came of a command in one instance, or in all of them.
type outcome struct {
	Reach  relay.Reach `json:"reach"`
	ID     string      `json:"id"`   // of a push in the history
	Full   bool        `json:"full"` // too many subjects are kept out
	Silent []string    `json:"-"`    // instances that did not answer
}

// Obey does what a command of the bus says, with the sessions of this instance. One that is malformed does nothing.
func (o *Operator) Obey(text []byte) any {
	var c command
	if json.Unmarshal(text, &c) != nil {
		return outcome{}
	}
	return o.obey(c)
}

func (o *Operator) obey(c command) (out outcome) {
	switch {
	case c.Filter.Everybody() != c.All, c.Kick != nil && c.Send != nil:
	case c.Kick != nil:
		k := session.Kick{Closing: relay.Closing{Code: c.Kick.Code, Reason: c.Kick.Reason}, KeepOut: c.Kick.For}
		if len(k.Reason) > frame.MaxReason || !utf8.ValidString(k.Reason) || k.Code < 1000 || k.Code > 4999 || k.KeepOut < 0 || k.KeepOut > maxKeepOut {
			return out
		}
		var err error
		out.Reach, err = o.sessions.Kick(c.Filter, k)
		out.Full = err != nil
	case c.Send != nil:
		m := session.Message{Binary: c.Send.Binary, Body: c.Send.Body}
		if int64(len(m.Body)) > o.pushMax || !m.Binary && (!utf8.Valid(m.Body) || session.Reserved(m.Body)) {
			return out
		}
		out.Reach, out.ID = o.sessions.Send(c.Filter, m)
	}
	return out
}

// everywhere has all instances obey a command, or this one alone where there is no bus. The reply is a problem: nobody obeyed.
func (o *Operator) everywhere(ctx context.Context, c command) (out outcome, wrong *reply) {
	c.All = c.Filter.Everybody()
	if o.bus == nil {
		return o.obey(c), nil
	}
	answers, silent, err := o.bus.Command(ctx, c)
	if err != nil {
		return out, problem(http.StatusServiceUnavailable, "the other instances cannot be reached at the moment; nobody was")
	}
	out.Silent = silent
	for _, text := range answers {
		var one outcome
		if json.Unmarshal(text, &one) != nil {
			continue
		}
		out.Reach.Add(one.Reach)
		out.Full = out.Full || one.Full
	}
	return out, nil // an id in the history of one instance is of no use to the others
}
