package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis/proxy/relay"
	"portcullis/upstream"
)

// Reload has requests go by c from now on. Those under way keep to what they began with, and so do open sessions, but for the verifier
// that they are shown to again. The error joins every mistake, and then nothing has changed. Of c these are for New alone, and what they
// say is not looked at: Front, Fleet, API but for AdminToken, Session but for Groups, and of Relay the Engine and resumption.
func (p *Proxy) Reload(c Config) error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	if p.base.Err() != nil {
		return errors.New("it is shutting down")
	}
	before := p.current.Load()
	after, err := p.compile(c, before)
	if err == nil {
		err = p.awaitKeys(c.Auth.Timeout, before, after)
	}
	if err != nil {
		if after.auth != nil && after.auth != before.auth {
			after.auth.Close()
		}
		after.closeUpstreams()
		return err
	}
	p.begin(after)
	before.requests.close()
	if p.fleet != nil {
		p.fleet.SetLimits(c.Limits)
	}
	if p.operator != nil {
		p.operator.SetToken(c.API.AdminToken)
	}
	if after.auth != before.auth {
		before.auth.Close()
	}
	before.closeUpstreams()
	p.drainTargets(before, after)
	return nil
}

// awaitKeys waits until a new verifier can verify, for there was one that could.
func (p *Proxy) awaitKeys(timeout time.Duration, before, after *generation) error {
	if after.auth == before.auth {
		return nil
	}
	const every = 10 * time.Millisecond
	deadline := time.Now().Add(timeout)
	for {
		err := after.auth.Ready()
		if err == nil || before.auth.Ready() != nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the keys cannot be had: %w", err)
		}
		select {
		case <-time.After(every):
		case <-p.base.Done():
			return errors.New("it is shutting down")
		}
	}
}

// drainTargets ends the sessions whose targets are gone, on routes that say so.
func (p *Proxy) drainTargets(before, after *generation) {
	drains := make(map[string]upstream.Drain)
	for _, g := range []*generation{before, after} {
		for _, r := range g.routes {
			drains[r.Name] = r.Upstream.Drain()
		}
	}
	for _, r := range before.routes {
		drain := drains[r.Name]
		gone := func(route, target string) bool { return route == r.Name && !p.current.Load().has(route, target) }
		if drain.Code == 0 || !r.Upstream.Lacks(func(target string) bool { return gone(r.Name, target) }) {
			continue
		}
		p.leaving.Go(func() {
			closing := relay.Closing{Code: drain.Code, Reason: "server removed"}
			p.relay.DrainTargets(p.base, drain.Over, closing, gone)
			// Upgrades that went by the settings from before may have opened sessions meanwhile. Plain requests may last for hours.
			upgrades, cancel := context.WithTimeout(p.base, before.config.requestTimeout())
			defer cancel()
			before.requests.wait(upgrades)
			p.relay.DrainTargets(p.base, 0, closing, gone)
		})
	}
}

// has reports whether a target is one of a route's.
func (g *generation) has(route, target string) bool {
	for _, r := range g.routes {
		if r.Name == route {
			return r.Upstream.Has(target)
		}
	}
	return false
}
