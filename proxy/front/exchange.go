package front

import (
	"net"
	"net/http"
	"time"
)

// Exchange is one request of net/http's server and the answer to it.
type Exchange struct {
	w     http.ResponseWriter
	r     *http.Request
	keep  bool          // the connection, beyond the answer
	stall time.Duration // stallTimeout, except in tests
}

// NewExchange returns the exchange of a request that net/http has handed out.
func NewExchange(w http.ResponseWriter, r *http.Request) *Exchange {
	return &Exchange{w: w, r: r, stall: stallTimeout}
}

// Respond sends one whole answer; the connection closes after it, unless Keep has been called. A proxy in front that took a refused upgrade for accepted would
// tunnel the client's next bytes here, as the requests of a trusted proxy (0ang3el/websocket-smuggle).
func (e *Exchange) Respond(status int, h http.Header, body []byte) {
	header := e.w.Header()
	for name, values := range h {
		header[name] = values
	}
	keep := e.keep && e.r.ContentLength == 0
	if !keep {
		header["Connection"] = append([]string{"close"}, h["Connection"]...) // net/http looks at the first alone
	}
	rc := http.NewResponseController(e.w)
	if e.r.ContentLength != 0 {
		// net/http reads on for the body before it closes, lest a reset overtake this answer. Not for long.
		rc.SetReadDeadline(time.Now().Add(time.Second))
	}
	e.w.WriteHeader(status)
	e.w.Write(body)
	rc.Flush() // now, not after the handler: by then a drain may have closed what is left
	if c := trackedConnFrom(e.r); c != nil && !keep {
		c.pending.put(c) // net/http lingers before it closes
	}
}

// Abort closes the connection without an answer; to return would be a 200. It does not return.
func (e *Exchange) Abort() { panic(http.ErrAbortHandler) }

// Hijack takes the connection over. buffered is what the client sent behind its request, as far as it was read.
func (e *Exchange) Hijack() (conn net.Conn, buffered []byte, err error) {
	conn, rw, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	buffered = make([]byte, rw.Reader.Buffered())
	rw.Reader.Read(buffered) // cannot fail: it is in the buffer
	return untrack(conn), buffered, nil
}
