package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

// switchTimeout bounds the writing of the 101. The socket's buffer is empty then, so only a client that takes nothing at all
// needs longer.
const switchTimeout = 10 * time.Second

// connect opens the connection to the upstream, its handshake included.
func (p *Proxy) connect(u *upgrade) *refusal.Refusal {
	began := time.Now()
	conn, err := p.upstream.Connect(u.r.Context(), p.upstreamRequest(u))
	if err != nil {
		no, result := p.upstreamRefusal(err)
		p.metrics.UpstreamDial(result, time.Since(began))
		return no
	}
	p.metrics.UpstreamDial(admin.DialConnected, conn.DialTime)
	u.upstream = conn
	if chosen := ownProtocol(u.r.Header); u.open && conn.Protocol != chosen {
		return &refusal.Refusal{Reason: refusal.UpstreamHandshake, Err: errors.New("it does not choose the subprotocol that the client has been told")}
	}
	return nil
}

// upstreamRefusal is the no to a client that could not be connected, and the metric's word for it.
func (p *Proxy) upstreamRefusal(err error) (no *refusal.Refusal, result string) {
	refused, isRefused := errors.AsType[*upstream.RefusedError](err)
	dial, isDial := errors.AsType[*upstream.DialError](err)
	handshake, isHandshake := errors.AsType[*upstream.HandshakeError](err)
	switch {
	case isRefused:
		return passOn(refused), admin.DialRefused
	case errors.Is(err, context.Canceled):
		return p.gone(err), admin.DialAborted
	case isDial && exhausted(err):
		return &refusal.Refusal{Reason: refusal.Overload, Err: err}, admin.DialOverload
	case isDial && dial.Timeout(), isHandshake && handshake.Timeout():
		return &refusal.Refusal{Reason: refusal.UpstreamTimeout, Err: err}, admin.DialTimeout
	case isDial:
		return &refusal.Refusal{Reason: refusal.UpstreamDial, Err: err}, admin.DialFailed
	case isHandshake:
		return &refusal.Refusal{Reason: refusal.UpstreamHandshake, Err: err}, admin.DialHandshake
	}
	return &refusal.Refusal{Reason: refusal.Internal, Err: err}, admin.DialFailed
}

// takeOver takes the client's connection over from net/http and answers 101, where there is no session yet, and maybe never.
func (p *Proxy) takeOver(u *upgrade) *refusal.Refusal {
	if no := p.hijack(u); no != nil {
		return no
	}
	return u.write(p.switchingProtocols(u))
}

// hijack takes the client's connection over from net/http. Until then every no is an ordinary answer; after it there is none,
// and after the 101 it is a Close frame.
func (p *Proxy) hijack(u *upgrade) *refusal.Refusal {
	conn, buffered, err := http.NewResponseController(u.w).Hijack()
	if err != nil {
		return &refusal.Refusal{Reason: refusal.Internal, Err: err}
	}
	u.hijacked = unmarked(conn)
	u.early = make([]byte, buffered.Reader.Buffered())
	buffered.Read(u.early) // cannot fail: it is in the buffer

	u.id = rand.Text()
	return nil
}

// write writes to the client in place of net/http, the 101 first, and leaves no deadline: HTTP's are none of the session's (traefik#10589).
func (u *upgrade) write(b []byte) *refusal.Refusal {
	u.hijacked.SetDeadline(time.Now().Add(switchTimeout))
	if _, err := u.hijacked.Write(b); err != nil {
		return &refusal.Refusal{Reason: refusal.ClientGone, Err: err}
	}
	u.hijacked.SetDeadline(time.Time{})
	u.open = true
	return nil
}

// switchProtocols answers 101, unless the client has it already, and hands both connections to the relay.
func (p *Proxy) switchProtocols(u *upgrade) *refusal.Refusal {
	if p.isClosing() {
		return &refusal.Refusal{Reason: refusal.Draining}
	}
	var answer []byte
	if !u.open {
		if no := p.hijack(u); no != nil {
			return no
		}
		answer = p.switchingProtocols(u)
	}
	s := &session{
		proxy:   p,
		slot:    u.slot,
		id:      u.id,
		subject: strings.Clone(u.decision.Subject),
		client:  u.client.Addr.String(),
		path:    strings.Clone(brief(u.path)),
		tenure:  p.newTenure(u),
	}
	defer func() {
		if !u.started {
			s.release()
		}
	}()
	s.hold(u) // before the client knows its id, by which it may renew it at once
	if answer = append(answer, p.greet(u)...); len(answer) > 0 {
		if no := u.write(answer); no != nil {
			return no
		}
	}
	p.metrics.Upgraded()
	p.metrics.SessionStarted()
	p.log.LogAttrs(context.Background(), slog.LevelDebug, "session started", s.attrs()...)
	s.start(relay.Handover{
		Client:        u.hijacked,
		Upstream:      u.upstream.Conn,
		ClientEarly:   u.early,
		UpstreamEarly: u.upstream.Early,
		Extensions:    strings.Clone(u.upstream.Extensions),
		Ended:         s.ended,
	})
	u.started = true
	return nil
}

// session is what the gate keeps of an upgrade while the relay has it. There are as many as open connections, so it is small,
// and its strings are copies: one that pointed into the request would keep all of it alive.
type session struct {
	proxy             *Proxy
	slot              *ratelimit.Slot
	id, subject, path string
	client            string
	tenure            *tenure // nil: it ends for other reasons only
}

// ended is the end of a session: its slot is free again, and one line tells what it was.
func (s *session) ended(e relay.End) {
	s.release()
	s.slot.Release()
	s.proxy.metrics.SessionEnded(admin.EndedSession{
		Reason:           string(e.Reason),
		Code:             e.Code,
		Duration:         e.Duration,
		ClientMessages:   e.FromClient.Messages,
		ClientBytes:      e.FromClient.Bytes,
		UpstreamMessages: e.FromUpstream.Messages,
		UpstreamBytes:    e.FromUpstream.Bytes,
	})
	s.proxy.log.LogAttrs(context.Background(), slog.LevelInfo, "session ended", append(s.attrs(),
		slog.String("reason", string(e.Reason)),
		slog.Int("code", e.Code),
		slog.Duration("duration", e.Duration),
		slog.Int64("client_messages", e.FromClient.Messages),
		slog.Int64("client_bytes", e.FromClient.Bytes),
		slog.Int64("upstream_messages", e.FromUpstream.Messages),
		slog.Int64("upstream_bytes", e.FromUpstream.Bytes),
	)...)
}

func (s *session) attrs() []slog.Attr {
	return []slog.Attr{
		slog.String("session", s.id),
		slog.String("subject", s.subject),
		slog.String("client", s.client),
		slog.String("path", s.path),
		slog.String("upstream", s.proxy.behind),
	}
}
