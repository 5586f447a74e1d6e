package gate

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
)

// semaphore counts what is in use; nil has no room.
type semaphore chan struct{}

// newSemaphore returns a semaphore for n; nil for none.
func newSemaphore(n int) semaphore {
	if n <= 0 {
		return nil
	}
	return make(semaphore, n)
}

func (s semaphore) tryAcquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s semaphore) release() { <-s }

// upgradeToRefuse answers a valid handshake from an allowed origin with 101, so that a browser's script, which cannot read the
// status of a failed handshake, gets the refusal as a Close frame (REFUSE_WITH_CLOSE). Where it does not, the refusal stays an
// HTTP answer. A client that offers resumption is a script, and always gets that frame.
func (g *Gate) upgradeToRefuse(u *upgrade, no *refusal.Refusal) {
	eligible := (g.refuseWithClose || u.resumption || u.back != nil) && u.validHandshake && no.Reason != refusal.Origin && no.StatusCode() != 0
	if eligible && u.socket != nil && !u.switched() {
		u.socket.refuseOnly = true
		u.socket.write(g.switchingProtocols(u))
	}
	if eligible && u.socket == nil && g.closeFrames.tryAcquire() {
		g.hijackAndSwitch(u, socket{pending: g.closeFrames, refuseOnly: true}) // whatever goes wrong, the first refusal counts
	}
}

// refuseByClose ends a socket that has its 101 and no session: Close, FIN, and then the wait for the client's own FIN. To close
// with bytes of the client unread would reset the connection, and the reset would overtake the Close frame.
func (g *Gate) refuseByClose(u *upgrade, no *refusal.Refusal) {
	conn := u.socket.conn
	code, wire := no.CloseFrame()
	if code == 0 {
		return
	}
	conn.SetDeadline(time.Now().Add(g.closeTimeout))
	if _, err := conn.Write(wire); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	defer context.AfterFunc(g.Base, func() { conn.SetReadDeadline(time.Unix(1, 0)) })() // a gate that closes does not wait
	discard(conn)
}

// discard reads what a client still sends behind its refusal, to its end or its deadline: relay.Linger at once, and as much in each
// second after that. To read all that a flooding client sends would cost as much as relaying it.
func discard(conn net.Conn) {
	for pause := time.NewTicker(time.Second); ; <-pause.C {
		if n, err := io.CopyN(io.Discard, conn, relay.Linger); n < relay.Linger || err != nil {
			pause.Stop()
			return
		}
	}
}

// chooseSubprotocol is the subprotocol to name in a 101 for which no upstream was asked: the first offered one that is not a
// token, or "" for none. Browsers fail the handshake if they offered some and none is chosen. Of the pair "bearer, <token>"
// the first is no token; an entry in the form of Kubernetes always is one, whether AUTH_TOKEN_FROM has it or not.
func chooseSubprotocol(h http.Header) string {
	for protocol := range header.Elements(h["Sec-Websocket-Protocol"]) {
		if !strings.HasPrefix(protocol, "base64url.bearer.authorization.k8s.io.") {
			return protocol
		}
	}
	return ""
}
