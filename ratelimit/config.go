package ratelimit

import (
	"errors"
	"fmt"
)

// Config is the operator's choice of limits. Its zero value limits nothing;
// the defaults stand in the tags.
type Config struct {
	// Upgrades limits upgrade requests of all clients together. Empty: no limit.
	Upgrades Rate `env:"RATE_UPGRADES" empty:"no limit" guard:"true"`
	// UpgradesBurst is how many may come at once. 0: the rate's number.
	UpgradesBurst int `env:"RATE_UPGRADES_BURST" guard:"true"`

	// UpgradesPerIP limits upgrade requests of one address: an IPv4 address or
	// an IPv6 /64. 0: no limit.
	UpgradesPerIP Rate `env:"RATE_UPGRADES_PER_IP" envDefault:"20/s" empty:"no limit" guard:"true"`
	// UpgradesPerIPBurst is how many may come at once. 0: the rate's number.
	UpgradesPerIPBurst int `env:"RATE_UPGRADES_PER_IP_BURST" guard:"true"`

	// UpgradesPerSubject limits authenticated upgrades of one subject, from
	// whatever address. Empty: no limit.
	UpgradesPerSubject Rate `env:"RATE_UPGRADES_PER_SUBJECT" empty:"no limit" guard:"true"`
	// UpgradesPerSubjectBurst is how many may come at once. 0: the rate's number.
	UpgradesPerSubjectBurst int `env:"RATE_UPGRADES_PER_SUBJECT_BURST" guard:"true"`

	// RequestsPerIP limits the plain HTTP requests of one address. Upgrades are
	// not among them. The default leaves room for an office behind one address
	// whose pages poll and load files, and bounds what one address can have the
	// verifier asked. 0: no limit.
	RequestsPerIP Rate `env:"RATE_REQUESTS_PER_IP" envDefault:"200/s" empty:"no limit" guard:"true"`
	// RequestsPerIPBurst is how many may come at once. 0: the rate's number.
	RequestsPerIPBurst int `env:"RATE_REQUESTS_PER_IP_BURST" guard:"true"`

	// AuthFailuresPerIP limits refused credentials of one address; once they
	// are used up its requests are refused without asking the verifier. 0: no
	// limit.
	AuthFailuresPerIP Rate `env:"RATE_AUTH_FAILURES_PER_IP" envDefault:"10/m" empty:"no limit" guard:"true"`
	// AuthFailuresPerIPBurst is how many may come at once, and how many of an
	// address's credentials may be under verification at once. 0: the rate's
	// number.
	AuthFailuresPerIPBurst int `env:"RATE_AUTH_FAILURES_PER_IP_BURST" guard:"true"`

	// Sessions caps the open sessions of all clients together. 0: no cap.
	Sessions int `env:"LIMIT_SESSIONS" guard:"true"`
	// SessionsPerIP caps the open sessions of one address. 0: no cap.
	SessionsPerIP int `env:"LIMIT_SESSIONS_PER_IP" guard:"true" below:"LIMIT_SESSIONS"`
	// SessionsPerSubject caps the open sessions of one subject. 0: no cap.
	SessionsPerSubject int `env:"LIMIT_SESSIONS_PER_SUBJECT" guard:"true" below:"LIMIT_SESSIONS"`

	// Messages limits what a client sends in one session. The relay applies
	// it, because only the relay sees messages. Empty: no limit.
	Messages Rate `env:"MESSAGE_RATE"`
	// MessagesBurst is how many may come at once. 0: the rate's number.
	MessagesBurst int `env:"MESSAGE_BURST"`
	// MessageBytes limits the payload bytes that a client sends in one
	// session, in bursts of one second's worth. Empty: no limit.
	MessageBytes Rate `env:"MESSAGE_BYTE_RATE"`
}

// PerSession is what a client may send in one session. Zero: no limit.
type PerSession struct {
	Messages float64 // a second
	Burst    int     // of messages
	Bytes    float64 // a second
}

// PerSession returns the limits of one session, as the relay counts them.
func (c Config) PerSession() (s PerSession) {
	if c.Messages.N > 0 {
		s.Messages = float64(c.Messages.limit())
		s.Burst = c.Messages.Burst(c.MessagesBurst)
	}
	if c.MessageBytes.N > 0 {
		s.Bytes = float64(c.MessageBytes.limit())
	}
	return s
}

// PerSubject reports whether any limit by subject is set. Where clients have
// no subject it would never apply.
func (c Config) PerSubject() bool { return c.UpgradesPerSubject.N > 0 || c.SessionsPerSubject > 0 }

// check returns every mistake in c, joined.
func (c Config) check() error {
	var mistakes []error
	for _, r := range []struct {
		name      string
		rate      Rate
		burstName string
		burst     int
	}{
		{"RATE_UPGRADES", c.Upgrades, "RATE_UPGRADES_BURST", c.UpgradesBurst},
		{"RATE_UPGRADES_PER_IP", c.UpgradesPerIP, "RATE_UPGRADES_PER_IP_BURST", c.UpgradesPerIPBurst},
		{"RATE_UPGRADES_PER_SUBJECT", c.UpgradesPerSubject, "RATE_UPGRADES_PER_SUBJECT_BURST", c.UpgradesPerSubjectBurst},
		{"RATE_REQUESTS_PER_IP", c.RequestsPerIP, "RATE_REQUESTS_PER_IP_BURST", c.RequestsPerIPBurst},
		{"RATE_AUTH_FAILURES_PER_IP", c.AuthFailuresPerIP, "RATE_AUTH_FAILURES_PER_IP_BURST", c.AuthFailuresPerIPBurst},
		{"MESSAGE_RATE", c.Messages, "MESSAGE_BURST", c.MessagesBurst},
		{"MESSAGE_BYTE_RATE", c.MessageBytes, "", 0},
	} {
		if !r.rate.valid() {
			mistakes = append(mistakes, fmt.Errorf("%s: %w", r.name, rateError(r.rate.String())))
		}
		if r.burst < 0 || r.burst > maxCount {
			mistakes = append(mistakes, fmt.Errorf(`%s: "%d" is out of range; want 1 to %d, or 0 for the rate's number`, r.burstName, r.burst, maxCount))
		}
		if r.burst > 0 && r.rate.N == 0 {
			// Silence would let the operator believe that there is a limit.
			mistakes = append(mistakes, fmt.Errorf(`%s: "%d" has no rate to go with; want %s set too`, r.burstName, r.burst, r.name))
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

// Unreachable names the limits that are never reached, because RATE_UPGRADES is
// used up first, at the rate and in a burst.
func (c Config) Unreachable() (names []string) {
	for _, l := range []struct {
		name  string
		rate  Rate
		burst int
	}{
		{"RATE_UPGRADES_PER_IP", c.UpgradesPerIP, c.UpgradesPerIPBurst},
		{"RATE_UPGRADES_PER_SUBJECT", c.UpgradesPerSubject, c.UpgradesPerSubjectBurst},
	} {
		if c.Upgrades.N > 0 && l.rate.N > 0 && l.rate.limit() > c.Upgrades.limit() && l.rate.Burst(l.burst) >= c.Upgrades.Burst(c.UpgradesBurst) {
			names = append(names, l.name)
		}
	}
	return names
}
