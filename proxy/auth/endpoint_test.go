package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
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
