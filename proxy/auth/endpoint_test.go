package auth

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// secret is a token that escapes badly, to be looked for in error texts.
const secret = `s3cr3t+/="<&%?`

// asking returns an Auth that asks the endpoint at url.
func asking(t testing.TB, url string, timeout time.Duration) *Auth {
	t.Helper()
	return newFrom(t, Config{
		Mode: "endpoint", URL: url, Timeout: timeout,
		TokenFrom: []string{"query:token"}, Forward: []string{"sub:X-Auth-Subject"},
	})
}

func serve(t testing.TB, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(server.Close)
	return server
}

// The outcomes of Verify.
const (
	accepted    = "accepted"
	refused     = "refused"
	denied      = "denied"
	unavailable = "unavailable"
)

// checkOutcome checks what Verify said, and that no error in the chain has the
// token in it, in whatever form an endpoint may have sent it back.
func checkOutcome(t *testing.T, d Decision, err error, want string) {
	t.Helper()
	got := "another error"
	switch err.(type) {
	case nil:
		got = accepted
	case *RefusedError:
		got = refused
	case *DeniedError:
		got = denied
	case *UnavailableError:
		got = unavailable
	}
	if got != want {
		t.Errorf("%s (%v); want %s", got, err, want)
	}
	if err != nil && (d.Subject != "" || !d.Until.IsZero()) {
		t.Errorf("a Decision beside an error: %+v", d)
	}
	for ; err != nil; err = errors.Unwrap(err) {
		if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, "s3cr3t") {
			t.Errorf("the error tells the token: %s", text)
		}
	}
}

func TestAnswers(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	header := func(name string, values ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header()[name] = values
			io.WriteString(w, "1")
		}
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"1", status(200, "1"), accepted},
		{"1 and a newline", status(200, "1\n"), accepted},
		{"1 between spaces", status(200, " 1 "), accepted},
		{"1 and CRLF and tab", status(200, "\t1\r\n"), accepted},
		{"11", status(200, "11"), refused},
		{"1 1", status(200, "1 1"), refused},
		{"0", status(200, "0"), refused},
		{"1.0", status(200, "1.0"), refused},
		{"1 and a NUL", status(200, "1\x00"), refused},
		{"1 after a no-break space", status(200, "\u00a01"), refused},
		{"1 after a byte order mark", status(200, "\ufeff1"), refused},
		{"quoted", status(200, `"1"`), refused},
		{"true", status(200, "true"), refused},
		{"nothing", status(200, ""), refused},
		{"as much as is read", status(200, strings.Repeat(" ", maxAnswerBytes-1)+"1"), accepted},
		{"too long", status(200, strings.Repeat(" ", maxAnswerBytes)+"1"), unavailable},
		{"400", status(400, "0"), refused},
		{"401", status(401, "1"), refused},
		{"403", status(403, "1"), refused},
		{"403 with a page", status(403, strings.Repeat("<p>", 1<<16)), refused},
		{"201", status(201, "1"), unavailable},
		{"204", status(204, ""), unavailable},
		{"206", status(206, "1"), unavailable},
		{"304", status(304, ""), unavailable},
		{"404", status(404, "1"), unavailable},
		{"408", status(408, "1"), unavailable},
		{"429", status(429, "1"), unavailable},
		{"500", status(500, "1"), unavailable},
		{"502", status(502, "1"), unavailable},
		{"503", status(503, "1"), unavailable},
		{"early hints first", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			status(200, "1")(w, r)
		}, accepted},
		{"in chunks", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, " ")
			w.(http.Flusher).Flush()
			io.WriteString(w, "1")
		}, accepted},
		{"streams for ever", func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, strings.Repeat("1", 1<<10)); err != nil {
					return
				}
			}
		}, unavailable},
		{"refuses and streams for ever", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			for {
				if _, err := io.WriteString(w, strings.Repeat("0", 1<<10)); err != nil {
					return
				}
			}
		}, refused},
		{"huge headers", header("X-Huge", strings.Repeat("x", 1<<20)), unavailable},
		{"many headers", header("X-Many", strings.Split(strings.Repeat("x,", 1<<15), ",")...), unavailable},
		{"early hints for ever", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.WriteHeader(http.StatusEarlyHints)
			}
		}, unavailable},
		{"a subject that is too long", header("X-Auth-Subject", strings.Repeat("x", 257)), unavailable},
		{"a subject that is not UTF-8", header("X-Auth-Subject", "\xff"), unavailable},
		{"two subjects", header("X-Auth-Subject", "alice", "bob"), unavailable},
		{"the token as a subject too long", func(w http.ResponseWriter, r *http.Request) {
			header("X-Auth-Subject", strings.Repeat(r.FormValue("token"), 64))(w, r)
		}, unavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := asking(t, serve(t, test.handler).URL, 10*time.Second)
			d, err := a.Verify(t.Context(), Credential{Token: secret})
			checkOutcome(t, d, err, test.want)
		})
	}
}

func TestQuestion(t *testing.T) {
	tests := []struct {
		name, path string
		want       string // the request line's target
	}{
		{"plain", "/token", "/token?token=" + url.QueryEscape(secret)},
		{"no path", "", "/?token=" + url.QueryEscape(secret)},
		{"kept query parameters", "/check?app=chat&v=%31", "/check?app=chat&v=%31&token=" + url.QueryEscape(secret)},
		{"escaped path", "/a%2Fb/", "/a%2Fb/?token=" + url.QueryEscape(secret)},
		{"empty query", "/token?", "/token?token=" + url.QueryEscape(secret)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got *http.Request
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				got = r.Clone(context.Background())
				io.WriteString(w, "1")
			})
			a := asking(t, server.URL+test.path, 10*time.Second)
			d, err := a.Verify(t.Context(), Credential{Token: secret})
			checkOutcome(t, d, err, accepted)
			if got.Method != "GET" || got.RequestURI != test.want || got.Host != strings.TrimPrefix(server.URL, "http://") {
				t.Errorf("asked %s %s of %s; want GET %s", got.Method, got.RequestURI, got.Host, test.want)
			}
			if token := got.FormValue("token"); token != secret {
				t.Errorf("asked about %q, want %q", token, secret)
			}
			if len(got.Header) != 1 || got.UserAgent() != "portcullis" {
				t.Errorf("sent %q; want our User-Agent alone", got.Header)
			}
		})
	}
}

func TestDecisionOfAnAnswer(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		switch token := r.FormValue("token"); token {
		case "alice's":
			w.Header().Set("X-Auth-Subject", "alice")
		case "own-name":
			w.Header().Set("X-Auth-Subject", token)
		case "empty":
			w.Header().Set("X-Auth-Subject", "")
		}
		io.WriteString(w, "1")
	})
	a := asking(t, server.URL, 10*time.Second)
	before := time.Now()
	d, err := a.Verify(t.Context(), Credential{Token: "alice's"})
	checkOutcome(t, d, err, accepted)
	if d.Subject != "alice" || d.Pseudonym {
		t.Errorf("subject %q, pseudonym %t; want alice", d.Subject, d.Pseudonym)
	}
	// From the asking on, so that a slow answer does not lengthen the session.
	if first, last := before.Add(time.Minute), time.Now().Add(time.Minute); d.Until.Before(first) || d.Until.After(last) {
		t.Errorf("until %v; want %v to %v", d.Until, first, last)
	}
	for _, token := range []string{"nobody's", "own-name", "empty"} {
		d, err := a.Verify(t.Context(), Credential{Token: token})
		checkOutcome(t, d, err, accepted)
		if !d.Pseudonym || !strings.HasPrefix(d.Subject, "hmac-") || strings.Contains(d.Subject, token) {
			t.Errorf("%s: subject %q, pseudonym %t; want a pseudonym", token, d.Subject, d.Pseudonym)
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			var elsewhere atomic.Int32
			target := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				elsewhere.Add(1)
				io.WriteString(w, "1")
			})
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, target.URL+"/?"+r.URL.RawQuery, code)
			})
			d, err := asking(t, server.URL, 10*time.Second).Verify(t.Context(), Credential{Token: secret})
			checkOutcome(t, d, err, unavailable)
			if n := elsewhere.Load(); n != 0 {
				t.Errorf("the redirect's target was asked %d times", n)
			}
		})
	}
}

func TestMalformedTokenIsNotAskedAbout(t *testing.T) {
	var asked atomic.Int32
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		io.WriteString(w, "1")
	})
	a := asking(t, server.URL, 10*time.Second)
	for _, token := range []string{"", "a b", "a\nb", "é", tooLong} {
		if _, err := a.Verify(t.Context(), Credential{Token: token}); err == nil {
			t.Errorf("%.20q is accepted", token)
		} else if _, ok := errors.AsType[*MalformedError](err); !ok {
			t.Errorf("%.20q: %v; want a MalformedError", token, err)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the endpoint was asked %d times", n)
	}
}

func TestEndpointHangs(t *testing.T) {
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"before the header", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, unavailable},
		{"before the body", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, unavailable},
		{"after the 1, which may become 11", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "1")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, unavailable},
		{"after a refusal", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(401)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, refused},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := asking(t, serve(t, test.handler).URL, 100*time.Millisecond)
			d, err := a.Verify(t.Context(), Credential{Token: secret})
			checkOutcome(t, d, err, test.want)
			if test.want == unavailable && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v; want one that is a deadline", err)
			}
		})
	}
}

// A client that goes away says nothing about the endpoint.
func TestClientGoesAway(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := asking(t, server.URL, 10*time.Second).Verify(ctx, Credential{Token: secret})
	if _, blamed := errors.AsType[*UnavailableError](err); blamed || !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want context.Canceled and no UnavailableError", err)
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	d, err := asking(t, "http://"+listener.Addr().String(), 10*time.Second).Verify(t.Context(), Credential{Token: secret})
	checkOutcome(t, d, err, unavailable)
	if err == nil || !strings.Contains(err.Error(), listener.Addr().String()) {
		t.Errorf("%v; want the address that was dialled", err)
	}
}

func TestCertificateIsVerified(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "1") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	a := asking(t, server.URL, 10*time.Second)
	d, err := a.Verify(t.Context(), Credential{Token: secret})
	checkOutcome(t, d, err, unavailable)
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v; want one that names the certificate", err)
	}
}

func TestHTTPSToAnEndpointWithoutTLS(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "1") })
	a := asking(t, strings.Replace(server.URL, "http", "https", 1), 10*time.Second)
	d, err := a.Verify(t.Context(), Credential{Token: secret})
	checkOutcome(t, d, err, unavailable)
	if err == nil || !strings.Contains(err.Error(), "does not look like a TLS handshake") {
		t.Errorf("%v; want one that tells the operator what to change", err)
	}
}

// An endpoint that speaks TCP alone: %s is the request line, token and all, as
// an echo service sends it back.
func TestNonsenseAnswers(t *testing.T) {
	tests := []struct {
		name, answer string
		want         string
	}{
		{"closes early", "", unavailable},
		{"closes in the status line", "HTTP/1.1 2", unavailable},
		{"closes in the header", "HTTP/1.1 200 OK\r\nContent-Le", unavailable},
		{"closes in the body", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1", unavailable},
		{"closes in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1", unavailable},
		{"closes after a refusal's header", "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n", refused},
		{"body until the end of the connection", "HTTP/1.0 200 OK\r\n\r\n1", accepted},
		{"echoes the request", "%s", unavailable},
		{"echoes it as the status", "HTTP/1.1 %s\r\n\r\n", unavailable},
		{"echoes it as the version", "%s 200 OK\r\n\r\n1", unavailable},
		{"echoes it as a header line", "HTTP/1.1 200 OK\r\n%s\r\n\r\n1", unavailable},
		{"echoes it as a header name", "HTTP/1.1 200 OK\r\n%s: 1\r\n\r\n1", unavailable},
		{"echoes it as the length", "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n1", unavailable},
		{"echoes it as the coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n1", unavailable},
		{"echoes it as a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n", unavailable},
		{"echoes it as a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n%s\r\n\r\n", unavailable},
		{"echoes it as the body", "HTTP/1.0 200 OK\r\n\r\n%s", refused},
		{"echoes it as a subject that breaks lines", "HTTP/1.0 200 OK\r\nX-Auth-Subject: a\x01%s\r\n\r\n1", unavailable},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1%s", unavailable},
		{"switches protocols", "HTTP/1.1 101 %s\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n1", unavailable},
		{"TLS alert", "\x15\x03\x01\x00\x02\x02\x28", unavailable},
		{"a status line for ever", "HTTP/1.1 200 " + strings.Repeat("x", 1<<20), unavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					answerRaw(conn, test.answer)
				}
			}()
			defer func() { listener.Close(); <-done }()
			a := asking(t, "http://"+listener.Addr().String()+"/token", 10*time.Second)
			d, err := a.Verify(t.Context(), Credential{Token: secret})
			checkOutcome(t, d, err, test.want)
			// The same token where nothing needs escaping.
			d, err = a.Verify(t.Context(), Credential{Token: "s3cr3t"})
			checkOutcome(t, d, err, test.want)
		})
	}
}

// answerRaw reads one request from conn, answers it and closes conn once the
// other side has.
func answerRaw(conn net.Conn, answer string) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	for header := line; header != "\r\n"; {
		if header, err = r.ReadString('\n'); err != nil {
			return
		}
	}
	io.WriteString(conn, strings.ReplaceAll(answer, "%s", strings.TrimSpace(line)))
	conn.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, r)
}

// Refusals must not cost a connection each, or guessing tokens would also be a
// way to use up the endpoint's.
func TestConnectionsAreReused(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.FormValue("token") {
		case "good":
			io.WriteString(w, "1")
		case "bad":
			http.Error(w, "no such token", http.StatusBadRequest)
		default:
			http.Error(w, "out of order", http.StatusInternalServerError)
		}
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	a := asking(t, server.URL, 10*time.Second)
	for _, call := range [][2]string{{"good", accepted}, {"bad", refused}, {"broken", unavailable}, {"good", accepted}} {
		d, err := a.Verify(t.Context(), Credential{Token: call[0]})
		checkOutcome(t, d, err, call[1])
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 4 calls in turn; want 1", n)
	}
}

// HTTP_PROXY, set for a whole machine, would otherwise be handed every token.
func TestProxyEnvironmentIsIgnored(t *testing.T) {
	e, err := newEndpoint(&Config{URL: "http://auth.invalid/", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if e.transport.Proxy != nil {
		t.Error("the endpoint may be asked through a proxy")
	}
}

// BenchmarkFindStrip is the way of a token through the gate without the call: a
// browser's header, the token in the query.
func BenchmarkFindStrip(b *testing.B) {
	browser := []string{
		"Cookie: theme=dark; session=secret; lang=pt-BR", "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
		"Origin: https://app.example.com", "Accept-Language: pt-BR,pt;q=0.8", "Cache-Control: no-cache",
	}
	requests := []struct {
		name    string
		places  []string
		request *http.Request
	}{
		{"query", []string{"query:token", "header:Authorization"}, upgrade("room=1&token=secret&v=2", browser...)},
		{"query encoded", []string{"query:token", "header:Authorization"}, upgrade("room=1&%74oken=%73ecret&v=2", browser...)},
		{"header", []string{"query:token", "header:Authorization"}, upgrade("room=1", append(browser, "Authorization: Bearer secret")...)},
		{"cookie", []string{"cookie:session"}, upgrade("room=1", browser...)},
		{"bearer", []string{"protocol:bearer"}, upgrade("room=1", append(browser, "Sec-WebSocket-Protocol: chat, bearer, secret")...)},
		{"kubernetes", []string{"protocol:" + kubernetesName}, upgrade("room=1", append(browser, "Sec-WebSocket-Protocol: chat, "+kubernetes)...)},
		{"hostile 64 KiB of pairs", []string{"query:token"}, upgrade(strings.Repeat("%74okeN&", 1<<13) + "token=secret")},
		{"every place", everyPlace, upgrade("room=1&token=secret", browser...)},
	}
	for _, bench := range requests {
		b.Run(bench.name, func(b *testing.B) {
			a := newAuth(b, bench.places...)
			h := http.Header{}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Find(bench.request); err != nil {
					b.Fatal(err)
				}
				clear(h)
				for key, values := range bench.request.Header { // as the caller must, in memory of its own
					h[key] = values
				}
				a.StripToken(bench.request.URL.RawQuery, h)
			}
		})
	}
}

// BenchmarkEndpoint is one call over loopback, the endpoint's own work, a
// net/http server's, included: it says what changes, not what a call costs.
func BenchmarkEndpoint(b *testing.B) {
	for _, bench := range []struct{ name, body string }{{"accepts", "1"}, {"refuses", "0"}} {
		b.Run(bench.name, func(b *testing.B) {
			body := []byte(bench.body)
			server := serve(b, func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })
			a := asking(b, server.URL+"/token", 10*time.Second)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Verify(b.Context(), Credential{Token: "secret"}); (err == nil) != bytes.Equal(body, []byte("1")) {
					b.Fatal(err)
				}
			}
		})
	}
}

// An endpoint that answers with JSON is the commonest first mistake.
func TestEndpointOfJSONIsHintedAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name, accept, body string
		hints              int
	}{
		{"JSON", "one", `{"active":true}`, 1},
		{"a text", "one", "OK", 0},
		// Whoever followed the hint there would let everybody in.
		{"a no", "one", "0", 0},
		{"a no in JSON", "one", "false", 0},
		{"a yes", "one", "1", 0},
		{"JSON that nobody looks at", "2xx", `{"active":true}`, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var logged bytes.Buffer
			a := newFrom(t, Config{
				Mode: "endpoint", Timeout: time.Minute, Accept: tt.accept, TokenFrom: []string{"query:token"},
				URL:    serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, tt.body) }).URL,
				Logger: slog.New(slog.NewTextHandler(&logged, nil)),
			})
			for range 3 {
				ask(t, a, secret)
			}
			if got := strings.Count(logged.String(), "AUTH_ACCEPT=2xx"); got != tt.hints {
				t.Errorf("%d hints, want %d:\n%s", got, tt.hints, &logged)
			}
		})
	}
}

// A certificate or a CA means that the connection is believed to be encrypted.
func TestTLSSettingsWithoutTLS(t *testing.T) {
	for mode, edit := range map[string]func(*Config){
		"endpoint":   func(*Config) {},
		"introspect": func(c *Config) { c.ClientID, c.ClientSecret = "gate", "password" },
		"forward":    func(*Config) {},
	} {
		t.Run(mode, func(t *testing.T) {
			c := Config{Mode: mode, URL: "http://auth.example/", Timeout: time.Second, TokenFrom: []string{"query:token"}, CAFile: "ca.pem"}
			edit(&c)
			checkMistakes(t, c, []string{`AUTH_CA_FILE: "ca.pem" has no effect without TLS`, `AUTH_CA_FILE: "ca.pem" cannot be read`})
		})
	}
}

func TestObserveKnowsCallsAlone(t *testing.T) {
	var calls []error
	c := Config{
		Mode: "endpoint", Timeout: time.Minute, TokenFrom: []string{"query:token"}, CacheTTL: time.Hour,
		URL: serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("token") == secret {
				io.WriteString(w, "1")
			}
		}).URL,
		Observe: func(_ time.Duration, err error) { calls = append(calls, err) },
	}
	a := newFrom(t, c)
	for range 3 {
		ask(t, a, secret)
		ask(t, a, "another")
	}
	if len(calls) != 2 || calls[0] != nil || !isRefusal(calls[1]) {
		t.Errorf("calls %v; want one that accepted and one that refused", calls)
	}
}
