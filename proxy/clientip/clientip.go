// Package clientip finds the address a request comes from when proxies stand in front.
//
// X-Forwarded-For is a list to which every proxy on the way appends the address of whoever connected to it.
// Whatever stands to the left of the first entry that a trusted proxy wrote is the client's own text, so the
// list is read from the right, beginning with the TCP peer: while a hop is a trusted proxy, its entry is
// believed and becomes the next hop; the first hop that is not trusted is the client.
//
//	X-Forwarded-For: 6.6.6.6, 198.51.100.7, 10.0.0.2     peer 10.0.0.1, TRUSTED_PROXIES=10.0.0.0/8
//	                 forged   client        trusted           trusted
//
// The walk ends early, at the last trusted hop, if an entry is not an address. Such an entry (empty, "unknown",
// "unix:") says that the proxy did not know the address, and nobody vouches for the text to its left. An empty list
// element is such an entry, although RFC 9110 section 5.6.1 lets recipients skip it. If every hop is trusted, the
// leftmost is the client.
//
// Addresses are compared and handed out in one form: IPv4-mapped IPv6 (::ffff:192.0.2.1) becomes IPv4, and a zone
// (fe80::1%eth0) is dropped. Otherwise one host would have several names, and as many rate limits.
//
// Nothing is trusted by default but a peer on a unix socket. Each trusted proxy MUST append to X-Forwarded-For or replace it; one that passes it on
// unchanged lets the client write the list. The Forwarded header (RFC 7239) and X-Real-IP are not read: a proxy
// that maintains one header passes the client's copies of the others on untouched.
package clientip

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"portcullis/proxy/header"
)

// Config says which proxies are believed.
type Config struct {
	// TrustedProxies are the addresses and CIDR prefixes (10.0.0.0/8) of the proxies in front, whose X-Forwarded
	// headers are believed. Empty: none, so that the client is always the TCP peer.
	TrustedProxies []string `env:"TRUSTED_PROXIES"`
}

// maxHops bounds how many entries are read. No real chain comes near it. Only a client that is itself inside a
// trusted prefix can make a longer one, and that ends the walk as a malformed entry does.
const maxHops = 32

// maxEntry is the length of the longest entry worth parsing: an IPv6 address ending in dotted IPv4 (45) with
// brackets (2), a zone (1 + IF_NAMESIZE-1) and a port (6).
const maxEntry = 45 + 2 + 16 + 6

// Resolver tells where requests come from. It is immutable and safe for concurrent use. The zero Resolver trusts no proxy.
type Resolver struct {
	trusted []netip.Prefix // unmapped and masked
}

// New compiles the list of trusted proxies. The error joins all mistakes found, one line each.
func New(c Config) (*Resolver, error) {
	r := &Resolver{trusted: make([]netip.Prefix, 0, len(c.TrustedProxies))}
	var errs []error
	for _, s := range c.TrustedProxies {
		p, wrong := parsePrefix(s)
		if wrong != "" {
			errs = append(errs, fmt.Errorf("TRUSTED_PROXIES: %q %s; want an address or a CIDR prefix such as 10.0.0.0/8", s, wrong))
			continue
		}
		r.trusted = append(r.trusted, p)
	}
	for _, e := range clientRanges {
		if !slices.ContainsFunc(e.prefixes, func(p netip.Prefix) bool { return !covered(p, r.trusted) }) {
			errs = append(errs, fmt.Errorf("TRUSTED_PROXIES: %q trust every %s address, so that each client could name its own; want your own proxies alone",
				strings.Join(c.TrustedProxies, ","), e.family))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return r, nil
}

// clientRanges are the addresses that clients can have, by family: all of IPv4 below multicast (RFC 1112 section 4), and the
// global unicast addresses of IPv6 that are given out (RFC 4291 section 2.4).
var clientRanges = []struct {
	family   string
	prefixes []netip.Prefix
}{
	{"IPv4", []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/2"), netip.MustParsePrefix("192.0.0.0/3")}},
	{"IPv6", []netip.Prefix{netip.MustParsePrefix("2000::/3")}},
}

// covered reports whether each address in p is in one of prefixes.
func covered(p netip.Prefix, prefixes []netip.Prefix) bool {
	inside := false
	for _, other := range prefixes {
		if other.Bits() <= p.Bits() && other.Contains(p.Addr()) {
			return true
		}
		inside = inside || p.Contains(other.Addr())
	}
	if !inside {
		return false
	}
	lower := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	upper := lower.Addr().AsSlice()
	upper[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	addr, _ := netip.AddrFromSlice(upper)
	return covered(lower, prefixes) && covered(netip.PrefixFrom(addr, p.Bits()+1), prefixes)
}

// parsePrefix reads an address or a prefix, or says what is wrong with it.
func parsePrefix(s string) (_ netip.Prefix, wrong string) {
	var p netip.Prefix
	var err error
	if strings.Contains(s, "/") {
		p, err = netip.ParsePrefix(s)
	} else {
		var a netip.Addr
		a, err = netip.ParseAddr(s)
		p = netip.PrefixFrom(a, a.BitLen()) // drops the zone, which is refused below
	}
	switch {
	case strings.Contains(s, "%"):
		return p, "has a zone, and zones are not compared"
	case err != nil:
		return p, "is neither address nor prefix"
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, "is wider than the IPv4-mapped addresses it begins with"
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	switch {
	case p.Bits() == 0:
		// Every hop would be trusted, so the leftmost entry, the client's own text, would be believed.
		return p, "trusts everyone, so that each client could name its own address"
	case p != p.Masked():
		return p, fmt.Sprintf("has bits set beyond its length (did you mean %s?)", p.Masked())
	}
	return p, ""
}

// Client is where a request comes from.
type Client struct {
	// Addr is the client's address, unmapped and without zone: the key for limits and logs.
	// It is the zero Addr only if the TCP peer's is, or if a peer on a unix socket names none.
	Addr netip.Addr

	// Chain is the verified part of X-Forwarded-For, to be sent on in its place: the client first, then each trusted
	// hop, the TCP peer last. If the client is the peer, that is one entry. The slice belongs to the caller.
	Chain []netip.Addr

	// Proxied says that the TCP peer is a trusted proxy: its X-Forwarded-Proto and -Host may be believed.
	Proxied bool
}

// Resolve finds the client of a request that came over a connection from peer. forwardedFor holds the values of its
// X-Forwarded-For header in order; several lines are one list (RFC 9110 section 5.3), however they are divided.
// It never fails: in doubt the client is the hop that was verified last. A zero peer gives a zero Client.
func (r *Resolver) Resolve(peer netip.AddrPort, forwardedFor []string) Client {
	addr := canonical(peer.Addr())
	if !addr.IsValid() {
		return Client{}
	}
	if !r.trusts(addr) {
		return Client{Addr: addr, Chain: []netip.Addr{addr}}
	}
	chain := make([]netip.Addr, 1, 4) // client, two proxies and the peer without growing
	chain[0] = addr
	chain = r.walk(chain, forwardedFor)
	slices.Reverse(chain)
	return Client{Addr: chain[0], Chain: chain, Proxied: true}
}

// UnixPeer is the RemoteAddr of an http.Request that came over a unix socket. A path of the peer's own is not in it.
const UnixPeer = "@"

// ResolveUnix is Resolve for a peer on a unix socket. It has no address and counts as a trusted proxy: who may connect, the mode of the
// socket says. Without an entry in X-Forwarded-For nobody says who the client is, and Addr is zero.
func (r *Resolver) ResolveUnix(forwardedFor []string) Client {
	chain := r.walk(make([]netip.Addr, 0, 4), forwardedFor)
	if len(chain) == 0 {
		return Client{Proxied: true}
	}
	slices.Reverse(chain)
	return Client{Addr: chain[0], Chain: chain, Proxied: true}
}

// walk appends to chain, whose last hop is trusted, the hops before it, nearest first. It reads from the right and
// only as far as it must, so that a huge list costs no more than a short one.
func (r *Resolver) walk(chain []netip.Addr, lines []string) []netip.Addr {
	for _, line := range slices.Backward(lines) {
		for more := true; more; {
			if len(chain) > maxHops {
				return chain
			}
			var entry string
			line, entry, more = cutLast(line)
			addr, ok := parseEntry(entry)
			if !ok {
				return chain
			}
			chain = append(chain, addr)
			if !r.trusts(addr) {
				return chain
			}
		}
	}
	return chain
}

// Trusts reports whether a peer is a trusted proxy.
func (r *Resolver) Trusts(peer netip.Addr) bool { return r.trusts(canonical(peer)) }

// trusts reports whether addr, in canonical form, is a trusted proxy. The list is short: a scan beats anything clever.
func (r *Resolver) trusts(addr netip.Addr) bool {
	for _, p := range r.trusted {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// cutLast splits a list before its last entry. more is false when that was the only one.
func cutLast(list string) (rest, entry string, more bool) {
	i := strings.LastIndexByte(list, ',')
	if i < 0 {
		return "", list, false
	}
	return list[:i], list[i+1:], true
}

// parseEntry reads one entry of the list, surrounded by optional white space: an address, or an address and a port
// (192.0.2.1:5, [2001:db8::1]:5), as Azure's and Amazon's load balancers write it. The port is not used.
func parseEntry(s string) (_ netip.Addr, ok bool) {
	s = header.Trim(s)
	if len(s) > maxEntry {
		return netip.Addr{}, false
	}
	// A bare IPv6 address has two colons at least, so that one colon can only be a port's.
	if strings.HasPrefix(s, "[") || strings.Count(s, ":") == 1 {
		ap, err := netip.ParseAddrPort(s)
		return canonical(ap.Addr()), err == nil
	}
	addr, err := netip.ParseAddr(s)
	return canonical(addr), err == nil
}

// ParsePeer reads the RemoteAddr of an http.Request. It is zero if that is not an address and a port, as with a
// Unix socket.
func ParsePeer(remoteAddr string) netip.AddrPort {
	peer, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return netip.AddrPort{}
	}
	return peer
}

// Name is an address as the log has it. A peer on a unix socket has none.
func Name(a netip.Addr) string {
	if !a.IsValid() {
		return "unix"
	}
	return a.String()
}

// canonical gives each host one form. netip treats ::ffff:10.0.0.1 and 10.0.0.1 as different addresses, and a prefix
// contains no address with a zone.
func canonical(a netip.Addr) netip.Addr {
	return a.Unmap().WithZone("")
}
