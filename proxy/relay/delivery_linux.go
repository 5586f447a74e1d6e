package relay

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// deliveryOn asks the kernel about a TCP socket: tcp(7), TCP_INFO and SIOCOUTQ.
func deliveryOn(fd int) (d delivery, ok bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return d, false
	}
	queued, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return d, false
	}
	return delivery{
		acked:  info.Bytes_acked,
		queued: uint64(queued),
		quiet:  moment(info.Last_ack_recv) * moment(time.Millisecond),
	}, true
}

// deliveryOf asks about the socket below c, TLS or not.
func deliveryOf(c net.Conn) (d delivery, ok bool) {
	onSocket(c, func(fd int) { d, ok = deliveryOn(fd) })
	return d, ok
}

// hungUpOf asks what has become of the connection: tcp(7), TCP_INFO. One in which both directions
// have been shut in order is told as broken.
func hungUpOf(c net.Conn) (fin, broken bool) {
	onSocket(c, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		switch info.State {
		case unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING, unix.BPF_TCP_TIME_WAIT:
			fin = true
		case unix.BPF_TCP_CLOSE:
			fin, broken = true, true
		}
	})
	return fin, broken
}

// onSocket calls f with the socket below c, TLS or not, if it can be had.
func onSocket(c net.Conn, f func(fd int)) {
	if secured, is := c.(*tls.Conn); is {
		c = secured.NetConn()
	}
	socket, is := c.(syscall.Conn) // which below TLS may be a wrapper of the front's
	if !is {
		return
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { f(int(fd)) })
}
