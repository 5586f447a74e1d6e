package auth

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// A verifier knows whether a credential is good. The zero Decision and one of
// the errors of [Auth.Verify], or a Decision and nil: nothing in between lets a
// client pass.
type verifier interface {
	verify(ctx context.Context, c Credential) (Decision, error)
	// close lets go of idle connections and background work; calls in flight
	// finish.
	close()
}

// Decision is a verifier's acceptance. Clients may share one: its maps are not to be
// written to.
type Decision struct {
	// Subject names the client, for limits and logs, and for the upstream
	// unless it is a Pseudonym. Empty in mode none only. It is at most 256
	// bytes of UTF-8 without control characters.
	Subject string
	// Pseudonym says that Subject is only a keyed hash of the token, because
	// the verifier named nobody. It differs from process to process and is
	// never sent upstream.
	Pseudonym bool
	// Claims are further facts that AUTH_FORWARD sends upstream, by name. Each
	// can stand in a header.
	Claims map[string]string
	// Headers are those of the answer that AUTH_COPY_HEADERS sends upstream.
	Headers http.Header
	// Groups are the values of the claims in [Config.GroupClaims] and of the headers in [Config.GroupHeaders], by claim:NAME
	// and auth:HEADER.
	Groups map[string][]string
	// Until is when the decision stops holding. Zero: open-ended. It may have
	// passed already, when a cache handed out a stale answer.
	Until time.Time
	// Expires is when the credential itself ends: nothing extends a session
	// beyond it, neither AUTH_STALE_TTL nor asking again. Until is not after
	// it. Zero: not known.
	Expires time.Time
	// Final says that the verifier can say nothing new about the same
	// credential, so that asking again is of no use.
	Final bool

	noStore bool // the answer is not to be remembered
}

// RefusedError says that the verifier rejects the credential or does not know it.
// The client gets 401.
type RefusedError struct {
	Cause error // what was answered, for the log; never nil
	// Challenge are the values of WWW-Authenticate with which the verifier
	// refused, fit to be passed on. Empty: it sent none.
	Challenge []string

	noStore bool // as in Decision
}

func (e *RefusedError) Error() string { return "credential refused: " + e.Cause.Error() }
func (e *RefusedError) Unwrap() error { return e.Cause }

// DeniedError says that the credential is good and does not allow this. The
// client gets 403.
type DeniedError struct {
	Cause     error    // what is missing, for the log; never nil
	Challenge []string // as in RefusedError

	noStore bool // as in Decision
}

func (e *DeniedError) Error() string { return "access denied: " + e.Cause.Error() }
func (e *DeniedError) Unwrap() error { return e.Cause }

// UnavailableError says that the verifier gave no usable answer. The client gets
// 503 and may come back; the operator must find out why.
type UnavailableError struct {
	Cause error // for the log; never nil; wraps context.DeadlineExceeded after AUTH_TIMEOUT
	// RetryAfter is when asking again may help. Zero: not known.
	RetryAfter time.Duration

	responded bool // an answer came, even if it was nonsense
}

func (e *UnavailableError) Error() string { return "ask the verifier: " + e.Cause.Error() }
func (e *UnavailableError) Unwrap() error { return e.Cause }

// isRefusal reports whether err is a refusal by the verifier, and so an answer.
func isRefusal(err error) bool {
	_, refused := errors.AsType[*RefusedError](err)
	_, denied := errors.AsType[*DeniedError](err)
	return refused || denied
}

// earlier returns the earlier of two times. The zero time means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
