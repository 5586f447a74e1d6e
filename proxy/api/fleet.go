package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"portcullis/proxy/auth"
	"portcullis/proxy/fleet"
	"portcullis/proxy/frame"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
)

// Instances is what has a call reach the sessions of all instances of a fleet, or of this one where it is alone. It implements
// [fleet.Handler]. It is safe for concurrent use.
type Instances struct {
	sessions *session.Manager
	pushMax  int64
	obeys    bool         // commands of the bus are for this instance
	fleet    *fleet.Fleet // nil: this instance is alone
	bus      *fleet.Bus   // as fleet
}

// NewInstances returns what reaches the sessions of the fleet; f is nil where there is none.
func NewInstances(c Config, f *fleet.Fleet, sessions *session.Manager) *Instances {
	i := &Instances{sessions: sessions, pushMax: c.PushMaxBytes, obeys: c.Reached, fleet: f}
	if f != nil {
		i.bus = f.Join(i)
	}
	return i
}

// MaxMessage is the largest message on the bus, given the largest that is pushed: each byte of a text may take six as JSON.
func (c *Config) MaxMessage() int { return int(min(6*c.PushMaxBytes+1<<16, 1<<30)) }

// command is what goes over the bus, as docs/bus.md has it.
type command struct {
	To   target       `json:"to"`
	Kick *kickCommand `json:"kick,omitempty"`
	Send *sendCommand `json:"send,omitempty"`
}

// target is a filter of sessions, or all of them.
type target struct {
	Session string `json:"session,omitempty"`
	Subject string `json:"subject,omitempty"`
	Group   string `json:"group,omitempty"`
	Path    string `json:"path,omitempty"`
	Address string `json:"address,omitempty"`
	Except  string `json:"except,omitempty"`
	All     bool   `json:"all,omitempty"`
}

func targetOf(f session.Filter) target {
	return target{f.Session, f.Subject, f.Group, f.Path, f.Address, f.Except, f.Everybody()}
}

var errTarget = errors.New("to: want one or more filters, or all, and values of up to 1024 bytes")

// filter is what t chooses. No filter is a mistake, never everybody.
func (t *target) filter() (session.Filter, error) {
	f := session.Filter{Session: t.Session, Subject: t.Subject, Group: t.Group, Path: t.Path, Address: t.Address, Except: t.Except}
	for _, value := range []string{t.Session, t.Subject, t.Group, t.Path, t.Address, t.Except} {
		if len(value) > maxArgument || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
			return f, errTarget
		}
	}
	if f.Everybody() != t.All {
		return f, errTarget
	}
	return f, nil
}

type kickCommand struct {
	Code   int       `json:"code,omitempty"` // 0: 3003, and the reason "kicked"
	Reason string    `json:"reason,omitempty"`
	For    *duration `json:"for,omitempty"` // nil: he may come back at once
}

// duration is a time.Duration in JSON, as Go writes it: "15m0s".
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

var errKick = errors.New("kick: want a code, a reason and a time that the API would take")

// kick is what k says.
func (k *kickCommand) kick(f session.Filter) (session.Kick, error) {
	closing, err := closing(k.Code, k.Reason)
	if err != nil || k.For != nil && (*k.For <= 0 || time.Duration(*k.For) > maxKeepOut || !keepsOut(f)) {
		return session.Kick{}, errKick
	}
	kick := session.Kick{Closing: closing}
	if k.For != nil {
		kick.KeepOut = time.Duration(*k.For)
	}
	return kick, nil
}

// keepsOut reports whether a filter names a subject, and so whom to keep out.
func keepsOut(f session.Filter) bool {
	return f.Subject != "" && f == session.Filter{Subject: f.Subject}
}

type sendCommand struct {
	Text   *string `json:"text,omitempty"`   // a text message
	Base64 []byte  `json:"base64,omitempty"` // a binary one
}

func sendCommandOf(m session.Message) *sendCommand {
	if m.Binary {
		return &sendCommand{Base64: m.Body}
	}
	text := string(m.Body)
	return &sendCommand{Text: &text}
}

var errSend = errors.New("send: want text or base64, not larger than PUSH_MAX_BYTES")

// message is what s sends.
func (s *sendCommand) message(most int64) (m session.Message, err error) {
	if s.Text != nil {
		m.Body = []byte(*s.Text)
	} else {
		m.Body, m.Binary = s.Base64, true
	}
	if (s.Text != nil) == (s.Base64 != nil) || int64(len(m.Body)) > most || !m.Binary && session.Reserved(m.Body) {
		return m, errSend
	}
	return m, nil
}

// outcome is what came of a command in one instance, or in all of them.
type outcome struct {
	Reach  relay.Reach `json:"reach"`
	ID     string      `json:"id,omitempty"` // of a push in the history
	Full   bool        `json:"full,omitempty"`
	Silent []string    `json:"-"` // instances that did not answer
}

// obey does what a command says with the sessions of this instance. kept is the id of a push in the history of the fleet.
func (i *Instances) obey(c command, kept string) (out outcome, err error) {
	f, err := c.To.filter()
	if err != nil {
		return out, err
	}
	switch {
	case c.Kick != nil:
		k, err := c.Kick.kick(f)
		if err != nil {
			return out, err
		}
		if k.KeepOut > 0 && i.fleet != nil {
			i.fleet.KeepOut(f.Subject, k.KeepOut)
		}
		out.Reach, err = i.sessions.Kick(f, k)
		out.Full = err != nil
	case c.Send != nil:
		m, err := c.Send.message(i.pushMax)
		if err != nil {
			return out, err
		}
		out.Reach, out.ID = i.sessions.Send(f, m, kept)
	}
	return out, nil
}

// everywhere has all instances obey a command. The reply is a problem: nobody obeyed.
func (i *Instances) everywhere(ctx context.Context, c command) (out outcome, wrong *reply) {
	if i.bus == nil {
		out, err := i.obey(c, "")
		if err != nil {
			return out, problem(http.StatusBadRequest, "%v", err)
		}
		return out, nil
	}
	answers, silent, err := i.bus.Command(ctx, encode(c))
	switch {
	case errors.Is(err, fleet.ErrUnknown):
		wrong = problem(http.StatusGatewayTimeout, "it is not known whether any instance was reached; none will be later")
		wrong.final = true
		return out, wrong
	case errors.Is(err, fleet.ErrTooLarge):
		return out, problem(http.StatusRequestEntityTooLarge, "the bus does not take a message that large; nobody was reached")
	case err != nil:
		return out, away("the other instances cannot be reached at the moment; nobody was")
	}
	out.Silent = silent
	for _, text := range answers {
		var one outcome
		if json.Unmarshal(text, &one) != nil {
			continue
		}
		out.Reach.Add(one.Reach)
		out.Full = out.Full || one.Full
		out.ID = one.ID // which is the same everywhere
	}
	return out, nil
}

// away is the problem of a call that may be made again soon.
func away(text string) *reply {
	wrong := problem(http.StatusServiceUnavailable, "%s", text)
	wrong.header = http.Header{"Retry-After": {"1"}}
	return wrong
}

func encode(c command) (e fleet.Command) {
	encode := func(v any) json.RawMessage {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err) // structs of strings and numbers
		}
		return text
	}
	if e.To = encode(c.To); c.Kick != nil {
		e.Kick = encode(c.Kick)
	}
	if c.Send != nil {
		e.Send = encode(c.Send)
	}
	return e
}

func decode(e fleet.Command) (c command, err error) {
	if err = fleet.Strict(e.To, &c.To); err != nil {
		return c, err
	}
	if e.Kick != nil {
		err = fleet.Strict(e.Kick, &c.Kick)
	}
	if e.Send != nil && err == nil {
		err = fleet.Strict(e.Send, &c.Send)
	}
	if err == nil && (c.Kick == nil) == (c.Send == nil) {
		err = errors.New("want kick or send") // one of them was null
	}
	return c, err
}

var errNotObeyed = errors.New("without ADMIN_TOKEN and BUS_URL nothing is obeyed")

// Obey implements [fleet.Handler].
func (i *Instances) Obey(e fleet.Command, id string) (any, error) {
	if !i.obeys {
		return nil, errNotObeyed
	}
	c, err := decode(e)
	if err != nil {
		return nil, err
	}
	return i.obey(c, id)
}

// Restore implements [fleet.Handler].
func (i *Instances) Restore(e fleet.Command, id string, age time.Duration) {
	c, err := decode(e)
	if err != nil || c.Send == nil {
		return
	}
	f, err := c.To.filter()
	if err != nil {
		return
	}
	if m, err := c.Send.message(i.pushMax); err == nil {
		i.sessions.Restore(f, m, id, age)
	}
}

// Forgotten implements [fleet.Handler].
func (i *Instances) Forgotten(id string) { i.sessions.ForgetPushes(id) }

// KeepOut implements [fleet.Handler]: what this instance has missed of a kick, it does now.
func (i *Instances) KeepOut(subjects map[string]time.Duration) {
	for subject, d := range subjects {
		if !i.sessions.Finds() || i.sessions.KeptOut(subject) {
			continue
		}
		c, _ := closing(0, "")
		i.sessions.Kick(session.Filter{Subject: subject}, session.Kick{Closing: c, KeepOut: d})
	}
}

// KeptOut implements [fleet.Handler].
func (i *Instances) KeptOut() map[string]time.Duration { return i.sessions.AllKeptOut() }

// question is what one instance asks all of them: one of these.
type question struct {
	List  *listQuestion  `json:"list,omitempty"`
	Renew *renewQuestion `json:"renew,omitempty"`
}

// listQuestion is for a page of sessions.
type listQuestion struct {
	Filter session.Filter `json:"filter"`
	Limit  int            `json:"limit"`
	After  place          `json:"after"`
}

// place is one in the list of all sessions, behind a session.
type place struct {
	Order    int64  `json:"order"` // when it was opened, in nanoseconds since 1970, by the clock of its instance
	Instance string `json:"instance"`
}

func (p place) compare(other place) int {
	if p.Order != other.Order {
		return int(min(1, max(-1, p.Order-other.Order)))
	}
	return strings.Compare(p.Instance, other.Instance)
}

// listed is a session of a page.
type listed struct {
	Place  place           `json:"place"`
	Status json.RawMessage `json:"status"`
}

// page is a part of the list.
type page struct {
	Sessions []listed `json:"sessions"`
	More     bool     `json:"more"` // there are others behind it
}

type renewQuestion struct {
	ID    string          `json:"id"`
	Grant json.RawMessage `json:"grant"` // with its token
}

// renewal is what came of one.
type renewal struct {
	Renewed bool                 `json:"renewed"`
	Groups  *session.GroupsError `json:"groups,omitempty"` // what is wrong with those of the token
}

// Answer implements [fleet.Handler].
func (i *Instances) Answer(text []byte) any {
	var q question
	switch err := fleet.Strict(text, &q); {
	case err != nil:
	case q.List != nil:
		return i.ownPage(*q.List)
	case q.Renew != nil:
		g, err := auth.ReadGrant(q.Renew.Grant)
		if err != nil {
			break
		}
		renewed, err := i.renewOwn(q.Renew.ID, g)
		r := renewal{Renewed: renewed}
		r.Groups, _ = errors.AsType[*session.GroupsError](err)
		return r
	}
	return struct{}{}
}

// ownPage is a page of this instance's sessions.
func (i *Instances) ownPage(q listQuestion) (p page) {
	if !i.sessions.Finds() || q.Limit < 1 || q.Limit > maxPage {
		return p
	}
	name, after := i.sessions.Instance(), q.After.Order
	if after > 0 && name > q.After.Instance {
		after-- // it comes behind sessions of that very moment in the instance of the place
	}
	sessions, next := i.sessions.List(q.Filter, q.Limit, after)
	for _, s := range sessions {
		text, err := json.Marshal(s)
		if err != nil {
			panic(err) // a struct of strings and numbers
		}
		p.Sessions = append(p.Sessions, listed{place{time.Time(s.Since).UnixNano(), name}, text})
	}
	p.More = next != 0
	return p
}

// list is a page of the sessions of all instances. Those that did not answer are named.
func (i *Instances) list(ctx context.Context, q listQuestion) (all page, silent []string) {
	if i.bus == nil {
		return i.ownPage(q), nil
	}
	answers, silent, err := i.bus.Ask(ctx, question{List: &q}, nil)
	if err != nil {
		return i.ownPage(q), i.fleet.Others()
	}
	for _, text := range answers {
		var p page
		if json.Unmarshal(text, &p) == nil {
			all.Sessions = append(all.Sessions, p.Sessions...)
			all.More = all.More || p.More
		}
	}
	slices.SortFunc(all.Sessions, func(a, b listed) int { return a.Place.compare(b.Place) })
	if len(all.Sessions) > q.Limit {
		all.Sessions, all.More = all.Sessions[:q.Limit], true
	}
	return all, silent
}

var errSilent = errors.New("an instance that may have the session does not answer")

// renew has the session of that id live on by another grant, in whichever instance it is. The error is a [*session.GroupsError], or
// says that nobody knows.
func (i *Instances) renew(ctx context.Context, id string, g auth.Grant) (renewed bool, err error) {
	if renewed, err = i.renewOwn(id, g); renewed || err != nil || i.bus == nil {
		return renewed, err
	}
	var r renewal
	answers, silent, err := i.bus.Ask(ctx, question{Renew: &renewQuestion{id, g.Reveal()}}, func(answer []byte) bool {
		var one renewal
		return json.Unmarshal(answer, &one) == nil && (one.Renewed || one.Groups != nil)
	})
	if err != nil {
		return false, err
	}
	if len(answers) > 0 && json.Unmarshal(answers[len(answers)-1], &r) == nil && r.Groups != nil {
		return false, r.Groups
	}
	if !r.Renewed && len(silent) > 0 {
		return false, errSilent
	}
	return r.Renewed, nil
}

func (i *Instances) renewOwn(id string, g auth.Grant) (bool, error) {
	if !i.sessions.Finds() {
		return false, nil
	}
	return i.sessions.Renew(id, g)
}

var (
	errCode   = errors.New("code: want 1000, 1008, or one from 3000 to 4999 (RFC 6455, section 7.4)")
	errReason = fmt.Errorf("reason: want at most %d bytes", frame.MaxReason)
)

// closing is what the Close frames of a kick say. A code of 0 is that of whoever is not wanted.
func closing(code int, reason string) (c relay.Closing, err error) {
	switch {
	case code == 0:
		c = relay.Closing{Code: frame.CodeForbidden, Reason: "kicked"}
	case code != frame.CodeNormal && code != frame.CodePolicy && (code < 3000 || code > 4999):
		return c, errCode
	default:
		c.Code = code
	}
	if len(reason) > frame.MaxReason || !utf8.ValidString(reason) {
		return c, errReason
	}
	if reason != "" {
		c.Reason = reason
	}
	return c, nil
}
