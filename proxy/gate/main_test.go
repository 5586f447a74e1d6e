package gate

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis/proxy/auth"
	"portcullis/proxy/clientip"
	"portcullis/proxy/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newGate returns a Gate that can be asked what goes upstream. It trusts the proxies of 10.0.0.0/8.
func newGate(t *testing.T) *Gate {
	t.Helper()
	a, err := auth.New(auth.Config{
		Mode: "endpoint", URL: "http://127.0.0.1", Timeout: time.Second,
		TokenFrom: []string{"query:token", "header:Authorization"}, Forward: []string{"sub:X-Auth-Subject"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	proxies, err := clientip.New(clientip.Config{TrustedProxies: []string{"10.0.0.0/8"}})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{}, Parts{
		ClientIP: proxies, Auth: a, Sessions: &session.Manager{}, Base: t.Context(), Log: slog.New(slog.DiscardHandler),
	}, []Route{{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// handshake is a proper handshake for target, with more header lines.
func handshake(target string, lines ...string) string {
	return request(append([]string{"GET " + target + " HTTP/1.1", "Host: gate.example", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}, lines...)...)
}

// request is a raw request of these lines.
func request(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

func without(raw, line string) string { return strings.Replace(raw, line+"\r\n", "", 1) }
