package gate

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"portcullis/proxy/refusal"
)

var handshakeTests = []struct {
	name string
	raw  string
	want refusal.Reason // "": valid
}{
	{"plain", handshake("/"), ""},
	{"Firefox", strings.Replace(handshake("/"), "Connection: Upgrade", "Connection: keep-alive, Upgrade", 1), ""},
	{"in other case", strings.NewReplacer("Upgrade: websocket", "UPGRADE: WebSocket", "Connection: Upgrade", "connection: upgrade").Replace(handshake("/")), ""},
	{"Connection in two lines", strings.Replace(handshake("/"), "Connection: Upgrade", "Connection: keep-alive\r\nConnection: Upgrade", 1), ""},
	{"protocols", handshake("/", "Sec-WebSocket-Protocol: chat, v2.chat", "Sec-WebSocket-Protocol: bearer"), ""},
	{"Chrome's extensions", handshake("/", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"), ""},
	{"extensions with values", handshake("/", `Sec-WebSocket-Extensions: a; b=10; c="d" , e;f`), ""},
	{"extensions with white space around =", handshake("/", `Sec-WebSocket-Extensions: a; b = 10; c ="d"`), ""},
	{"Host with a port", strings.Replace(handshake("/"), "gate.example", "[2001:db8::1]:3000", 1), ""},

	{"POST", strings.Replace(handshake("/"), "GET", "POST", 1), refusal.Method},
	{"HEAD", strings.Replace(handshake("/"), "GET", "HEAD", 1), refusal.Method},
	{"OPTIONS *", strings.Replace(handshake("*"), "GET", "OPTIONS", 1), refusal.Method},
	{"method in lower case", strings.Replace(handshake("/"), "GET", "get", 1), refusal.Method},
	{"plain GET", request("GET / HTTP/1.1", "Host: a"), refusal.NotWebSocket},
	{"h2c", strings.Replace(handshake("/"), "Upgrade: websocket", "Upgrade: h2c", 1), refusal.NotWebSocket},
	{"h2c beside", strings.Replace(handshake("/"), "Upgrade: websocket", "Upgrade: websocket, h2c", 1), refusal.Handshake},
	{"h2c beside, in two lines", strings.Replace(handshake("/"), "Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: h2c", 1), refusal.Handshake},
	{"websocket twice", strings.Replace(handshake("/"), "Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: websocket", 1), refusal.Handshake},
	{"Upgrade with a version", strings.Replace(handshake("/"), "Upgrade: websocket", "Upgrade: websocket/13", 1), refusal.NotWebSocket},
	{"Kelvin sign", strings.Replace(handshake("/"), "Upgrade: websocket", "Upgrade: websoc\u212aet", 1), refusal.NotWebSocket},
	{"HTTP/1.0", strings.Replace(handshake("/"), "HTTP/1.1", "HTTP/1.0", 1), refusal.Handshake},
	{"no Connection", without(handshake("/"), "Connection: Upgrade"), refusal.Handshake},
	{"Connection without upgrade", strings.Replace(handshake("/"), "Connection: Upgrade", "Connection: upgraded", 1), refusal.Handshake},
	{"empty Host", strings.Replace(handshake("/"), "Host: gate.example", "Host: ", 1), refusal.Handshake},
	{"two hosts in one Host", strings.Replace(handshake("/"), "gate.example", "gate.example,evil.example", 1), refusal.Handshake},
	{"Host that is a command to some", strings.Replace(handshake("/"), "gate.example", "gate.example;a=$(b)", 1), refusal.Handshake},
	{"Content-Length 0, of a charging station", handshake("/", "Content-Length: 0"), ""},
	{"Content-Length 5", handshake("/", "Content-Length: 5") + "hello", refusal.Handshake},
	{"Content-Length 00", handshake("/", "Content-Length: 00"), refusal.Handshake},
	{"Content-Length 0 and chunked", handshake("/", "Content-Length: 0", "Transfer-Encoding: chunked") + "0\r\n\r\n", refusal.Handshake},
	{"chunked", handshake("/", "Transfer-Encoding: chunked") + "0\r\n\r\n", refusal.Handshake},
	{"no version", without(handshake("/"), "Sec-WebSocket-Version: 13"), refusal.Version},
	{"version 12", strings.Replace(handshake("/"), "Version: 13", "Version: 12", 1), refusal.Version},
	{"two versions", handshake("/", "Sec-WebSocket-Version: 13"), refusal.Version},
	{"versions in one line", strings.Replace(handshake("/"), "Version: 13", "Version: 13, 8", 1), refusal.Version},
	{"no key", without(handshake("/"), "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), refusal.Handshake},
	{"two keys", handshake("/", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), refusal.Handshake},
	{"key of 15 bytes", strings.Replace(handshake("/"), "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", 1), refusal.Handshake},
	{"key of 17 bytes", strings.Replace(handshake("/"), "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWQ=", 1), refusal.Handshake},
	{"key of 18 bytes", strings.Replace(handshake("/"), "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWRk", 1), refusal.Handshake},
	{"key not canonical", strings.Replace(handshake("/"), "25jZQ==", "25jZR==", 1), refusal.Handshake},
	{"key without padding", strings.Replace(handshake("/"), "25jZQ==", "25jZQ", 1), refusal.Handshake},
	{"key in base64url", strings.Replace(handshake("/"), "dGhlI", "dG_-I", 1), refusal.Handshake},
	{"empty protocol", handshake("/", "Sec-WebSocket-Protocol:"), refusal.Handshake},
	{"empty element", handshake("/", "Sec-WebSocket-Protocol: a,,b"), refusal.Handshake},
	{"protocol twice", handshake("/", "Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Protocol: a"), refusal.Handshake},
	{"protocol is no token", handshake("/", "Sec-WebSocket-Protocol: a/b"), refusal.Handshake},
	{"empty extension", handshake("/", "Sec-WebSocket-Extensions: a,"), refusal.Handshake},
	{"extension without a name", handshake("/", "Sec-WebSocket-Extensions: ;a"), refusal.Handshake},
	{"empty parameter", handshake("/", "Sec-WebSocket-Extensions: a;"), refusal.Handshake},
	{"parameter without a value", handshake("/", "Sec-WebSocket-Extensions: a; b="), refusal.Handshake},
	{"open quotes", handshake("/", `Sec-WebSocket-Extensions: a; b="c`), refusal.Handshake},
	{"quoted space", handshake("/", `Sec-WebSocket-Extensions: a; b="c d"`), refusal.Handshake},
}

func read(t *testing.T, raw string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCheckHandshake(t *testing.T) {
	for _, tt := range handshakeTests {
		t.Run(tt.name, func(t *testing.T) {
			var got refusal.Reason
			if no := (*Gate)(nil).checkHandshake(&upgrade{Request: &Request{HTTP: read(t, tt.raw)}}); no != nil {
				got = no.Reason
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// hijackable lets gorilla/websocket go through with an upgrade.
type hijackable struct {
	*httptest.ResponseRecorder
}

// FuzzCheckHandshake: what this gate takes for a handshake, another implementation takes for one too, and there is
// nothing about it that the RFC does not have.
func FuzzCheckHandshake(f *testing.F) {
	for _, tt := range handshakeTests {
		f.Add(tt.raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		if no := (*Gate)(nil).checkHandshake(&upgrade{Request: &Request{HTTP: r}}); no != nil {
			if status, _, body := no.Response(); status < 400 || strings.Count(string(body), "\n") != 1 {
				t.Fatalf("refused with %d %q", status, body)
			}
			return
		}
		if !strings.Contains(strings.ToLower(strings.Join(r.Header["Connection"], ",")), "upgrade") {
			t.Errorf("Connection %q is let through", r.Header["Connection"])
		}
		r.Header["Connection"] = []string{"Upgrade"} // gorilla stops at an empty element, which RFC 9110 section 5.6.1.2 has skipped
		// Without a Hijacker, gorilla gets as far as it can and then says so.
		w := hijackable{httptest.NewRecorder()}
		upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
		if _, err := upgrader.Upgrade(w, r, nil); err == nil || !strings.Contains(err.Error(), "does not implement http.Hijacker") {
			t.Errorf("gorilla/websocket refuses what the gate lets through: %v", err)
		}
		if rest, _ := io.ReadAll(r.Body); len(rest) > 0 {
			t.Errorf("a body of %d bytes is let through", len(rest))
		}
		for _, protocol := range websocket.Subprotocols(r) {
			if protocol == "" || strings.ContainsAny(protocol, " \t,;\"\r\n") {
				t.Errorf("subprotocol %q is let through", protocol)
			}
		}
	})
}
