package proxy

import (
	"net"
	"syscall"
	"testing"
	"time"

	"portcullis/upstream"
)

// A dead upstream is found by the heartbeat, or by TCP where that is off: with PING_INTERVAL=0s its sessions stayed for ever.
func TestKeepAliveOfUpstreams(t *testing.T) {
	for interval, want := range map[time.Duration]int{30 * time.Second: 0, 0: 1} {
		t.Run(interval.String(), func(t *testing.T) {
			g := newGate(t, newBackend(t, nil).url, func(c *Config) { c.Relay.PingInterval = interval })
			conn, err := g.current.Load().routes[0].Upstream.Connect(t.Context(), &upstream.Request{})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, err := conn.Conn.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				if got, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE); err != nil || got != want {
					t.Errorf("SO_KEEPALIVE is %d, %v; want %d", got, err, want)
				}
			})
		})
	}
}
