package refusal

import (
	"cmp"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// Refusal is the answer to a request that does not become a session.
type Refusal struct {
	Reason Reason
	// Status is that of the HTTP answer. 0: the reason's.
	Status int
	// Text is the line that the client is told in place of the reason's. Empty: the reason's.
	Text string
	// Detail says what is wrong, for the client too: it quotes nothing of the request.
	Detail string
	// Err says what is wrong, for the log alone.
	Err error
	// RetryAfter is how long the client should stay away. 0: as long as the reason says.
	RetryAfter time.Duration
	// Header is added to the HTTP answer.
	Header http.Header
	// CloseCode is that of the Close frame, where a frame is the answer. 0: what the status amounts to.
	CloseCode int
	// Body is that of the HTTP answer where the reason is UpstreamRefused.
	Body []byte
}

// StatusCode is the status of the HTTP answer. 0: the client is not to be answered.
func (r *Refusal) StatusCode() int { return cmp.Or(r.Status, r.Reason.Status()) }

// Response is the HTTP answer. Its header shares values with r.
func (r *Refusal) Response() (status int, h http.Header, body []byte) {
	status, body, h = r.StatusCode(), r.Body, make(http.Header, len(r.Header)+5)
	for name, values := range r.Header {
		h[name] = values
	}
	if r.Reason != UpstreamRefused {
		body = []byte(r.line() + "\n")
		h["Content-Type"] = []string{"text/plain; charset=utf-8"}
		h["X-Content-Type-Options"] = []string{"nosniff"}
		h["Cache-Control"] = []string{"no-store"}
	}
	if wait := r.retryAfter(); wait > 0 {
		h["Retry-After"] = []string{strconv.Itoa(jitter(wait))}
	}
	if status != http.StatusNoContent && status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	return status, h, body
}

// line is what the client is told, without its end.
func (r *Refusal) line() string {
	text := cmp.Or(r.Text, r.Reason.Text())
	if r.Detail != "" {
		text += ": " + r.Detail
	}
	return text
}

func (r *Refusal) retryAfter() time.Duration { return cmp.Or(r.RetryAfter, r.Reason.retryAfter()) }

// jitter turns a wait into whole seconds, at least 1: rounded up, and spread over half as long again and two seconds more, so
// that clients refused together do not return together.
func jitter(wait time.Duration) int {
	return Seconds(wait + rand.N(wait/2+2*time.Second))
}

// Seconds rounds up to whole seconds, at least 1, as Retry-After and RateLimit have them.
func Seconds(d time.Duration) int {
	return max(1, int((d+time.Second-1)/time.Second))
}

// Challenge is WWW-Authenticate as of RFC 6750 section 3, without an error code where no credential was shown; or what the
// verifier challenged with.
func Challenge(code string, verifiers ...string) http.Header {
	values := verifiers
	if len(values) == 0 {
		values = []string{`Bearer realm="portcullis"`}
		if code != "" {
			values[0] += `, error="` + code + `"`
		}
	}
	return http.Header{"WWW-Authenticate": values}
}
