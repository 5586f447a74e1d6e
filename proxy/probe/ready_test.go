package probe

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/admin"
)

// adminServer is the real one.
func adminServer(t *testing.T) *admin.Server {
	t.Helper()
	server, err := admin.New(admin.Config{Addr: "127.0.0.1:0"}, admin.NewMetrics(admin.Known{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(t.Context()) })
	return server
}

func TestReady(t *testing.T) {
	server := adminServer(t)
	addr := server.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	tests := []struct {
		name, addr string
		ready      bool
		out, err   string
	}{
		{"not ready", addr, false, "503 Service Unavailable after T: not ready\n", "not ready: 503 Service Unavailable"},
		{"ready", addr, true, "200 OK after T: ready\n", ""},
		{"every interface", ":" + port, true, "200 OK after T: ready\n", ""},
		{"every IPv4 interface", "0.0.0.0:" + port, true, "200 OK after T: ready\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server.SetReady(tt.ready)
			out, err := probe(t, Config{AdminAddr: tt.addr})
			if want := "GET http://" + addr + "/readyz\n" + tt.out; out != want || err != tt.err {
				t.Errorf("got  %q, error %q\nwant %q, error %q", out, err, want, tt.err)
			}
		})
	}
}

func TestReachable(t *testing.T) {
	tests := []struct{ addr, want, err string }{
		{addr: "127.0.0.1:9090", want: "127.0.0.1:9090"},
		{addr: "admin.internal:9090", want: "admin.internal:9090"},
		{addr: ":9090", want: "127.0.0.1:9090"},
		{addr: "0.0.0.0:9090", want: "127.0.0.1:9090"},
		{addr: "[::]:9090", want: "[::1]:9090"},
		{addr: "[2001:db8::1]:9090", want: "[2001:db8::1]:9090"},
		{addr: "", err: "ADMIN_ADDR is empty, so there is no operator's listener to ask; want its host:port, or for a probe the URL of a WebSocket"},
		{addr: "9090", err: `ADMIN_ADDR: "9090" is no address to ask; want host:port`},
	}
	for _, tt := range tests {
		got, err := DialAddr(tt.addr)
		if got != tt.want || (err != nil || tt.err != "") && (err == nil || err.Error() != tt.err) {
			t.Errorf("DialAddr(%q) = %q, %v, want %q, %s", tt.addr, got, err, tt.want, tt.err)
		}
	}
}

// What listens at ADMIN_ADDR may be anything.
func TestReadyOfSomethingElse(t *testing.T) {
	tests := []struct{ name, answer, err string }{
		{"redirect is not followed", "HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "not ready: 302 Found"},
		{"long line", "HTTP/1.1 500 x\r\n\r\n" + strings.Repeat("\x1b[5mx", 100_000), "not ready: 500 Internal Server Error"},
		{"not HTTP", "SSH-2.0-\x1b[2J\r\n\r\n", "no answer: "},
		{"endless head", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 4*maxHead), "no answer: "},
		{"nothing", "", "no answer: the connection ended"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, func(conn net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
					return
				}
				io.WriteString(conn, tt.answer)
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			})
			if _, err := probe(t, Config{AdminAddr: addr}); !strings.HasPrefix(err, tt.err) {
				t.Errorf("error %q, want %q", err, tt.err)
			}
		})
	}
}

func TestReadyOfNobody(t *testing.T) {
	_, err := probe(t, Config{AdminAddr: closedPort(t)})
	if !strings.HasPrefix(err, "no answer: dial tcp 127.0.0.1:") {
		t.Errorf("error %q", err)
	}
}

func TestHangingAdminEndsWithTheContext(t *testing.T) {
	addr := serve(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Run(ctx, Config{AdminAddr: addr, Out: io.Discard}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}
