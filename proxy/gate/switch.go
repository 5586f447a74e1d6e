package gate

import (
	"cmp"
	"crypto/rand"
	"strings"
	"time"

	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
	"portcullis/proxy/session"
)

// switchTimeout bounds the writing of the 101. The socket's buffer is empty then, so only a client that takes nothing at all
// needs longer.
const switchTimeout = 10 * time.Second

// hijackAndSwitch answers 101 where there is no session yet, and maybe never.
func (g *Gate) hijackAndSwitch(u *upgrade, s socket) *refusal.Refusal {
	if no := u.hijack(s); no != nil {
		return no
	}
	return u.socket.write(g.switchingProtocols(u))
}

// hijack takes the client's connection over from the front door as the socket s. Until then every refusal is an HTTP answer; after
// it there is none, and after the 101 it is a Close frame.
func (u *upgrade) hijack(s socket) *refusal.Refusal {
	conn, buffered, err := u.Client.Hijack()
	if err != nil {
		s.leavePending()
		return &refusal.Refusal{Reason: refusal.Internal, Err: err}
	}
	s.conn, s.buffered, s.id = conn, buffered, cmp.Or(s.id, rand.Text())
	u.socket = &s
	return nil
}

// write writes to the client in place of the front door, the 101 first, and leaves no deadline: HTTP's are none of the session's
// (traefik#10589).
func (s *socket) write(b []byte) *refusal.Refusal {
	s.conn.SetDeadline(time.Now().Add(switchTimeout))
	if _, err := s.conn.Write(b); err != nil {
		return &refusal.Refusal{Reason: refusal.ClientGone, Err: err}
	}
	s.conn.SetDeadline(time.Time{})
	s.switched = true
	return nil
}

// switchProtocols answers 101, unless the client has it already, and hands both connections to a session.
func (g *Gate) switchProtocols(u *upgrade) *refusal.Refusal {
	if g.closing() {
		return &refusal.Refusal{Reason: refusal.Draining}
	}
	id := rand.Text()
	if u.socket != nil {
		id = u.socket.id
	}
	s, err := g.Sessions.Open(session.Opening{
		Info: session.Info{
			ID:       id,
			Subject:  strings.Clone(u.grant.Subject),
			Client:   u.From.Addr.String(),
			Path:     strings.Clone(truncatePath(u.Path)),
			Upstream: u.upstream.Target,
			Route:    u.route.Name,
		},
		Grant:    u.grant,
		Slot:     u.slot,
		Groups:   u.groups,
		LastPush: g.Sessions.LastPush(u.Query),
		Limits:   u.route.Limits,

		Resumption: u.opensResumable(),
	}) // before the client knows its id, by which it may renew it at once
	if err != nil {
		return &refusal.Refusal{Reason: refusal.Kicked, Err: err}
	}
	started := false
	defer func() {
		if !started {
			s.Release()
		}
	}()
	var answer []byte
	if u.socket == nil {
		if no := u.hijack(socket{id: id}); no != nil {
			return no
		}
		answer = g.switchingProtocols(u)
	}
	var first []byte
	switch {
	case u.resumption && g.Sessions.Resumes():
		first, answer = append(answer, s.FirstMessage()...), nil // which the relay writes
	case u.resumption:
		answer = append(answer, s.FirstMessage()...)
	default:
		answer = append(answer, s.Hello(session.End(u.grant.Decision))...)
	}
	if len(answer) > 0 {
		if no := u.socket.write(answer); no != nil {
			return no
		}
	}
	g.Metrics.Upgraded(u.route.Name)
	s.Start(relay.Handover{
		Client:        u.socket.conn,
		Upstream:      u.upstream.Conn,
		ClientEarly:   u.socket.buffered,
		UpstreamEarly: u.upstream.Early,
		Extensions:    strings.Clone(u.upstream.Extensions),
		Rules:         u.route.Rules,
		Target:        u.upstream.Written,
	}, first)
	started = true
	u.socket.leavePending()
	u.held = held{} // the session's
	return nil
}

// opensResumable is what a session begins with whose client may come back; nil: its client does not offer to.
func (u *upgrade) opensResumable() *session.Resumption {
	if !u.resumption {
		return nil
	}
	answer := resumeProtocol
	if chosen := u.answer(); chosen != answer {
		answer = strings.Clone(chosen)
	}
	return &session.Resumption{Binding: session.BindingOf(u.Path, u.HTTP.Header["Origin"]), Answer: answer}
}

// closing reports whether nothing new is to begin.
func (g *Gate) closing() bool { return g.Accepting.Err() != nil }
