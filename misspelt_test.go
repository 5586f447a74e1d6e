package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

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
		for _, s := range misspelt(environ) {
			line := s.name + ">" + s.meant
			if s.error {
				line += "!"
			}
			got = append(got, line)
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%.100s: got\n%s, want\n%s", tt.names, got, tt.want)
		}
	}
}

// What is in the environment of everyone is never taken for a misspelt setting.
func TestUsualNamesAreNotMisspelt(t *testing.T) {
	for where, names := range map[string]string{
		"a login shell": `_ BASH BASHOPTS BROWSER CDPATH CLASSPATH COLORTERM COLUMNS DBUS_SESSION_BUS_ADDRESS DESKTOP_SESSION DISPLAY EDITOR
			FPATH FTP_PROXY GDMSESSION GNUPGHOME GOBIN GOFLAGS GOPATH GOPROXY GOROOT GPG_AGENT_INFO HISTFILE HISTSIZE HOME HOST HOSTNAME
			HTTPS_PROXY HTTP_PROXY IFS INFOPATH JAVA_HOME LANG LANGUAGE LC_ALL LC_CTYPE LD_LIBRARY_PATH LESS LESSOPEN LINES LOGNAME
			LS_COLORS MAIL MAILPATH MANPATH MESSAGE NO_PROXY NVM_DIR OLDPWD PAGER PATH PKG_CONFIG_PATH PS1 PWD PYTHONPATH SESSION
			SESSION_MANAGER SHELL SHLVL SSH_AUTH_SOCK SSH_CLIENT SSH_CONNECTION SSH_TTY SUDO_COMMAND SUDO_USER TERM TERM_PROGRAM TMPDIR
			TMUX TZ USER USERNAME VISUAL VTE_VERSION WAYLAND_DISPLAY XAUTHORITY XDG_CONFIG_HOME XDG_RUNTIME_DIR XDG_SESSION_ID
			XDG_SESSION_TYPE ftp_proxy http_proxy https_proxy no_proxy`,
		"systemd": `CACHE_DIRECTORY CREDENTIALS_DIRECTORY EXIT_CODE EXIT_STATUS FDSTORE INVOCATION_ID JOURNAL_STREAM LISTEN_FDNAMES LISTEN_FDS
			LISTEN_PID LOGS_DIRECTORY LOG_NAMESPACE MAINPID MANAGERPID MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE NOTIFY_SOCKET
			RUNTIME_DIRECTORY SERVICE_RESULT STATE_DIRECTORY SYSTEMD_EXEC_PID WATCHDOG_PID WATCHDOG_USEC`,
		"Docker": `AFFINITY container COMPOSE_PROJECT_NAME DOCKER_BUILDKIT DOCKER_CERT_PATH DOCKER_HOST DOCKER_TLS_CERTDIR DOCKER_TLS_VERIFY
			HOME HOSTNAME PATH PORT SSL_CERT_DIR SSL_CERT_FILE VERSION`,
		"Kubernetes": `KUBERNETES_PORT KUBERNETES_PORT_443_TCP KUBERNETES_PORT_443_TCP_ADDR KUBERNETES_PORT_443_TCP_PORT KUBERNETES_SERVICE_HOST
			KUBERNETES_SERVICE_PORT KUBERNETES_SERVICE_PORT_HTTPS AUTH_PORT AUTH_PORT_80_TCP_PROTO AUTH_SERVICE_HOST AUTH_URL_SERVICE_HOST
			ORIGIN_PORT TICKETS_SERVICE_PORT UPSTREAM_PORT_8080_TCP RELAY_SERVICE_PORT_WS NODE_NAME POD_IP POD_NAME POD_NAMESPACE`,
		"platforms": `AWS_ACCESS_KEY_ID AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_REGION AWS_SESSION_TOKEN DYNO ECS_CONTAINER_METADATA_URI_V4
			FLY_APP_NAME FLY_REGION GOOGLE_APPLICATION_CREDENTIALS HEROKU_APP_ID K_REVISION K_SERVICE NOMAD_ADDR_http NOMAD_ALLOC_ID
			NOMAD_PORT_http OTEL_EXPORTER_OTLP_ENDPOINT PORT RAILWAY_ENVIRONMENT RENDER SENTRY_DSN VAULT_ADDR VAULT_TOKEN WEBSITE_SITE_NAME`,
		"CI runners": `ACTIONS_RUNTIME_TOKEN AGENT_NAME BRANCH_NAME BUILD_ID BUILD_URL CHANGE_ID CI CI_COMMIT_SHA CI_JOB_TOKEN CI_PIPELINE_ID
			CI_REGISTRY CIRCLECI FF_USE_FASTZIP GIT_AUTHOR_NAME GIT_BRANCH GIT_COMMIT GITHUB_ACTIONS GITHUB_ENV GITHUB_PATH GITHUB_REF
			GITHUB_TOKEN GITLAB_CI GITLAB_USER_LOGIN ImageOS JENKINS_URL JOB_NAME NODE_NAME PIPELINE_ID RUNNER_OS RUNNER_TEMP
			RUNNER_TOOL_CACHE STAGE_NAME TF_BUILD TRAVIS WORKSPACE`,
		"Windows": `ALLUSERSPROFILE APPDATA COMPUTERNAME ComSpec LOCALAPPDATA NUMBER_OF_PROCESSORS OS PATHEXT Path ProgramFiles SystemRoot TEMP
			USERPROFILE windir`,
	} {
		environ := map[string]string{}
		for _, name := range strings.Fields(names) {
			environ[name] = "x"
		}
		if got := misspelt(environ); len(got) > 0 {
			t.Errorf("%s: %+v", where, got)
		}
	}
}

// A slip in any setting is found, whichever letter is left out, doubled or swapped with the next.
func TestEverySlipIsFound(t *testing.T) {
	environ := map[string]string{}
	for _, name := range names() {
		for i := range name {
			environ[name[:i]+name[i+1:]] = name
			environ[name[:i+1]+name[i:]] = name
			if i > 0 {
				environ[name[:i-1]+name[i:i+1]+name[i-1:i]+name[i+1:]] = name
			}
		}
	}
	for _, name := range names() {
		delete(environ, name) // such as two letters that are the same
	}
	delete(environ, "PATH")
	found := misspelt(environ)
	for _, s := range found {
		if want := environ[s.name]; s.meant != want && edits(s.name, s.meant) != 1 {
			t.Errorf("%s: got %q, want %q", s.name, s.meant, want)
		}
		delete(environ, s.name)
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
