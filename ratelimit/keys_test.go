package ratelimit

import (
	"net/netip"
	"testing"
)

func TestAddressKey(t *testing.T) {
	for _, test := range []struct{ name, addr, want string }{
		{"IPv4", "192.0.2.1", "192.0.2.1/32"},
		{"IPv4-mapped", "::ffff:192.0.2.1", "192.0.2.1/32"},
		{"IPv6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		{"IPv6 with zone", "fe80::1%eth0", "fe80::/64"},
		{"IPv4-mapped with zone", "::ffff:192.0.2.1%eth0", "192.0.2.1/32"},
		{"loopback", "::1", "::/64"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := AddressKey(netip.MustParseAddr(test.addr)).String(); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	if got := AddressKey(netip.Addr{}); got != (netip.Prefix{}) {
		t.Errorf("invalid address: got %v, want the zero key", got)
	}
}
