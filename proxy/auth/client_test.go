package auth

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

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
