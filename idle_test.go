package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// idleTests are settings without effect, beside what takes it from them.
var idleTests = []struct {
	name   string // of the setting; its line is the only one
	beside string
	value  string
}{
	{"PONG_TIMEOUT", "PING_INTERVAL=0s", "20s"},
	{"PONG_TIMEOUT", "PING_INTERVAL=0", "20s"},
	{"MESSAGE_LIMIT_ACTION", "", "throttle"},
	{"MESSAGE_LIMIT_ACTION", "MESSAGE_RATE=0", "throttle"},
	{"TICKET_TTL", "", "10s"},
	{"TICKET_BIND_IP", "TICKETS=false", "false"},
	{"AUTH_FIRST_MESSAGE_FORMAT", "", "/token"},
	{"AUTH_FIRST_MESSAGE_TIMEOUT", "AUTH_FIRST_MESSAGE=false", "1s"},
	{"AUTH_FIRST_MESSAGE_MAX", "", "10"},
	{"RATE_AUTH_FAILURES_PER_IP", "AUTH_MODE=none", "5/m"},
	{"RATE_AUTH_FAILURES_PER_IP_BURST", "AUTH_MODE=none", "5"},
	{"DEMO_TOKEN", "AUTH_URL=http://127.0.0.1", "hunter2"},
	{"DEMO_TOKEN", "AUTH_MODE=none", "hunter2"},
	{"DEMO_TOKEN", "UPSTREAM_URL=ws://127.0.0.1 AUTH_URL=http://127.0.0.1", "hunter2"},
	{"CLOSE_TIMEOUT", "", "31s"},
	{"CLOSE_TIMEOUT", "DRAIN_TIMEOUT=5s", "6s"},
	{"LIMIT_SESSIONS_PER_IP", "LIMIT_SESSIONS=5", "6"},
	{"LIMIT_SESSIONS_PER_SUBJECT", "LIMIT_SESSIONS=5", "6"},
	{"RATE_UPGRADES_PER_IP", "RATE_UPGRADES=10/s", "11/s"},
	{"RATE_UPGRADES_PER_IP", "RATE_UPGRADES=60/m RATE_UPGRADES_PER_IP_BURST=60", "2/s"},
	{"RATE_UPGRADES_PER_SUBJECT", "RATE_UPGRADES=10/h", "11/h"},
	{"IDLE_TIMEOUT", "SESSION_MAX=1m", "2m"},
	{"PING_INTERVAL", "SESSION_MAX=1m", "2m"},
	{"AUTH_RECHECK", "SESSION_MAX=1m", "2m"},
}

func environOf(text string) map[string]string {
	environ := map[string]string{}
	for _, variable := range strings.Fields(text) {
		name, value, _ := strings.Cut(variable, "=")
		environ[name] = value
	}
	return environ
}

func TestSettingsWithoutEffect(t *testing.T) {
	for _, tt := range idleTests {
		t.Run(tt.name+" beside "+tt.beside, func(t *testing.T) {
			environ := environOf(tt.beside)
			if _, err := readSettings(environ); err != nil {
				t.Errorf("at its default: %v", err)
			}
			environ[tt.name] = tt.value
			_, err := readSettings(environ)
			shown := tt.value
			if matches(secrets, tt.name) {
				shown = "***"
			}
			if err == nil || !strings.HasPrefix(err.Error(), tt.name+`: "`+shown+`" `) || !strings.Contains(err.Error(), "; want ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("set to %s: got %v, want one line", tt.value, err)
			}
		})
	}
	for _, good := range []string{
		"PING_INTERVAL=0s PONG_TIMEOUT=0s",
		"PING_INTERVAL=0s PONG_TIMEOUT=10s", // the default
		"MESSAGE_LIMIT_ACTION=close",
		"MESSAGE_LIMIT_ACTION=throttle MESSAGE_BYTE_RATE=5/s",
		"TICKETS=true TICKET_TTL=10s TICKET_BIND_IP=false",
		"AUTH_FIRST_MESSAGE=true AUTH_FIRST_MESSAGE_FORMAT=/a AUTH_FIRST_MESSAGE_TIMEOUT=1s AUTH_FIRST_MESSAGE_MAX=1",
		"AUTH_MODE=none RATE_AUTH_FAILURES_PER_IP=0",
		"AUTH_MODE=none RATE_AUTH_FAILURES_PER_IP=",
		"DEMO_TOKEN=hunter2",
		"DEMO_TOKEN=token AUTH_MODE=none",
		"DRAIN_TIMEOUT=1s", // the default of CLOSE_TIMEOUT is longer
		"DRAIN_TIMEOUT=5s CLOSE_TIMEOUT=5s",
		"LIMIT_SESSIONS=5 LIMIT_SESSIONS_PER_IP=5",
		"LIMIT_SESSIONS_PER_IP=5 LIMIT_SESSIONS=0",
		"RATE_UPGRADES=10/s", // below the default of one address
		"RATE_UPGRADES=100/s RATE_UPGRADES_BURST=1000 RATE_UPGRADES_PER_IP=500/s",
		"RATE_UPGRADES=1000000000/s RATE_UPGRADES_PER_IP=1000000000/s",
		"SESSION_MAX=10s", // below the default of PING_INTERVAL
	} {
		if _, err := readSettings(environOf(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

func TestListsAreTrimmed(t *testing.T) {
	s, err := readSettings(map[string]string{
		"PATHS": "/a, /b", "ORIGINS": " https://a.example ,\thttps://b.example", "TRUSTED_PROXIES": "10.0.0.1 , 10.0.0.2",
		"AUTH_AUDIENCE": "a, b", "AUTH_REQUIRE": "scope:a, role=b c", "AUTH_JWT_ALGORITHMS": "RS256, ES256",
		"AUTH_TOKEN_FROM": "query:token, header:Authorization", "AUTH_FORWARD": "sub:A, email:B", "AUTH_COPY_HEADERS": "A, B",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want []string }{
		{s.Proxy.Paths, []string{"/a", "/b"}},
		{s.Proxy.Origin.Origins, []string{"https://a.example", "https://b.example"}},
		{s.Proxy.ClientIP.TrustedProxies, []string{"10.0.0.1", "10.0.0.2"}},
		{s.Proxy.Auth.Audience, []string{"a", "b"}},
		{s.Proxy.Auth.Require, []string{"scope:a", "role=b c"}},
		{s.Proxy.Auth.JWTAlgorithms, []string{"RS256", "ES256"}},
		{s.Proxy.Auth.TokenFrom, []string{"query:token", "header:Authorization"}},
		{s.Proxy.Auth.Forward, []string{"sub:A", "email:B"}},
		{s.Proxy.Auth.CopyHeaders, []string{"A", "B"}},
	} {
		if !slices.Equal(tt.got, tt.want) {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

// TestMistakesComeInOneRound sets each two of some mistakes at once, so that one which hides another shows.
func TestMistakesComeInOneRound(t *testing.T) {
	single := map[string]string{ // to how its line begins
		"LISTEN_ADDR=3000":                             `LISTEN_ADDR: "3000"`,
		"ADMIN_ADDR=nowhere":                           `ADMIN_ADDR: "nowhere"`,
		"LIMIT_SESSION=5":                              "LIMIT_SESSION: ",
		"TLS_CERT_FILE=/cert.pem":                      "TLS_KEY_FILE: ",
		"PATHS=chat":                                   "PATHS: ",
		"TRUSTED_PROXIES=everyone":                     "TRUSTED_PROXIES: ",
		"AUTH_TOKEN_FROM=cookie:a":                     `ORIGINS: ""`,
		"AUTH_TIMEOUT=-1s":                             "AUTH_TIMEOUT: ",
		"AUTH_FORWARD=role:X":                          "AUTH_FORWARD: ",
		"UPSTREAM_DIAL_TIMEOUT=0s":                     "UPSTREAM_DIAL_TIMEOUT: ",
		"LIMIT_SESSIONS_PER_SUBJECT=-1":                "LIMIT_SESSIONS_PER_SUBJECT: ",
		"RATE_UPGRADES_BURST=5":                        "RATE_UPGRADES_BURST: ",
		"SESSION_HELLO=true":                           "SESSION_HELLO: ",
		"TICKET_TTL=10s":                               "TICKET_TTL: ",
		"RELAY_MODE=opaque":                            "RELAY_MODE: ",
		"DRAIN_DELAY=-1s":                              "DRAIN_DELAY: ",
		"SESSION_MAX=1m IDLE_TIMEOUT=2m":               "IDLE_TIMEOUT: ",
		"AUTH_MODE=none RATE_UPGRADES_PER_SUBJECT=2/s": `AUTH_MODE: "none"`,
	}
	round := func(text string) string {
		s, err := readSettings(environOf(text))
		p, wireErr := wire(s)
		defer p.close()
		if wireErr == nil {
			p.proxy.Cut()
		}
		return "\n" + fmt.Sprint(errors.Join(err, wireErr))
	}
	for a, wantA := range single {
		for b, wantB := range single {
			if a >= b || strings.Contains(a+b, "AUTH_MODE=none") && strings.Contains(a+b, "AUTH_T") || wantA == wantB {
				continue // where nobody is asked, neither a cookie nor a timeout matters
			}
			got := round(a + " " + b)
			for _, want := range []string{wantA, wantB} {
				if !strings.Contains(got, "\n"+want) {
					t.Errorf("%s %s: no line for %s in:%s", a, b, want, got)
				}
			}
		}
	}
}
