package upstream

import (
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxRefusalBody bounds RefusedError.Body, in bytes. It is enough for any error page; a refusal is to be understood, not
// to carry content.
const maxRefusalBody = 64 << 10

// refusalBodyTimeout is for that body, once the header has come. An error page is written behind its header at once, so that
// a second is for one packet that is lost (RFC 6298: sent again after 1 s at most, where the round trip has been measured),
// and no more: an upstream that tells no length and keeps the connection open would hold a client up, whose no is known, for
// all of HandshakeTimeout.
const refusalBodyTimeout = time.Second

// RefusedError is an upstream's own answer where it does not upgrade: any final status but 101, redirects included.
type RefusedError struct {
	// Status is 200 to 599.
	Status int

	// Header is as the upstream sent it. Hop-by-hop fields are still in it, and a Content-Length that is not that of Body if
	// Truncated.
	Header http.Header

	// Body is what came of the body, without transfer coding, up to 64 KiB.
	Body []byte

	// Truncated says that there was more, or that the rest did not come in time (a second, within HandshakeTimeout) or at all.
	Truncated bool
}

func (e *RefusedError) Error() string {
	return "upstream refused the upgrade: status " + strconv.Itoa(e.Status)
}

// refused reads a refusal's body. The status is known by now, so that nothing that goes wrong here is worth an error.
func (x *handshake) refused(resp *http.Response) *RefusedError {
	x.limited.left = -1 // the body is bounded below, and chunk overhead by net/http
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusalBody+1))
	e := &RefusedError{Status: resp.StatusCode, Header: resp.Header, Body: body, Truncated: err != nil}
	if len(body) > maxRefusalBody {
		e.Body, e.Truncated = body[:maxRefusalBody], true
	}
	return e
}
