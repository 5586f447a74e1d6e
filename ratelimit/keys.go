package ratelimit

import (
	"crypto/sha256"
	"net/netip"
)

// AddressKey is the key of a client's limits: an IPv4 address, or the /64 of an
// IPv6 address, because a subscriber is given at least that, with 2^64 addresses
// to choose from (RFC 6177, section 2). An IPv4-mapped address is an IPv4 address,
// and zones are dropped. All invalid addresses share one key,
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

// subjectKey stands for a subject in tables. All have the same size, however long
// the subject is, and nobody can find two subjects with the same key.
type subjectKey [sha256.Size]byte

func keyOfSubject(subject string) subjectKey {
	return sha256.Sum256([]byte(subject))
}
