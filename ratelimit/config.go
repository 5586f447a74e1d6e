package ratelimit

import (
	"errors"
	"fmt"
)

// Config is the operator's choice of limits. Its zero value limits nothing;
// the defaults stand in the tags.
type Config struct {
	// Upgrades limits upgrade requests of all clients together. Empty: no limit.
	Upgrades Rate `env:"RATE_UPGRADES"`
	// UpgradesBurst is how many may come at once. 0: the rate's number.
	UpgradesBurst int `env:"RATE_UPGRADES_BURST"`

	// UpgradesPerIP limits upgrade requests of one address: an IPv4 address or
	// an IPv6 /64. 0: no limit.
	UpgradesPerIP Rate `env:"RATE_UPGRADES_PER_IP" envDefault:"20/s"`
	// UpgradesPerIPBurst is how many may come at once. 0: the rate's number.
	UpgradesPerIPBurst int `env:"RATE_UPGRADES_PER_IP_BURST"`

	// UpgradesPerSubject limits authenticated upgrades of one subject, from
	// whatever address. Empty: no limit.
	UpgradesPerSubject Rate `env:"RATE_UPGRADES_PER_SUBJECT"`
	// UpgradesPerSubjectBurst is how many may come at once. 0: the rate's number.
	UpgradesPerSubjectBurst int `env:"RATE_UPGRADES_PER_SUBJECT_BURST"`

	// AuthFailuresPerIP limits refused credentials of one address; once they
	// are used up its requests are refused without asking the verifier. 0: no
	// limit.
	AuthFailuresPerIP Rate `env:"RATE_AUTH_FAILURES_PER_IP" envDefault:"10/m"`
	// AuthFailuresPerIPBurst is how many may come at once, and how many of an
	// address's credentials may be under verification at once. 0: the rate's
	// number.
	AuthFailuresPerIPBurst int `env:"RATE_AUTH_FAILURES_PER_IP_BURST"`

	// Sessions caps the open sessions of all clients together. 0: no cap.
	Sessions int `env:"LIMIT_SESSIONS"`
	// SessionsPerIP caps the open sessions of one address. 0: no cap.
	SessionsPerIP int `env:"LIMIT_SESSIONS_PER_IP"`
	// SessionsPerSubject caps the open sessions of one subject. 0: no cap.
	SessionsPerSubject int `env:"LIMIT_SESSIONS_PER_SUBJECT"`
}

// check returns every mistake in c, joined.
func (c Config) check() error {
	var mistakes []error
	for _, r := range []struct {
		name  string
		rate  Rate
		burst int
	}{
		{"RATE_UPGRADES", c.Upgrades, c.UpgradesBurst},
		{"RATE_UPGRADES_PER_IP", c.UpgradesPerIP, c.UpgradesPerIPBurst},
		{"RATE_UPGRADES_PER_SUBJECT", c.UpgradesPerSubject, c.UpgradesPerSubjectBurst},
		{"RATE_AUTH_FAILURES_PER_IP", c.AuthFailuresPerIP, c.AuthFailuresPerIPBurst},
	} {
		if !r.rate.valid() {
			mistakes = append(mistakes, fmt.Errorf("%s: %w", r.name, rateError(r.rate.String())))
		}
		if r.burst < 0 || r.burst > maxCount {
			mistakes = append(mistakes, fmt.Errorf(`%s_BURST: "%d" is out of range; want 1 to %d, or 0 for the rate's number`, r.name, r.burst, maxCount))
		}
		if r.burst > 0 && r.rate.N == 0 {
			// Silence would let the operator believe that there is a limit.
			mistakes = append(mistakes, fmt.Errorf(`%s_BURST: "%d" has no rate to go with; want %s set too`, r.name, r.burst, r.name))
		}
	}
	for _, s := range []struct {
		name string
		max  int
	}{
		{"LIMIT_SESSIONS", c.Sessions},
		{"LIMIT_SESSIONS_PER_IP", c.SessionsPerIP},
		{"LIMIT_SESSIONS_PER_SUBJECT", c.SessionsPerSubject},
	} {
		if s.max < 0 {
			mistakes = append(mistakes, fmt.Errorf(`%s: "%d" is negative; want the most sessions, or 0 for no cap`, s.name, s.max))
		}
	}
	return errors.Join(mistakes...)
}
