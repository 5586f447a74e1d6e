package proxy

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"portcullis/proxy/frame"
	"portcullis/proxy/header"
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
func (p *Proxy) openToRefuse(u *upgrade, no *refusal) {
	told := u.handshaken && no.reason != Origin && no.answerStatus() != 0
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
func (p *Proxy) dismiss(u *upgrade, no *refusal) {
	conn, code := u.hijacked, no.closeCode()
	if code == 0 {
		return
	}
	conn.SetDeadline(time.Now().Add(p.closeTimeout))
	goodbye := frame.AppendControl(nil, frame.Server, frame.Close, frame.ClosePayload(code, no.closeReason()))
	if _, err := conn.Write(goodbye); err != nil {
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

// closeCode is what a no comes to where the client has its 101 already. 0: no Close frame, for nobody is there.
func (no *refusal) closeCode() int {
	status := no.answerStatus()
	switch {
	case no.code != 0:
		return no.code
	case no.reason == Draining:
		return frame.CodeGoingAway
	case status == 0:
		return 0
	case no.reason == UpstreamHandshake, no.reason == Internal, no.reason == Loop:
		return frame.CodeInternal // to try again will not help
	case status == http.StatusTooManyRequests, status >= 500:
		return frame.CodeTryAgain
	case no.reason == UpstreamRefused:
		return frame.CodeInternal // its 401 and 403 are not about our token
	case status == http.StatusUnauthorized:
		return frame.CodeUnauthorized
	case status == http.StatusForbidden:
		return frame.CodeForbidden
	}
	return frame.CodePolicy
}

// closeReason is the no in words, with what Retry-After says of it.
func (no *refusal) closeReason() string {
	if no.reason == ClientGone {
		return "" // the answer to its own Close
	}
	text := "the upstream refuses the connection" // in words of its own, which may be anything
	if no.reason != UpstreamRefused {
		text = strings.TrimSuffix(string(no.line()), "\n")
	}
	retry, _ := strconv.Atoi(no.header.Get("Retry-After")) // the upstream's
	if wait := cmp.Or(no.wait, no.reason.retry()); wait > 0 {
		retry = jitter(wait)
	}
	if retry > 0 {
		text += fmt.Sprintf("; retry in %d s", retry)
	}
	return text
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
