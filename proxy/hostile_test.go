package proxy

import (
	"bufio"
	"encoding/base64"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// The forms that an attacker tries first, one a row: requests that servers read in different ways, and headers that say what
// only a gate may say. Each goes out as raw bytes over a socket of its own.

// swapped is a handshake that would be accepted, but for one piece of it.
func swapped(old, new string) string { return strings.Replace(handshake("/?token=good"), old, new, 1) }

// with is a handshake that would be accepted, with further header lines.
func with(lines ...string) string { return handshake("/?token=good", lines...) }

var hostileRequests = []struct {
	name   string
	raw    string
	status int
	reason refusal.Reason
}{
	// Where the request ends: what one server takes for its body, the next takes for a request that nobody has checked
	// (portswigger.net/research/http-desync-attacks, CVE-2019-20372, CVE-2022-32213).
	{"length 0 beside chunked", with("Content-Length: 0", "Transfer-Encoding: chunked") + "0\r\n\r\nGET /x HTTP/1.1\r\n", 400, refusal.Handshake},
	{"lengths that differ", with("Content-Length: 0", "Content-Length: 5") + "abcde", 400, refusal.Malformed},
	{"length with a sign", with("Content-Length: +0"), 400, refusal.Malformed},
	{"negative length", with("Content-Length: -1"), 400, refusal.Malformed},
	{"length in hexadecimal", with("Content-Length: 0x0"), 400, refusal.Malformed},
	{"lengths in a list", with("Content-Length: 0, 0"), 400, refusal.Malformed},
	{"empty length", with("Content-Length:"), 400, refusal.Malformed},
	{"chunked in other case", with("Transfer-Encoding: cHuNkEd") + "0\r\n\r\n", 400, refusal.Handshake},
	{"chunked in a folded line", with("Transfer-Encoding:", " chunked") + "0\r\n\r\n", 400, refusal.Handshake},
	{"chunked twice", with("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + "0\r\n\r\n", 501, refusal.Malformed},
	{"chunked before identity", with("Transfer-Encoding: chunked, identity") + "0\r\n\r\n", 501, refusal.Malformed},
	{"chunked behind identity", with("Transfer-Encoding: identity, chunked") + "0\r\n\r\n", 501, refusal.Malformed},
	{"identity", with("Transfer-Encoding: identity"), 501, refusal.Malformed},
	{"unknown transfer coding", with("Transfer-Encoding: xchunked"), 501, refusal.Malformed},
	{"empty transfer coding", with("Transfer-Encoding:"), 501, refusal.Malformed},
	{"chunked behind a vertical tab", with("Transfer-Encoding: \x0bchunked"), 400, refusal.Malformed},
	{"Transfer-Encoding and a space", with("Transfer-Encoding : chunked"), 400, refusal.Malformed},
	{"Transfer-Encoding and a NUL", with("Transfer-Encoding\x00: chunked"), 400, refusal.Malformed},
	{"chunked in HTTP/1.0", strings.Replace(with("Transfer-Encoding: chunked"), "HTTP/1.1", "HTTP/1.0", 1) + "0\r\n\r\n", 400, refusal.Handshake},
	{"a handshake behind a plain request", request("GET / HTTP/1.1", "Host: gate.example") + with(), 426, refusal.NotWebSocket},
	{"a handshake inside a body", request("GET / HTTP/1.1", "Host: gate.example", "Content-Length: "+strconv.Itoa(len(with()))) + with(), 426, refusal.NotWebSocket},

	// The request line.
	{"empty line first", "\r\n" + with(), 400, refusal.Malformed},
	{"space first", " " + with(), 400, refusal.Malformed},
	{"tabs for spaces", swapped("GET /?token=good HTTP/1.1", "GET\t/?token=good\tHTTP/1.1"), 400, refusal.Malformed},
	{"two spaces", swapped("GET /", "GET  /"), 400, refusal.Malformed},
	{"space in the path", swapped("GET /", "GET /a b"), 400, refusal.Malformed},
	{"NUL in the path", swapped("GET /", "GET /\x00"), 400, refusal.Malformed},
	{"bare CR in the path", swapped("GET /", "GET /\r"), 400, refusal.Malformed},
	{"bad escape in the path", swapped("GET /", "GET /a%zz"), 400, refusal.Malformed},
	{"fragment behind the query", swapped("token=good", "token=good#b"), 400, refusal.PathSuspicious},
	{"CONNECT to an authority", swapped("GET /?token=good", "CONNECT gate.example:443"), 400, refusal.PathSuspicious},
	{"asterisk", swapped("GET /?token=good", "GET *"), 400, refusal.PathSuspicious},
	{"own path, escaped", handshake("/%2eportcullis/ticket?token=good"), 404, refusal.Path},
	{"own path in capitals", handshake("/.PORTCULLIS/ticket?token=good"), 404, refusal.Path},
	{"TRACE", swapped("GET", "TRACE"), 405, refusal.Method},
	{"HTTP/0.9", "GET /?token=good\r\n\r\n", 400, refusal.Malformed},
	{"HTTP/1.2", swapped("HTTP/1.1", "HTTP/1.2"), 400, refusal.Handshake},
	{"HTTP/1.10", swapped("HTTP/1.1", "HTTP/1.10"), 400, refusal.Malformed},
	{"HTTP/2.0", swapped("HTTP/1.1", "HTTP/2.0"), 505, refusal.Malformed},
	{"version in lower case", swapped("HTTP/1.1", "http/1.1"), 400, refusal.Malformed},
	{"version and a word", swapped("HTTP/1.1", "HTTP/1.1 x"), 400, refusal.Malformed},

	// Header lines.
	{"folded first line", swapped("Host:", " Host:"), 400, refusal.Malformed},
	{"bare CR in a value", with("X-A: a\rX-Auth-Subject: root"), 400, refusal.Malformed},
	{"NUL in a value", with("X-A: a\x00b"), 400, refusal.Malformed},
	{"NUL in a name", with("X\x00A: a"), 400, refusal.Malformed},
	{"space before a colon", with("X-Auth-Subject : root"), 400, refusal.Malformed},
	{"tab before a colon", with("X-Auth-Subject\t: root"), 400, refusal.Malformed},
	{"zero-width space in a name", with("X-Auth-Subject\u200b: root"), 400, refusal.Malformed},
	{"empty name", with(": a"), 400, refusal.Malformed},
	{"no colon", with("abc"), 400, refusal.Malformed},
	{"70 KiB of value", with("X: " + strings.Repeat("a", 70<<10)), 431, refusal.Malformed},
	{"70 KiB of lines", with(strings.Repeat("X: a\r\n", 12<<10) + "X: a"), 431, refusal.Malformed},

	// Host: the virtual host that was checked must be the one that is asked.
	{"no Host", without(with(), "Host: gate.example"), 400, refusal.Malformed},
	{"empty Host", swapped("Host: gate.example", "Host:"), 400, refusal.Handshake},
	{"Host twice the same", with("Host: gate.example"), 400, refusal.Malformed},
	{"Host with a path", swapped("gate.example", "gate.example/../x"), 400, refusal.Malformed},
	{"Host with a user", swapped("gate.example", "root@gate.example"), 400, refusal.Malformed},
	{"two Hosts in one", swapped("gate.example", "gate.example other.example"), 400, refusal.Malformed},

	// What would be upgraded to.
	{"Upgrade in two lines, h2c first", swapped("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket"), 400, refusal.Handshake},
	{"vertical tab behind websocket", swapped("Upgrade: websocket", "Upgrade: websocket\x0b"), 400, refusal.Malformed},
	{"no-break space before websocket", swapped("Upgrade: websocket", "Upgrade: \xa0websocket"), 426, refusal.NotWebSocket},
	{"Upgrade and a space", swapped("Upgrade:", "Upgrade :"), 400, refusal.Malformed},
	{"key with underscores", swapped("Sec-WebSocket-Key", "Sec_WebSocket_Key"), 400, refusal.Handshake},
	{"version 13.0", swapped("Version: 13", "Version: 13.0"), 426, refusal.Version},
	{"version +13", swapped("Version: 13", "Version: +13"), 426, refusal.Version},
	{"protocol not in ASCII", with("Sec-WebSocket-Protocol: \xff"), 400, refusal.Handshake},

	// The token is one word, and what the verifier is asked about is that word whole.
	{"parameter inside the token", handshake("/?token=good%26x=1"), 401, refusal.TokenRefused},
	{"fragment inside the token", handshake("/?token=good%23x"), 401, refusal.TokenRefused},
	{"path inside the token", handshake("/?token=..%2fgood"), 401, refusal.TokenRefused},
	{"line break inside the token", handshake("/?token=good%0d%0aX:y"), 401, refusal.TokenMalformed},
	{"token behind a semicolon", handshake("/?a=1;token=good"), 401, refusal.TokenMissing},
	{"two tokens", handshake("/?token=good&token=wonder"), 400, refusal.TokenConflict},
	{"two tokens, one in a header", with("Authorization: Bearer wonder"), 400, refusal.TokenConflict},
}

func TestHostileRequests(t *testing.T) {
	for _, tt := range hostileRequests {
		t.Run(tt.name, func(t *testing.T) {
			l := newUnreached(t)
			g := newGate(t, "ws://"+l.Addr().String(), nil)
			a := g.send(t, tt.raw)
			if a.StatusCode != tt.status || len(a.body) > 200 {
				t.Errorf("got %d %q, want %d and a line", a.StatusCode, a.body, tt.status)
			}
			a.closed(t)
			if line := g.journal.next(t, "refused"); line["reason"] != string(tt.reason) {
				t.Errorf("reason: got %v, want %s", line["reason"], tt.reason)
			}
			if got := g.refused(t, tt.reason); got != 1 {
				t.Errorf("counted %v times, want once", got)
			}
			l.check(t)
		})
	}
}

// unreached is an upstream that nobody may connect to.
type unreached struct{ net.Listener }

func newUnreached(t *testing.T) unreached {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return unreached{l}
}

// check connects: connections are accepted in order, so any other would come first.
func (u unreached) check(t *testing.T) {
	t.Helper()
	mine, err := net.DialTimeout("tcp", u.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	u.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	first, err := u.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if first.RemoteAddr().String() != mine.LocalAddr().String() {
		t.Error("the upstream was dialled")
	}
}

// oddRequests are unusual and yet requests: what goes upstream says the same in the usual way, and nothing besides.
var oddRequests = []struct {
	name   string
	raw    string
	target string
	header []string // what the upstream gets beside what arrived checks
}{
	{"plain", with(), "/", nil},
	{"length 0", with("Content-Length: 0"), "/", nil},
	{"absolute target", swapped("GET /", "GET http://gate.example/a"), "/a", nil},
	{"absolute target beside another Host", strings.NewReplacer("GET /", "GET http://gate.example/", "Host: gate.example", "Host: evil.example").Replace(with()), "/", nil},
	{"Expect", with("Expect: 100-continue"), "/", nil},
	{"TE and Trailer", with("TE: trailers", "Trailer: X"), "/", nil},
	{"lines that end in LF alone", strings.ReplaceAll(with("X-A: a"), "\r\n", "\n"), "/", []string{"X-A: a"}},
	{"one line that ends in LF alone", swapped("Host: gate.example", "Host: gate.example\nX-A: a"), "/", []string{"X-A: a"}},
	{"identity behind an LF alone", swapped("Host: gate.example", "Host: gate.example\nX-Auth-Subject: root"), "/", nil},
	{"folded line", with("X-A: a", "\t b"), "/", []string{"X-A: a b"}},
	{"identity in a folded line", with("X-Auth-Subject:", " root"), "/", nil},
	{"identity folded into another's value", with("X-A: a", " X-Auth-Subject: root"), "/", []string{"X-A: a X-Auth-Subject: root"}},
	{"Upgrade in a folded line", swapped("Upgrade: websocket", "Upgrade:\r\n websocket"), "/", nil},
	{"names in other case", swapped("Upgrade: websocket", "uPGRADE: WebSocket"), "/", nil},
	{"Connection: close, Upgrade", swapped("Connection: Upgrade", "Connection: close, Upgrade"), "/", nil},
	{"Connection: keep-alive, Upgrade", swapped("Connection: Upgrade", "Connection: keep-alive, Upgrade"), "/", nil},
	{"Connection in two lines", swapped("Connection: Upgrade", "Connection: keep-alive\r\nConnection: Upgrade"), "/", nil},
	{"Connection that names the handshake", swapped("Connection: Upgrade", "Connection: Upgrade, Host, Sec-WebSocket-Key, Sec-WebSocket-Version, Connection"), "/", nil},
	{"byte above ASCII in the path", handshake("/\xff?token=good"), "/\xff", nil},
	{"parameter of a path", handshake("/a;b=1?token=good"), "/a;b=1", nil},
	{"escaped line break in the query", handshake("/a?token=good&x=%0d%0aX:y"), "/a?x=%0d%0aX:y", nil},
	{"end to end", with("Cookie: a=b", "Authorization: Basic dDp0", "Via: 1.1 x", "Max-Forwards: 0", "Early-Data: 1"), "/",
		[]string{"Cookie: a=b", "Authorization: Basic dDp0", "Via: 1.1 x", "Max-Forwards: 0", "Early-Data: 1"}},
	{"3,000 lines", with(slices.Repeat([]string{"A:"}, 3000)...), "/", slices.Repeat([]string{"A: "}, 3000)},
}

func TestOddRequestsGoUpstreamInTheUsualForm(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) { c.Limits = ratelimit.Config{} })
	for _, tt := range oddRequests {
		t.Run(tt.name, func(t *testing.T) {
			if a := g.send(t, tt.raw); a.StatusCode != 101 {
				t.Fatalf("got %d %q, want 101", a.StatusCode, a.body)
			}
			r := b.next(t)
			if r.RequestURI != tt.target {
				t.Errorf("target: got %q, want %q", r.RequestURI, tt.target)
			}
			usual, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request(append([]string{"GET / HTTP/1.1", "Host: a"}, tt.header...)...))))
			if err != nil {
				t.Fatal(err)
			}
			want := usual.Header
			if got := arrived(t, r, ""); !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("got %.200q, want %.200q", got, want)
			}
		})
	}
}

// A request behind a handshake is bytes of the session, where it is no frame, and none that the upstream would serve.
func TestRequestBehindAHandshakeIsNotOne(t *testing.T) {
	got := make(chan []byte, 1)
	b := newBackend(t, func(conn net.Conn, r *http.Request) {
		io.WriteString(conn, accepted(r)+"\r\n")
		closing := make([]byte, 8) // a masked frame with a code and no more
		n, _ := io.ReadFull(conn, closing)
		got <- closing[:n]
	})
	g := newGate(t, b.url, nil)
	a := g.send(t, with()+"GET /admin HTTP/1.1\r\nHost: gate.example\r\n\r\n")
	if rest, _ := io.ReadAll(a.rest); !strings.HasPrefix(string(rest), "\x88") || !strings.Contains(string(rest), "\x03\xea") {
		t.Errorf("client got %q, want Close 1002", rest)
	}
	a.conn.Close()
	if line := g.journal.next(t, "session ended"); line["reason"] != "client_framing" || line["code"] != 1002.0 {
		t.Errorf("end: got %v, %v; want client_framing, 1002", line["reason"], line["code"])
	}
	if h, size, err := frame.Parse(<-got); err != nil || size == 0 || h.Opcode != frame.Close || !h.Masked {
		t.Errorf("upstream got %+v, %v; want a Close frame", h, err)
	}
}

// spoofs are lines of which nothing may go upstream, by what they claim.
var spoofs = []struct {
	kind  string
	lines []string
}{
	{"who", []string{
		"X-Auth-Subject: root", "x-auth-subject: root", "X_Auth_Subject: root", "X-Auth_Subject: root", "X_AUTH-SUBJECT: root",
		"X.Auth.Subject: root", "X-Auth-Subject: root\r\nConnection: X-Auth-Subject", "X-Auth-Subject:\r\nX-Auth-Subject: root",
	}},
	{"from where", []string{
		"X-Forwarded-For: 6.6.6.6", "X_Forwarded_For: 6.6.6.6", "X-Forwarded.For: 6.6.6.6", "X-Forwarded-For: 6.6.6.6\r\nConnection: X-Forwarded-For",
		"X-Real-IP: 6.6.6.6", "X_Real_IP: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Forwarded: 6.6.6.6", "CF-Connecting-IP: 6.6.6.6",
		"True-Client-IP: 6.6.6.6", "X-Client-IP: 6.6.6.6", "X-Cluster-Client-IP: 6.6.6.6", "Fastly-Client-IP: 6.6.6.6", "Client-IP: 6.6.6.6",
		"X-ProxyUser-Ip: 6.6.6.6", "X-Envoy-External-Address: 6.6.6.6", "X-Original-Forwarded-For: 6.6.6.6", "Forwarded-For: 6.6.6.6",
		"X-Remote-IP: 6.6.6.6", "X-Remote-Addr: 6.6.6.6", "X-Azure-ClientIP: 6.6.6.6", "X-AppEngine-User-IP: 6.6.6.6", "DO-Connecting-IP: 6.6.6.6",
	}},
	{"by which way", []string{
		"X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Port: 1", "X-Forwarded-Scheme: https", "X-Forwarded-Prefix: /a",
		"Front-End-Https: on", "X-Forwarded-Server: a", "X-Forwarded-User: root", "X-Forwarded-Email: root", "X-Forwarded-Anything: a", "Proxy: http://evil",
	}},
	{"to where", []string{
		"X-Original-URL: /admin", "X-Original-URI: /admin", "X-Rewrite-URL: /admin", "X_Original_URL: /admin", "X-Original-Method: POST",
		"X-Original-Host: evil",
	}},
	{"with which token", []string{"Authorization: Bearer wonder", "authorization: bearer wonder"}},
	{"in which handshake", []string{"Sec-WebSocket-Accept: x", "Sec_WebSocket_Key: x", "Sec_WebSocket_Protocol: x", "Sec-WebSocket_Extensions: x"}},
	{"of which session", []string{"Portcullis-Session: abc", "Portcullis_Session: abc"}},
	{"of which length", []string{"Content_Length: 5", "Content.Length: 5", "Transfer_Encoding: chunked", "Transfer.Encoding: chunked"}},
	{"to the next hop alone, in folded spelling", []string{
		"Keep_Alive: 1", "Proxy_Connection: keep-alive", "Proxy_Authorization: Basic x", "HTTP2_Settings: AAA",
	}},
	{"to the next hop alone", []string{
		"Keep-Alive: 1", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic x", "HTTP2-Settings: AAA", "TE: trailers", "Trailer: x",
		"Connection: x-b\r\nX-B: 1", "X-B: 1\r\nConnection: close,X-B ,", "Expect: 100-continue",
	}},
}

func TestSpoofedHeadersStayHere(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) { c.Limits = ratelimit.Config{} })
	for _, tt := range spoofs {
		t.Run(tt.kind, func(t *testing.T) {
			for _, line := range tt.lines {
				if a := g.send(t, handshake("/?token=wonder", line)); a.StatusCode != 101 {
					t.Fatalf("%q: got %d %q, want 101", line, a.StatusCode, a.body)
				}
				if got := arrived(t, b.next(t), "Alice"); len(got) > 0 {
					t.Errorf("%q: %q went upstream", line, got)
				}
			}
		})
	}
}

// arrived checks the header lines that a request to the upstream always has, each once, and returns the others. The subject
// is "" where the verifier names none.
func arrived(t *testing.T, r *http.Request, subject string) http.Header {
	t.Helper()
	if r.Host != "gate.example" {
		t.Errorf("Host: got %q", r.Host)
	}
	always := map[string]string{
		"Upgrade": "websocket", "Connection": "Upgrade", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": r.Header.Get("Sec-Websocket-Key"),
		"X-Forwarded-Proto": "http", "X-Forwarded-Host": "gate.example", "X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1",
	}
	if subject != "" {
		always["X-Auth-Subject"] = subject
	}
	rest := maps.Clone(r.Header)
	delete(rest, "Portcullis-Via") // tells gates in a row apart; its value is random
	for name, want := range always {
		if got := rest[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: got %q, want %s once", name, got, strconv.Quote(want))
		}
		delete(rest, name)
	}
	key := always["Sec-Websocket-Key"]
	if nonce, err := base64.StdEncoding.DecodeString(key); err != nil || len(nonce) != 16 || strings.Contains(with(), key) {
		t.Errorf("key: got %q, want one of our own", key)
	}
	return rest
}
