package gate

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/ratelimit"
)

// Client is the connection on which a request came. Each front door has its own kind.
type Client interface {
	// Respond sends one whole answer; the connection closes after it, unless Keep was called.
	Respond(status int, h http.Header, body []byte)
	// Keep has the connection wait for another request after the answer.
	Keep()
	// Stream has answer write an answer of any length and read the request's body, without a deadline of the whole. Once ctx has ended
	// the body is waited for no more.
	Stream(ctx context.Context, answer func(w http.ResponseWriter, body io.ReadCloser))
	// Abort closes the connection without an answer. It does not return.
	Abort()
	// Hijack takes the connection over: the door reads and writes it no more. buffered is what it has read behind the request.
	Hijack() (conn net.Conn, buffered []byte, err error)
}

// Request is one request, as it is known before any check.
type Request struct {
	// HTTP is its head. It is not written to, but for its context.
	HTTP   *http.Request
	Client Client

	Path, Query string          // of the request target, byte for byte
	From        clientip.Client // who sent it, behind trusted proxies
	Key         netip.Prefix    // of limits by address
	Forwarded   auth.Forwarded  // by which way it came, as far as that is believed
	Answer      http.Header     // what every answer to it has, such as CORS; nil: nothing

	subject string // once it is authenticated
}

// NewRequest takes the request target apart as it stood in the request line: url.URL has decoded it already, and encodes it
// anew in a way of its own. Behind it there is no absolute target: its authority is the Host, whatever Host says.
func (g *Gate) NewRequest(c Client, r *http.Request) *Request {
	if authority, target, absolute := cutAuthority(r.RequestURI); absolute {
		r = r.WithContext(r.Context()) // a copy, for a handler must not change its request
		r.Host, r.RequestURI = authority, target
	}
	if g.Fleet != nil {
		r = r.WithContext(g.Fleet.NewContext(r.Context()))
	}
	req := &Request{HTTP: r, Client: c}
	req.Path, req.Query, _ = strings.Cut(r.RequestURI, "?")
	if said := r.Header["X-Forwarded-For"]; r.RemoteAddr == clientip.UnixPeer {
		req.From = g.ClientIP.ResolveUnix(said)
	} else {
		req.From = g.ClientIP.Resolve(clientip.ParsePeer(r.RemoteAddr), said)
	}
	req.Key = ratelimit.AddressKey(req.From.Addr)
	req.Forwarded = forwarded(r, req.From)
	return req
}

// Respond sends an answer, with what every answer to this request has.
func (r *Request) Respond(status int, h http.Header, body []byte) {
	for name, values := range r.Answer {
		h[name] = values
	}
	r.Client.Respond(status, h, body)
}
