package proxy

import (
	"encoding/base64"
	"net/http"
	"strings"
)

// checkHandshake is RFC 6455 section 4.2.1, strictly. What a lenient gate lets by, a backend may refuse or read differently,
// and then the tunnel carries requests that nobody checked: github.com/0ang3el/websocket-smuggle. That there is exactly one
// well-formed Host header net/http has seen to, but for an empty one.
func (p *Proxy) checkHandshake(u *upgrade) *refusal {
	r := u.r
	upgrades := r.Header["Upgrade"]
	switch {
	case r.Method != http.MethodGet:
		return &refusal{reason: Method, header: http.Header{"Allow": {"GET"}}}
	case !hasToken(upgrades, "websocket"):
		// Also h2c, alone: an upgrade to what is not served is no upgrade (BishopFox/h2csmuggler).
		return &refusal{reason: NotWebSocket, header: http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}}
	case len(upgrades) != 1 || !equalFold(upgrades[0], "websocket"):
		return malformed("Upgrade names more than websocket")
	case r.ProtoMajor != 1 || r.ProtoMinor != 1:
		return malformed("not HTTP/1.1")
	case !hasToken(r.Header["Connection"], "upgrade"):
		return malformed("Connection does not contain upgrade") // Firefox: "keep-alive, Upgrade"
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0 || r.Header["Content-Length"] != nil:
		// Whoever does not expect a body here takes it for the first frames, or for the next request.
		return malformed("a request body")
	case r.Host == "":
		return malformed("Host is empty")
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || v[0] != "13" {
		return &refusal{reason: Version, header: http.Header{"Sec-Websocket-Version": {"13"}}} // RFC 6455 section 4.4
	}
	if keys := r.Header["Sec-Websocket-Key"]; len(keys) != 1 || !validKey(keys[0]) {
		return malformed("Sec-WebSocket-Key is not 16 bytes in base64, once")
	}
	if !validProtocols(r.Header["Sec-Websocket-Protocol"]) {
		return malformed("Sec-WebSocket-Protocol is not a list of different tokens")
	}
	if !validExtensions(r.Header["Sec-Websocket-Extensions"]) {
		return malformed("Sec-WebSocket-Extensions is not a list of extensions")
	}
	u.handshaken = true
	return nil
}

func malformed(detail string) *refusal { return &refusal{reason: Handshake, detail: detail} }

// validKey reports whether key is 16 bytes in canonical base64: no two keys that mean the same bytes.
func validKey(key string) bool {
	var nonce [18]byte
	if len(key) != base64.StdEncoding.EncodedLen(16) {
		return false
	}
	n, err := base64.StdEncoding.Strict().Decode(nonce[:], []byte(key))
	return err == nil && n == 16
}

// validProtocols reports whether values are RFC 6455 section 4.1, item 10: 1#token, each token once. No header at all is valid.
func validProtocols(values []string) bool {
	seen := make(map[string]bool, len(values))
	for _, value := range values {
		for token := range strings.SplitSeq(value, ",") {
			token = trimSpace(token)
			if !isToken(token) || seen[token] {
				return false
			}
			seen[token] = true
		}
	}
	return true
}

// validExtensions reports whether values are RFC 6455 section 9.1: 1#( token *( ";" token [ "=" ( token / quoted-string ) ] ) ),
// where the quoted string, once unquoted, is a token too. No header at all is valid.
func validExtensions(values []string) bool {
	for _, value := range values {
		// No comma or semicolon can stand in the quotes: neither is a token's.
		for extension := range strings.SplitSeq(value, ",") {
			name, params, more := strings.Cut(extension, ";")
			if !isToken(trimSpace(name)) {
				return false
			}
			for more {
				var param string
				param, params, more = strings.Cut(params, ";")
				if !validParam(trimSpace(param)) {
					return false
				}
			}
		}
	}
	return true
}

func validParam(param string) bool {
	name, value, valued := strings.Cut(param, "=")
	if valued && len(value) > 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	return isToken(name) && (!valued || isToken(value))
}

// isToken reports whether s is a token, which the name of a header also is (RFC 9110 sections 5.1 and 5.6.2).
func isToken(s string) bool {
	for _, c := range []byte(s) {
		alphanumeric := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alphanumeric && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// hasToken reports whether the list that values make together holds an ASCII token, in any case.
func hasToken(values []string, token string) bool {
	for _, value := range values {
		for element := range strings.SplitSeq(value, ",") {
			if equalFold(trimSpace(element), token) {
				return true
			}
		}
	}
	return false
}

// equalFold compares with an ASCII string. strings.EqualFold alone folds Unicode, where U+212A KELVIN SIGN is a k; that is
// longer in bytes than what it would stand for.
func equalFold(s, ascii string) bool { return len(s) == len(ascii) && strings.EqualFold(s, ascii) }

// trimSpace trims the optional white space of RFC 9110 section 5.6.3, which is less than Unicode's.
func trimSpace(s string) string { return strings.Trim(s, " \t") }
