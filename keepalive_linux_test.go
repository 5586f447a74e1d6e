package main

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// A dead client is found by the heartbeat, or by TCP where that is off. (Of a dead upstream package proxy sees to the same.)
func TestKeepAliveOfClients(t *testing.T) {
	for interval, want := range map[time.Duration]int{30 * time.Second: 0, 0: 1} {
		t.Run(interval.String(), func(t *testing.T) {
			var p program
			p.ListenAddrs, p.Proxy.Relay.PingInterval = []string{"127.0.0.1:0"}, interval
			all, err := p.listen()
			if err != nil {
				t.Fatal(err)
			}
			defer closeAll(all)
			l := all[0]
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, err := conn.(*net.TCPConn).SyscallConn()
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
