package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// read and write are the system calls on a non-blocking descriptor, made
// without telling Go's scheduler. It expects a system call to block, and takes
// the processor away from one that lasts for 20 µs; a write on the loopback, which
// delivers to the receiver before it returns, does so often enough, and
// to get a processor back costs more than the call.
//
// They differ from unix.Read and unix.Write in that n is 0 where there is an error.

func read(fd int32, b []byte) (n int, err error) {
	return transfer(unix.SYS_READ, fd, b)
}

func write(fd int32, b []byte) (n int, err error) {
	return transfer(unix.SYS_WRITE, fd, b)
}

func transfer(call uintptr, fd int32, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
