package gate

import (
	"cmp"
	"maps"
	"net/http"
	"net/netip"
	"strings"

	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/upstream"
)

// upstreamRequest is what goes upstream of the client's request: path and query byte for byte and its end-to-end headers,
// without the credential and without what only we may say. Identity is set last.
func (g *Gate) upstreamRequest(u *upgrade) *upstream.Request {
	h := make(http.Header, len(u.HTTP.Header)+8)
	for name, values := range u.HTTP.Header {
		if u.passes(name, values) {
			h[name] = values
		}
	}
	// Before ours are set, so that they stay (CVE-2021-32813, CVE-2022-31813).
	dropListed(h, u.HTTP.Header["Connection"])
	if u.switched() || !u.route.extensions || u.resumption && g.Sessions.Resumes() {
		delete(h, "Sec-Websocket-Extensions")
	}
	query := u.route.auth.StripToken(u.Query, h)
	if g.Tickets != nil {
		query = auth.StripParam(query, TicketParam)
	}
	if g.Sessions.KeepsHistory() {
		query = auth.StripParam(query, session.LastPushParam)
	}
	if u.switched() {
		delete(h, "Sec-Websocket-Protocol")
		if protocol := u.offerTold(); protocol != "" {
			h["Sec-Websocket-Protocol"] = []string{protocol} // the client has it in its 101 already
		}
	}
	if u.route.balance.Sticky() {
		auth.StripCookie(h, stickyCookie)
	}
	setForwarded(h, u)
	h[viaHeader] = []string{g.via(u)}
	u.route.auth.StripIdentity(h)
	u.route.auth.SetIdentity(h, u.grant.Decision)
	return &upstream.Request{Path: u.Path, Query: query, Host: u.HTTP.Host, Header: h}
}

// passes reports whether a client's header goes upstream as it is. A trusted proxy may tell more than we know, such as
// X-Forwarded-Prefix, if it spells it properly; but one that is trusted for X-Forwarded-For may still pass its clients' own
// copies of the like on, so its other words for a fact are kept where they agree with what was found.
func (u *upgrade) passes(name string, values []string) bool {
	kind := header.KindOf(name)
	if kind == header.EndToEnd {
		return true
	}
	proper := header.Fold(name) == name
	switch kind {
	case header.Handshake: // the offers go on
		return proper && !u.plain && name != "Sec-Websocket-Key" && name != "Sec-Websocket-Version" && name != "Sec-Websocket-Accept"
	case header.Forwarded:
		return proper && u.From.Proxied
	case header.Address:
		return proper && u.From.Proxied && len(values) == 1 && isAddress(values[0], u.From.Addr)
	case header.Scheme:
		return proper && u.From.Proxied && len(values) == 1 && isScheme(values[0], u.Forwarded.Scheme)
	}
	return false
}

// isAddress reports whether said is addr, with or without a port.
func isAddress(said string, addr netip.Addr) bool {
	if a, err := netip.ParseAddr(said); err == nil {
		return a.Unmap() == addr
	}
	a, err := netip.ParseAddrPort(said)
	return err == nil && a.Addr().Unmap() == addr
}

// isScheme reports whether said is one of the ways to say a scheme, http or https, or that it is the secure one.
func isScheme(said, scheme string) bool {
	switch strings.ToLower(said) {
	case "https", "on", "1", "true", `{"scheme":"https"}`: // the last is Cloudflare's
		return scheme == "https"
	case "http", "off", "0", "false", `{"scheme":"http"}`:
		return scheme == "http"
	}
	return false
}

// endToEnd is a copy of an answer's header without what is meant for one connection, and without what describes the body, which
// is sent anew. The values are shared with h.
func endToEnd(h http.Header) http.Header {
	out := maps.Clone(h)
	dropListed(out, h["Connection"])
	for name := range out {
		switch header.KindOf(name) {
		case header.Hop, header.Framing, header.Own:
			delete(out, name)
		}
	}
	return out
}

// dropListed deletes what Connection lists: hop-by-hop by its sender's word.
func dropListed(h http.Header, connection []string) {
	for name := range header.Elements(connection) {
		h.Del(name)
	}
}

// forwarded is how the request came here. A trusted proxy's word counts where it can be true.
func forwarded(r *http.Request, client clientip.Client) auth.Forwarded {
	way := auth.Forwarded{Scheme: "http", Host: r.Host, For: join(client.Chain)}
	if r.TLS != nil {
		way.Scheme = "https"
	}
	if client.Proxied {
		if said := r.Header["X-Forwarded-Proto"]; len(said) == 1 {
			way.Scheme = scheme(said[0], way.Scheme)
		}
		if said := r.Header["X-Forwarded-Host"]; len(said) == 1 && header.IsHost(said[0]) {
			way.Host = said[0]
		}
	}
	return way
}

// setForwarded tells the upstream where the request comes from. Of what the client says of that, nothing is left by now.
func setForwarded(h http.Header, u *upgrade) {
	h["X-Forwarded-Proto"] = []string{u.Forwarded.Scheme}
	h["X-Forwarded-Host"] = []string{u.Forwarded.Host}
	if u.From.Addr.IsValid() {
		h["X-Forwarded-For"] = []string{u.Forwarded.For}
		h["X-Real-Ip"] = []string{u.From.Addr.String()}
	}
}

// scheme reads X-Forwarded-Proto, which says http or https; some say ws and wss.
func scheme(value, fallback string) string {
	switch strings.ToLower(value) {
	case "http", "ws":
		return "http"
	case "https", "wss":
		return "https"
	}
	return fallback
}

func join(chain []netip.Addr) string {
	var b []byte
	for i, addr := range chain {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = addr.AppendTo(b)
	}
	return string(b)
}

// switchingProtocols is the whole 101, for one write: our answer to the client's key, what was negotiated, and what else
// the upstream says, its cookies above all. Where it was not asked, we choose the protocol, and no extension.
func (g *Gate) switchingProtocols(u *upgrade) []byte { return g.switchingTo(u, u.answer()) }

// answer is the subprotocol that the 101 names. A browser that offered subprotocols fails the handshake where none is chosen;
// "bearer" was offered along with the token.
func (u *upgrade) answer() string {
	if u.upstream == nil || u.switched() {
		return u.subprotocol(chooseSubprotocol(u.HTTP.Header))
	}
	return u.subprotocol(cmp.Or(u.upstream.Protocol, u.grant.Credential.Subprotocol))
}

// offerTold is the subprotocol, of those that are for the upstream, that a client which has its 101 was told; "" for none.
func (u *upgrade) offerTold() string {
	if chosen := u.answer(); chosen != resumeProtocol {
		return chosen
	}
	return ""
}

// switchingTo is the 101 that names a subprotocol; "" for none.
func (g *Gate) switchingTo(u *upgrade, protocol string) []byte {
	b := make([]byte, 0, 512) // a usual one
	field := func(name, value string) {
		b = append(b, name...)
		b = append(b, ": "...)
		b = append(b, value...)
		b = append(b, "\r\n"...)
	}
	b = append(b, "HTTP/1.1 101 Switching Protocols\r\n"...)
	field("Upgrade", "websocket")
	field("Connection", "Upgrade")
	field("Sec-WebSocket-Accept", upstream.Accept(u.HTTP.Header.Get("Sec-WebSocket-Key")))
	if !u.socket.refuseOnly && g.Sessions.Renewable(u.grant.Decision) { // of a token that comes as the first message nothing is known yet
		field(session.Header, u.socket.id)
	}
	if protocol != "" {
		field("Sec-WebSocket-Protocol", protocol)
	}
	if u.upstream == nil {
		return append(b, "\r\n"...)
	}
	if cookie := u.stick(u.upstream.TargetID); cookie != "" {
		field("Set-Cookie", cookie)
	}
	if u.upstream.Extensions != "" {
		field("Sec-WebSocket-Extensions", u.upstream.Extensions)
	}
	for name, values := range endToEnd(u.upstream.Header) {
		if header.KindOf(name) == header.Handshake {
			continue
		}
		for _, value := range values {
			field(name, value) // upstream has checked that none holds a line break
		}
	}
	return append(b, "\r\n"...)
}

// upstreamRefusal is the upstream's own refusal as the client gets it. Its redirects are passed on and not followed.
func upstreamRefusal(e *upstream.RefusedError) *refusal.Refusal {
	no := &refusal.Refusal{Reason: refusal.UpstreamRefused, Status: e.Status, Header: endToEnd(e.Header), Body: e.Body}
	for name := range no.Header {
		if name != "Sec-Websocket-Version" && header.KindOf(name) == header.Handshake {
			delete(no.Header, name)
		}
	}
	if e.Status == http.StatusUpgradeRequired {
		no.Header["Upgrade"], no.Header["Connection"] = []string{"websocket"}, []string{"Upgrade"}
	}
	if no.Header["Content-Type"] == nil {
		no.Header["Content-Type"] = nil // else net/http guesses one
	}
	if e.Truncated {
		no.Detail = "its body is cut"
	}
	return no
}
