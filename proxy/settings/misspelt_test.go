package settings

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// gate has the settings of a gate. Those with an ! are guards.
var gate = func() (list List) {
	for _, name := range strings.Fields(`LISTEN_ADDR LOG_LEVEL LOG_FORMAT PATHS DRAIN_DELAY DRAIN_TIMEOUT TLS_CERT_FILE! TLS_KEY_FILE! TRUSTED_PROXIES
		ORIGINS! RATE_UPGRADES! RATE_UPGRADES_BURST! RATE_UPGRADES_PER_IP! RATE_AUTH_FAILURES_PER_IP! RATE_AUTH_FAILURES_PER_IP_BURST!
		LIMIT_SESSIONS! LIMIT_SESSIONS_PER_IP! LIMIT_SESSIONS_PER_SUBJECT! MESSAGE_RATE MESSAGE_BURST MESSAGE_BYTE_RATE MESSAGE_MAX_BYTES
		MESSAGE_LIMIT_ACTION AUTH_MODE! AUTH_URL! AUTH_TIMEOUT! AUTH_CLIENT_SECRET! AUTH_CLIENT_SECRET_FILE! AUTH_JWT_SECRET!
		AUTH_JWT_SECRET_FILE! AUTH_REQUIRE! AUTH_RECHECK! UPSTREAM_URL UPSTREAM_HOST RELAY_MODE RELAY_ENGINE PING_INTERVAL PONG_TIMEOUT
		IDLE_TIMEOUT SESSION_MAX SESSION_HELLO CLOSE_TIMEOUT REFUSE_WITH_CLOSE RENEWAL TICKETS TICKET_TTL TICKET_BIND_IP ADMIN_ADDR
		DEMO_TOKEN DEMO_TOKEN_FILE`) {
		name, guard := strings.CutSuffix(name, "!")
		list = append(list, Setting{Name: name, Guard: guard})
	}
	return list
}()

var families = []string{"AUTH_", "DRAIN_", "LIMIT_", "ORIGIN", "RATE_", "TICKET", "TLS_", "TRUSTED_", "UPSTREAM_"}

func TestMisspelt(t *testing.T) {
	for _, tt := range []struct {
		names string // that are set
		want  string // what is found, as name>meant, with an ! where it is a mistake
	}{
		// Those of the issue tracker.
		{"TLS_CERT TLS_KEY", "TLS_CERT>TLS_CERT_FILE! TLS_KEY>TLS_KEY_FILE!"},
		{"LISTEN_ADDRESS ADMIN_ADRR PATHES IDLE_TIMOUT RENEWALS LOGLEVEL",
			"ADMIN_ADRR>ADMIN_ADDR IDLE_TIMOUT>IDLE_TIMEOUT LISTEN_ADDRESS>LISTEN_ADDR LOGLEVEL>LOG_LEVEL PATHES>PATHS RENEWALS>RENEWAL"},
		{"auth_mode", "auth_mode>AUTH_MODE!"},

		{"listen_addr Log_Level paths", "Log_Level>LOG_LEVEL listen_addr>LISTEN_ADDR paths>PATHS"},
		{"ORIGIN ORIGINES", "ORIGIN>ORIGINS! ORIGINES>ORIGINS!"},
		{"LIMIT_SESSION LIMITS_SESSIONS LIMIT_SESSIONS_PER_ADDRESS", "LIMITS_SESSIONS>LIMIT_SESSIONS! LIMIT_SESSION>LIMIT_SESSIONS! LIMIT_SESSIONS_PER_ADDRESS>LIMIT_SESSIONS!"},
		{"RATE_UPGRADE RATE_AUTH_FAILURES", "RATE_AUTH_FAILURES>RATE_AUTH_FAILURES_PER_IP! RATE_UPGRADE>RATE_UPGRADES!"},
		{"AUTH_REQUIRED AUTH_ULR AUTH_JWT_SECERT AUTH_CLIENT_SECRETFILE",
			"AUTH_CLIENT_SECRETFILE>AUTH_CLIENT_SECRET_FILE! AUTH_JWT_SECERT>AUTH_JWT_SECRET! AUTH_REQUIRED>AUTH_REQUIRE! AUTH_ULR>AUTH_URL!"},
		{"AUTH TLS LIMIT", "AUTH>AUTH_URL! LIMIT>LIMIT_SESSIONS! TLS>TLS_KEY_FILE!"},
		{"TLS_CERTIFICATE TLS_CERTIFICATE_FILE TLS_KEY_FILE_PATH", "TLS_CERTIFICATE>TLS_CERT_FILE! TLS_CERTIFICATE_FILE>TLS_CERT_FILE! TLS_KEY_FILE_PATH>TLS_KEY_FILE!"},
		{"TICKET UPSTREAM_ULR TRUSTED_PROXY DRAIN_TIMEOUT_SECONDS", "DRAIN_TIMEOUT_SECONDS>DRAIN_TIMEOUT TICKET>TICKETS TRUSTED_PROXY> UPSTREAM_ULR>UPSTREAM_URL"},

		{"AUTH_DATABASE TLS_CIPHERS RATE_LIMIT", "AUTH_DATABASE> RATE_LIMIT> TLS_CIPHERS>"}, // nothing tells
		{"TLS_CERT TLS_CERT_FILE", "TLS_CERT>TLS_CERT_FILE"},                                // the guard is up
		{"AUTH_MODE DEMO_TOKEN_FILE AUTH_JWT_SECRET_FILE", ""},                              // ours
		{"SSL_CERT_FILE SSL_KEY_FILE DOCKER_TLS_VERIFY AUTH_URL_SERVICE_HOST LISTEN_ADDR_PORT TLS_KEY_PORT_80_TCP", ""},
		{"PATH path Path MATHS BATH", "MATHS>PATHS"},
		{"AUTH_SQL AUTH_CODES LOG_LABELS LOG LISTEN MESSAGE SESSION AUTHOR AUTHORITY_URL CLOSE", "AUTH_CODES> AUTH_SQL>"},
		{"", ""},
		{"_ __ A AUTH_ _MODE TLS__CERT", "AUTH_> TLS__CERT>"},
		{strings.Repeat("A", 1<<16), ""},
	} {
		environ := map[string]string{}
		for _, name := range strings.Fields(tt.names) {
			environ[name] = "x"
		}
		var got []string
		for _, m := range gate.Misspelt(environ, families) {
			line := m.Name + ">" + m.Meant
			if m.Guard {
				line += "!"
			}
			got = append(got, line)
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%.100s: got\n%s, want\n%s", tt.names, got, tt.want)
		}
	}
}

// A slip in any name is found, whichever letter is left out, doubled or swapped with the next.
func TestEverySlipIsFound(t *testing.T) {
	environ := map[string]string{}
	for _, setting := range gate {
		name := setting.Name
		for i := range name {
			environ[name[:i]+name[i+1:]] = name
			environ[name[:i+1]+name[i:]] = name
			if i > 0 {
				environ[name[:i-1]+name[i:i+1]+name[i-1:i]+name[i+1:]] = name
			}
		}
	}
	for _, setting := range gate {
		delete(environ, setting.Name) // such as two letters that are the same
	}
	delete(environ, "PATH")
	for _, m := range gate.Misspelt(environ, nil) {
		if want := environ[m.Name]; m.Meant != want && edits(m.Name, m.Meant) != 1 {
			t.Errorf("%s: got %q, want %q", m.Name, m.Meant, want)
		}
		delete(environ, m.Name)
	}
	if len(environ) > 0 {
		t.Errorf("not found: %q", slices.Sorted(maps.Keys(environ)))
	}
}

func TestEdits(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int // 3 for any number above 2
	}{
		{"", "", 0}, {"A", "A", 0}, {"", "A", 1}, {"AB", "", 2}, {"AB", "BA", 1}, {"ABC", "CBA", 2}, {"ABC", "BCA", 2},
		{"ABCD", "BADC", 2}, {"ABC", "XYZ", 3}, {"ABCDEF", "ABC", 3}, {"ABC", "ADC", 1}, {"SSL", "TLS", 2},
	} {
		for _, got := range []int{edits(tt.a, tt.b), edits(tt.b, tt.a)} {
			if min(got, 3) != tt.want {
				t.Errorf("%q, %q: %d, want %d", tt.a, tt.b, got, tt.want)
			}
		}
	}
}

func TestMisspellingOfAGuard(t *testing.T) {
	m := gate.Misspelt(map[string]string{"TLS_KEY": "hunter2", "UPSTREAM_ULR": ""}, nil)
	if len(m) != 1 || m[0].Error() != "TLS_KEY: is no setting; want TLS_KEY_FILE, which was probably meant, or TLS_KEY unset" {
		t.Errorf("got %+v", m)
	}
}
