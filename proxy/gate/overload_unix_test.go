//go:build unix

package gate

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestExhausted(t *testing.T) {
	dial := func(address string, err error) error {
		to, _ := net.ResolveTCPAddr("tcp", address)
		return fmt.Errorf("dial upstream: %w", &net.OpError{Op: "dial", Addr: to, Err: os.NewSyscallError("connect", err)})
	}
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"none", nil, false},
		{"descriptors of the process", dial("127.0.0.1:1", syscall.EMFILE), true},
		{"descriptors of the machine", dial("127.0.0.1:1", syscall.ENFILE), true},
		{"memory", dial("127.0.0.1:1", syscall.ENOMEM), true},
		{"memory for sockets", dial("[::1]:1", syscall.ENOBUFS), true},
		{"ports", dial("192.0.2.1:1", syscall.EADDRNOTAVAIL), true},
		{"ports, or no IPv6 at all", dial("[::1]:1", syscall.EADDRNOTAVAIL), false},
		{"refused", dial("127.0.0.1:1", syscall.ECONNREFUSED), false},
		{"unreachable", dial("127.0.0.1:1", syscall.ENETUNREACH), false},
		{"not resolved for want of a descriptor", &net.DNSError{Err: "dial udp 192.0.2.1:53: socket: too many open files"}, true},
		{"not resolved", &net.DNSError{Err: "no such host"}, false},
		{"a name that says so", &net.DNSError{Err: "no such host", Name: "too many open files"}, false},
		{"an address that is none", syscall.EADDRNOTAVAIL, false},
	} {
		if got := Exhausted(tt.err); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
}
