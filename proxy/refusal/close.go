package refusal

import (
	"fmt"
	"net/http"
	"strconv"

	"portcullis/proxy/frame"
)

// CloseFrame is the refusal as a client gets it that has its 101 already: a whole Close frame and its code. Code 0: the client
// gets no frame, for nobody is there.
func (r *Refusal) CloseFrame() (code int, wire []byte) {
	if code = r.closeCode(); code == 0 {
		return 0, nil
	}
	return code, frame.AppendControl(nil, frame.Server, frame.Close, frame.ClosePayload(code, r.closeReason()))
}

// closeCode is the close code of a refusal where the client has its 101 already. 0: no Close frame, for nobody is there.
func (r *Refusal) closeCode() int {
	status := r.StatusCode()
	switch {
	case r.CloseCode != 0:
		return r.CloseCode
	case r.Reason == Draining:
		return frame.CodeGoingAway
	case status == 0:
		return 0
	case r.Reason == UpstreamHandshake, r.Reason == Internal, r.Reason == Loop:
		return frame.CodeInternal // to try again will not help
	case status == http.StatusTooManyRequests, status >= 500, r.Reason == ResumeStale:
		return frame.CodeTryAgain
	case r.Reason == UpstreamRefused:
		return frame.CodeInternal // its 401 and 403 are not about our token
	case status == http.StatusUnauthorized:
		return frame.CodeUnauthorized
	case status == http.StatusForbidden:
		return frame.CodeForbidden
	}
	return frame.CodePolicy
}

// closeReason is the refusal in words, with what Retry-After says.
func (r *Refusal) closeReason() string {
	if r.Reason == ClientGone {
		return "" // the answer to its own Close
	}
	text := "the upstream refuses the connection" // in words of its own, which may be anything
	if r.Reason != UpstreamRefused {
		text = r.line()
	}
	retry, _ := strconv.Atoi(r.Header.Get("Retry-After")) // the upstream's
	if wait := r.retryAfter(); wait > 0 {
		retry = jitter(wait)
	}
	if retry > 0 {
		text += fmt.Sprintf("; retry in %d s", retry)
	}
	return text
}
