package upstream

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// bindLate has the kernel choose a port when it knows where the connection goes, not when the address is bound: only then may one port
// serve connections to different targets (ip(7), IP_BIND_ADDRESS_NO_PORT).
func bindLate(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) // without it there are fewer ports, no more
	})
}
