package auth

import (
	"encoding/base64"
	"iter"
	"net/http"
	"strings"

	"portcullis/proxy/header"
)

// Sec-WebSocket-Protocol is the one header that browser script can fill, which
// is why tokens travel in it. It may span several lines (RFC 6455 section
// 11.3.4), which are one list.
const (
	protocolHeader = "Sec-Websocket-Protocol" // canonical as net/http has it
	bearerName     = "bearer"
	kubernetesName = "base64url.bearer.authorization.k8s.io"
)

var (
	errHalfPair = &MalformedError{Reason: "the subprotocol bearer is not followed by a token"}
	errEncoding = &MalformedError{Reason: "the token in the subprotocol is not base64url without padding"}
	errTwice    = &MalformedError{Request: true, Reason: "the subprotocol offer has more than one token"}
	errAlone    = &MalformedError{Request: true, Reason: "no subprotocol is offered beside the token"}
)

// offered yields the entries of the subprotocol offer. Empty ones are skipped
// (RFC 9110 section 5.6.1.2).
func offered(h http.Header) iter.Seq[string] {
	return func(yield func(string) bool) {
		for entry := range header.Elements(h[protocolHeader]) {
			if entry != "" && !yield(entry) {
				return
			}
		}
	}
}

// An offer collects what is left of a subprotocol offer.
type offer struct {
	list    strings.Builder
	removed bool // an entry was left out; otherwise the header stays as it came
}

func (o *offer) add(entry string) {
	if o.list.Len() > 0 {
		o.list.WriteString(", ")
	}
	o.list.WriteString(entry)
}

func (o *offer) writeTo(h http.Header) {
	switch {
	case !o.removed:
	case o.list.Len() == 0:
		delete(h, protocolHeader)
	default:
		h[protocolHeader] = []string{o.list.String()}
	}
}

// A bearerPlace is the pair "bearer, <token>" of adjacent subprotocols.
type bearerPlace struct{}

// role is what an entry is to a bearerPlace.
type role int

const (
	roleProtocol role = iota // a protocol that the upstream may speak
	roleBearer               // the entry "bearer"
	roleToken                // the entry after it, whatever it is
)

// roles yields each entry with its role, from left to right: in "bearer, bearer"
// the second is the token.
func (bearerPlace) roles(h http.Header) iter.Seq2[string, role] {
	return func(yield func(string, role) bool) {
		last := roleProtocol
		for entry := range offered(h) {
			switch {
			case last == roleBearer:
				last = roleToken
			case entry == bearerName:
				last = roleBearer
			default:
				last = roleProtocol
			}
			if !yield(entry, last) {
				return
			}
		}
	}
}

func (p bearerPlace) find(r *http.Request, c Credential) (Credential, error) {
	last := roleProtocol
	for entry, role := range p.roles(r.Header) {
		if last = role; role != roleToken {
			continue
		}
		var err error
		if c, err = c.withToken(entry); err != nil {
			return c, err
		}
		c.Subprotocol = bearerName
	}
	if last == roleBearer {
		return c, errHalfPair
	}
	return c, nil
}

func (p bearerPlace) strip(rawQuery string, h http.Header) string {
	var rest offer
	for entry, role := range p.roles(h) {
		if role == roleProtocol {
			rest.add(entry)
		} else {
			rest.removed = true
		}
	}
	rest.writeTo(h)
	return rawQuery
}

// A kubernetesPlace is the entry that the Kubernetes API server takes
// (k8s.io/apiserver, authentication/request/websocket), with its rules: at most
// one, and another protocol beside it, so that the answer need not name it.
type kubernetesPlace struct{}

// encoded returns the encoded token of entry; false if entry is a subprotocol.
func (kubernetesPlace) encoded(entry string) (string, bool) {
	return strings.CutPrefix(entry, kubernetesName+".")
}

func (p kubernetesPlace) find(r *http.Request, c Credential) (Credential, error) {
	var encoded string
	tokens, subprotocols := 0, 0
	for entry := range offered(r.Header) {
		if e, ok := p.encoded(entry); ok {
			encoded = e
			tokens++
		} else {
			subprotocols++
		}
	}
	switch {
	case tokens == 0:
		return c, nil
	case tokens > 1:
		return c, errTwice
	case subprotocols == 0:
		return c, errAlone
	case encoded == "":
		return c, errEmpty
	case base64.RawURLEncoding.DecodedLen(len(encoded)) > MaxTokenBytes:
		return c, errLong
	}
	// Strict: without it several texts decode to one token.
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return c, errEncoding
	}
	return c.withToken(string(decoded))
}

func (p kubernetesPlace) strip(rawQuery string, h http.Header) string {
	var rest offer
	for entry := range offered(h) {
		if _, isToken := p.encoded(entry); isToken {
			rest.removed = true
		} else {
			rest.add(entry)
		}
	}
	rest.writeTo(h)
	return rawQuery
}
