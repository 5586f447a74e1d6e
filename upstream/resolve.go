package upstream

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// lookupTimeout bounds one lookup.
const lookupTimeout = 5 * time.Second

// resolve looks the names of targets up, again and again, until ctx ends. A name that has several addresses is as many endpoints; one
// that has a single address, or cannot be looked up, is dialled by its name.
func (u *Upstream) resolve(ctx context.Context) {
	for {
		u.lookUp(ctx)
		select {
		case <-time.After(u.dnsRefresh - u.dnsRefresh/10 + rand.N(u.dnsRefresh/5+1)):
		case <-ctx.Done():
			return
		}
	}
}

func (u *Upstream) lookUp(ctx context.Context) {
	found := make(map[*target][]netip.Addr)
	for _, t := range u.targets {
		if t.isName {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			all, err := u.resolver.LookupNetIP(ctx, "ip", t.serverName)
			cancel()
			if err != nil {
				return // what was found before still holds
			}
			found[t] = oneFamily(all)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var next []*endpoint
	for _, t := range u.targets {
		names := []string{t.address}
		if addresses := found[t]; len(addresses) > 1 {
			names = names[:0]
			_, port, _ := net.SplitHostPort(t.address)
			for _, a := range addresses {
				names = append(names, net.JoinHostPort(a.String(), port))
			}
		}
		for _, address := range names {
			i := slices.IndexFunc(u.endpoints, func(e *endpoint) bool { return e.target == t && e.address == address })
			if i >= 0 {
				next = append(next, u.endpoints[i])
				continue
			}
			e := u.newEndpoint(t, address, t.name)
			if len(names) > 1 {
				if e.name = address; t.name != t.authority {
					e.name += strings.TrimPrefix(t.name, t.authority)
				}
				if u.resolved {
					e.since = time.Now() // it has just come
				}
			}
			next = append(next, e)
		}
	}
	u.endpoints, u.resolved = next, true
}

// oneFamily returns the addresses of IPv4, or those of IPv6 where there are no others: those of both are usually one machine.
func oneFamily(all []netip.Addr) (some []netip.Addr) {
	for i, a := range all {
		all[i] = a.Unmap()
	}
	slices.SortFunc(all, netip.Addr.Compare)
	for _, a := range slices.Compact(all) {
		if a.Is4() {
			some = append(some, a)
		}
	}
	if len(some) == 0 {
		return all
	}
	return some
}
