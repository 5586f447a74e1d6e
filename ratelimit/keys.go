package ratelimit

import (
	"crypto/sha256"
	"net/netip"
)

// AddressKey is what a client's limits are kept by: an IPv4 address, or the /64
// of an IPv6 address, for that is the least a subscriber is given, with 2^64
// addresses to choose from (RFC 6177, section 2). An IPv4-mapped address is an
// IPv4 address, and zones do not count. All invalid addresses share one key,
// the zero Prefix.
func AddressKey(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	key, _ := addr.Prefix(bits) // no error: the address has as many bits
	return key
}

// subjectKey stands for a subject in tables: of one size however long the
// subject is, and without a second subject that anybody could find to share it.
type subjectKey [sha256.Size]byte

func keyOf(subject string) subjectKey {
	return sha256.Sum256([]byte(subject))
}
