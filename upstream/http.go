package upstream

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"portcullis/proxy/header"
)

const (
	// idleConns is how many connections to an endpoint wait for another plain request.
	idleConns = 64
	// idleTime is how long one waits. It ends before those of common servers do, of which Node's is the shortest with 5 s: a request
	// that crosses the end of its connection fails, unless it can be sent again.
	idleTime = 4 * time.Second
	// continueTime is how long a body waits for the 100 that its client has asked for.
	continueTime = time.Second
)

// ErrPath says that a path cannot be sent as it is.
var ErrPath = errors.New("a path that begins with // and has characters that must be escaped")

// Answer is the answer to a plain request.
type Answer struct {
	*http.Response

	// Target is the name of the target, and TargetID what a sticky cookie names it by.
	Target   string
	TargetID uint64

	// Place is to be released when the body has been read.
	Place *Place
}

// AnswerError is a target that was reached and gave no usable answer to a plain request.
type AnswerError struct {
	// Reason is one of a fixed list, fit for a log line. It quotes nothing that was sent or received.
	Reason string

	// Err is the network's error; nil where the answer itself was wrong.
	Err error
}

func (e *AnswerError) Error() string {
	if e.Err == nil {
		return "upstream answer: " + e.Reason
	}
	return "upstream answer: " + e.Reason + ": " + e.Err.Error()
}

func (e *AnswerError) Unwrap() error { return e.Err }

// BodyError says that the body of a plain request could not be read from its client.
type BodyError struct{ Err error }

func (e *BodyError) Error() string { return "request body: " + e.Err.Error() }
func (e *BodyError) Unwrap() error { return e.Err }

// Timeout reports whether nothing more of it came, as opposed to something wrong.
func (e *BodyError) Timeout() bool { return isTimeout(e.Err) }

// reasonSwitching is that of an AnswerError, beside those of a HandshakeError.
const reasonSwitching = "101 to a request that asks for no upgrade"

// newTransport returns what sends plain requests to e. It knows neither proxies, redirects nor compression. TLS is the dial's.
func (u *Upstream) newTransport(e *endpoint) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dials, err := e.enter(ctx)
			if err != nil {
				return nil, err
			}
			defer func() { <-dials }()
			left, _ := ctx.Value(dialTime{}).(time.Duration)
			return u.dial(ctx, e, cmp.Or(left, u.dialTimeout))
		},
		DisableCompression:     true,
		MaxIdleConns:           idleConns,
		MaxIdleConnsPerHost:    idleConns,
		IdleConnTimeout:        idleTime,
		ExpectContinueTimeout:  continueTime,
		MaxResponseHeaderBytes: maxHeader,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// dialTime is the key of how long the dial for a request may take.
type dialTime struct{}

// RoundTrip sends a plain request to one of the targets, chosen as for a session: r's method, body and length, with all else from req. r
// is changed. A dial that fails is tried on another target, as in Connect. The error is a *DialError, *AnswerError or *BodyError, ErrNone,
// ErrBusy, ErrPath, or that of r's context. Without an error the body of the answer is to be closed and its place to be released.
func (u *Upstream) RoundTrip(r *http.Request, req *Request) (*Answer, error) {
	ctx := r.Context()
	body := &sentBody{src: http.NoBody}
	if r.Body != nil {
		body.src, r.Body = r.Body, body
	}
	var tried []*endpoint
	var last error
	for first := time.Now(); ; {
		e, others := u.choose(req, tried)
		if e == nil {
			return nil, cmp.Or(last, ErrNone)
		}
		left := u.dialTimeout - time.Since(first)
		if others {
			left /= 2
		}
		resp, err := u.roundTripTo(r.WithContext(context.WithValue(ctx, dialTime{}, left)), body, e, req)
		if _, broken := body.state(); err != nil && broken != nil {
			err = &BodyError{broken}
		}
		if err == nil {
			return &Answer{resp, e.name, e.id, &Place{upstream: u, endpoint: e}}, nil
		}
		u.leave(e)
		_, unreached := errors.AsType[*DialError](err)
		used, _ := body.state()
		again := (unreached && !u.exhausted(err) || err == ErrBusy) && ctx.Err() == nil && !used
		if !again || !others || time.Since(first) >= u.dialTimeout {
			return nil, err
		}
		if err != ErrBusy || last == nil {
			last = err
		}
		tried = append(tried, e)
	}
}

// roundTripTo sends a plain request to one endpoint, on which it counts from before the call.
func (u *Upstream) roundTripTo(r *http.Request, body *sentBody, e *endpoint, req *Request) (*http.Response, error) {
	if err := u.address(r, e.target, req); err != nil {
		u.release(e)
		return nil, err
	}
	resp, err := e.transport.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body.Close()
		err = &AnswerError{Reason: reasonSwitching}
	} else if err != nil {
		err = plainError(r.Context(), err)
	}
	if _, broken := body.state(); broken != nil && err != nil || err == ErrBusy {
		u.release(e) // that tells nothing of it
	} else {
		u.report(e, err, r.Context())
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// address writes into r where it goes and what its head is.
func (u *Upstream) address(r *http.Request, t *target, req *Request) error {
	path, query, _ := strings.Cut(string(t.appendURI(nil, req.Path, req.Query)), "?")
	if !strings.HasPrefix(path, "/") || !sendable(path) || !sendable(query) {
		return ErrPath
	}
	r.URL = &url.URL{Scheme: "http", Host: "upstream", Opaque: path, RawQuery: query} // Opaque goes out as it is
	if strings.HasPrefix(path, "//") {
		// which net/url would take for an authority
		plain, err := url.PathUnescape(path)
		r.URL.Opaque, r.URL.Path, r.URL.RawPath = "", plain, path
		if err != nil || r.URL.EscapedPath() != path {
			return ErrPath
		}
	}
	r.Host = cmp.Or(u.host, req.Host, t.authority)
	r.Header, r.Trailer, r.TransferEncoding, r.RequestURI = req.Header, nil, nil, ""
	if !header.IsHost(r.Host) {
		return ErrPath
	}
	return nil
}

// plainError is the error of a transport, without what it quotes of the answer.
func plainError(ctx context.Context, err error) error {
	_, unreached := errors.AsType[*DialError](err)
	_, ofNetwork := errors.AsType[net.Error](err)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == ErrBusy, unreached:
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), err.Error() == "http: server closed idle connection":
		return &AnswerError{Reason: reasonClosed, Err: io.ErrUnexpectedEOF}
	case ofNetwork, errors.Is(err, net.ErrClosed):
		return &AnswerError{Reason: reasonClosed, Err: err}
	}
	return &AnswerError{Reason: reasonNoHTTP}
}

// sentBody is the body of a plain request on its way. What a transport closes after a dial that failed is there for the next try.
type sentBody struct {
	src io.Reader

	mu   sync.Mutex // guards what follows
	used bool
	err  error // of src, but for its end
}

// Read implements [io.Reader].
func (b *sentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.used = true
	b.mu.Unlock()
	n, err := b.src.Read(p)
	if err != nil && err != io.EOF {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return n, err
}

// Close implements [io.Closer]. The body is its client's to close.
func (b *sentBody) Close() error { return nil }

// state is whether something of it has been read, and what went wrong in that.
func (b *sentBody) state() (used bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.err
}
