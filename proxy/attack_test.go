package proxy

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"portcullis/proxy/header"
	"portcullis/upstream"
)

// The attacks and pitfalls that proxies of this kind have fallen to, each with raw bytes over real sockets.

// refusedBeforeDial sends a raw request to a gate in front of a backend that would tunnel anything.
func refusedBeforeDial(t *testing.T, raw string, status int) {
	t.Helper()
	b := newBackend(t, nil)
	g := newGate(t, b.url, nil)
	a := g.send(t, raw)
	if a.StatusCode != status {
		t.Errorf("status: got %d (%q), want %d", a.StatusCode, a.body, status)
	}
	a.closed(t)
	b.untouched(t)
}

// 0ang3el/websocket-smuggle; Go 1.26's httputil.ReverseProxy tunnels a POST without a key.
func TestUpgradeByPOST(t *testing.T) {
	refusedBeforeDial(t, strings.Replace(handshake("/?token=good"), "GET", "POST", 1), 405)
}

// 0ang3el/websocket-smuggle: the backend says 426, and a proxy that does not look tunnels.
func TestUpgradeWithVersion12(t *testing.T) {
	refusedBeforeDial(t, strings.Replace(handshake("/?token=good"), "Version: 13", "Version: 12", 1), 426)
}

func TestUpgradeWithBody(t *testing.T) {
	const smuggled = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, tt := range []struct{ name, raw string }{
		{"Content-Length", handshake("/?token=good", "Content-Length: 32") + smuggled},
		{"Content-Length 0 and another", handshake("/?token=good", "Content-Length: 0", "Content-Length: 5")},
		{"Content-Length 0 in a list", handshake("/?token=good", "Content-Length: 0, 0")},
		{"Content-Length +0", handshake("/?token=good", "Content-Length: +0")},
		{"chunked", handshake("/?token=good", "Transfer-Encoding: chunked") + "21\r\n" + smuggled + "\r\n0\r\n\r\n"},
		{"both", handshake("/?token=good", "Content-Length: 4", "Transfer-Encoding: chunked") + "0\r\n\r\n"},
		{"never sent", handshake("/?token=good", "Content-Length: 100")},
	} {
		t.Run(tt.name, func(t *testing.T) { refusedBeforeDial(t, tt.raw, 400) })
	}
}

// A request behind a refused upgrade is what a tunnel would carry that a proxy in front has opened too early.
func TestRequestBehindRefusedUpgradeIsNotServed(t *testing.T) {
	refusedBeforeDial(t, handshake("/?token=bad")+handshake("/?token=good"), 401)
}

// BishopFox/h2csmuggler.
func TestUpgradeToH2C(t *testing.T) {
	h2c := func(upgrade, connection string) string {
		return request("GET /?token=good HTTP/1.1", "Host: a", "Upgrade: "+upgrade, "Connection: "+connection,
			"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
	}
	refusedBeforeDial(t, h2c("h2c", "Upgrade, HTTP2-Settings"), 426)
	refusedBeforeDial(t, h2c("h2c, websocket", "Upgrade, HTTP2-Settings"), 400)
	refusedBeforeDial(t, h2c("websocket", "HTTP2-Settings"), 400)
	refusedBeforeDial(t, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400)
}

func TestTwoHosts(t *testing.T) {
	refusedBeforeDial(t, handshake("/?token=good", "Host: other.example"), 400)
}

func TestDotSegmentsAndTheirEscapes(t *testing.T) {
	for _, path := range []string{
		"/..", "/.", "/a/../b", "/a/./b", "/%2e%2e/a", "/%2E./a", "/a/%2e", "/a%2f..%2fb", `/a\..\b`, "/a%5c%2e%2e", "/..;x/a", "/#",
		"/a#b", "/%00", "/a%0d%0ab", "http://gate.example/a/..", "http:///", "//gate.example/..",
	} {
		t.Run(path, func(t *testing.T) {
			b := newBackend(t, nil)
			for _, paths := range [][]string{nil, {"*"}} {
				g := newGate(t, b.url, func(c *Config) { c.Gate.Paths = paths })
				if a := g.send(t, handshake(path+"?token=good")); a.StatusCode != 400 {
					t.Errorf("PATHS %q: got %d, want 400", paths, a.StatusCode)
				}
			}
			b.untouched(t)
		})
	}
}

// GHSA-fvhj-4qfh-q2hm: what was checked must be what goes upstream.
func TestPathAndQueryGoUpstreamByteForByte(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) { c.Gate.Paths = []string{"*"} })
	for _, tt := range []struct{ sent, want string }{
		{"/a%2Fb//c%5Cd%20~%7e?x=%zz&token=good&y=a+b%20;c", "/a%2Fb//c%5Cd%20~%7e?x=%zz&y=a+b%20;c"},
		{"/caf\xc3\xa9?%74oken=good", "/caf\xc3\xa9"},
		{"//?token=good&token=good&Token=z", "//?Token=z"},
	} {
		g.send(t, handshake(tt.sent))
		if got := b.next(t).RequestURI; got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.sent, got, tt.want)
		}
	}
}

// CVE-2021-32813, CVE-2022-31813, CVE-2024-45410: what Connection lists is dropped, but not what we set.
func TestConnectionCannotDropOurHeaders(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, nil)
	g.send(t, strings.Replace(handshake("/?token=wonder", "X-Hop: 1", "X-End: 1"), "Connection: Upgrade",
		"Connection: Upgrade, X-Auth-Subject, X-Forwarded-For, x-real-ip, X-Forwarded-Proto, X-Forwarded-Host, X-Hop, Host, Sec-WebSocket-Key", 1))
	h := b.next(t).Header
	for name, want := range map[string]string{
		"X-Auth-Subject": "Alice", "X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "http",
		"X-Forwarded-Host": "gate.example", "X-Hop": "", "X-End": "1",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// CVE-2026-30851, CVE-2026-33433, CVE-2026-88011: also when the verifier names nobody, and in every spelling.
func TestIdentityCannotBeForged(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, nil)
	g.send(t, handshake("/?token=good", "X-Auth-Subject: root", "x_auth_subject: root", "X.Auth.Subject: root", "X-AUTH_SUBJECT: root",
		"X-Auth-Subject: root"))
	for name, values := range b.next(t).Header {
		if slices.Contains(values, "root") {
			t.Errorf("%s: %q went upstream", name, values)
		}
	}
}

// CVE-2025-54576, CVE-2026-40575, CVE-2026-76835.
func TestForwardedHeadersCannotBeForged(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, nil)
	g.send(t, handshake("/?token=good", "X-Forwarded-For: 6.6.6.6", "X_Forwarded_For: 6.6.6.6", "X-Forwarded.For: 6.6.6.6",
		"X-Real-IP: 6.6.6.6", "X_Real_IP: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Forwarded-Proto: 6.6.6.6",
		"X-Forwarded-Host: 6.6.6.6", "X-Forwarded-Port: 6.6.6.6", "X-Forwarded-User: 6.6.6.6", "Proxy: 6.6.6.6",
		"Sec_WebSocket_Protocol: 6.6.6.6"))
	h := b.next(t).Header
	for name, values := range h {
		if strings.Contains(strings.Join(values, " "), "6.6.6.6") {
			t.Errorf("%s: %q went upstream", name, values)
		}
	}
	if got := h.Get("X-Forwarded-For"); got != "127.0.0.1" {
		t.Errorf("X-Forwarded-For: got %q, want the peer", got)
	}
	if got := g.journal.next(t, "session started")["client"]; got != "127.0.0.1" {
		t.Errorf("client in the log: got %q, want the peer", got)
	}
}

// What a client says of its address, of its scheme, or of another path than its own, and what concerns a connection or its
// framing, is told neither the upstream nor, in mode forward, the verifier; nor is it in a spelling that some server folds.
func TestForgedHeadersStayHere(t *testing.T) {
	const forged = "/6.6.6.6"
	lines := []string{
		"X-Forwarded-Port: " + forged, "X-Original-URL: " + forged, "X-Original-Method: " + forged, "Portcullis-Session: " + forged,
		"Portcullis_Via: " + forged, "Sec_WebSocket_Protocol: " + forged, "X_Original.URI: " + forged,
	}
	for _, kind := range []header.Kind{header.Hop, header.Framing, header.Address, header.Scheme, header.Target} {
		for _, name := range header.Names(kind) {
			if kind != header.Hop && kind != header.Framing { // which are in order as they are, or no request
				lines = append(lines, name+": "+forged)
			}
			if folded := strings.ReplaceAll(name, "-", "_"); folded != name {
				lines = append(lines, folded+": "+forged, strings.ReplaceAll(name, "-", ".")+": "+forged)
			}
		}
	}
	shown := make(chan http.Header, 1)
	verifier := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { shown <- r.Header }))
	defer verifier.Close()
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) {
		c.Auth.Mode, c.Auth.URL = "forward", verifier.URL
		c.Origin.Origins = []string{"https://app.example"}
	})
	g.send(t, handshake("/", append(lines, "Origin: https://app.example")...))
	for who, h := range map[string]http.Header{"the verifier": <-shown, "the upstream": b.next(t).Header} {
		for name, values := range h {
			if slices.Contains(values, forged) {
				t.Errorf("%s is told %s: %q", who, name, values)
			}
		}
	}
}

func TestHopByHopHeadersStayHere(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, nil)
	g.send(t, handshake("/?token=good", "Keep-Alive: here", "Proxy-Connection: here", "Proxy-Authorization: here", "TE: here",
		"Trailer: here", "HTTP2-Settings: here", "Expect: 100-continue", "Keep_Alive: here", "Content_Length: here", "Transfer.Encoding: here"))
	h := b.next(t).Header
	for name, values := range h {
		if slices.Contains(values, "here") || name == "Expect" {
			t.Errorf("%s: %q went upstream", name, values)
		}
	}
	if got := h.Get("Sec-WebSocket-Key"); got == "dGhlIHNhbXBsZSBub25jZQ==" {
		t.Error("the client's key went upstream")
	}
}

// The token stays here, wherever it was, and nothing else does.
func TestTokenStaysHere(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) {
		c.Auth.TokenFrom = append(c.Auth.TokenFrom, "cookie:sid")
		c.Origin.Origins = []string{"https://app.example"}
	})
	g.send(t, handshake("/a?x=1&token=good&y=2", "Authorization: Bearer good", "Cookie: a=1; sid=good; b=2",
		"Sec-WebSocket-Protocol: bearer, good, chat"))
	r := b.next(t)
	if r.RequestURI != "/a?x=1&y=2" {
		t.Errorf("target: got %q", r.RequestURI)
	}
	for name, want := range map[string]string{"Authorization": "", "Cookie": "a=1; b=2", "Sec-Websocket-Protocol": "chat"} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// caddy#6273, gorilla/websocket#322: bytes in the same segment as a handshake belong to the session.
func TestEarlyBytesBothWays(t *testing.T) {
	const (
		fromClient   = "\x82\x85\x00\x00\x00\x00early" // masked with zeros
		fromUpstream = "\x82\x04soon"
	)
	got := make(chan string, 1)
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, accepted(r)+"\r\n"+fromUpstream)
		b := make([]byte, len(fromClient))
		io.ReadFull(conn, b)
		got <- string(b)
	})
	g := newGate(t, b.url, nil)
	a := g.send(t, handshake("/?token=good")+fromClient)
	if a.StatusCode != 101 {
		t.Fatalf("status: got %d, want 101", a.StatusCode)
	}
	buf := make([]byte, len(fromUpstream))
	if _, err := io.ReadFull(a.rest, buf); err != nil || string(buf) != fromUpstream {
		t.Errorf("client got %q, %v; want %q", buf, err, fromUpstream)
	}
	if got := <-got; got != fromClient {
		t.Errorf("upstream got %q, want %q", got, fromClient)
	}
}

// CVE-2018-1002105: tunnel only after a 101 that is right in every part.
func TestBad101NeverTunnels(t *testing.T) {
	const key = "Sec-WebSocket-Key"
	for _, tt := range []struct {
		name   string
		answer func(r *http.Request) string
	}{
		{"wrong accept", func(r *http.Request) string {
			return strings.Replace(accepted(r), upstream.Accept(r.Header.Get(key)), upstream.Accept("x"), 1)
		}},
		{"no Upgrade", func(r *http.Request) string { return without(accepted(r), "Upgrade: websocket") }},
		{"no Connection", func(r *http.Request) string { return without(accepted(r), "Connection: Upgrade") }},
		{"subprotocol not offered", func(r *http.Request) string { return accepted(r) + "Sec-WebSocket-Protocol: evil\r\n" }},
		{"extension not offered", func(r *http.Request) string { return accepted(r) + "Sec-WebSocket-Extensions: evil\r\n" }},
		{"HTTP/1.0", func(r *http.Request) string { return strings.Replace(accepted(r), "HTTP/1.1", "HTTP/1.0", 1) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := make(chan error, 1)
			b := newBackend(t, func(conn net.Conn, r *http.Request) {
				io.WriteString(conn, tt.answer(r)+"\r\n\x82\x04evil")
				_, err := io.Copy(io.Discard, conn)
				after <- err
			})
			g := newGate(t, b.url, nil)
			a := g.send(t, handshake("/?token=good")+"\x82\x80\x00\x00\x00\x00")
			if a.StatusCode != 502 || strings.Contains(a.body, "evil") {
				t.Errorf("got %d %q, want 502", a.StatusCode, a.body)
			}
			a.closed(t)
			if err := <-after; isTimeout(err) {
				t.Error("the upstream's connection stays open")
			}
		})
	}
}

// A 1xx is not an answer, and never the client's.
func TestInterimAnswersStayHere(t *testing.T) {
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"+accepted(r)+"\r\n")
	})
	g := newGate(t, b.url, nil)
	if a := g.send(t, handshake("/?token=good")); a.StatusCode != 101 {
		t.Errorf("status: got %d, want 101", a.StatusCode)
	}
}

// CVE-2020-8559.
func TestRedirectIsNotFollowed(t *testing.T) {
	elsewhere := newBackend(t, nil)
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, "HTTP/1.1 302 Found\r\nLocation: http"+strings.TrimPrefix(elsewhere.url, "ws")+"/\r\nContent-Length: 0\r\n\r\n")
	})
	g := newGate(t, b.url, nil)
	a := g.send(t, handshake("/?token=good"))
	if a.StatusCode != 302 || a.Header.Get("Location") == "" {
		t.Errorf("got %d to %q, want the upstream's 302", a.StatusCode, a.Header.Get("Location"))
	}
	elsewhere.untouched(t)
}

// koding/websocketproxy cuts a refusal's body at 1,024 bytes under its old Content-Length.
func TestUpstreamRefusalIsPassedOnWhole(t *testing.T) {
	for _, tt := range []struct {
		name     string
		length   int
		want     int
		truncate bool
	}{
		{"10 KiB", 10 << 10, 10 << 10, false},
		{"1 MiB", 1 << 20, 64 << 10, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			page := strings.Repeat("x", tt.length)
			b := newBackend(t, func(conn net.Conn, r *http.Request) {
				resp := http.Response{
					StatusCode: 403, ProtoMajor: 1, ProtoMinor: 1, ContentLength: int64(tt.length), Body: io.NopCloser(strings.NewReader(page)),
					Header: http.Header{
						"Set-Cookie": {"a=1", "b=2"}, "Www-Authenticate": {"Basic"}, "Content-Type": {"text/html"}, "Retry-After": {"7"},
						"Connection": {"X-Hop"}, "X-Hop": {"1"}, "Sec-Websocket-Accept": {"x"}, "Proxy-Authenticate": {"x"},
					},
				}
				resp.Write(conn)
			})
			g := newGate(t, b.url, nil)
			a := g.send(t, handshake("/?token=good"))
			if a.StatusCode != 403 || a.ContentLength != int64(tt.want) || a.body != page[:tt.want] {
				t.Errorf("got %d with %d of %d bytes, want 403 with %d", a.StatusCode, len(a.body), a.ContentLength, tt.want)
			}
			for name, want := range map[string]string{
				"Set-Cookie": "a=1, b=2", "Www-Authenticate": "Basic", "Content-Type": "text/html", "Retry-After": "7",
				"X-Hop": "", "Sec-Websocket-Accept": "", "Proxy-Authenticate": "",
			} {
				if got := strings.Join(a.Header[name], ", "); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			if got := g.journal.next(t, "refused")["detail"] != nil; got != tt.truncate {
				t.Errorf("the log tells of a cut body: got %v, want %v", got, tt.truncate)
			}
		})
	}
}

func TestUpstreamSays426(t *testing.T) {
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, "HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 8\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n")
	})
	g := newGate(t, b.url, nil)
	a := g.send(t, handshake("/?token=good"))
	if a.StatusCode != 426 || a.Header.Get("Sec-WebSocket-Version") != "8" || a.Header.Get("Upgrade") != "websocket" {
		t.Errorf("got %d %v, want the upstream's 426 and version, and our Upgrade", a.StatusCode, a.Header)
	}
}

// CVE-2018-1002105, 0ang3el/websocket-smuggle: behind a refusal there is no tunnel, whatever the refusal looks like, and what
// the client sends behind its handshake is nobody's.
func TestNothingGoesUpstreamBehindARefusal(t *testing.T) {
	for _, head := range []string{
		"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 8\r\nUpgrade: websocket\r\nConnection: Upgrade",
		"HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade",
		"HTTP/1.1 403 Forbidden\r\nConnection: keep-alive\r\nKeep-Alive: timeout=60",
		"HTTP/1.1 302 Found\r\nLocation: /admin",
	} {
		t.Run(head[9:12], func(t *testing.T) {
			behind := make(chan string, 1)
			b := newBackend(t, func(conn net.Conn, _ *http.Request) {
				io.WriteString(conn, head+"\r\nContent-Length: 0\r\n\r\n")
				rest, err := io.ReadAll(conn)
				if isTimeout(err) {
					t.Error("the upstream's connection stays open")
				}
				behind <- string(rest)
			})
			g := newGate(t, b.url, nil)
			a := g.send(t, handshake("/?token=good")+request("GET /admin HTTP/1.1", "Host: gate.example"))
			if got := strconv.Itoa(a.StatusCode); got != head[9:12] {
				t.Errorf("got %s, want the upstream's", got)
			}
			a.closed(t)
			if got := <-behind; got != "" {
				t.Errorf("upstream got %q behind its refusal", got)
			}
			g.send(t, handshake("/?token=good")) // dials anew
			b.next(t)
			b.next(t)
		})
	}
}

// OWASP WSTG, GHSA-q355-h244-969h: a page elsewhere has the browser send its cookies along. It gets no answer from the
// verifier, nor a handshake.
func TestPageElsewhereOpensNothing(t *testing.T) {
	verifier := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the verifier was asked") }))
	defer verifier.Close()
	for _, lines := range [][]string{
		{"Origin: https://evil.example"},
		{"Origin: null"},
		{"Origin: https://app.example.evil.example"},
		{"Origin: https://app.example", "Origin: https://evil.example"},
	} {
		t.Run(strings.Join(lines, ", "), func(t *testing.T) {
			l := newUnreached(t)
			g := newGate(t, "ws://"+l.Addr().String(), func(c *Config) {
				c.Auth.URL, c.Auth.TokenFrom = verifier.URL, []string{"cookie:sid"}
				c.Origin.Origins = []string{"https://app.example"}
			})
			a := g.send(t, handshake("/", append(lines, "Cookie: sid=good")...))
			if a.StatusCode != 403 {
				t.Errorf("got %d, want 403", a.StatusCode)
			}
			l.check(t)
		})
	}
}

// A terminating relay could not read compressed frames.
func TestNoExtensionsWhereTheRelayTerminates(t *testing.T) {
	for mode, want := range map[string]string{"passthrough": "permessage-deflate", "terminate": ""} {
		t.Run(mode, func(t *testing.T) {
			b := newBackend(t, nil)
			g := newGate(t, b.url, func(c *Config) { c.Relay.Mode = mode })
			g.send(t, handshake("/?token=good", "Sec-WebSocket-Extensions: permessage-deflate"))
			if got := b.next(t).Header.Get("Sec-WebSocket-Extensions"); got != want {
				t.Errorf("offered upstream: got %q, want %q", got, want)
			}
		})
	}
}

// A length of 0 is accepted from both sides and passed on to neither.
func TestLengthOfZeroGoesNoFurther(t *testing.T) {
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, accepted(r)+"Content-Length: 0\r\n\r\n\x82\x04soon")
		io.Copy(io.Discard, conn)
	})
	g := newGate(t, b.url, nil)
	a := g.send(t, handshake("/?token=good", "Content-Length: 0"))
	if a.StatusCode != 101 || a.Header["Content-Length"] != nil {
		t.Fatalf("got %d with Content-Length %q, want 101 without", a.StatusCode, a.Header["Content-Length"])
	}
	if sent := b.next(t).Header["Content-Length"]; sent != nil {
		t.Errorf("upstream got Content-Length %q", sent)
	}
	frame := make([]byte, 6)
	if _, err := io.ReadFull(a.rest, frame); err != nil || string(frame) != "\x82\x04soon" {
		t.Errorf("got %q, %v behind the 101", frame, err)
	}
}

// The authority of an absolute target is the Host for everyone behind, and the target goes upstream without it.
func TestAbsoluteTarget(t *testing.T) {
	shown := make(chan http.Header, 100)
	verifier := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { shown <- r.Header }))
	defer verifier.Close()
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) {
		c.Auth.Mode, c.Auth.URL = "forward", verifier.URL
		c.Origin.Origins = []string{"https://app.example"}
	})
	for _, tt := range []struct{ sent, host, want string }{
		{"http://app.example/a?b=1", "app.example", "/a?b=1"},
		{"WSS://app.example:8443/caf%c3%a9", "app.example:8443", "/caf%c3%a9"},
		{"ws://[2001:db8::1]?b", "[2001:db8::1]", "/?b"},
		{"https://app.example", "app.example", "/"},
	} {
		t.Run(tt.sent, func(t *testing.T) {
			if a := g.send(t, handshake(tt.sent)); a.StatusCode != 101 {
				t.Fatalf("got %d %q, want 101", a.StatusCode, a.body)
			}
			r, asked := b.next(t), <-shown
			if r.RequestURI != tt.want || r.Host != tt.host {
				t.Errorf("upstream got %q of %q, want %q of %q", r.RequestURI, r.Host, tt.want, tt.host)
			}
			for name, got := range map[string]string{
				"upstream's X-Forwarded-Host": r.Header.Get("X-Forwarded-Host"), "verifier's X-Forwarded-Host": asked.Get("X-Forwarded-Host"),
			} {
				if got != tt.host {
					t.Errorf("%s: got %q, want %q", name, got, tt.host)
				}
			}
			if got := asked.Get("X-Original-Uri"); got != tt.want {
				t.Errorf("verifier's X-Original-URI: got %q, want %q", got, tt.want)
			}
		})
	}
	for _, target := range []string{
		"http:///a", "http://u@app.example/", "http://a,b/", "http://caf\xc3\xa9/", "http://app.example/a/../b", "http://app.example/a#b", "ftp://app.example/",
	} {
		t.Run(target, func(t *testing.T) {
			if a := g.send(t, handshake(target)); a.StatusCode != 400 {
				t.Errorf("got %d, want 400", a.StatusCode)
			}
			b.untouched(t)
		})
	}
}
