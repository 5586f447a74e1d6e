package proxy

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/gate"
	"portcullis/proxy/redistest"
)

// A page of an allowed origin can read what its request is refused for, and may ask before it sends one.
func TestPagesAndPlainRequests(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "https://by.the.application")
		io.WriteString(w, r.Method+r.Header.Get("Authorization")+r.Header.Get("X-Auth-Subject"))
	})
	listed := func(c *Config) { c.Origin.Origins = []string{"https://app.example"} }
	g := newGate(t, url, plainHTTP(gate.HTTPAuth, listed))
	c := g.keep(t)
	const app, evil = "Origin: https://app.example", "Origin: https://evil.example"
	preflight := []string{"OPTIONS / HTTP/1.1", "Host: a", "Access-Control-Request-Method: POST"}
	for _, tt := range []struct {
		name   string
		lines  []string
		status int
		origin string // that may read the answer
	}{
		{"refused", []string{"GET / HTTP/1.1", "Host: a", app}, 401, "https://app.example"},
		{"of another", []string{"GET /?token=good HTTP/1.1", "Host: a", evil}, 403, ""},
		{"of none", []string{"GET / HTTP/1.1", "Host: a"}, 401, ""},
		{"of two", []string{"GET / HTTP/1.1", "Host: a", app, app}, 403, ""},
		{"not served", []string{"GET /../ HTTP/1.1", "Host: a", evil}, 400, ""},
		{"accepted", []string{"GET /?token=good HTTP/1.1", "Host: a", app}, 200, "https://by.the.application"},
		{"preflight", append(preflight, app, "Authorization: Bearer forged", "X-Auth-Subject: Mallory"), 200, "https://by.the.application"},
		{"preflight of another", append(preflight, evil), 403, ""},
		{"preflight of none", preflight, 401, ""},
		{"OPTIONS that is no preflight", []string{"OPTIONS / HTTP/1.1", "Host: a", app}, 401, "https://app.example"},
		{"preflight with a body", append(preflight, app, "Content-Length: 2"), 401, "https://app.example"},
	} {
		raw := request(tt.lines...)
		if strings.Contains(raw, "Content-Length: 2") {
			raw += "hi"
		}
		if strings.Contains(raw, "/../") {
			c = g.keep(t)
		}
		resp, body := c.ask(t, raw)
		if resp.Close {
			c = g.keep(t)
		}
		h := resp.Header
		if got := h.Get("Access-Control-Allow-Origin"); resp.StatusCode != tt.status || got != tt.origin {
			t.Errorf("%s: got %d for %q, want %d for %q", tt.name, resp.StatusCode, got, tt.status, tt.origin)
		}
		if readable := tt.origin == "https://app.example"; readable != (h.Get("Access-Control-Allow-Credentials") == "true") ||
			readable != (h.Get("Access-Control-Expose-Headers") == "Retry-After") || readable && h.Get("Vary") != "Origin" {
			t.Errorf("%s: got %v", tt.name, h)
		}
		if tt.name == "preflight" && body != "OPTIONS" {
			t.Errorf("preflight: the application sees %q", body)
		}
	}

	unlisted := newGate(t, url, plainHTTP(gate.HTTPAuth))
	resp, _ := unlisted.keep(t).ask(t, request("GET / HTTP/1.1", "Host: a", evil))
	if h := resp.Header; h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("without ORIGINS: got %v", h)
	}
}

// Plain requests have a rate of their own, by address, and preflights are among them.
func TestRateOfPlainRequests(t *testing.T) {
	url := newApplication(t, func(http.ResponseWriter, *http.Request) {})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen, func(c *Config) { c.Limits.RequestsPerIP = rateOf("2/h") }))
	c := g.keep(t)
	for i, want := range []int{200, 200, 429} {
		resp, _ := c.ask(t, request("OPTIONS / HTTP/1.1", "Host: a", "Origin: https://a", "Access-Control-Request-Method: GET"))
		if resp.StatusCode != want {
			t.Errorf("request %d: got %d, want %d", i, resp.StatusCode, want)
		}
		if want == 429 && (resp.Header.Get("Retry-After") == "" || resp.Header.Get("RateLimit-Policy") != `"requests";q=2;w=3600`) {
			t.Errorf("got %v", resp.Header)
		}
	}
	if a := g.send(t, handshake("/?token=good")); a.StatusCode != 101 {
		t.Errorf("an upgrade after them: got %d", a.StatusCode)
	}
}

// A request of a client and its WebSocket have one target, by the cookie of the first.
func TestStickyTargetOfPlainRequests(t *testing.T) {
	var urls []string
	for _, name := range []string{"one", "two", "three"} {
		urls = append(urls, newApplication(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, name+" "+r.Header.Get("Cookie"))
		}))
	}
	g := newGate(t, strings.Join(urls, " "), plainHTTP(gate.HTTPAuth, balanced("sticky")))
	c := g.keep(t)
	resp, first := c.ask(t, request("GET /?token=good HTTP/1.1", "Host: a"))
	cookie, _, _ := strings.Cut(resp.Header.Get("Set-Cookie"), ";")
	if !strings.HasPrefix(cookie, "portcullis_target=") {
		t.Fatalf("got %v", resp.Header)
	}
	for range 5 {
		resp, body := c.ask(t, request("GET /?token=good HTTP/1.1", "Host: a", "Cookie: "+cookie))
		if body != first || resp.Header.Get("Set-Cookie") != "" {
			t.Errorf("got %q after %q, %v", body, first, resp.Header)
		}
	}
	want := g.journal.next(t, "request passed")["upstream"]
	if _, got := g.visit(t, handshake("/?token=good", "Cookie: "+cookie)); got != want {
		t.Errorf("the WebSocket went to %v, the requests to %v", got, want)
	}
}

// A request goes to another target than one that cannot be reached, with its body, and to one that health checks know to be up.
func TestPlainRequestsFindATarget(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	g := newGate(t, "http://127.0.0.1:1 "+url, plainHTTP(gate.HTTPOpen))
	for range 10 {
		resp, body := g.keep(t).ask(t, request("POST / HTTP/1.1", "Host: a", "Content-Length: 4")+"body")
		if resp.StatusCode != 200 || body != "body" {
			t.Errorf("got %d %q", resp.StatusCode, body)
		}
	}
}

// Draining, what is short ends well, and what is not is cut when sessions are, so that it holds nobody up.
func TestDrainOfPlainRequests(t *testing.T) {
	finish := make(chan bool)
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stream":
			io.WriteString(w, "data: 1\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case "/poll":
			<-r.Context().Done()
		case "/short":
			<-finish
		}
	})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen, func(c *Config) { c.DrainTimeout = 8 * time.Second }))
	ask := func(path string) *keptConn {
		conn := g.dial(t)
		conn.SetDeadline(time.Now().Add(4 * patience)) // what is cut is cut within 4 s
		c := &keptConn{conn, bufio.NewReader(conn)}
		io.WriteString(c, request("GET "+path+" HTTP/1.1", "Host: a"))
		return c
	}
	idle := g.keep(t)
	if resp, _ := idle.ask(t, request("GET / HTTP/1.1", "Host: a")); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	stream, poll, short := ask("/stream"), ask("/poll"), ask("/short")
	for g.current.Load().routes[0].Upstream.Targets()[0].Live < 3 {
		time.Sleep(time.Millisecond)
	}
	drained := g.drain(t.Context())
	g.waitClosing()
	finish <- true
	if resp, err := http.ReadResponse(short.in, nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("short: %v, %v", resp, err)
	} else if _, err := short.in.ReadByte(); err != io.EOF {
		t.Errorf("behind the short one: %v", err)
	}
	if _, err := idle.in.ReadByte(); err != io.EOF {
		t.Errorf("the idle connection: %v", err)
	}
	resp, err := http.ReadResponse(stream.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a stream that is cut ends as a whole one")
	}
	if resp, err := http.ReadResponse(poll.in, nil); err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("poll: %v, %v", resp, err)
	}
	if err := result(t, drained); err != nil {
		t.Errorf("drain: %v", err)
	}
}

// A stream ends with the token that it was let in by.
func TestTokenOfAPlainRequestExpires(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			io.WriteString(w, "data: 1\n\n")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	})
	g := newGate(t, url, plainHTTP(gate.HTTPAuth, byJWT))
	c := g.keep(t)
	token := g.tokenUntil(t, "Alice", soon())
	io.WriteString(c, request("GET /stream HTTP/1.1", "Host: a", "Authorization: Bearer "+token))
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("it ends as a whole one")
	}
	if line := g.journal.next(t, "request passed"); line["broken_off"] != "expired" {
		t.Errorf("line %v", line)
	}
	resp, _ = g.keep(t).ask(t, request("GET /poll HTTP/1.1", "Host: a", "Authorization: Bearer "+g.tokenUntil(t, "Alice", soon())))
	if resp.StatusCode != 401 {
		t.Errorf("got %d", resp.StatusCode)
	}
}

// A body that its client never ends does not hold up a drain.
func TestDrainWithABodyThatDoesNotEnd(t *testing.T) {
	app := newApplication(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	g := newGate(t, app, plainHTTP(gate.HTTPOpen))
	conn := g.dial(t)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: gate.example\r\nContent-Length: 100\r\n\r\nsome")
	for g.current.Load().targets()[0].Live == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := g.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if a := readAnswer(t, conn); a.StatusCode != 503 {
		t.Errorf("got %d, want 503", a.StatusCode)
	}
}

// A body that is broken is its client's fault, and no answer.
func TestBrokenBodiesOfPlainRequests(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	g := newGate(t, url, plainHTTP(gate.HTTPOpen))
	head := request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked")
	if resp, _ := g.keep(t).ask(t, head+"2\r\nhi\r\nno length\r\n"); resp.StatusCode != 400 || !resp.Close {
		t.Errorf("got %d, close %v", resp.StatusCode, resp.Close)
	}
	if line := g.journal.next(t, "refused"); line["reason"] != "request_body" {
		t.Errorf("line %v", line)
	}
	conn := g.dial(t)
	io.WriteString(conn, head+"2\r\nhi\r\n")
	conn.Close()
	if line := g.journal.next(t, "refused"); line["reason"] != "client_gone" {
		t.Errorf("line %v", line)
	}
}

// The failed authentications of an address are those of the whole fleet and of upgrades, too; its requests are each instance's own.
func TestPlainRequestsOfAFleet(t *testing.T) {
	for name, verifier := range map[string]func(*Config){"asked": func(*Config) {}, "local": byJWT} {
		t.Run(name, func(t *testing.T) {
			s := redistest.Start(t)
			url := newApplication(t, func(http.ResponseWriter, *http.Request) {})
			var all []*testGate
			for _, instance := range []string{"a", "b"} {
				all = append(all, newGate(t, url, sharing(s, instance, plainHTTP(gate.HTTPAuth, verifier, func(c *Config) {
					c.Limits.AuthFailuresPerIP, c.Limits.RequestsPerIP = rateOf("3/h"), rateOf("6/h")
				}))))
			}
			good := "good"
			if name == "local" {
				good = all[0].tokenUntil(t, "Alice", hour())
				all[1].secrets.Token(good)
			}
			ask := func(instance int, token string) int {
				resp, _ := all[instance].keep(t).ask(t, request("GET /?token="+token+" HTTP/1.1", "Host: a"))
				return resp.StatusCode
			}
			for _, instance := range []int{0, 0, 1, 1} {
				if got := ask(instance, good); got != 200 {
					t.Fatalf("got %d of %d", got, instance)
				}
			}
			for i, want := range []int{401, 401} {
				if got := ask(i, "bad"); got != want {
					t.Errorf("got %d of %d, want %d", got, i, want)
				}
			}
			if got := all[0].status(t, "/?token=bad"); got != 401 {
				t.Errorf("an upgrade: got %d", got)
			}
			if got := ask(1, "bad"); got != 429 {
				t.Errorf("one too many: got %d", got)
			}
			if got := all[0].journal.count("refused"); got != 2 {
				t.Errorf("%d refusals at the first instance", got)
			}
			for range 3 {
				ask(0, good)
			}
			if got := ask(0, good); got != 429 || all[0].metric(t, "portcullis_http_requests_total", "rate_requests") != 1 {
				t.Errorf("more than its rate: got %d", got)
			}
		})
	}
}

// Requests under way have a bound, so that descriptors are left for sessions.
func TestTooManyPlainRequests(t *testing.T) {
	began := make(chan bool, 1)
	url := newApplication(t, func(_ http.ResponseWriter, r *http.Request) {
		began <- true
		<-r.Context().Done()
	})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen, func(c *Config) {
		c.Gate.MaxRequests, c.Relay.CloseTimeout = 1, 100*time.Millisecond
	}))
	poll := g.dial(t)
	io.WriteString(poll, request("GET / HTTP/1.1", "Host: a"))
	<-began
	if resp, _ := g.keep(t).ask(t, request("GET / HTTP/1.1", "Host: a")); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %d", resp.StatusCode)
	}
	if line := g.journal.next(t, "refused"); line["reason"] != "overload" {
		t.Errorf("line %v", line)
	}
	poll.Close()
	g.journal.next(t, "refused") // it has left
	io.WriteString(g.keep(t), request("GET / HTTP/1.1", "Host: a"))
	select {
	case <-began:
	case <-time.After(patience):
		t.Error("its place is not free")
	}
}
