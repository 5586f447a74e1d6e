package clientip

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzSpoof plays a client behind one honest proxy. Whatever it sends, in however many lines, the proxy appends the
// client's true address, either to the last line (nginx) or in a line of its own (HAProxy), and that is who it is.
func FuzzSpoof(f *testing.F) {
	for _, tt := range resolveTests {
		f.Add(strings.Join(tt.forwarded, "\n"))
	}
	r := newResolver(f, proxies...)
	f.Fuzz(func(t *testing.T, sent string) {
		const client, want = "203.0.113.66", "203.0.113.66, 10.0.0.1"
		lines := strings.Split(sent, "\n")

		own := append(lines[:len(lines):len(lines)], client)
		if got := r.Resolve(peer("10.0.0.1"), own); join(got.Chain) != want {
			t.Errorf("%q gives %s, want %s", own, join(got.Chain), want)
		}
		lines[len(lines)-1] += ", " + client
		if got := r.Resolve(peer("10.0.0.1"), lines); join(got.Chain) != want {
			t.Errorf("%q gives %s, want %s", lines, join(got.Chain), want)
		}
	})
}

// FuzzResolve checks what a Client promises, for lists that begin in a trusted network.
func FuzzResolve(f *testing.F) {
	for _, tt := range resolveTests {
		f.Add(strings.Join(tt.forwarded, "\n"))
	}
	r := newResolver(f, proxies...)
	f.Fuzz(func(t *testing.T, sent string) {
		lines := strings.Split(sent, "\n")
		got := r.Resolve(peer("10.0.0.1"), lines)

		n := len(got.Chain)
		if n == 0 || n > maxHops+1 || got.Chain[0] != got.Addr || got.Chain[n-1] != netip.MustParseAddr("10.0.0.1") {
			t.Fatalf("%q: client %s of chain %s", lines, got.Addr, join(got.Chain))
		}
		for i, a := range got.Chain {
			if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
				t.Errorf("%q: hop %s is not canonical", lines, a)
			}
			if i > 0 && !r.trusts(a) {
				t.Errorf("%q: hop %s behind the client is not trusted", lines, a)
			}
		}
		// What is sent on must mean to the next hop what it means here.
		if again := r.Resolve(peer("10.0.0.1"), []string{join(got.Chain[:n-1])}); join(again.Chain) != join(got.Chain) {
			t.Errorf("%q: the chain %s is read as %s", lines, join(got.Chain), join(again.Chain))
		}
	})
}

// FuzzParseEntry checks that an entry is one canonical address or none, and that what is printed is read as the same.
func FuzzParseEntry(f *testing.F) {
	for _, tt := range resolveTests {
		for _, line := range tt.forwarded {
			for entry := range strings.SplitSeq(line, ",") {
				f.Add(entry)
			}
		}
	}
	f.Fuzz(func(t *testing.T, entry string) {
		addr, ok := parseEntry(entry)
		if !ok {
			return
		}
		if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
			t.Errorf("%q gives %s, not canonical", entry, addr)
		}
		for _, printed := range []string{addr.String(), netip.AddrPortFrom(addr, 1).String()} {
			if again, ok := parseEntry(printed); !ok || again != addr {
				t.Errorf("%q gives %s, which is read as %s, %t", entry, addr, again, ok)
			}
		}
	})
}
