package front

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// idleTimeout is for the next request to begin on a connection that is kept. Balancers keep theirs for 60 s, and the end of a
	// connection is to come from the side that asks: from this side it may cross a request.
	idleTimeout = 75 * time.Second
	// stallTimeout is for a client to send some more of a body, or to take some more of an answer.
	stallTimeout = time.Minute
	// restTimeout is for the rest of a body that nobody wants. net/http reads up to 256 KiB of it, lest a reset overtake the answer, and
	// closes the connection unless that was all.
	restTimeout = time.Second
)

// Keep has the connection wait for another request after the answer. It is for a request that asks for no other protocol: whoever
// sent it knows where the next one begins.
func (e *Exchange) Keep() { e.keep = true }

// Stream has answer write an answer of any length, for as long as it likes, and read the body of the request. Neither has a deadline of
// the whole: a client is given up that sends or takes nothing for a minute. Once ctx has ended the body has a second left: a transport returns
// only when it has been read. w and body are not to be used after answer has returned.
func (e *Exchange) Stream(ctx context.Context, answer func(w http.ResponseWriter, body io.ReadCloser)) {
	rc := http.NewResponseController(e.w)
	w := &patientWriter{e.w, rc, e.stall}
	body := &patientBody{ReadCloser: e.r.Body, rc: rc, stall: e.stall, done: e.r.ContentLength == 0}
	// A read deadline that passes would end the request's context, as a client does that leaves.
	rc.SetReadDeadline(time.Time{})
	rc.SetWriteDeadline(time.Time{})
	// RFC 9112 section 6.1: a request with both Transfer-Encoding and Content-Length is its connection's last, for who sent it may have
	// gone by the latter. net/http does not tell, so that this holds for each with the former.
	if !e.keep || len(e.r.TransferEncoding) > 0 {
		e.w.Header()["Connection"] = []string{"close"}
	}
	stop := context.AfterFunc(ctx, body.finish)
	defer func() {
		stop()
		body.finish()
		rc.SetWriteDeadline(time.Now().Add(restTimeout + e.stall)) // net/http reads the rest, and writes the end of the answer
	}()
	answer(w, body)
}

// patientWriter gives each write its own time.
type patientWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
}

func (w *patientWriter) patient() { w.rc.SetWriteDeadline(time.Now().Add(w.stall)) }

func (w *patientWriter) WriteHeader(status int) {
	w.patient()
	w.ResponseWriter.WriteHeader(status)
}

func (w *patientWriter) Write(b []byte) (int, error) {
	w.patient()
	return w.ResponseWriter.Write(b)
}

// FlushError is what [http.ResponseController] flushes by.
func (w *patientWriter) FlushError() error {
	w.patient()
	return w.rc.Flush()
}

// patientBody gives each read its own time. A read may outlast the answer, and must not touch the deadline of what follows.
type patientBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	stall time.Duration

	mu   sync.Mutex // guards done, and the deadline while it is false
	done bool
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.deadline(time.Now().Add(b.stall), false)
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.deadline(time.Time{}, true) // net/http reads on, to hear of the client's leaving
	}
	return n, err
}

// finish is for a body that has not been read to its end.
func (b *patientBody) finish() { b.deadline(time.Now().Add(restTimeout), true) }

// deadline sets the deadline, for the last time if done.
func (b *patientBody) deadline(at time.Time, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done {
		b.rc.SetReadDeadline(at)
		b.done = done
	}
}
