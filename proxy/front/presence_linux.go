package front

import "golang.org/x/sys/unix"

// peerState asks the kernel, and reads nothing: whether the peer has shut its direction, and whether the connection is
// broken, by its reset or for want of any sign of it. A connection of ours that is closed already is neither.
func peerState(conn socket) (shut, reset bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, false
	}
	raw.Control(func(fd uintptr) {
		state := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(state, 0); n == 1 && err == nil {
			shut = state[0].Revents&unix.POLLRDHUP != 0
			reset = state[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		}
	})
	return shut, reset
}
