package upstream

import (
	"strings"

	"portcullis/proxy/header"
)

// The keys of the offer and the answer in an http.Header.
const (
	protocolField   = "Sec-Websocket-Protocol"
	extensionsField = "Sec-Websocket-Extensions"
)

// chosenProtocol returns the subprotocol that an answer names; empty if none. It fails if the answer names several, or one
// that was not offered, compared byte for byte (RFC 6455 section 4.1). Both parameters are the values of the field.
func chosenProtocol(answer, offer []string) (string, bool) {
	switch len(answer) {
	case 0:
		return "", true
	case 1:
		for p := range header.Elements(offer) {
			// An offered name is a token, so an answer of "a, b" or "" matches nothing.
			if p == answer[0] && header.IsToken(p) {
				return p, true
			}
		}
	}
	return "", false
}

// acceptedExtensions returns the extensions that an answer names, as on the wire; empty if none. It fails unless each was
// offered, by name, and is accepted once: an offer may hold the same name several times with different parameters, but
// accepted twice it would claim the same bits twice. Parameters are the endpoints' own business: those of
// permessage-deflate's answer (RFC 7692 section 7.1) legitimately differ from the offer's.
func acceptedExtensions(answer, offer []string) (string, bool) {
	if len(answer) == 0 {
		return "", true
	}
	pending := make(map[string]bool) // offered and not yet accepted; a set, for either list may be thousands long
	for e := range header.Elements(offer) {
		pending[header.ExtensionName(e)] = true
	}
	delete(pending, "") // malformed ones
	for e := range header.Elements(answer) {
		name := header.ExtensionName(e)
		if !pending[name] {
			return "", false
		}
		delete(pending, name)
	}
	return strings.Join(answer, ", "), true
}
