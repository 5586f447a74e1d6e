package gate

import (
	"context"
	"errors"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/refusal"
	"portcullis/upstream"
)

// connect opens the connection to the upstream, its handshake included.
func (g *Gate) connect(u *upgrade) *refusal.Refusal {
	began := time.Now()
	conn, err := u.route.upstream.Connect(u.HTTP.Context(), g.upstreamRequest(u))
	if err != nil {
		no, result := g.connectRefusal(err)
		g.Metrics.UpstreamDial(result, time.Since(began))
		return no
	}
	g.Metrics.UpstreamDial(admin.DialConnected, conn.DialTime)
	u.upstream = conn
	if chosen := u.offerTold(); u.switched() && conn.Protocol != chosen {
		return &refusal.Refusal{Reason: refusal.UpstreamHandshake, Err: errors.New("it does not choose the subprotocol that the client was told")}
	}
	return nil
}

// connectRefusal is the refusal of a client that could not be connected, and the result that the metric counts.
func (g *Gate) connectRefusal(err error) (no *refusal.Refusal, result string) {
	refused, isRefused := errors.AsType[*upstream.RefusedError](err)
	dial, isDial := errors.AsType[*upstream.DialError](err)
	handshake, isHandshake := errors.AsType[*upstream.HandshakeError](err)
	switch {
	case isRefused:
		return upstreamRefusal(refused), admin.DialRefused
	case errors.Is(err, context.Canceled):
		return g.contextRefusal(err), admin.DialAborted
	case isDial && Exhausted(err):
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
