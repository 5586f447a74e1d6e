package gate

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
)

// shortages are the errors that a process gets for want of something of its own, or of its machine's.
var shortages = []syscall.Errno{
	syscall.EMFILE,  // descriptors of the process
	syscall.ENFILE,  // descriptors of the machine
	syscall.ENOMEM,  // memory of the kernel
	syscall.ENOBUFS, // memory for sockets
}

// Exhausted reports whether a connection could not be made for want of something on this side, be it a descriptor, memory or
// a port: whoever was to be reached is not to be blamed.
func Exhausted(err error) bool {
	lookup, isLookup := errors.AsType[*net.DNSError](err)
	for _, errno := range shortages {
		// The resolver keeps no more of an error than its text.
		if errors.Is(err, errno) || isLookup && strings.HasSuffix(lookup.Err, errno.Error()) {
			return true
		}
	}
	// No port is left from this address to that one. From IPv6 it may also say that there is no IPv6 here.
	op, _ := errors.AsType[*net.OpError](err)
	if op == nil || !errors.Is(err, syscall.EADDRNOTAVAIL) {
		return false
	}
	to, _ := op.Addr.(*net.TCPAddr)
	return to != nil && to.IP.To4() != nil
}

// ObserveAuth counts one call of a verifier, by its error.
func ObserveAuth(m *admin.Metrics, took time.Duration, err error) {
	_, unavailable := errors.AsType[*auth.UnavailableError](err)
	result := admin.AuthRefused
	switch {
	case err == nil:
		result = admin.AuthAccepted
	case Exhausted(err):
		result = admin.AuthOverload
	case unavailable:
		result = admin.AuthUnavailable
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		result = admin.AuthAborted
	}
	m.AuthCall(result, took)
}
