package upstream

import (
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxRefusalBody bounds RefusedError.Body, in bytes. It is enough for any error page; a refusal is not meant to carry content.
const maxRefusalBody = 64 << 10

// refusalBodyTimeout bounds reading that body, once the header has come. Servers write an error page right behind its header,
// so a second leaves time for one lost packet (RFC 6298: it is sent again after 1 s at most, once the round trip has been
// measured). It is no longer because the client is refused already: an upstream that sends no length and keeps the connection
// open would make it wait for all of HandshakeTimeout.
const refusalBodyTimeout = time.Second

// RefusedError is the upstream's own answer if it does not upgrade: any final status but 101, redirects included.
type RefusedError struct {
	// Status is 200 to 599.
	Status int

	// Header is as the upstream sent it, hop-by-hop fields included. If Truncated, its Content-Length is not that of Body.
	Header http.Header

	// Body is the part of the body that came, without transfer coding, up to 64 KiB.
	Body []byte

	// Truncated says that there was more, or that the rest did not come in time (a second, within HandshakeTimeout) or at all.
	Truncated bool
}

func (e *RefusedError) Error() string {
	return "upstream refused the upgrade: status " + strconv.Itoa(e.Status)
}

// readRefusal reads a refusal's body. The status is known already, so an error here only truncates the body.
func (x *handshake) readRefusal(resp *http.Response) *RefusedError {
	x.limited.left = -1 // the body is bounded below, and chunk overhead by net/http
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusalBody+1))
	e := &RefusedError{Status: resp.StatusCode, Header: resp.Header, Body: body, Truncated: err != nil}
	if len(body) > maxRefusalBody {
		e.Body, e.Truncated = body[:maxRefusalBody], true
	}
	return e
}
