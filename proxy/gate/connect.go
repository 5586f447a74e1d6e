package gate

import (
	"context"
	"errors"
	"syscall"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/refusal"
	"portcullis/upstream"
)

// connect opens the connection to the upstream, its handshake included.
func (g *Gate) connect(u *upgrade) *refusal.Refusal {
	began := time.Now()
	request := g.upstreamRequest(u)
	u.aim(request)
	conn, err := u.route.upstream.Connect(u.HTTP.Context(), request)
	if err != nil {
		no, result := g.connectRefusal(err)
		if result != "" {
			g.Metrics.UpstreamDial(result, time.Since(began))
		}
		return no
	}
	g.Metrics.UpstreamDial(admin.DialConnected, conn.DialTime)
	u.upstream = conn
	u.slot.Follow(conn.Place)
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
	case err == upstream.ErrNone:
		return &refusal.Refusal{Reason: refusal.UpstreamNone}, ""
	case err == upstream.ErrBusy:
		return &refusal.Refusal{Reason: refusal.UpstreamBusy}, ""
	case isRefused:
		return upstreamRefusal(refused), admin.DialRefused
	case errors.Is(err, context.Canceled):
		return g.contextRefusal(err), admin.DialAborted
	case isDial && Exhausted(err):
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			g.noPort.Do(func() {
				g.Log.Warn("no port is left to the upstream; want more addresses in UPSTREAM_SOURCE, more targets, or a wider net.ipv4.ip_local_port_range", "error", err)
			})
		}
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
