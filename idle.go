package main

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"portcullis/ratelimit"
)

// idle returns a mistake for each setting that another one takes the effect from: an operator who sets it believes in
// something that does not happen. changed has the values of those that are set to something else than their default.
func (s *settings) idle(changed map[string]string) error {
	var mistakes []error
	for _, rule := range []struct {
		idle  bool
		names []string
		wrong string
	}{
		{s.Proxy.Relay.PingInterval == 0, []string{"PONG_TIMEOUT"},
			"has no effect without pings; want it unset, or PING_INTERVAL above 0s"},
		{s.Proxy.Limits.Messages.N == 0 && s.Proxy.Limits.MessageBytes.N == 0, []string{"MESSAGE_LIMIT_ACTION"},
			"has no effect without a limit; want it unset, or MESSAGE_RATE or MESSAGE_BYTE_RATE set"},
		{!s.Proxy.Tickets, []string{"TICKET_TTL", "TICKET_BIND_IP"},
			"has no effect without tickets; want it unset, or TICKETS=true"},
		{!s.Proxy.FirstMessage, []string{"AUTH_FIRST_MESSAGE_FORMAT", "AUTH_FIRST_MESSAGE_TIMEOUT", "AUTH_FIRST_MESSAGE_MAX"},
			"has no effect as no token comes in a message; want it unset, or AUTH_FIRST_MESSAGE=true"},
		{s.Proxy.Auth.Mode == "none", []string{"RATE_AUTH_FAILURES_PER_IP", "RATE_AUTH_FAILURES_PER_IP_BURST"},
			"has no effect with AUTH_MODE=none, which refuses nobody; want it unset, or another mode"},
		{!s.bundledEndpoint(), []string{"DEMO_TOKEN"},
			"is for the bundled token endpoint alone, which is not in use; want it unset, or AUTH_MODE=endpoint without UPSTREAM_URL and AUTH_URL"},
		{s.Proxy.Relay.CloseTimeout > s.Proxy.DrainTimeout && s.Proxy.DrainTimeout > 0, []string{"CLOSE_TIMEOUT"},
			fmt.Sprintf("is cut short by DRAIN_TIMEOUT=%v; want it no longer than that", s.Proxy.DrainTimeout)},
		{beyond(s.Proxy.Limits.SessionsPerIP, s.Proxy.Limits.Sessions), []string{"LIMIT_SESSIONS_PER_IP"},
			fmt.Sprintf("is never reached with LIMIT_SESSIONS=%d; want it below that, or unset", s.Proxy.Limits.Sessions)},
		{beyond(s.Proxy.Limits.SessionsPerSubject, s.Proxy.Limits.Sessions), []string{"LIMIT_SESSIONS_PER_SUBJECT"},
			fmt.Sprintf("is never reached with LIMIT_SESSIONS=%d; want it below that, or unset", s.Proxy.Limits.Sessions)},
		{s.neverReached(s.Proxy.Limits.UpgradesPerIP, s.Proxy.Limits.UpgradesPerIPBurst), []string{"RATE_UPGRADES_PER_IP"},
			fmt.Sprintf("is never reached with RATE_UPGRADES=%v; want it below that, or unset", s.Proxy.Limits.Upgrades)},
		{s.neverReached(s.Proxy.Limits.UpgradesPerSubject, s.Proxy.Limits.UpgradesPerSubjectBurst), []string{"RATE_UPGRADES_PER_SUBJECT"},
			fmt.Sprintf("is never reached with RATE_UPGRADES=%v; want it below that, or unset", s.Proxy.Limits.Upgrades)},
		{beyond(s.Proxy.Relay.IdleTimeout, s.Proxy.Relay.SessionMax), []string{"IDLE_TIMEOUT"},
			fmt.Sprintf("is never reached with SESSION_MAX=%v; want it below that, or unset", s.Proxy.Relay.SessionMax)},
		{beyond(s.Proxy.Relay.PingInterval, s.Proxy.Relay.SessionMax), []string{"PING_INTERVAL"},
			fmt.Sprintf("is never reached with SESSION_MAX=%v; want it below that, or 0s", s.Proxy.Relay.SessionMax)},
		{beyond(s.Proxy.Auth.Recheck, s.Proxy.Relay.SessionMax), []string{"AUTH_RECHECK"},
			fmt.Sprintf("is never reached with SESSION_MAX=%v; want it below that, or unset", s.Proxy.Relay.SessionMax)},
	} {
		for _, name := range rule.names {
			if value, ok := changed[name]; ok && rule.idle {
				mistakes = append(mistakes, fmt.Errorf("%s: %q %s", name, value, rule.wrong))
			}
		}
	}
	return errors.Join(mistakes...)
}

// bundledEndpoint reports whether the bundled token endpoint verifies.
func (s *settings) bundledEndpoint() bool {
	return s.Proxy.Upstream.URL == "" && s.Proxy.Auth.URL == "" && s.Proxy.Auth.Mode == "endpoint"
}

// beyond reports whether a limit is above another that holds for the same; 0 is no limit.
func beyond[T int | time.Duration](limit, total T) bool { return total > 0 && limit > total }

// neverReached reports whether RATE_UPGRADES is used up by whoever comes at a rate, and in a burst, of its own.
func (s *settings) neverReached(r ratelimit.Rate, burst int) bool {
	total := s.Proxy.Limits.Upgrades
	return total.N > 0 && r.N > 0 &&
		int64(r.N)*int64(time.Hour/r.Per) > int64(total.N)*int64(time.Hour/total.Per) &&
		cmp.Or(burst, r.N) >= cmp.Or(s.Proxy.Limits.UpgradesBurst, total.N)
}
