package auth

import (
	"context"
	"time"
)

// A verifier knows whether a credential is good. The zero Decision and one of
// the errors of [Auth.Verify], or a Decision and nil: nothing in between lets a
// client pass.
type verifier interface {
	verify(ctx context.Context, c Credential) (Decision, error)
	// close lets go of idle connections; calls in flight finish.
	close()
}

// Decision is a verifier's yes.
type Decision struct {
	// Subject names the client, for limits and logs, and for the upstream
	// unless it is a Pseudonym. Empty in mode none only. It is at most 256
	// bytes of UTF-8 without control characters.
	Subject string
	// Pseudonym says that Subject is only a keyed hash of the token, because
	// the verifier named nobody. It differs from process to process and is
	// never sent upstream.
	Pseudonym bool
	// Claims are further facts that AUTH_FORWARD may send upstream, by name.
	Claims map[string]string
	// Until is when the decision stops holding. Zero: open-ended. It may have
	// passed already, when a cache handed out a stale answer.
	Until time.Time
}

// RefusedError says that the verifier knows the credential and will not have
// it, or does not know it. The client gets 401.
type RefusedError struct {
	Cause error // what was answered, for the log; never nil
}

func (e *RefusedError) Error() string { return "credential refused: " + e.Cause.Error() }
func (e *RefusedError) Unwrap() error { return e.Cause }

// UnavailableError says that the verifier gave no usable answer: an operator
// must look, and the client may come back. The client gets 503.
type UnavailableError struct {
	Cause error // for the log; never nil; wraps context.DeadlineExceeded after AUTH_TIMEOUT
}

func (e *UnavailableError) Error() string { return "ask the verifier: " + e.Cause.Error() }
func (e *UnavailableError) Unwrap() error { return e.Cause }
