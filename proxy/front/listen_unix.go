//go:build unix

package front

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketMode is that of a unix socket: who may write to it may connect.
const socketMode = 0o660

// keepPrivate has the file of a unix socket begin with no more than its mode, before anyone can connect, where the system takes the mode
// of the socket for that.
func keepPrivate(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) { _ = unix.Fchmod(int(fd), socketMode) })
}

// accepts reports whether a socket is one that listens.
func accepts(f *os.File) (listens bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		listens = err == nil && n != 0
	})
	return listens
}
