package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"portcullis/ratelimit"
)

// BenchmarkUpgrade is one upgrade over loopback TCP, from the client's dial to its 101, and the session's end. The numbers
// include the client's, the backend's and the token endpoint's share, which run in this process and, like the gate, on
// net/http or close to it. Logging is off.
func BenchmarkUpgrade(b *testing.B) {
	backend := newBackend(b, nil)
	for _, bb := range []struct {
		mode   string
		routes int // each of five targets, which are one server; 0: UPSTREAM_URL names it
	}{{"endpoint", 0}, {"none", 0}, {"none", 10}} {
		name := "auth=" + bb.mode
		if bb.routes > 0 {
			name += fmt.Sprint(",routes=", bb.routes)
		}
		b.Run(name, func(b *testing.B) {
			g := newGate(b, backend.url, func(c *Config) {
				c.Logger = nil
				if c.Auth.Mode = bb.mode; bb.mode == "none" {
					c.Auth.URL = ""
				}
				c.Limits = ratelimit.Config{Sessions: 1 << 20}
				var table []string
				for i := range bb.routes {
					text := fmt.Sprintf("R%d=r%[1]d.example/* ", i)
					if i == 0 {
						text = "ALL=/* "
					}
					for j := range 5 {
						text += fmt.Sprint(" ", backend.url, "/?", j)
					}
					table = append(table, text)
				}
				if len(table) > 0 {
					routed(nil, table...)(c)
				}
			})
			raw := handshake("/?token=good")
			b.ReportAllocs()
			for b.Loop() {
				conn, err := net.Dial("tcp", g.addr)
				if err != nil {
					b.Fatal(err)
				}
				io.WriteString(conn, raw)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || resp.StatusCode != 101 {
					b.Fatal(err, resp)
				}
				conn.Close()
			}
		})
	}
}

// BenchmarkRefusal is what a request costs that a step refuses, without the network and the reading of the request. The
// hostile ones are as large as a header may be.
func BenchmarkRefusal(b *testing.B) {
	g := newGate(b, newBackend(b, nil).url, func(c *Config) {
		c.Logger = nil
		c.Limits = ratelimit.Config{}
		c.ClientIP.TrustedProxies = []string{"192.0.2.0/24"}
	})
	for _, bb := range []struct {
		name, raw string
	}{
		{"path", handshake("/%2e%2e?token=good")},
		{"token missing", handshake("/")},
		{"hostile path", handshake("/" + strings.Repeat("a/", 30<<10) + "..")},
		{"hostile protocols", handshake("/", "Sec-WebSocket-Protocol: "+strings.Repeat("a,", 30<<10))},
		{"hostile forwarded for", handshake("/", "X-Forwarded-For: "+strings.Repeat("192.0.2.1,", 6<<10)+"192.0.2.1")},
	} {
		b.Run(bb.name, func(b *testing.B) {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(bb.raw)))
			if err != nil {
				b.Fatal(err)
			}
			r.RemoteAddr = "192.0.2.1:1"
			b.ReportAllocs()
			for b.Loop() {
				g.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}
