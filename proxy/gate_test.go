package proxy

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

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
