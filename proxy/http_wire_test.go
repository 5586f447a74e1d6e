package proxy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/proxy/gate"
)

// Answers pass as the application wrote them.
func TestAnswersOfPlainRequests(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, strings.Repeat("news ", 100))
	z.Close()
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(zipped.Bytes())
		case "/nocontent":
			w.WriteHeader(204)
		case "/notmodified":
			w.Header().Set("Etag", `"1"`)
			w.WriteHeader(304)
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/untyped":
			w.Header()["Content-Type"] = nil
			io.WriteString(w, "<html>")
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "body")
			w.Header().Set("X-Sum", "1")
			w.Header().Set(http.TrailerPrefix+"X-Late", "2")
		case "/early":
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.WriteHeader(103)
			w.Header().Del("Link")
			io.WriteString(w, "ok")
		case "/hop":
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("X-Hop", "1")
			w.Header().Set("Keep-Alive", "timeout=5")
			w.Header().Set("Upgrade", "h2c")
			w.Header().Set("Portcullis-Session", "forged")
			w.Header().Set("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
			w.WriteHeader(418)
		}
	})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen))
	c := g.keep(t)
	get := func(method, path string, lines ...string) (*http.Response, string) {
		t.Helper()
		return c.ask(t, request(append([]string{method + " " + path + " HTTP/1.1", "Host: a"}, lines...)...))
	}
	if resp, body := get("GET", "/gzip", "Accept-Encoding: gzip"); body != zipped.String() || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("gzip: %v, %d bytes, want %d", resp.Header, len(body), zipped.Len())
	}
	if resp, body := get("HEAD", "/gzip"); body != "" || resp.ContentLength != int64(zipped.Len()) {
		t.Errorf("HEAD: length %d, body %q", resp.ContentLength, body)
	}
	for path, want := range map[string]int{"/nocontent": 204, "/notmodified": 304, "/redirect": 302} {
		if resp, _ := get("GET", path); resp.StatusCode != want {
			t.Errorf("%s: got %d", path, resp.StatusCode)
		}
	}
	if resp, body := get("GET", "/untyped"); len(resp.Header["Content-Type"]) != 0 || body != "<html>" {
		t.Errorf("untyped: %v %q", resp.Header, body)
	}
	resp, body := get("GET", "/trailers", "TE: trailers")
	if body != "body" || resp.Trailer.Get("X-Sum") != "1" || resp.Trailer.Get("X-Late") != "2" {
		t.Errorf("trailers: %q %v", body, resp.Trailer)
	}
	if resp, _ := get("GET", "/early"); resp.StatusCode != 103 || resp.Header.Get("Link") == "" {
		t.Errorf("early hints: %d %v", resp.StatusCode, resp.Header)
	}
	if resp, err := http.ReadResponse(c.in, nil); err != nil || resp.StatusCode != 200 || resp.Header.Get("Link") != "" {
		t.Errorf("after early hints: %v %v", resp, err)
	} else {
		io.Copy(io.Discard, resp.Body)
	}
	resp, _ = get("GET", "/hop")
	if resp.StatusCode != 418 || strings.Join(resp.Header["Set-Cookie"], " ") != "a=1 b=2" || resp.Close {
		t.Errorf("hop: %d %v", resp.StatusCode, resp.Header)
	}
	for _, name := range []string{"X-Hop", "Keep-Alive", "Upgrade", "Connection", "Portcullis-Session"} {
		if v := resp.Header[name]; v != nil {
			t.Errorf("hop: %s is %q", name, v)
		}
	}
}

// Bodies pass both ways, of known length and not, large ones in constant memory, and a chunked request is its connection's last.
func TestBodiesOfPlainRequests(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%d %x %v %d %v", n, sum.Sum(nil), err, r.ContentLength, r.Trailer)
	})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen))
	const size = 8 << 20
	sum := sha256.Sum256(make([]byte, size))
	conn := g.dial(t)
	conn.SetDeadline(time.Now().Add(time.Minute)) // it is much on a crowded machine
	c := &keptConn{conn, bufio.NewReader(conn)}
	for _, chunked := range []bool{false, true} {
		resp, body := c.upload(t, size, chunked)
		length := map[bool]int{false: size, true: -1}[chunked]
		if want := fmt.Sprintf("%d %x <nil> %d map[]", size, sum, length); resp.StatusCode != 200 || body != want {
			t.Errorf("chunked %v: got %d %s, want %s", chunked, resp.StatusCode, body, want)
		}
		if resp.Close != chunked {
			t.Errorf("chunked %v: close is %v", chunked, resp.Close)
		}
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// upload sends size zeros, with a trailer if they are chunked.
func (c *keptConn) upload(t *testing.T, size int64, chunked bool) (*http.Response, string) {
	t.Helper()
	var sending sync.WaitGroup
	defer sending.Wait()
	head := []string{"PUT /up HTTP/1.1", "Host: a", fmt.Sprint("Content-Length: ", size)}
	if chunked {
		head = []string{"PUT /up HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Trailer: X-Auth-Subject"}
	}
	io.WriteString(c, request(head...))
	sending.Go(func() {
		if !chunked {
			io.CopyN(c, zeroes{}, size)
			return
		}
		chunk := make([]byte, 1<<20)
		for range size >> 20 {
			fmt.Fprintf(c, "%x\r\n%s\r\n", len(chunk), chunk)
		}
		io.WriteString(c, "0\r\nX-Auth-Subject: Mallory\r\n\r\n")
	})
	return c.ask(t, "")
}

// The application says whether it wants a body.
func TestExpectContinue(t *testing.T) {
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(413)
			return
		}
		io.Copy(w, r.Body)
	})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen))
	head := func(path string) string {
		return request("POST "+path+" HTTP/1.1", "Host: a", "Content-Length: 4", "Expect: 100-continue")
	}
	c := g.keep(t)
	if resp, _ := c.ask(t, head("/yes")); resp.StatusCode != 100 {
		t.Fatalf("got %d", resp.StatusCode)
	}
	if resp, body := c.ask(t, "body"); resp.StatusCode != 200 || body != "body" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	if resp, _ := c.ask(t, head("/no")); resp.StatusCode != 413 {
		t.Errorf("got %d", resp.StatusCode)
	}
}

// What a stream says is there at once, and its end is told from its breaking off.
func TestStreamsOfPlainRequests(t *testing.T) {
	more := make(chan string)
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for event := range more {
			if event == "die" {
				panic(http.ErrAbortHandler)
			}
			io.WriteString(w, event)
			w.(http.Flusher).Flush()
		}
	})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen))
	c := g.keep(t)
	io.WriteString(c, request("GET / HTTP/1.1", "Host: a"))
	more <- "data: 1\n\n"
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	stream := bufio.NewReader(resp.Body)
	for _, want := range []string{"data: 1\n", "\n"} {
		if line, err := stream.ReadString('\n'); err != nil || line != want {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	more <- "data: 2\n\n"
	if line, err := stream.ReadString('\n'); err != nil || line != "data: 2\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	for _, s := range g.current.Load().routes[0].Upstream.Targets() {
		if s.Live != 1 {
			t.Errorf("it counts %d on its target", s.Live)
		}
	}
	more <- "die"
	if rest, err := io.ReadAll(stream); err == nil {
		t.Errorf("the broken answer ends as a whole one: %q", rest)
	}
	if line := g.journal.next(t, "request passed"); line["broken_off"] != "upstream_answer" || line["status"] != 200. {
		t.Errorf("line %v", line)
	}
	if s := g.current.Load().routes[0].Upstream.Targets()[0]; s.Live != 0 {
		t.Errorf("it counts %d on its target after its end", s.Live)
	}
}

// An answer that cannot be used is told as such, and never becomes a tunnel. So is an application that breaks off before it.
func TestBadAnswersToPlainRequests(t *testing.T) {
	for name, raw := range map[string]string{
		"101":                 "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"101 without Upgrade": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
		"no HTTP":             "SSH-2.0-OpenSSH_9.2 secret\r\n",
		"nothing":             "",
		"half a header":       "HTTP/1.1 200 OK\r\nContent-",
		"two lengths":         "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"too long a header":   "HTTP/1.1 200 OK\r\nX-Fill: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
	} {
		b := newBackend(t, func(conn net.Conn, _ *http.Request) { io.WriteString(conn, raw) })
		g := newGate(t, b.url, plainHTTP(gate.HTTPOpen))
		resp, _ := g.keep(t).ask(t, request("GET / HTTP/1.1", "Host: a"))
		if line := g.journal.next(t, "refused"); resp.StatusCode != 502 || line["reason"] != "upstream_answer" {
			t.Errorf("%s: got %d, %v", name, resp.StatusCode, line)
		}
		if g.journal.contains("secret") {
			t.Errorf("%s: the log quotes the answer", name)
		}
	}
	g := newGate(t, "http://127.0.0.1:1", plainHTTP(gate.HTTPOpen))
	if resp, _ := g.keep(t).ask(t, request("GET / HTTP/1.1", "Host: a")); resp.StatusCode != 502 {
		t.Errorf("no application: got %d", resp.StatusCode)
	}
}

// A client that leaves ends what it has asked for.
func TestClientLeavesItsPlainRequest(t *testing.T) {
	left := make(chan context.Context, 1)
	url := newApplication(t, func(w http.ResponseWriter, r *http.Request) {
		left <- r.Context()
		<-r.Context().Done()
	})
	g := newGate(t, url, plainHTTP(gate.HTTPOpen, func(c *Config) { c.Relay.CloseTimeout = 100 * time.Millisecond }))
	conn := g.dial(t)
	io.WriteString(conn, request("GET / HTTP/1.1", "Host: a"))
	ctx := <-left
	conn.Close()
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("the application's request goes on")
	}
	if line := g.journal.next(t, "refused"); line["reason"] != "client_gone" {
		t.Errorf("line %v", line)
	}
}
