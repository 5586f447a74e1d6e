package gate

import (
	"encoding/base64"
	"net/http"

	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
)

// checkHandshake is RFC 6455 section 4.2.1, strictly. What a lenient gate lets by, a backend may refuse or read differently,
// and then the tunnel carries requests that nobody checked: github.com/0ang3el/websocket-smuggle. That there is exactly one
// Host header net/http has seen to.
func (g *Gate) checkHandshake(u *upgrade) *refusal.Refusal {
	r := u.HTTP
	upgrades := r.Header["Upgrade"]
	switch {
	case r.Method != http.MethodGet:
		return &refusal.Refusal{Reason: refusal.Method, Header: http.Header{"Allow": {"GET"}}}
	case !header.HasToken(upgrades, "websocket"):
		// Also h2c, alone: an upgrade to what is not served is no upgrade (BishopFox/h2csmuggler).
		return &refusal.Refusal{Reason: refusal.NotWebSocket, Header: http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}}
	case len(upgrades) != 1 || !header.EqualFold(upgrades[0], "websocket"):
		return malformed("Upgrade names more than websocket")
	case r.ProtoMajor != 1 || r.ProtoMinor != 1:
		return malformed("not HTTP/1.1")
	case !header.HasToken(r.Header["Connection"], "upgrade"):
		return malformed("Connection does not contain upgrade") // Firefox: "keep-alive, Upgrade"
	case !header.IsEmptyBody(r.Header) || len(r.TransferEncoding) > 0:
		// Whoever does not expect a body here takes it for the first frames, or for the next request. A length of 0 is what
		// charging stations and some libraries send with every request. It goes no further.
		return malformed("a request body")
	case !header.IsHost(r.Host):
		return malformed("Host is not a host, with or without a port")
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || v[0] != "13" {
		return &refusal.Refusal{Reason: refusal.Version, Header: http.Header{"Sec-Websocket-Version": {"13"}}} // RFC 6455 section 4.4
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
	u.validHandshake = true
	return nil
}

func malformed(detail string) *refusal.Refusal {
	return &refusal.Refusal{Reason: refusal.Handshake, Detail: detail}
}

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
	for token := range header.Elements(values) {
		if !header.IsToken(token) || seen[token] {
			return false
		}
		seen[token] = true
	}
	return true
}

// validExtensions reports whether values are a list of RFC 6455 section 9.1. No header at all is valid.
func validExtensions(values []string) bool {
	for extension := range header.Elements(values) {
		if header.ExtensionName(extension) == "" {
			return false
		}
	}
	return true
}
