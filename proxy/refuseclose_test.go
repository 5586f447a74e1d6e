package proxy

import (
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/session"
	"portcullis/ratelimit"
)

func refusingWithClose(edits ...func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Gate.RefuseWithClose = true
		for _, edit := range edits {
			edit(c)
		}
	}
}

// What is refused has no id to renew it by.
func TestRefusedHasNoSession(t *testing.T) {
	g := newGate(t, newEcho(t), refusingWithClose(func(c *Config) { c.Session.Renewal = true }))
	if a := g.upgraded(t, handshake("/?token=bad")); a.Header[session.Header] != nil {
		t.Errorf("%s: %q", session.Header, a.Header[session.Header])
	}
	if a := g.upgraded(t, handshake("/?token=wonder")); a.Header.Get(session.Header) == "" {
		t.Error("a session without an id")
	}
}

// TestRefuseWithClose has a no of every kind told by a Close frame.
func TestRefuseWithClose(t *testing.T) {
	hour := ratelimit.Rate{N: 1, Per: time.Hour}
	limited := func(l ratelimit.Config) func(*Config) { return func(c *Config) { c.Limits = l } }
	nothing := func(*Config) {}
	for _, tt := range []struct {
		name   string
		edit   func(*Config)
		before string // a request that goes first, and is let in
		raw    string
		status int // in the log
		code   int
		text   string // how the Close frame's reason begins
	}{
		{"no token", nothing, "", handshake("/"), 401, 3000, "a token is required"},
		{"wrong token", nothing, "", handshake("/?token=bad"), 401, 3000, "the token is not accepted"},
		{"two tokens", nothing, "", handshake("/?token=good&token=bad"), 400, 1008, "the request carries two different tokens"},
		{"verifier down", nothing, "", handshake("/?token=down"), 503, 1013, "authentication is not available at the moment; retry in "},
		{"address's rate", limited(ratelimit.Config{UpgradesPerIP: hour}), good("/"), good("/"), 429, 1013,
			"too many connection attempts from your address; retry in "},
		{"global rate", limited(ratelimit.Config{Upgrades: hour}), good("/"), good("/"), 503, 1013, "too many connection attempts; retry in "},
		{"no room", limited(ratelimit.Config{Sessions: 1}), good("/"), good("/"), 503, 1013, "too many open connections; retry in "},
		{"first message, but no room for it", func(c *Config) { c.Gate.FirstMessage, c.Gate.FirstMessageMax = true, 1 }, handshake("/"), handshake("/"), 503, 1013,
			"too many connections wait to send their token; retry in "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, nil)
			g := newGate(t, b.url, refusingWithClose(tt.edit))
			if tt.before != "" {
				g.upgraded(t, tt.before)
			}
			// A frame that comes early, and one that comes late, must not cost the client its answer.
			a := g.upgraded(t, tt.raw+text("early"))
			a.write(text("late"))
			code, reason := a.lastWords(t)
			if code != tt.code || !strings.HasPrefix(reason, tt.text) {
				t.Errorf("got Close %d %q, want %d %q", code, reason, tt.code, tt.text)
			}
			if retry := strings.HasSuffix(tt.text, "retry in "); retry != strings.HasSuffix(reason, " s") {
				t.Errorf("reason: %q", reason)
			}
			line := g.journal.next(t, "refused")
			if line["status"] != float64(tt.status) || line["code"] != float64(tt.code) {
				t.Errorf("line: got %v, want %d and %d", line, tt.status, tt.code)
			}
			if got := g.journal.count("refused"); got != 1 {
				t.Errorf("logged %d times, want once", got)
			}
			if g.journal.contains(secret) || g.journal.contains("token=") {
				t.Error("the secret came out")
			}
			if tt.before == "" {
				b.untouched(t)
			}
		})
	}
}

func TestRefuseWithCloseOnceTheUpstreamWasAsked(t *testing.T) {
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, request("HTTP/1.1 401 Unauthorized", "Set-Cookie: a=b", "Content-Length: 6")+"hidden")
	})
	g := newGate(t, b.url, refusingWithClose(func(c *Config) { c.Limits.Sessions = 1 }))
	a := g.upgraded(t, good("/", "Sec-WebSocket-Extensions: permessage-deflate"))
	for _, name := range []string{"Set-Cookie", "Sec-Websocket-Extensions"} {
		if a.Header[name] != nil {
			t.Errorf("%s: got %q, want none", name, a.Header[name])
		}
	}
	if code, reason := a.lastWords(t); code != 1011 || reason != "the upstream refuses the connection" {
		t.Errorf("got Close %d %q, want 1011", code, reason)
	}
	g.upgraded(t, good("/")) // the first has not gone yet, but holds no slot
	if line := g.journal.next(t, "refused"); line["reason"] != "upstream_refused" || line["status"] != 401.0 || line["code"] != 1011.0 {
		t.Errorf("line: got %v, want upstream_refused, 401 and 1011", line)
	}
}

// What comes before a valid handshake from an allowed origin is refused as ever, and so is what is no upgrade.
func TestRefuseWithCloseStaysHTTP(t *testing.T) {
	g := bundled(t, refusingWithClose(func(c *Config) {
		c.Origin.Origins = []string{"https://a.example"}
		c.Session.Renewal = true
	}))
	for _, tt := range []struct {
		name, raw string
		status    int
	}{
		{"another path", handshake("/chat"), 404},
		{"dot segments", handshake("/.."), 400},
		{"POST", strings.Replace(handshake("/"), "GET", "POST", 1), 405},
		{"no upgrade", request("GET / HTTP/1.1", "Host: a"), 426},
		{"another version", strings.Replace(handshake("/"), "Version: 13", "Version: 8", 1), 426},
		{"no key", without(handshake("/"), "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400},
		{"another origin", handshake("/", "Origin: https://b.example"), 403},
		{"token endpoint", tokenRequest("bad"), 400},
		{"token endpoint by a handshake", handshake("/token?token=bad"), 400},
		{"renewal", request("POST /.portcullis/session HTTP/1.1", "Host: a"), 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if a := g.send(t, tt.raw); a.StatusCode != tt.status {
				t.Errorf("got %d, want %d", a.StatusCode, tt.status)
			}
		})
	}
	if a := g.send(t, handshake("/", "Origin: https://a.example")); a.StatusCode != 101 {
		t.Errorf("from an allowed origin: got %d, want 101", a.StatusCode)
	}
}

// A browser that offered subprotocols fails the handshake unless one of them is named, and the token must not be.
func TestRefuseWithCloseNamesAProtocol(t *testing.T) {
	kubernetes := "base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte("bad"))
	for _, tt := range []struct{ name, offered, want string }{
		{"none", "", ""},
		{"one", "chat", "chat"},
		{"the first", "a, b", "a"},
		{"bearer", "bearer, bad", "bearer"},
		{"behind one", "chat, bearer, bad", "chat"},
		{"Kubernetes", kubernetes + ", chat", "chat"},
		{"Kubernetes alone", kubernetes, ""},
	} {
		for _, pass := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				g := newGate(t, newBackend(t, nil).url, refusingWithClose(func(c *Config) {
					c.Auth.TokenFrom = append(c.Auth.TokenFrom, "protocol:base64url.bearer.authorization.k8s.io")
					c.Auth.TokenPass = pass
				}))
				raw := handshake("/")
				if tt.offered != "" {
					raw = handshake("/", "Sec-WebSocket-Protocol: "+tt.offered)
				}
				if got := g.upgraded(t, raw).Header.Get("Sec-Websocket-Protocol"); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		}
	}
}

func TestRefuseWithCloseOverTLS(t *testing.T) {
	certFile, keyFile, roots := selfSigned(t)
	g := newGate(t, newEcho(t), refusingWithClose(func(c *Config) { c.Front.CertFile, c.Front.KeyFile = certFile, keyFile }))
	d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: roots}, Subprotocols: []string{"chat"}, HandshakeTimeout: patience}
	conn, _, err := d.Dial("wss://"+g.addr+"/?token=bad", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, 3000) {
		t.Errorf("got %v, want Close 3000", err)
	}
}

// Sockets that are told no are bounded, or refusing would cost more than serving.
func TestRefuseWithCloseIsBounded(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, refusingWithClose(func(c *Config) {
		c.Limits = ratelimit.Config{}
		c.Relay.CloseTimeout = time.Minute
		c.Gate.MaxCloseFrames = 1
	}))
	last := g.upgraded(t, handshake("/?token=bad"))
	if a := g.send(t, handshake("/?token=bad")); a.StatusCode != 401 {
		t.Errorf("beyond the bound: got %d, want the HTTP answer 401", a.StatusCode)
	}
	last.conn.Close()
	for deadline := time.Now().Add(patience); ; {
		if a := g.send(t, handshake("/?token=bad")); a.StatusCode == 101 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place is not given back")
		}
	}
}

// A client that is told no and neither reads nor goes is cut after CLOSE_TIMEOUT.
func TestRefuseWithCloseDoesNotWaitForEver(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, refusingWithClose(func(c *Config) { c.Relay.CloseTimeout = 50 * time.Millisecond }))
	a := g.upgraded(t, handshake("/?token=bad"))
	if code, _ := a.lastWords(t); code != 3000 {
		t.Errorf("got Close %d, want 3000", code)
	}
	g.requests.group.Wait() // the handler has returned
	// What has ended resets what is still sent.
	for deadline := time.Now().Add(patience); ; {
		if _, err := io.WriteString(a.conn, text("are you there?")); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the connection is still open")
		}
	}
}
