package check

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"portcullis/proxy"
	"portcullis/proxy/auth"
	"portcullis/proxy/certificate"
	"portcullis/proxy/fleet"
)

// askVerifier asks whoever says which token is good.
func (c *Config) askVerifier(ctx context.Context) (all []Finding) {
	note := func(level Level, setting, found, want string) {
		all = append(all, Finding{level, setting, found, want})
	}
	if c.Backend {
		note(Warning, "UPSTREAM_URL", "is empty: the bundled backend would be started, which says back what it gets", "the URL of your application")
	}
	if c.Tokens {
		note(Warning, "AUTH_URL", "is empty: the bundled token endpoint would be started, which knows DEMO_TOKEN alone", "the URL of your token endpoint")
		return all
	}
	conf := c.Settings.Proxy.Auth
	var hints messages
	if conf.Mode == "endpoint" { // which has one about its answer
		conf.Logger = slog.New(&hints)
	}
	found, err := auth.Check(ctx, conf)
	if err != nil { // the settings are right, so a file has changed just now
		note(Fault, "AUTH_MODE", err.Error(), "it checked again")
		return all
	}
	switch {
	case found.Setting == "" && conf.Mode == "none":
		note(OK, "AUTH_MODE", "none lets everyone in", "")
	case found.Setting == "":
		note(OK, "AUTH_MODE", conf.Mode+" asks nobody", "")
	case found.Err != nil:
		note(Fault, found.Setting, found.Asked+": "+found.Err.Error(), remedy(found.Err, verifierNames(found.Setting, conf.Mode)))
	case found.Accepted && conf.Mode == "forward":
		note(Warning, found.Setting, found.Asked+" lets in a request for / without any credential", "a service that answers 401 or 403 to it, unless / is open on purpose")
	case found.Accepted:
		note(Fault, found.Setting, found.Asked+" accepts a token that nobody has issued, and so everybody's", "an endpoint that tells tokens apart, or AUTH_ACCEPT as it answers")
	case found.Keys > 0:
		note(OK, found.Setting, fmt.Sprintf("%s has %s, after %s", found.Asked, count(found.Keys, "usable key"), duration(found.Took.Seconds())), "")
	default:
		note(OK, found.Setting, fmt.Sprintf("%s refuses a token that nobody has issued: %s, after %s", found.Asked, found.Answer, duration(found.Took.Seconds())), "")
	}
	for _, text := range hints.texts {
		note(Warning, "AUTH_ACCEPT", text, "")
	}
	for _, text := range found.Warnings { // NAME: what is wrong; want what is right
		text, want, _ := strings.Cut(text, "; want ")
		setting, text, _ := strings.Cut(text, ": ")
		note(Warning, setting, text, want)
	}
	return all
}

// messages is a slog.Handler that keeps what is warned about, without attributes.
type messages struct {
	mu    sync.Mutex
	texts []string // guarded by mu
}

func (m *messages) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

func (m *messages) Handle(_ context.Context, r slog.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.texts = append(m.texts, r.Message)
	return nil
}

func (m *messages) WithAttrs([]slog.Attr) slog.Handler { return m }
func (m *messages) WithGroup(string) slog.Handler      { return m }

func verifierNames(setting, mode string) names {
	n := names{server: setting, timeout: "AUTH_TIMEOUT", authorities: "AUTH_CA_FILE", client: "AUTH_CERT_FILE and AUTH_KEY_FILE", plain: "http"}
	switch mode {
	case "jwt":
		n.otherwise = "a key set there (RFC 7517), answered with 200"
	case "introspect":
		n.otherwise = `an answer with 200 and {"active":false} to a token that nobody has issued (RFC 7662)`
	case "forward":
		n.otherwise = "a service that answers 401 or 403 to a request without a credential"
	default:
		n.otherwise = "an endpoint that answers 400, 401, 403, or 200 with a body other than 1, to a token that nobody has issued"
	}
	return n
}

// askFleet asks Redis and the bus.
func (c *Config) askFleet(ctx context.Context) (all []Finding) {
	conf := c.Settings.Proxy.Fleet
	conf.Instance = conf.InstanceName()
	found, err := fleet.Check(ctx, conf)
	note := func(level Level, setting, found, want string) {
		all = append(all, Finding{level, setting, found, want})
	}
	switch {
	case err != nil:
		note(Fault, "REDIS_URL", err.Error(), "it checked again")
		return all
	case found.Redis == "":
		return nil
	case found.Err != nil:
		note(Fault, "REDIS_URL", found.Redis+": "+found.Err.Error(), remedy(found.Err, names{
			server: "REDIS_URL", timeout: "time for it", authorities: "the authorities of this system", client: "a Redis that asks for no client certificate",
			plain: "redis", otherwise: "a Redis that can be written to, and a user who may use all commands that a fleet needs",
		}))
	default:
		version := "a Redis that does not tell its version"
		if found.Version != "" {
			version = "Redis " + found.Version
		}
		note(OK, "REDIS_URL", fmt.Sprintf("%s: %s answers after %s; %s of %s", found.Redis, version, duration(found.Took.Seconds()), count(found.Instances, "live instance"), conf.Name), "")
	}
	if found.Err == nil && found.Took > conf.Timeout {
		note(Warning, "REDIS_TIMEOUT", fmt.Sprintf("%v is less than the %s that Redis has just taken", conf.Timeout, duration(found.Took.Seconds())), "a Redis that is nearer, or more time")
	}
	if found.Evicts != "" {
		note(Warning, "REDIS_URL", found.Redis+" forgets counts when its memory is full: maxmemory-policy is "+found.Evicts, "noeviction")
	}
	switch {
	case found.BusErr != nil:
		note(Fault, "BUS_URL", found.Bus+": "+found.BusErr.Error(), remedy(found.BusErr, names{
			server: "BUS_URL", timeout: "time for it", authorities: "the authorities of this system", client: "a bus that asks for no client certificate",
			plain: "its scheme without TLS", otherwise: "a broker that lets this user in, and with Kafka a topic that is there",
		}))
	case found.Bus != "":
		note(OK, "BUS_URL", found.Bus+" is reached", "")
	}
	return all
}

// readCertificates looks at our own. That each fits its key has been found with the mistakes.
func (c *Config) readCertificates(context.Context) (all []Finding) {
	for _, s := range []struct{ setting, file string }{
		{"TLS_CERT_FILE", c.Settings.Proxy.Front.CertFile},
		{"ADMIN_TLS_CERT_FILE", c.Settings.Admin.CertFile},
		{"UPSTREAM_CERT_FILE", c.Settings.Proxy.Upstream.CertFile},
		{"AUTH_CERT_FILE", c.Settings.Proxy.Auth.CertFile},
	} {
		if s.file == "" {
			continue
		}
		f := Finding{Level: OK, Setting: s.setting}
		switch facts, err := certificate.Read(s.file); {
		case err != nil:
			f.Level, f.Found, f.Want = Fault, fmt.Sprintf("%q %v", s.file, err), "a PEM file of certificates"
		case facts.Wrong != "":
			f.Level, f.Found, f.Want = Warning, fmt.Sprintf("%q holds a certificate %s", s.file, facts.Wrong), "it renewed"
			if facts.Refused {
				f.Level = Fault
			}
		default:
			f.Found = fmt.Sprintf("%q fits its key, is for %q and holds until %s", s.file, facts.Names, facts.Until.Format(time.RFC3339))
		}
		all = append(all, f)
	}
	return all
}

const (
	// perSession is how many descriptors a session has: its client's, and its upstream's.
	perSession = 2
	// besides is how many all else has: listeners, the verifier, Redis, clients that are being refused.
	besides = 200
)

// countDescriptors compares how many this process may have with how many sessions there may be. A gate that another starts may have others.
func (c *Config) countDescriptors(context.Context) []Finding {
	most, sessions := proxy.Descriptors(), c.Settings.Proxy.Limits.Sessions
	if most == 0 {
		return nil
	}
	enough := max((most-besides)/perSession, 0)
	f := Finding{Level: OK, Setting: "LIMIT_SESSIONS", Found: fmt.Sprintf("%d descriptors (ulimit -n) are enough for some %s", most, count(enough, "session"))}
	if sessions > enough {
		f.Level, f.Found = Warning, fmt.Sprintf("%d is more than %d descriptors (ulimit -n) are enough for, some %s", sessions, most, count(enough, "session"))
		f.Want = fmt.Sprintf("a limit of %d descriptors or more: ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of Docker", sessions*perSession+besides)
	}
	return []Finding{f}
}

// lookAtNames tells of variables that look like a setting.
func (c *Config) lookAtNames(context.Context) (all []Finding) {
	for _, m := range c.Misspelt {
		f := Finding{Level: Warning, Setting: m.Name, Found: "looks like a setting but is none", Want: "it unset"}
		if m.Meant != "" {
			f.Want = m.Meant + ", which was probably meant, or it unset"
		}
		all = append(all, f)
	}
	return all
}
