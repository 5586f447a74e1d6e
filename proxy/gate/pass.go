package gate

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
	"portcullis/upstream"
)

// The ends of a plain request that its client is not to blame for.
var (
	errDraining = errors.New("the gate is draining")
	errExpired  = errors.New("the credential has expired")
)

// passing is a plain request on its way through the upstream, and its answer.
type passing struct {
	gate   *Gate
	u      *upgrade
	began  time.Time
	answer *upstream.Answer // nil: there is none yet
	no     *refusal.Refusal // why there is none
	broken error            // why its body is not whole; nil: nothing is wrong with it on the upstream's side
	whole  bool             // the client has it
}

// pass sends a plain request upstream and its answer back, both as they come.
func (g *Gate) pass(u *upgrade) *refusal.Refusal {
	if !g.requests.tryAcquire() {
		return &refusal.Refusal{Reason: refusal.Overload, Err: errors.New("as many plain requests as may be are under way")}
	}
	defer g.requests.release()
	g.Metrics.HTTPBegan()
	defer g.Metrics.HTTPEnded()
	ctx, cancel := g.passingContext(u)
	defer cancel()

	p := &passing{gate: g, u: u, began: time.Now()}
	defer p.end(ctx)
	u.Client.Stream(ctx, func(w http.ResponseWriter, body io.ReadCloser) {
		in := u.HTTP.WithContext(ctx)
		in.Body = body
		p.proxy(w).ServeHTTP(w, in)
	})
	p.whole = p.no == nil
	return p.no
}

// passingContext is that of a plain request. It ends with the credential, and while the gate drains: what is still under way then is a
// stream or waits for news, and goes when the sessions do. What is short has its time, a quarter of DRAIN_TIMEOUT.
func (g *Gate) passingContext(u *upgrade) (ctx context.Context, cancel func()) {
	passing, end := context.WithCancelCause(u.HTTP.Context())
	stop := context.AfterFunc(g.Accepting, func() {
		timer := time.NewTimer(g.drainTimeout/4 + rand.N(g.drainTimeout/4+1))
		defer timer.Stop()
		select {
		case <-timer.C:
			end(errDraining)
		case <-passing.Done():
		}
	})
	until := u.grant.Expires
	if until.IsZero() {
		return passing, func() { stop(); end(nil) }
	}
	ctx, endTimer := context.WithDeadlineCause(passing, until, errExpired)
	return ctx, func() { stop(); endTimer(); end(nil) }
}

// proxy is what passes p: one for each request, since all that it does is about this one.
func (p *passing) proxy(w http.ResponseWriter) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        func(*httputil.ProxyRequest) {}, // RoundTrip writes the head
		Transport:      p,
		FlushInterval:  -1, // at once
		ModifyResponse: func(resp *http.Response) error { return p.adapt(w, resp) },
		ErrorHandler:   func(_ http.ResponseWriter, r *http.Request, err error) { p.no = p.refusal(r.Context(), err) },
		BufferPool:     buffers{},
		ErrorLog:       silent,
	}
}

// RoundTrip implements [http.RoundTripper].
func (p *passing) RoundTrip(r *http.Request) (*http.Response, error) {
	request := p.gate.upstreamRequest(p.u)
	p.u.aim(request)
	if in := p.u.HTTP; in.ContentLength != 0 && len(in.Header["Expect"]) > 0 {
		request.Header["Expect"] = []string{"100-continue"} // net/http lets no other pass
	}
	if header.HasToken(p.u.HTTP.Header["Te"], "trailers") {
		request.Header["Te"] = []string{"trailers"}
	}
	if request.Header["User-Agent"] == nil {
		request.Header["User-Agent"] = []string{""} // else net/http names itself
	}
	answer, err := p.u.route.upstream.RoundTrip(r, request)
	if err != nil {
		return nil, err
	}
	p.answer = answer
	return answer.Response, nil
}

// adapt makes an answer one of the gate's.
func (p *passing) adapt(w http.ResponseWriter, resp *http.Response) error {
	for name := range resp.Header {
		if header.KindOf(name) == header.Own {
			delete(resp.Header, name)
		}
	}
	if cookie := p.u.stick(p.answer.TargetID); cookie != "" {
		resp.Header.Add("Set-Cookie", cookie)
	}
	if resp.Header["Content-Type"] == nil {
		w.Header()["Content-Type"] = nil // else net/http guesses one
	}
	resp.Body = &answerBody{resp.Body, p}
	return nil
}

// answerBody is the body of an answer, which remembers why it is not whole.
type answerBody struct {
	io.ReadCloser
	p *passing
}

func (b *answerBody) Read(to []byte) (int, error) {
	n, err := b.ReadCloser.Read(to)
	if err != nil && err != io.EOF {
		b.p.broken = err
	}
	return n, err
}

// refusal is that of a request for which there is no answer.
func (p *passing) refusal(ctx context.Context, err error) *refusal.Refusal {
	body, ofBody := errors.AsType[*upstream.BodyError](err)
	answer, ofAnswer := errors.AsType[*upstream.AnswerError](err)
	switch cause := context.Cause(ctx); {
	case cause == errDraining:
		return &refusal.Refusal{Reason: refusal.Draining, Err: cause}
	case cause == errExpired:
		return &refusal.Refusal{Reason: refusal.Expired, Header: refusal.Challenge("invalid_token")}
	case cause != nil:
		return p.gate.contextRefusal(cause)
	case ofBody:
		return bodyRefusal(body)
	case ofAnswer:
		return &refusal.Refusal{Reason: refusal.UpstreamAnswer, Err: answer}
	case err == upstream.ErrPath:
		return &refusal.Refusal{Reason: refusal.PathSuspicious, Detail: err.Error()}
	}
	no, _ := p.gate.connectRefusal(err)
	return no
}

// bodyRefusal is the refusal of a request whose body did not come whole.
func bodyRefusal(e *upstream.BodyError) *refusal.Refusal {
	_, ofNetwork := errors.AsType[net.Error](e)
	switch {
	case e.Timeout():
		return &refusal.Refusal{Reason: refusal.RequestBody, Status: http.StatusRequestTimeout, Detail: "no more of it came"}
	case ofNetwork, errors.Is(e, io.ErrUnexpectedEOF):
		return &refusal.Refusal{Reason: refusal.ClientGone, Err: e}
	}
	return &refusal.Refusal{Reason: refusal.RequestBody} // its error quotes it
}

// end gives back what p holds, and tells of its answer. A refusal is told where all are.
func (p *passing) end(ctx context.Context) {
	if p.answer == nil {
		return
	}
	p.answer.Place.Release()
	why := refusal.Reason("")
	switch cause := context.Cause(ctx); {
	case p.whole:
	case cause == errDraining, p.gate.Base.Err() != nil:
		why = refusal.Draining
	case cause == errExpired:
		why = refusal.Expired
	case p.broken != nil && cause == nil:
		why = refusal.UpstreamAnswer
	default:
		why = refusal.ClientGone
	}
	p.gate.Metrics.HTTPAnswered(p.answer.StatusCode, string(why))
	if !p.gate.Log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", p.u.HTTP.Method),
		slog.Int("status", p.answer.StatusCode),
		slog.String("client", p.u.From.Addr.String()),
		slog.String("path", truncatePath(p.u.Path)),
		slog.String("upstream", p.answer.Target),
		slog.Duration("duration", time.Since(p.began)),
	}
	if p.u.subject != "" {
		attrs = append(attrs, slog.String("subject", p.u.subject))
	}
	if why != "" {
		attrs = append(attrs, slog.String("broken_off", string(why)))
	}
	p.gate.Log.LogAttrs(context.Background(), slog.LevelDebug, "request passed", attrs...)
}

// silent is where the errors of httputil go, which are told better here.
var silent = log.New(io.Discard, "", 0)

// buffers are those through which answers are copied.
type buffers struct{}

var bufferPool = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Get implements [httputil.BufferPool].
func (buffers) Get() []byte { return bufferPool.Get().(*[32 << 10]byte)[:] }

// Put implements [httputil.BufferPool].
func (buffers) Put(b []byte) { bufferPool.Put((*[32 << 10]byte)(b)) }
