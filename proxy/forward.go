package proxy

import (
	"cmp"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/upstream"
)

// hopByHop are the headers that concern one connection and never go on to the next (RFC 9110 section 7.6.1), in requests and
// in answers, and those that describe a body where there is none or of which we send our own.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Proxy-Authenticate", "Proxy-Authorization", "Proxy-Authentication-Info", "Proxy-Connection",
	"Http2-Settings", // of an upgrade to h2c (BishopFox/h2csmuggler)
	"Content-Length", "Expect",
}

// endToEnd is a copy of h with what is meant for the next hop alone left out: first what Connection lists, so that
// whatever is set afterwards stays (CVE-2021-32813, CVE-2022-31813). The values are shared with h.
func endToEnd(h http.Header) http.Header {
	out := maps.Clone(h)
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			out.Del(trimSpace(name))
		}
	}
	for _, name := range hopByHop {
		delete(out, name)
	}
	return out
}

// upstreamRequest is what goes upstream of the client's request: path and query byte for byte and its end-to-end headers,
// without the credential and without what only we may say. Identity is set last.
func (p *Proxy) upstreamRequest(u *upgrade) *upstream.Request {
	h := endToEnd(u.r.Header)
	for name := range h {
		if isOurs(name, u.client.Proxied) {
			delete(h, name)
		}
	}
	if u.open || !p.relay.Extensions() {
		delete(h, "Sec-Websocket-Extensions")
	}
	query := p.auth.Strip(u.query, h)
	if p.tickets != nil {
		query = auth.StripParam(query, ticketParam)
	}
	if u.open {
		delete(h, "Sec-Websocket-Protocol")
		if protocol := ownProtocol(u.r.Header); protocol != "" {
			h["Sec-Websocket-Protocol"] = []string{protocol} // the client has been told that it is this one
		}
	}
	setForwarded(h, u)
	p.auth.Clean(h)
	p.auth.Set(h, u.decision)
	return &upstream.Request{Path: u.path, Query: query, Host: u.r.Host, Header: h}
}

// isOurs reports whether a client's header is one that only we may send, or that a server behind could take for one:
// CGI and its heirs read X_Forwarded.For as X-Forwarded-For (CVE-2026-30851, CVE-2026-88011). A trusted proxy may tell more
// than we know, such as X-Forwarded-Prefix, if it spells it properly.
func isOurs(name string, trusted bool) bool {
	folded := fold(name)
	switch folded {
	case "X-Real-Ip", "Proxy": // HTTP_PROXY, to CGI: httpoxy, CVE-2016-5385
		return true
	case "Forwarded":
		// Not replaced by ours: nothing of it is verified, and two accounts of one fact only invite the reading that differs.
		return true
	case "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host":
		return true
	case "X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Original-Method", "X-Original-Host":
		return true // some frameworks route by them, past PATHS and past what mode forward was shown
	case "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Accept":
		return true
	}
	if slices.Contains(addressHeaders, folded) {
		return true
	}
	if strings.HasPrefix(folded, "X-Forwarded-") {
		return !trusted || folded != name
	}
	return folded != name && strings.HasPrefix(folded, "Sec-Websocket-")
}

// addressHeaders are those in which the networks in front name the client, besides X-Forwarded-For. A proxy that is
// trusted for that one may still pass its clients' own copies of these on; see setForwarded.
var addressHeaders = []string{
	"X-Forwarded", "Client-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Proxyuser-Ip", "X-Envoy-External-Address",
	"True-Client-Ip", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Fastly-Client-Ip",
}

// fold spells a header's name as the servers do that do not tell its punctuation apart.
func fold(name string) string {
	punctuation := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-')
	}
	if !strings.ContainsFunc(name, punctuation) {
		return name
	}
	return http.CanonicalHeaderKey(strings.Map(func(c rune) rune {
		if punctuation(c) {
			return '-'
		}
		return c
	}, name))
}

// route is how the request came here. A trusted proxy's word counts where it can be true.
func route(r *http.Request, client clientip.Client) auth.Route {
	way := auth.Route{Scheme: "http", Host: r.Host, For: join(client.Chain)}
	if r.TLS != nil {
		way.Scheme = "https"
	}
	if client.Proxied {
		if said := r.Header["X-Forwarded-Proto"]; len(said) == 1 {
			way.Scheme = scheme(said[0], way.Scheme)
		}
		if said := r.Header["X-Forwarded-Host"]; len(said) == 1 && isHost(said[0]) {
			way.Host = said[0]
		}
	}
	return way
}

// setForwarded tells the upstream where the request comes from. Of what the client says of that, nothing is left by now.
func setForwarded(h http.Header, u *upgrade) {
	h["X-Forwarded-Proto"] = []string{u.route.Scheme}
	h["X-Forwarded-Host"] = []string{u.route.Host}
	if u.client.Addr.IsValid() {
		h["X-Forwarded-For"] = []string{u.route.For}
		h["X-Real-Ip"] = []string{u.client.Addr.String()}
	}
	for _, name := range addressHeaders {
		// A trusted proxy's other words for the client are kept where they agree with what was found.
		if said := u.r.Header[name]; u.client.Proxied && len(said) == 1 {
			if addr, err := netip.ParseAddr(said[0]); err == nil && addr.Unmap() == u.client.Addr {
				h[name] = said
			}
		}
	}
}

// scheme reads X-Forwarded-Proto, which says http or https; some say ws and wss.
func scheme(said, otherwise string) string {
	switch strings.ToLower(said) {
	case "http", "ws":
		return "http"
	case "https", "wss":
		return "https"
	}
	return otherwise
}

// isHost reports whether s has the characters of a host and port, and so is one of them, not a list.
func isHost(s string) bool {
	other := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-._:[]", c))
	}
	return s != "" && !strings.ContainsFunc(s, other)
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
func (p *Proxy) switchingProtocols(u *upgrade) []byte {
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
	field("Sec-WebSocket-Accept", upstream.Accept(u.r.Header.Get("Sec-WebSocket-Key")))
	if p.renewals != nil && !u.hopeless {
		field(sessionHeader, u.id)
	}
	if u.upstream == nil {
		if protocol := ownProtocol(u.r.Header); protocol != "" {
			field("Sec-WebSocket-Protocol", protocol)
		}
		return append(b, "\r\n"...)
	}
	// A browser that offered subprotocols fails the handshake where none is chosen; "bearer" was offered along with the token.
	if protocol := cmp.Or(u.upstream.Protocol, u.credential.Answer); protocol != "" {
		field("Sec-WebSocket-Protocol", protocol)
	}
	if u.upstream.Extensions != "" {
		field("Sec-WebSocket-Extensions", u.upstream.Extensions)
	}
	for name, values := range endToEnd(u.upstream.Header) {
		if strings.HasPrefix(name, "Sec-Websocket-") || name == sessionHeader {
			continue
		}
		for _, value := range values {
			field(name, value) // upstream has checked that none holds a line break
		}
	}
	return append(b, "\r\n"...)
}

// passOn is the upstream's own refusal as the client gets it. Its redirects are passed on and not followed.
func passOn(e *upstream.RefusedError) *refusal {
	no := &refusal{reason: UpstreamRefused, status: e.Status, header: endToEnd(e.Header), body: e.Body}
	for name := range no.header {
		if name != "Sec-Websocket-Version" && strings.HasPrefix(name, "Sec-Websocket-") || name == sessionHeader {
			delete(no.header, name)
		}
	}
	if e.Status == http.StatusUpgradeRequired {
		no.header["Upgrade"], no.header["Connection"] = []string{"websocket"}, []string{"Upgrade"}
	}
	if no.header["Content-Type"] == nil {
		no.header["Content-Type"] = nil // else net/http guesses one
	}
	if e.Truncated {
		no.detail = "its body is cut"
	}
	return no
}
