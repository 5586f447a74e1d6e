package proxy

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
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
			p := &Proxy{base: t.Context()}
			no := p.tokenRefusal(&upgrade{r: httptest.NewRequest("GET", "/", nil)}, tt.err)
			if no.Reason != tt.reason || no.StatusCode() != tt.status || no.RetryAfter != tt.wait {
				t.Errorf("got %s, %d, %v; want %s, %d, %v", no.Reason, no.StatusCode(), no.RetryAfter, tt.reason, tt.status, tt.wait)
			}
			if got := slices.Concat(slices.Collect(maps.Values(no.Header))...); !slices.Equal(got, tt.challenge) {
				t.Errorf("WWW-Authenticate: got %q, want %q", got, tt.challenge)
			}
		})
	}
}

// The verifier is told the same of the way here as the upstream is.
func TestForwardModeSeesTheVerifiedClient(t *testing.T) {
	asked := make(chan http.Header, 1)
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(endpoint.Close)
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) {
		c.Auth.Mode, c.Auth.URL = "forward", endpoint.URL
		c.ClientIP.TrustedProxies = []string{"127.0.0.1"}
		c.Origin.Origins = []string{"https://app.example"}
	})
	a := g.send(t, handshake("/", "X-Forwarded-For: 6.6.6.6, 198.51.100.7", "X-Forwarded-Proto: https", "X-Forwarded-Host: app.example"))
	if a.StatusCode != 403 {
		t.Errorf("got %d, want 403", a.StatusCode)
	}
	h := <-asked
	for name, want := range map[string]string{
		"X-Forwarded-For": "198.51.100.7, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "app.example",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	b.untouched(t)
}
