// Package config is the whole environment of the program: the Config of each room, read by package settings, and what only all of
// them together can get wrong. It stands above package proxy, and only main and package check are above it.
package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"portcullis/proxy"
	"portcullis/proxy/admin"
	"portcullis/proxy/certificate"
	"portcullis/proxy/gate"
	"portcullis/proxy/settings"
	"portcullis/upstream/echo"
)

// Config is the whole environment: the Config structs of the packages, and what only the program needs.
type Config struct {
	// EnvFile is the path of a file with further variables, which [Environ] reads. Empty: there is none.
	EnvFile string `env:"ENV_FILE"`
	// ListenAddr is the front listener's host:port; without a host it listens on every address.
	ListenAddr string `env:"LISTEN_ADDR" envDefault:":3000" fixed:"true"`
	// LogLevel is the least level written to standard error.
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"info"`
	// LogFormat is json or text, one record a line.
	LogFormat string `env:"LOG_FORMAT" envDefault:"json" fixed:"true"`

	Proxy proxy.Config
	Admin admin.Config `fixed:"true"`
	Demo  echo.Config  `fixed:"true"`

	list settings.List
}

// Reserved are the names of settings that later versions will have. An operator who sets one would believe in a guard that is
// not there, so it is a mistake.
var Reserved = []string{"PROXY_PROTOCOL"}

// Families are the beginnings of names that only settings of this program have. Any
// other variable that begins so is warned about.
var Families = []string{"AUTH_", "BUS_", "DRAIN_", "LIMIT_", "MESSAGE_", "ORIGIN", "PING_", "PONG_", "RATE_", "REDIS_", "RELAY_", "RESUME_", "TICKET", "TLS_",
	"TRUSTED_", "UPSTREAM_"}

// Read reads what [Environ] returned. The error joins every mistake in it, one a line.
func Read(environ map[string]string) (*Config, []settings.Misspelling, error) {
	c, misspelt, _, err := Reread(environ, nil)
	return c, misspelt, err
}

// Reread is Read for a program that runs by the settings of before: what cannot change while it runs is as it was, and kept has the names
// of those settings that would have changed.
func Reread(environ map[string]string, before *Config) (c *Config, misspelt []settings.Misspelling, kept []string, err error) {
	c = new(Config)
	c.list, err = settings.Read(c, environ)
	resumption := &c.Proxy.Relay
	if before != nil {
		resumption = &before.Proxy.Relay // which stays
	}
	if environ["PUSH_MAX_BYTES"] == "" && resumption.Resume > 0 {
		c.Proxy.API.PushMaxBytes = resumption.ResumeBuffer
	}
	if before != nil {
		kept = c.list.Keep(before.list)
		if token := before.Proxy.API.AdminToken; (c.Proxy.API.AdminToken == "") != (token == "") {
			c.Proxy.API.AdminToken = token // that there is /api is settled at the start
			kept = append(kept, "ADMIN_TOKEN")
		}
	}
	routes, routeMistakes := readRoutes(environ, &c.Proxy)
	c.Proxy.Routes = routes
	misspelt = c.list.Misspelt(environ, Families)
	mistakes := append([]error{err, c.check(), c.withoutEffect(c.list)}, routeMistakes...)
	for _, m := range misspelt {
		if m.Guard {
			mistakes = append(mistakes, m)
		}
	}
	for _, name := range Reserved {
		if value := environ[name]; value != "" {
			mistakes = append(mistakes, fmt.Errorf("%s: %q is for a later version, this one does not have it; want it unset", name, value))
		}
	}
	return c, misspelt, kept, errors.Join(mistakes...)
}

// Changed are the names of the settings, routes included, that c has otherwise than before.
func (c *Config) Changed(before *Config) []string {
	names := c.list.Changed(before.list)
	for _, of := range [][2]*Config{{c, before}, {before, c}} {
		for _, r := range of[0].Proxy.Routes {
			same := slices.ContainsFunc(of[1].Proxy.Routes, func(other proxy.Route) bool { return reflect.DeepEqual(r, other) })
			if !same && !slices.Contains(names, r.Setting) {
				names = append(names, r.Setting)
			}
		}
	}
	return names
}

// List is every setting, with what it came to by what [Environ] returned. A mistaken one has its default.
func List(environ map[string]string) settings.List {
	list, _ := settings.Read(new(Config), environ)
	return list
}

// check finds the mistakes in what only the program needs.
func (c *Config) check() error {
	var mistakes []error
	if c.LogFormat != "json" && c.LogFormat != "text" {
		mistakes = append(mistakes, fmt.Errorf("LOG_FORMAT: %q is no log format; want json or text", c.LogFormat))
	}
	host, port, err := net.SplitHostPort(c.ListenAddr)
	adminHost, adminPort, adminErr := net.SplitHostPort(c.Admin.Addr) // package admin reports the error
	switch {
	case err != nil || !isPort(port):
		mistakes = append(mistakes, fmt.Errorf("LISTEN_ADDR: %q is no address; want host:port or :port, and a port up to 65535", c.ListenAddr))
	case adminErr == nil && adminPort == port && port != "0" && (host == adminHost || covers(host, adminHost) || covers(adminHost, host)):
		mistakes = append(mistakes, fmt.Errorf("ADMIN_ADDR: %q has the port of LISTEN_ADDR, %q; want another port for one of them", c.Admin.Addr, c.ListenAddr))
	}
	return errors.Join(mistakes...)
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// covers reports whether listening on host includes listening on other.
func covers(host, other string) bool {
	return host == "" || host == "::" || host == "0.0.0.0" && !strings.Contains(other, ":")
}

// withoutEffect returns a mistake for each setting that others take the effect from in a way that its tags cannot say.
func (c *Config) withoutEffect(list settings.List) error {
	var mistakes []error
	forbid := func(name, wrong string) {
		if s := list.Get(name); s.Changed {
			mistakes = append(mistakes, fmt.Errorf("%s: %q %s", name, s.Value, wrong))
		}
	}
	if c.Proxy.Auth.Mode == "none" {
		for _, name := range []string{"RATE_AUTH_FAILURES_PER_IP", "RATE_AUTH_FAILURES_PER_IP_BURST"} {
			forbid(name, "has no effect with AUTH_MODE=none, which refuses nobody; want it unset, or another mode")
		}
	}
	if len(c.Proxy.Routes) > 0 {
		for _, name := range []string{"UPSTREAM_URL", "PATHS"} {
			forbid(name, "stands beside "+c.Proxy.Routes[0].Setting+", which says by itself what goes where; want one of the two")
		}
	}
	passesPlain := func(r proxy.Route) bool { return r.HTTP != gate.HTTPOff }
	if c.Proxy.Gate.HTTP == gate.HTTPOff && !slices.ContainsFunc(c.Proxy.Routes, passesPlain) {
		for _, name := range []string{"RATE_REQUESTS_PER_IP", "RATE_REQUESTS_PER_IP_BURST"} {
			forbid(name, "has no effect without HTTP_MODE; want it unset, or HTTP_MODE set")
		}
	}
	if c.NamesBackend() || !c.LacksTokenEndpoint() {
		forbid("DEMO_TOKEN", "is for the bundled token endpoint alone, which is not in use; want it unset, or AUTH_MODE=endpoint without UPSTREAM_URL and AUTH_URL")
	}
	if most := c.Proxy.DrainTimeout; most > 0 && c.Proxy.Relay.CloseTimeout > most {
		forbid("CLOSE_TIMEOUT", fmt.Sprintf("is cut short by DRAIN_TIMEOUT=%v; want it no longer than that", most))
	}
	for _, name := range c.Proxy.Limits.Unreachable() {
		forbid(name, fmt.Sprintf("is never reached with RATE_UPGRADES=%v; want it below that, or unset", c.Proxy.Limits.Upgrades))
	}
	return errors.Join(mistakes...)
}

// NamesBackend reports whether the settings say where upgrades go, so that the bundled backend is not needed.
func (c *Config) NamesBackend() bool { return c.Proxy.Upstream.URL != "" || len(c.Proxy.Routes) > 0 }

// LacksTokenEndpoint reports whether a token endpoint is to verify and nobody has named one.
func (c *Config) LacksTokenEndpoint() bool {
	return c.Proxy.Auth.Mode == "endpoint" && c.Proxy.Auth.URL == ""
}

// AdminTLS is how the operator's listener is spoken to; nil: without TLS.
func (c *Config) AdminTLS() (*tls.Config, error) {
	if c.Admin.CertFile == "" {
		return nil, nil
	}
	return certificate.TrustOnly(c.Admin.CertFile)
}
