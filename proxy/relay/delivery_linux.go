package relay

import (
	"crypto/tls"
	"net"
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
	if secured, is := c.(*tls.Conn); is {
		c = secured.NetConn()
	}
	tcp, is := c.(*net.TCPConn)
	if !is {
		return d, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return d, false
	}
	if raw.Control(func(fd uintptr) { d, ok = deliveryOn(int(fd)) }) != nil {
		return d, false
	}
	return d, ok
}
