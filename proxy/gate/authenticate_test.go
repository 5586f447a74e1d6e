package gate

import (
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"portcullis/proxy/auth"
	"portcullis/proxy/refusal"
)

func TestTokenRefusal(t *testing.T) {
	const bearer = `Bearer realm="portcullis"`
	cause := errors.New("why")
	for _, tt := range []struct {
		err       error
		reason    refusal.Reason
		status    int
		challenge []string
		wait      time.Duration
	}{
		{&auth.MalformedError{}, refusal.TokenMalformed, 401, []string{bearer + `, error="invalid_token"`}, 0},
		{&auth.MalformedError{Request: true}, refusal.TokenMalformed, 400, []string{bearer + `, error="invalid_request"`}, 0},
		{auth.ErrConflict, refusal.TokenConflict, 400, []string{bearer + `, error="invalid_request"`}, 0},
		{&auth.RefusedError{Cause: cause}, refusal.TokenRefused, 401, []string{bearer + `, error="invalid_token"`}, 0},
		{&auth.RefusedError{Cause: cause, Challenge: []string{"DPoP", "Basic"}}, refusal.TokenRefused, 401, []string{"DPoP", "Basic"}, 0},
		{&auth.DeniedError{Cause: cause}, refusal.TokenDenied, 403, nil, 0}, // a challenge belongs to 401
		{&auth.DeniedError{Cause: cause, Challenge: []string{"DPoP"}}, refusal.TokenDenied, 403, []string{"DPoP"}, 0},
		{&auth.UnavailableError{Cause: cause}, refusal.AuthUnavailable, 503, nil, 0},
		{&auth.UnavailableError{Cause: cause, RetryAfter: time.Hour}, refusal.AuthUnavailable, 503, nil, time.Hour},
		{cause, refusal.AuthUnavailable, 503, nil, 0}, // an error that nobody knows lets nobody in
	} {
		t.Run(fmt.Sprint(tt.err), func(t *testing.T) {
			g := &Gate{Parts: Parts{Base: t.Context()}}
			no := g.tokenRefusal(&Request{HTTP: httptest.NewRequest("GET", "/", nil)}, tt.err)
			if no.Reason != tt.reason || no.StatusCode() != tt.status || no.RetryAfter != tt.wait {
				t.Errorf("got %s, %d, %v; want %s, %d, %v", no.Reason, no.StatusCode(), no.RetryAfter, tt.reason, tt.status, tt.wait)
			}
			if got := slices.Concat(slices.Collect(maps.Values(no.Header))...); !slices.Equal(got, tt.challenge) {
				t.Errorf("WWW-Authenticate: got %q, want %q", got, tt.challenge)
			}
		})
	}
}
