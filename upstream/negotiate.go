package upstream

import "strings"

// The keys of the offer and the answer in an http.Header.
const (
	protocolField   = "Sec-Websocket-Protocol"
	extensionsField = "Sec-Websocket-Extensions"
)

// chosenProtocol returns the subprotocol that an answer names; empty if none. It fails unless there is one at most, out of
// those offered, compared byte for byte (RFC 6455 section 4.1). Both parameters are the values of the field.
func chosenProtocol(answer, offer []string) (string, bool) {
	switch len(answer) {
	case 0:
		return "", true
	case 1:
		for _, v := range offer {
			for p := range strings.SplitSeq(v, ",") {
				// An offered name is a token, so that an answer of "a, b" or "" matches nothing.
				if p = trim(p); p == answer[0] && isToken(p) {
					return p, true
				}
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
	open := make(map[string]bool) // offered and not yet accepted; a set, for either list may be thousands long
	for _, v := range offer {
		for e := range strings.SplitSeq(v, ",") {
			open[extensionName(e)] = true
		}
	}
	delete(open, "") // malformed ones
	for _, v := range answer {
		for e := range strings.SplitSeq(v, ",") {
			name := extensionName(e)
			if !open[name] {
				return "", false
			}
			delete(open, name)
		}
	}
	return strings.Join(answer, ", "), true
}

// extensionName returns the name in one element of Sec-WebSocket-Extensions, or "" if the element is malformed. A quoted
// parameter value is a token too once it is unquoted (RFC 6455 section 9.1), so no comma or semicolon hides in one.
func extensionName(element string) string {
	name, parameters, more := strings.Cut(element, ";")
	for more {
		var p string
		p, parameters, more = strings.Cut(parameters, ";")
		key, value, valued := strings.Cut(p, "=")
		value = trim(value)
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = value[1 : n-1]
		}
		if !isToken(trim(key)) || valued && !isToken(value) {
			return ""
		}
	}
	if name = trim(name); !isToken(name) {
		return ""
	}
	return name
}
