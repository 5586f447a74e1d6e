package gate

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
)

// resumeProtocol is the subprotocol by which a client offers to come back when its connection is lost; docs/resume.md is what it says.
// All that begins with resumePrefix is between clients and gates.
const (
	resumeProtocol = "portcullis.resume.v1"
	resumePrefix   = "portcullis.resume."
)

// takeResumption takes resumption out of the subprotocols: what is left is for the token places and the upstream.
func (g *Gate) takeResumption(u *upgrade) *refusal.Refusal {
	offered := u.HTTP.Header["Sec-Websocket-Protocol"]
	if !slices.ContainsFunc(offered, func(line string) bool { return strings.Contains(line, resumePrefix) }) {
		return nil
	}
	var others []string
	for entry := range header.Elements(offered) {
		text, isReturn := strings.CutPrefix(entry, resumeProtocol+".")
		switch {
		case entry == resumeProtocol:
			u.resumption = true
		case isReturn && u.back != nil:
			u.validHandshake = false
			return malformed("more than one return to a session")
		case isReturn:
			u.back = parseReturn(text)
		case !strings.HasPrefix(entry, resumePrefix): // else it is of a version that is not known here
			others = append(others, entry)
		}
	}
	h := maps.Clone(u.HTTP.Header)
	delete(h, "Sec-Websocket-Protocol")
	if len(others) > 0 {
		h["Sec-Websocket-Protocol"] = []string{strings.Join(others, ", ")}
	}
	u.HTTP = u.HTTP.WithContext(u.HTTP.Context()) // a copy, for a handler must not change its request
	u.HTTP.Header = h
	return nil
}

// parseReturn reads TOKEN.COUNT.ATTEMPT. One that cannot be read has no token.
func parseReturn(text string) *session.Return {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return &session.Return{}
	}
	count, countErr := strconv.ParseUint(parts[1], 10, 64)
	attempt, attemptErr := strconv.ParseUint(parts[2], 10, 64)
	if countErr != nil || attemptErr != nil || attempt == 0 {
		return &session.Return{}
	}
	return &session.Return{Token: parts[0], Count: count, Attempt: attempt}
}

// withResumption is the request as the token places see it: resumption counts as a protocol offered beside a token's.
func (u *upgrade) withResumption() *http.Request {
	if !u.resumption {
		return u.HTTP
	}
	r := u.HTTP.WithContext(u.HTTP.Context())
	r.Header = maps.Clone(r.Header)
	r.Header["Sec-Websocket-Protocol"] = append([]string{resumeProtocol}, r.Header["Sec-Websocket-Protocol"]...)
	return r
}

// subprotocol is the one to name in a 101 for which no upstream was asked, or that the upstream leaves open; "" for none.
func (u *upgrade) subprotocol(other string) string {
	if u.resumption && (other == "" || other == "bearer") {
		return resumeProtocol
	}
	return other
}

// resume gives a client that comes back its session. One whose session is not known here begins a new one if it can show a
// credential.
func (g *Gate) resume(u *upgrade) *refusal.Refusal {
	back := u.back
	if back == nil {
		return nil
	}
	if g.closing() {
		return &refusal.Refusal{Reason: refusal.Draining}
	}
	offered := slices.Collect(header.Elements(u.HTTP.Header["Sec-Websocket-Protocol"]))
	back.Binding = session.BindingOf(u.Path, u.HTTP.Header["Origin"])
	back.Offers = func(protocol string) bool {
		return protocol == resumeProtocol && u.resumption || slices.Contains(offered, protocol)
	}
	s, verdict := g.Sessions.FindReturn(*back)
	switch {
	case verdict == relay.Stale:
		g.Metrics.Resumption(admin.ResumeStale)
		return &refusal.Refusal{Reason: refusal.ResumeStale}
	case verdict == relay.Accepted && u.mayHold(s):
		return g.attach(u, s)
	}
	g.Metrics.Resumption(admin.ResumeUnknown)
	return g.unknownReturn(u)
}

// mayHold reports whether a client's certificate, where that is what authenticates, is of the session's subject: a token of resumption
// alone is then not enough.
func (u *upgrade) mayHold(s *session.Session) bool {
	if !u.route.needsCredential() {
		return true
	}
	subject, byCertificate := u.route.auth.CertificateSubject(u.HTTP)
	return !byCertificate || subject == s.Subject
}

// unknownReturn refuses a return to a session that is not known, unless a credential stands beside it.
func (g *Gate) unknownReturn(u *upgrade) *refusal.Refusal {
	alone := u.route.auth.Required()
	if alone {
		_, err := u.route.auth.Find(u.withResumption())
		_, err = g.findTicket(u, err)
		alone = errors.Is(err, auth.ErrMissing)
	}
	if !alone {
		u.back = nil // it opens a session as any other
		return nil
	}
	if wait, ok := g.Limits.UnknownReturn(u.Key, time.Now()); !ok {
		return &refusal.Refusal{Reason: refusal.RateAddress, RetryAfter: wait}
	}
	return &refusal.Refusal{Reason: refusal.SessionUnknown}
}

// attach hands the client's connection to its session.
func (g *Gate) attach(u *upgrade, s *session.Session) *refusal.Refusal {
	refused := func(no *refusal.Refusal) *refusal.Refusal {
		g.Metrics.Resumption(admin.ResumeRefused)
		return no
	}
	undo, ok := s.MoveSlot(u.Key)
	if !ok {
		return refused(&refusal.Refusal{Reason: refusal.SessionsAddress})
	}
	attached := false
	defer func() {
		if !attached {
			undo()
		}
	}()
	if no := u.hijack(socket{id: s.ID}); no != nil {
		return refused(no)
	}
	verdict, err := s.Resume(*u.back, session.Back{
		Arrival:   relay.Arrival{Conn: u.socket.conn, Early: u.socket.buffered},
		Client:    u.From.Addr.String(),
		Switching: g.switchingTo(u, s.Answer()),
	})
	switch {
	case err != nil:
		return refused(&refusal.Refusal{Reason: refusal.Overload, Err: err})
	case verdict != relay.Accepted: // since it was found; whoever is refused now learns why at the next attempt
		g.Metrics.Resumption(admin.ResumeStale)
		return &refusal.Refusal{Reason: refusal.ResumeStale}
	}
	g.Metrics.Resumption(admin.Resumed)
	attached = true
	u.held, u.done = held{}, true // the session's
	return nil
}
