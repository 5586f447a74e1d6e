package header

import (
	"net/textproto"
	"strings"
)

// Kind is why a header of a request is not simply passed on.
type Kind uint8

const (
	// EndToEnd headers are the client's word to the application, and pass.
	EndToEnd Kind = iota
	// Hop headers concern one connection (RFC 9110 section 7.6.1).
	Hop
	// Framing headers say whether there is a body and where it ends. A handshake has no body. A server that expects one would
	// read frames as the body, or as the next request.
	Framing
	// Address headers state the client's address. A server that believes the client's own header can be told any address.
	Address
	// Scheme headers say whether the client came over TLS.
	Scheme
	// Target headers ask for another path, host or method than the request does, past what was checked.
	Target
	// Forwarded headers are the other X-Forwarded-*: they state what a proxy in front knows and this gate does not.
	Forwarded
	// Handshake headers are Sec-WebSocket-*.
	Handshake
	// Own headers are Portcullis-*: between gates, and between a gate and its clients.
	Own
)

// names are the headers of each kind, in canonical spelling, without those that a prefix tells.
var names = map[Kind][]string{
	Hop: {
		"Connection", "Keep-Alive", "Te", "Upgrade",
		"Proxy-Authenticate", "Proxy-Authorization", "Proxy-Authentication-Info", "Proxy-Connection",
		"Http2-Settings", // of an upgrade to h2c (BishopFox/h2csmuggler)
		"Proxy",          // no header at all, but CGI makes HTTP_PROXY of it (httpoxy, CVE-2016-5385)
	},
	Framing: {"Content-Length", "Transfer-Encoding", "Trailer", "Expect"},
	Address: {
		"Forwarded", // RFC 7239. Not rewritten: two headers that state one fact may be read differently
		"X-Forwarded-For", "X-Real-Ip",
		"X-Original-Forwarded-For", // ingress-nginx: what came before its own
		"X-Forwarded", "Forwarded-For", "Client-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Remote-Ip", "X-Remote-Addr", "X-Originating-Ip",
		"X-Proxyuser-Ip", "Proxy-Client-Ip", "Wl-Proxy-Client-Ip", // Google's, Apache's, WebLogic's
		"Http-Client-Ip", "Http-X-Forwarded-For", // HTTP_CLIENT_IP: CGI's names sent as headers, which much Java code asks for
		"X-Envoy-External-Address", "X-Appengine-User-Ip", "X-Azure-Clientip", "X-Azure-Socketip", "Do-Connecting-Ip",
		"Cloudfront-Viewer-Address", "True-Client-Ip", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Cf-Pseudo-Ipv4",
		"Fastly-Client-Ip", "Fly-Client-Ip", "Incap-Client-Ip", "X-Sucuri-Clientip", "X-Nf-Client-Connection-Ip", "X-Vercel-Forwarded-For",
	},
	Scheme: {
		"X-Forwarded-Proto", "X-Forwarded-Scheme", "X-Forwarded-Protocol", "X-Forwarded-Ssl", "X-Scheme", "X-Url-Scheme",
		"Front-End-Https", "X-Arr-Ssl", "Wl-Proxy-Ssl", "Cf-Visitor", "Cloudfront-Forwarded-Proto", // IIS, Azure, WebLogic, the networks
	},
	Target: {
		"X-Forwarded-Host", "X-Host", "X-Http-Host-Override",
		"X-Rewrite-Url", // frameworks route by it, and by X-Original-Url
	},
}

// prefixes tell the kind of a header that is not in names.
var prefixes = []struct {
	prefix string
	kind   Kind
}{
	{"Sec-Websocket-", Handshake},
	{"X-Forwarded-", Forwarded},
	{"X-Original-", Target}, // -Url, -Uri, -Method, -Host
	{"Portcullis-", Own},
}

var kinds = func() map[string]Kind {
	all := make(map[string]Kind)
	for kind, list := range names {
		for _, name := range list {
			all[name] = kind
		}
	}
	return all
}()

// KindOf returns the kind of the header that a server may take name for, in whatever spelling.
func KindOf(name string) Kind {
	name = Fold(name)
	if kind, ok := kinds[name]; ok {
		return kind
	}
	for _, p := range prefixes {
		if len(name) > len(p.prefix) && strings.HasPrefix(name, p.prefix) {
			return p.kind
		}
	}
	return EndToEnd
}

// Names returns the names of a kind, in canonical spelling, without those that a prefix tells.
func Names(kind Kind) []string { return names[kind] }

// Fold returns a name, in canonical case, as it is read by servers that take all punctuation for the same. CGI and its heirs (RFC
// 3875 section 4.1.18) turn - into _, and some turn everything that is neither letter nor digit into _, so that X.Forwarded_For
// arrives as X-Forwarded-For (CVE-2026-30851, CVE-2026-88011).
func Fold(name string) string {
	for i := range len(name) {
		if foldsToDash(name[i]) {
			spelt := []byte(name)
			for i, c := range spelt {
				if foldsToDash(c) {
					spelt[i] = '-'
				}
			}
			name = string(spelt)
			break
		}
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

func foldsToDash(c byte) bool { return c != '-' && !isAlphanumeric(c) }

// Same reports whether servers may take a and b for the same header: whether [Fold] makes them equal.
func Same(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if foldByte(a[i]) != foldByte(b[i]) {
			return false
		}
	}
	return true
}

func foldByte(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case foldsToDash(c):
		return '-'
	}
	return c
}
