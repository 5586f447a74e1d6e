package clientip

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// proxies is what the tests trust. The addresses of clients are from the documentation ranges of RFC 5737 and RFC 3849.
var proxies = []string{"10.0.0.0/8", "192.0.2.1", "2001:db8:aaaa::/48", "fe80::/10"}

func newResolver(t testing.TB, trusted ...string) *Resolver {
	t.Helper()
	r, err := New(Config{TrustedProxies: trusted})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func peer(addr string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), 40000)
}

func join(chain []netip.Addr) string {
	s := make([]string, len(chain))
	for i, a := range chain {
		s[i] = a.String()
	}
	return strings.Join(s, ", ")
}

// resolveTests also seed the fuzz tests. chain is the whole answer: its first entry is the client.
var resolveTests = []struct {
	name      string
	peer      string
	forwarded []string
	chain     string
	proxied   bool
}{
	{"no proxy, no header", "203.0.113.9", nil, "203.0.113.9", false},
	{"one proxy", "10.0.0.1", []string{"203.0.113.9"}, "203.0.113.9, 10.0.0.1", true},
	{"trusted proxy without header", "10.0.0.1", nil, "10.0.0.1", true},
	{"three hops", "10.0.0.1", []string{"203.0.113.9, 10.0.0.3, 10.0.0.2"}, "203.0.113.9, 10.0.0.3, 10.0.0.2, 10.0.0.1", true},
	{"trusted single address", "192.0.2.1", []string{"203.0.113.9"}, "203.0.113.9, 192.0.2.1", true},
	{"its neighbour is not", "192.0.2.2", []string{"203.0.113.9"}, "192.0.2.2", false},
	{"all trusted: the leftmost is the client", "10.0.0.1", []string{"10.9.9.9, 10.0.0.2"}, "10.9.9.9, 10.0.0.2, 10.0.0.1", true},
	{"IPv6", "2001:db8:aaaa::1", []string{"2001:db8:bbbb::9"}, "2001:db8:bbbb::9, 2001:db8:aaaa::1", true},
	{"IPv6 not in shortest form", "10.0.0.1", []string{"2001:DB8:0:0:0:0:0:9"}, "2001:db8::9, 10.0.0.1", true},

	{"lines are one list", "10.0.0.1", []string{"203.0.113.9", "10.0.0.3, 10.0.0.2"}, "203.0.113.9, 10.0.0.3, 10.0.0.2, 10.0.0.1", true},
	{"no space", "10.0.0.1", []string{"203.0.113.9,10.0.0.2"}, "203.0.113.9, 10.0.0.2, 10.0.0.1", true},
	{"spaces and tabs", "10.0.0.1", []string{" \t203.0.113.9\t ,\t10.0.0.2 "}, "203.0.113.9, 10.0.0.2, 10.0.0.1", true},
	{"IPv4 with port", "10.0.0.1", []string{"203.0.113.9:5, 10.0.0.2:65535"}, "203.0.113.9, 10.0.0.2, 10.0.0.1", true},
	{"IPv6 with port", "10.0.0.1", []string{"[2001:db8::9]:5"}, "2001:db8::9, 10.0.0.1", true},

	// What is malformed ends the walk at the last trusted hop, also when something plausible stands left of it.
	{"malformed: word", "10.0.0.1", []string{"203.0.113.9, unknown"}, "10.0.0.1", true},
	{"malformed: after a good hop", "10.0.0.1", []string{"203.0.113.9, unknown, 10.0.0.2"}, "10.0.0.2, 10.0.0.1", true},
	{"malformed: empty header", "10.0.0.1", []string{""}, "10.0.0.1", true},
	{"malformed: empty element", "10.0.0.1", []string{"203.0.113.9, , 10.0.0.2"}, "10.0.0.2, 10.0.0.1", true},
	{"malformed: empty line", "10.0.0.1", []string{"203.0.113.9", "", "10.0.0.2"}, "10.0.0.2, 10.0.0.1", true},
	{"malformed: trailing comma", "10.0.0.1", []string{"203.0.113.9,"}, "10.0.0.1", true},
	{"malformed: Unix socket of nginx", "10.0.0.1", []string{"203.0.113.9, unix:"}, "10.0.0.1", true},
	{"malformed: quotes", "10.0.0.1", []string{`"203.0.113.9"`}, "10.0.0.1", true},
	{"malformed: RFC 7239 pair", "10.0.0.1", []string{"for=203.0.113.9"}, "10.0.0.1", true},
	{"malformed: brackets around IPv4", "10.0.0.1", []string{"[203.0.113.9]:5"}, "10.0.0.1", true},
	{"malformed: empty port", "10.0.0.1", []string{"203.0.113.9:"}, "10.0.0.1", true},
	{"malformed: port too large", "10.0.0.1", []string{"203.0.113.9:65536"}, "10.0.0.1", true},
	{"malformed: prefix", "10.0.0.1", []string{"203.0.113.0/24"}, "10.0.0.1", true},
	{"malformed: no-break space", "10.0.0.1", []string{"203.0.113.9\u00a0"}, "10.0.0.1", true},
	{"malformed: fullwidth digits", "10.0.0.1", []string{"２03.0.113.9"}, "10.0.0.1", true},

	// Several spellings of one host must be one key.
	{"peer IPv4-mapped", "::ffff:203.0.113.9", nil, "203.0.113.9", false},
	{"trusted peer IPv4-mapped", "::ffff:10.0.0.1", []string{"203.0.113.9"}, "203.0.113.9, 10.0.0.1", true},
	{"entries IPv4-mapped", "10.0.0.1", []string{"::ffff:203.0.113.9, ::ffff:10.0.0.2"}, "203.0.113.9, 10.0.0.2, 10.0.0.1", true},
	{"entry IPv4-mapped in hexadecimal", "10.0.0.1", []string{"::ffff:cb00:7109"}, "203.0.113.9, 10.0.0.1", true},
	{"entry IPv4-mapped with port", "10.0.0.1", []string{"[::ffff:203.0.113.9]:5"}, "203.0.113.9, 10.0.0.1", true},
	{"peer with zone", "fe80::1%eth0", []string{"203.0.113.9"}, "203.0.113.9, fe80::1", true},
	{"entry with zone", "10.0.0.1", []string{"2001:db8::9%x"}, "2001:db8::9, 10.0.0.1", true},
	{"trusted entry with zone and port", "10.0.0.1", []string{"203.0.113.9, [fe80::2%eth1]:80"}, "203.0.113.9, fe80::2, 10.0.0.1", true},
	{"malformed: empty zone", "10.0.0.1", []string{"fe80::2%"}, "10.0.0.1", true},
	{"malformed: zone on IPv4", "10.0.0.1", []string{"203.0.113.9%eth0"}, "10.0.0.1", true},
}

func TestResolve(t *testing.T) {
	r := newResolver(t, proxies...)
	for _, tt := range resolveTests {
		t.Run(tt.name, func(t *testing.T) {
			got := r.Resolve(peer(tt.peer), tt.forwarded)
			if join(got.Chain) != tt.chain {
				t.Errorf("chain = %s, want %s", join(got.Chain), tt.chain)
			}
			if got.Addr != got.Chain[0] {
				t.Errorf("address = %s, want the chain's first, %s", got.Addr, got.Chain[0])
			}
			if got.Proxied != tt.proxied {
				t.Errorf("proxied = %t, want %t", got.Proxied, tt.proxied)
			}
		})
	}
}

// Nothing is trusted unless it was named: neither by New with an empty list nor by a Resolver that nobody made.
func TestSpoofedHeaderFromUntrustedPeerIsIgnored(t *testing.T) {
	for name, r := range map[string]*Resolver{"empty": newResolver(t), "zero": {}, "others": newResolver(t, proxies...)} {
		for _, header := range [][]string{{"127.0.0.1"}, {"10.0.0.1"}, {"::1", "10.0.0.1"}, {strings.Repeat("10.0.0.1,", 1e5)}} {
			got := r.Resolve(peer("203.0.113.66"), header)
			if join(got.Chain) != "203.0.113.66" || got.Proxied {
				t.Errorf("%s: %.40q gives %s, proxied %t; want the peer alone", name, header, join(got.Chain), got.Proxied)
			}
		}
	}
}

// CVE-2020-28483 (gin): the leftmost entry was taken for the client, although that is what the client sent.
func TestSpoofedLeftmostEntriesAreIgnored(t *testing.T) {
	r := newResolver(t, proxies...)
	for _, spoof := range [][]string{
		{"127.0.0.1, 203.0.113.66"},
		{"10.0.0.9, 10.0.0.8, 203.0.113.66"}, // as if it had come through trusted proxies
		{"127.0.0.1", "203.0.113.66"},        // the proxy added a line of its own
		{"not an address", "203.0.113.66"},
		{"198.51.100.1,,,,,,203.0.113.66"},
	} {
		got := r.Resolve(peer("10.0.0.1"), spoof)
		if want := "203.0.113.66, 10.0.0.1"; join(got.Chain) != want {
			t.Errorf("%q gives %s, want %s", spoof, join(got.Chain), want)
		}
	}
}

// CVE-2021-29922, CVE-2021-29923: 010.0.0.1 is 10.0.0.1 to one parser and 8.0.0.1 to the next. The other forms are
// those of inet_aton(3).
func TestAmbiguousIPv4IsMalformed(t *testing.T) {
	r := newResolver(t, proxies...)
	for _, entry := range []string{"010.0.0.1", "0x0a.0.0.1", "167772161", "10.1", "10.0.0.1.", "10.0.0.256"} {
		got := r.Resolve(peer("10.0.0.1"), []string{"203.0.113.66, " + entry})
		if join(got.Chain) != "10.0.0.1" {
			t.Errorf("%q gives %s, want the peer alone", entry, join(got.Chain))
		}
	}
}

// CVE-2024-24790 is of this kind: an IPv4-mapped address was not recognised as what it stands for. A client that is
// limited as 203.0.113.66 must not get a second budget as ::ffff:203.0.113.66, nor one for each zone it invents.
func TestOneHostIsOneKey(t *testing.T) {
	r := newResolver(t, proxies...)
	for want, spellings := range map[string][]string{
		"203.0.113.66": {"203.0.113.66", "::ffff:203.0.113.66", "::FFFF:cb00:7142", "0:0:0:0:0:ffff:203.0.113.66", "203.0.113.66:1", "[::ffff:203.0.113.66]:2"},
		"2001:db8::66": {"2001:db8::66", "2001:0DB8::0066", "2001:db8::66%1", "2001:db8::66%2", "[2001:db8::66%eth0]:3"},
	} {
		for _, s := range spellings {
			if got := r.Resolve(peer("10.0.0.1"), []string{s}).Addr; got != netip.MustParseAddr(want) {
				t.Errorf("%q gives the key %s, want %s", s, got, want)
			}
		}
	}
}

// A client inside a trusted prefix can send as long a list of trusted addresses as the header limit lets it.
func TestHugeListsAreBounded(t *testing.T) {
	r := newResolver(t, proxies...)
	for _, tt := range []struct {
		name      string
		forwarded []string
		hops      int // of the chain, the peer included
	}{
		{"entries", []string{strings.Repeat("10.0.0.2, ", 1e5) + "10.0.0.2"}, maxHops + 1},
		{"lines", slices.Repeat([]string{"10.0.0.2"}, 1e5), maxHops + 1},
		{"just short enough", slices.Repeat([]string{"10.0.0.2"}, maxHops), maxHops + 1},
		{"empty entries", []string{strings.Repeat(",", 1<<20)}, 1},
		{"empty lines", make([]string, 1e5), 1},
		{"one long entry", []string{strings.Repeat("1", 1<<20)}, 1},
		{"one long zone", []string{"fe80::1%" + strings.Repeat("z", 1<<20)}, 1},
		{"white space", []string{strings.Repeat(" ", 1<<20) + "10.0.0.2" + strings.Repeat("\t", 1<<20)}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.Resolve(peer("10.0.0.1"), tt.forwarded); len(got.Chain) != tt.hops {
				t.Errorf("%d hops, want %d", len(got.Chain), tt.hops)
			}
			allocs := testing.AllocsPerRun(10, func() { r.Resolve(peer("10.0.0.1"), tt.forwarded) })
			if allocs > 8 {
				t.Errorf("%v allocations, want a handful", allocs)
			}
		})
	}
}

// The longest honest entry must still be read.
func TestLongestEntry(t *testing.T) {
	const entry = "[0000:0000:0000:0000:0000:0001:255.255.255.255%abcdefghijklmno]:65535"
	if len(entry) != maxEntry {
		t.Fatalf("the entry has %d bytes, want %d", len(entry), maxEntry)
	}
	if got, ok := parseEntry(entry); !ok || got != netip.MustParseAddr("::1:ffff:ffff") {
		t.Errorf("got %s, %t", got, ok)
	}
}

func TestZeroPeerGivesZeroClient(t *testing.T) {
	got := newResolver(t, proxies...).Resolve(netip.AddrPort{}, []string{"203.0.113.9"})
	if got.Addr.IsValid() || got.Chain != nil || got.Proxied {
		t.Errorf("got %+v, want the zero Client", got)
	}
}

// A peer on a unix socket is trusted and has no address: the client is whom it names, and nobody where it names none.
func TestResolveUnix(t *testing.T) {
	r := newResolver(t, proxies...)
	for _, tt := range []struct {
		forwarded []string
		want      string
	}{
		{nil, ""},
		{[]string{""}, ""},
		{[]string{"unknown"}, ""},
		{[]string{"203.0.113.9, unix:"}, ""},
		{[]string{"203.0.113.9"}, "203.0.113.9"},
		{[]string{"6.6.6.6, 203.0.113.9"}, "203.0.113.9"},
		{[]string{"6.6.6.6", "203.0.113.9, 10.0.0.1"}, "203.0.113.9, 10.0.0.1"},
		{[]string{"unknown, 10.0.0.2, 10.0.0.1"}, "10.0.0.2, 10.0.0.1"},
	} {
		got := r.ResolveUnix(tt.forwarded)
		if join(got.Chain) != tt.want || !got.Proxied || got.Addr.IsValid() != (tt.want != "") || tt.want != "" && got.Addr != got.Chain[0] {
			t.Errorf("%q: got %+v, want %q", tt.forwarded, got, tt.want)
		}
	}
}

func TestParsePeer(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"203.0.113.9:443", "203.0.113.9:443"},
		{"[2001:db8::1]:443", "[2001:db8::1]:443"},
		{"[fe80::1%eth0]:443", "[fe80::1%eth0]:443"},
		{"", "invalid AddrPort"},
		{"@", "invalid AddrPort"}, // a Unix socket
		{"pipe", "invalid AddrPort"},
		{"203.0.113.9", "invalid AddrPort"},
		{"203.0.113.9:http", "invalid AddrPort"},
		{"localhost:80", "invalid AddrPort"},
	} {
		if got := ParsePeer(tt.in).String(); got != tt.want {
			t.Errorf("ParsePeer(%q) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestNew(t *testing.T) {
	const want = "; want an address or a CIDR prefix such as 10.0.0.0/8"
	const own = ", so that each client could name its own; want your own proxies alone"
	for _, tt := range []struct {
		name    string
		trusted []string
		err     string
	}{
		{"none", nil, ""},
		{"all kinds", []string{"10.0.0.1", "10.0.0.0/8", "::1", "fd00::/8", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104"}, ""},
		{"empty", []string{""}, `TRUSTED_PROXIES: "" is neither address nor prefix` + want},
		{"name", []string{"proxy.internal"}, `TRUSTED_PROXIES: "proxy.internal" is neither address nor prefix` + want},
		{"too long", []string{"10.0.0.0/33"}, `TRUSTED_PROXIES: "10.0.0.0/33" is neither address nor prefix` + want},
		{"port", []string{"10.0.0.1:80"}, `TRUSTED_PROXIES: "10.0.0.1:80" is neither address nor prefix` + want},
		{"zone", []string{"fe80::1%eth0"}, `TRUSTED_PROXIES: "fe80::1%eth0" has a zone, and zones are not compared` + want},
		{"zone in prefix", []string{"fe80::%eth0/64"}, `TRUSTED_PROXIES: "fe80::%eth0/64" has a zone, and zones are not compared` + want},
		{"host bits", []string{"10.1.2.3/8"}, `TRUSTED_PROXIES: "10.1.2.3/8" has bits set beyond its length (did you mean 10.0.0.0/8?)` + want},
		{"everyone", []string{"0.0.0.0/0"}, `TRUSTED_PROXIES: "0.0.0.0/0" trusts everyone, so that each client could name its own address` + want},
		{"everyone, IPv6", []string{"::/0"}, `TRUSTED_PROXIES: "::/0" trusts everyone, so that each client could name its own address` + want},
		{"everyone, mapped", []string{"::ffff:0.0.0.0/96"}, `TRUSTED_PROXIES: "::ffff:0.0.0.0/96" trusts everyone, so that each client could name its own address` + want},
		{"everyone in halves", []string{"0.0.0.0/1", "128.0.0.0/1"}, `TRUSTED_PROXIES: "0.0.0.0/1,128.0.0.0/1" trust every IPv4 address` + own},
		{"everyone in pieces", []string{"192.0.0.0/3", "10.0.0.1", "64.0.0.0/2", "0.0.0.0/2", "128.0.0.0/2", "fd00::/8"},
			`TRUSTED_PROXIES: "192.0.0.0/3,10.0.0.1,64.0.0.0/2,0.0.0.0/2,128.0.0.0/2,fd00::/8" trust every IPv4 address` + own},
		{"everyone of IPv6", []string{"2000::/4", "3000::/4"}, `TRUSTED_PROXIES: "2000::/4,3000::/4" trust every IPv6 address` + own},
		{"all but a piece", []string{"0.0.0.0/2", "64.0.0.0/3", "96.0.0.0/4", "112.0.0.0/5", "120.0.0.0/6", "124.0.0.0/7", "126.0.0.0/8", "128.0.0.0/1"}, ""},
		{"wider than mapped", []string{"::ffff:0.0.0.0/80"}, `TRUSTED_PROXIES: "::ffff:0.0.0.0/80" is wider than the IPv4-mapped addresses it begins with` + want},
		{
			"all mistakes at once", []string{"x", "10.0.0.0/8", "y"},
			`TRUSTED_PROXIES: "x" is neither address nor prefix` + want + "\n" + `TRUSTED_PROXIES: "y" is neither address nor prefix` + want,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(Config{TrustedProxies: tt.trusted})
			if got := fmt.Sprint(err); got != tt.err && !(err == nil && tt.err == "") {
				t.Errorf("error\n%s\nwant\n%s", got, tt.err)
			}
		})
	}
}

// A prefix written in the IPv4-mapped form must match what the walk compares it with.
func TestMappedPrefixMatchesIPv4(t *testing.T) {
	r := newResolver(t, "::ffff:10.0.0.0/104")
	if got := r.Resolve(peer("10.0.0.1"), []string{"203.0.113.9"}).Addr; got != netip.MustParseAddr("203.0.113.9") {
		t.Errorf("client = %s, want 203.0.113.9", got)
	}
}
