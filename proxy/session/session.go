package session

import (
	"context"
	"log/slog"
	"sync"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/frame"
	"portcullis/proxy/lease"
	"portcullis/proxy/relay"
	"portcullis/ratelimit"
)

// Info says which session it is. Its strings are copies: one that pointed into the request would keep all of it alive.
type Info struct {
	ID       string // 26 characters of base32, 128 random bits; not a secret
	Subject  string
	Client   string // its address
	Path     string
	Upstream string // host and port
}

func (i *Info) attrs() []slog.Attr {
	return []slog.Attr{
		slog.String("session", i.ID),
		slog.String("subject", i.Subject),
		slog.String("client", i.Client),
		slog.String("path", i.Path),
		slog.String("upstream", i.Upstream),
	}
}

// Session is one client's connection to an upstream, from its upgrade to its end. There are as many as open connections, so
// it is small.
type Session struct {
	Info
	manager    *Manager
	slot       *ratelimit.Slot
	credential *credential // nil: it neither ends nor is verified again nor can be renewed
}

// credential ties a session to the grant that it lives by. It is the holder of the session's lease.
type credential struct {
	session *Session
	lease   lease.Lease

	mu    sync.Mutex // guards what follows
	grant auth.Grant // without its token where that is not to be verified again
	live  relay.Session
	over  *lease.EndReason // the lease ended before the relay had the session; nil: it has not
}

// closings are the Close frames that both sides get when a lease ends, and the end's reason.
var closings = map[lease.EndReason]struct {
	reason  relay.Reason
	closing relay.Closing
}{
	lease.Expired:     {relay.Expired, relay.Closing{Code: frame.CodeUnauthorized, Reason: "token expired"}},
	lease.Revoked:     {relay.Revoked, relay.Closing{Code: frame.CodeUnauthorized, Reason: "token revoked"}},
	lease.Unavailable: {relay.AuthUnavailable, relay.Closing{Code: frame.CodeTryAgain, Reason: "authentication unavailable"}},
}

// Start hands both connections to the relay, which owns them and the session's slot from here on. The session may be over before
// Start returns. h.Ended is set here.
func (s *Session) Start(h relay.Handover) {
	m := s.manager
	m.metrics.SessionStarted()
	m.log.LogAttrs(context.Background(), slog.LevelDebug, "session started", s.attrs()...)
	h.Ended = s.ended
	live := m.relay.Start(h)
	if s.credential != nil {
		s.credential.started(live)
	}
}

// Release forgets a session that comes to nothing. Its slot stays its opener's.
func (s *Session) Release() {
	if s.credential != nil {
		s.manager.remove(s)
		s.manager.leases.Release(&s.credential.lease)
	}
}

// ended is the end of a session: its slot is free again, and one line tells what it was.
func (s *Session) ended(e relay.End) {
	s.Release()
	s.slot.Release()
	s.manager.metrics.SessionEnded(admin.EndedSession{
		Reason:           string(e.Reason),
		Code:             e.Code,
		Duration:         e.Duration,
		ClientMessages:   e.FromClient.Messages,
		ClientBytes:      e.FromClient.Bytes,
		UpstreamMessages: e.FromUpstream.Messages,
		UpstreamBytes:    e.FromUpstream.Bytes,
	})
	s.manager.log.LogAttrs(context.Background(), slog.LevelInfo, "session ended", append(s.attrs(),
		slog.String("reason", string(e.Reason)),
		slog.Int("code", e.Code),
		slog.Duration("duration", e.Duration),
		slog.Int64("client_messages", e.FromClient.Messages),
		slog.Int64("client_bytes", e.FromClient.Bytes),
		slog.Int64("upstream_messages", e.FromUpstream.Messages),
		slog.Int64("upstream_bytes", e.FromUpstream.Bytes),
	)...)
}

// started notes that the relay has the session. A lease that has ended meanwhile ends it now.
func (c *credential) started(live relay.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live = live; c.over != nil {
		live.Close(closings[*c.over].reason, closings[*c.over].closing)
	}
}

// LeaseEnded tells both sides.
func (c *credential) LeaseEnded(why lease.EndReason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		c.over = &why
		return
	}
	c.live.Close(closings[why].reason, closings[why].closing)
}
