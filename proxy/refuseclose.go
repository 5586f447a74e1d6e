package proxy

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

// maxRefused bounds the sockets that are open only to be told no: each may take CLOSE_TIMEOUT to go. Clients beyond it get
// the HTTP answer.
const maxRefused = 1000

// places are those that may be taken at once; nil has none.
type places chan struct{}

func (p places) take() bool {
	select {
	case p <- struct{}{}:
		return true
	default:
		return false
	}
}

func (p places) free() { <-p }

// openToRefuse accepts a handshake that was right and came from an allowed origin, so that a browser's script, to which the
// status of a failed handshake is kept secret, can be told the no by a Close frame (REFUSE_WITH_CLOSE). Where it does not,
// the no stays an HTTP answer.
func (p *Proxy) openToRefuse(u *upgrade, no *refusal.Refusal) {
	told := u.handshaken && no.Reason != refusal.Origin && no.StatusCode() != 0
	if !told || u.place != nil || u.hijacked != nil || !p.refused.take() {
		return
	}
	u.place, u.hopeless = p.refused, true
	p.takeOver(u) // whatever goes wrong, it is the first no that is told
}

// toldByClose reports whether a no is to be told by a Close frame: the client's socket is open, and no session's.
func (u *upgrade) toldByClose() bool { return u.open && !u.started }

// dismiss ends a socket that is open and no session's: Close, FIN, and then the wait for the client's own FIN. To close
// with bytes of the client unread would reset the connection, and the reset would overtake the Close frame.
func (p *Proxy) dismiss(u *upgrade, no *refusal.Refusal) {
	conn := u.hijacked
	code, wire := no.CloseFrame()
	if code == 0 {
		return
	}
	conn.SetDeadline(time.Now().Add(p.closeTimeout))
	if _, err := conn.Write(wire); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	defer context.AfterFunc(p.base, func() { conn.SetReadDeadline(time.Unix(1, 0)) })() // Cut does not wait
	discard(conn)
}

// discard reads what a client that was told to go still sends, to its end or its deadline: relay.Linger at once, and as much in
// each second after that, for to read all that a flooding client sends would cost as much as relaying it.
func discard(conn net.Conn) {
	for pause := time.NewTicker(time.Second); ; <-pause.C {
		if n, err := io.CopyN(io.Discard, conn, relay.Linger); n < relay.Linger || err != nil {
			pause.Stop()
			return
		}
	}
}

// ownProtocol is the subprotocol to name in a 101 for which no upstream was asked: the first that was offered and is no
// token, or "" for none. A browser that offered some fails the handshake where none is named. Of the pair "bearer, <token>"
// the first is no token; an entry in the form of Kubernetes always is one, whether AUTH_TOKEN_FROM has it or not.
func ownProtocol(h http.Header) string {
	for protocol := range header.Elements(h["Sec-Websocket-Protocol"]) {
		if !strings.HasPrefix(protocol, "base64url.bearer.authorization.k8s.io.") {
			return protocol
		}
	}
	return ""
}
