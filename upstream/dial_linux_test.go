package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// deafAddress is a port whose accept queue is full: Linux drops the SYNs to it, so that a dial hangs.
func deafAddress(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	queued, err := net.Dial("tcp", address) // a queue of 0 takes one
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { queued.Close() })
	return address
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestCancelDuringDialLeaksNoDescriptor(t *testing.T) {
	u := newUpstream(t, Config{URL: "ws://" + deafAddress(t)})
	before := descriptors(t)
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(5*time.Millisecond, cancel) // in which the dial has come to wait for its SYN's answer
		_, err := u.Connect(ctx, &Request{})
		timer.Stop()
		cancel()
		if _, ok := errors.AsType[*DialError](err); !ok || !errors.Is(err, context.Canceled) {
			t.Fatalf("got error %v, want a DialError of the cancellation", err)
		}
	}
	if after := descriptors(t); after > before {
		t.Errorf("got %d descriptors, %d before", after, before)
	}
}

func TestDialTimeout(t *testing.T) {
	u := newUpstream(t, Config{URL: "ws://" + deafAddress(t), DialTimeout: 20 * time.Millisecond})
	_, err := u.Connect(t.Context(), &Request{})
	if e, ok := errors.AsType[*DialError](err); !ok || !e.Timeout() {
		t.Errorf("got error %v, want a DialError with Timeout", err)
	}
}
