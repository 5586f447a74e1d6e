package main

import (
	"net"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"
)

func TestDrain(t *testing.T) {
	for _, mode := range []string{"passthrough", "terminate"} {
		t.Run("sessions get a Close frame, "+mode, func(t *testing.T) {
			p := startProgram(t, "DRAIN_TIMEOUT=10s", "RELAY_MODE="+mode)
			conns := []*websocket.Conn{p.open("/?token=token"), p.open("/?token=token")}
			p.signal(syscall.SIGTERM)
			for _, conn := range conns {
				if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
					t.Errorf("got %v, want Close 1001", err)
				}
				conn.Close()
			}
			p.exit(exitDrained)
			if conn, err := net.Dial("tcp", p.front); err == nil {
				conn.Close()
				t.Error("the port is still open")
			}
		})
	}
	t.Run("DRAIN_DELAY goes on accepting", func(t *testing.T) {
		p := startProgram(t, "DRAIN_DELAY=1h")
		p.signal(syscall.SIGTERM)
		p.await(`"msg":"draining"`)
		if resp, _ := ask(t, "GET", "http://"+p.admin+"/readyz"); resp.StatusCode != 503 {
			t.Errorf("/readyz: %d, want 503", resp.StatusCode)
		}
		p.mainJob()
		p.signal(syscall.SIGTERM)
		p.exit(exitFailed)
	})
	t.Run("DRAIN_DELAY is over", func(t *testing.T) {
		p := startProgram(t, "DRAIN_DELAY=10ms")
		p.signal(syscall.SIGTERM)
		p.exit(exitDrained)
	})

	// silent opens a session whose client does not read, and so does not answer a Close.
	silent := func(t *testing.T, environ ...string) *process {
		p := startProgram(t, environ...)
		p.open("/?token=token")
		p.signal(syscall.SIGTERM)
		p.await(`"msg":"draining"`)
		return p
	}
	t.Run("DRAIN_TIMEOUT runs out", func(t *testing.T) {
		p := silent(t, "DRAIN_TIMEOUT=300ms")
		p.exit(exitFailed)
	})
	t.Run("a second signal cuts", func(t *testing.T) {
		p := silent(t, "DRAIN_TIMEOUT=1h", "CLOSE_TIMEOUT=1h")
		p.signal(syscall.SIGTERM)
		p.exit(exitFailed)
	})
}
