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
	u.servers.mu.Lock()
	defer u.servers.mu.Unlock()
	begun := true
	for t, addresses := range found {
		_, known := u.servers.addresses[t.raw]
		begun = begun && known
		u.servers.addresses[t.raw] = addresses
	}
	u.setEndpoints(begun)
}

// setEndpoints makes the endpoints of what is known of the targets. fresh says that a server which nobody knew has just come up. The
// caller holds mu.
func (u *Upstream) setEndpoints(fresh bool) {
	var next []*endpoint
	for _, t := range u.targets {
		names := []string{t.address}
		if addresses := u.servers.addresses[t.raw]; len(addresses) > 1 {
			names = names[:0]
			_, port, _ := net.SplitHostPort(t.address)
			for _, a := range addresses {
				names = append(names, net.JoinHostPort(a.String(), port))
			}
		}
		for _, address := range names {
			name := t.name
			if len(names) > 1 {
				if name = address; t.name != t.authority {
					name += strings.TrimPrefix(t.name, t.authority)
				}
			}
			server, isNew := u.servers.enter(t, address, u.maxDials)
			if i := slices.IndexFunc(u.endpoints, func(e *endpoint) bool { return e.server == server && e.target == t && e.name == name }); i >= 0 {
				next = append(next, u.endpoints[i])
				continue
			}
			if isNew && fresh {
				server.since = time.Now()
			}
			e := &endpoint{target: t, address: address, name: name, server: server}
			e.transport = u.newTransport(e)
			next = append(next, e)
		}
	}
	u.leaveAll(u.endpoints, next)
	u.endpoints = next
}

// leaveAll has endpoints be u's no more, as often as they are there, and closes what only those have that are not among others. The caller
// holds servers.mu.
func (u *Upstream) leaveAll(endpoints, others []*endpoint) {
	for _, e := range endpoints {
		e.users--
		u.servers.forget(e.server)
		if !slices.Contains(others, e) {
			e.transport.CloseIdleConnections() // those in use end idleTime after their request
		}
	}
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
