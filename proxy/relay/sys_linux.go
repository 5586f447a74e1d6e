package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// read and write are the system calls on a non-blocking socket, made without
// telling Go's scheduler. It expects a system call to block, and takes the
// processor away from one that lasts for 20 µs; a write on the loopback, which
// delivers to the receiver before it returns, does so often enough, and to get a
// processor back costs more than the call. Underneath they are recvfrom and
// sendto, which come without what read and write do for files.
//
// They differ from unix.Read and unix.Write in that n is 0 where there is an error.

func read(fd int32, b []byte) (n int, err error) {
	return transfer(unix.SYS_RECVFROM, fd, b, 0)
}

func write(fd int32, b []byte) (n int, err error) {
	return transfer(unix.SYS_SENDTO, fd, b, unix.MSG_NOSIGNAL)
}

func transfer(call uintptr, fd int32, b []byte, flags uintptr) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// poll is epoll_wait, made likewise, for at most so many milliseconds. A signal
// ends it early, Go's own above all, with which it stops the world.
func poll(epoll int, events []unix.EpollEvent, ms int) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT,
		uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(ms), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
