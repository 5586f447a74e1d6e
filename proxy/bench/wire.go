//go:build linux

package main

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// The example of RFC 6455 section 1.3. One key is enough: there are no caches to guard against.
const (
	handshakeKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	handshakeAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// token is the client's, and the one that the token endpoint accepts.
const token = "benchmark"

// maskKey masks every frame of the client. It is not 0, so that a proxy that unmasks has its work to do.
const maskKey uint32 = 0x3d21fa37

const (
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xa
)

// message is one binary message, made once and used by every connection.
type message struct {
	payload int
	sent    []byte // the masked frame, as a client sends it
	echoed  []byte // the frame that must come back
}

func newMessage(payload int) message {
	body := make([]byte, payload)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range body {
		body[i] = byte(rnd.Uint32())
	}

	echoed := append(header(payload), body...)
	sent := header(payload)
	sent[1] |= 0x80
	sent = binary.LittleEndian.AppendUint32(sent, maskKey)
	xor(body, maskKey)
	return message{payload: payload, sent: append(sent, body...), echoed: echoed}
}

// header returns the header of an unmasked final binary frame, RFC 6455 section 5.2.
func header(payload int) []byte {
	h := []byte{0x80 | opBinary}
	switch {
	case payload < 126:
		return append(h, byte(payload))
	case payload < 1<<16:
		return binary.BigEndian.AppendUint16(append(h, 126), uint16(payload))
	default:
		return binary.BigEndian.AppendUint64(append(h, 127), uint64(payload))
	}
}

// xor masks or unmasks b, eight bytes at a time, and returns the key rotated for the byte that follows.
func xor(b []byte, key uint32) uint32 {
	wide := uint64(key)<<32 | uint64(key)
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(key)
		key = bits.RotateLeft32(key, -8)
	}
	return key
}

// acceptKey is the Sec-WebSocket-Accept of a key, RFC 6455 section 4.2.2.
func acceptKey(key []byte) string {
	sum := sha1.Sum(append(key[:len(key):len(key)], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// edgeTriggered are the events for which client and server watch a connection: added once, so that no message costs an
// epoll_ctl.
const edgeTriggered = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// watch adds fd to an epoll. Its events carry tag.
func watch(epoll, fd, tag int, events uint32) error {
	return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(tag)})
}

// tune makes a connection answer at once and close with a reset: an orderly close would leave a TIME_WAIT behind for
// each of many thousands, and the ports would run out.
func tune(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
