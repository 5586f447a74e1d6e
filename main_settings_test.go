package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"portcullis/proxy/config"
)

func environOf(text string) map[string]string {
	environ := map[string]string{}
	for _, variable := range strings.Fields(text) {
		name, value, _ := strings.Cut(variable, "=")
		environ[name] = value
	}
	return environ
}

func TestMistakesInSettings(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		environ []string
		want    []string // the beginning of each line, in any order
	}{
		{"all at once", []string{
			"LISTEN_ADDR=3000", "ADMIN_ADDR=nowhere", "LOG_LEVEL=loud", "LOG_FORMAT=xml", "PING_INTERVAL=30", "LIMIT_SESSIONS=many",
			"AUTH_TOKEN_PASS=maybe", "RATE_UPGRADES=fast", "TRUSTED_PROXIES=10.0.0.0/8,proxy", "ORIGINS=example.com", "PATHS=chat",
			"UPSTREAM_URL=ftp://backend", "AUTH_TIMEOUT=-1s", "DRAIN_TIMEOUT=0s", "RELAY_MODE=opaque", "TLS_CERT_FILE=/nowhere.pem",
		}, []string{
			`LISTEN_ADDR: "3000" `, `ADMIN_ADDR: "nowhere" `, `LOG_LEVEL: "loud" `, `LOG_FORMAT: "xml" `, `PING_INTERVAL: "30" `,
			`LIMIT_SESSIONS: "many" `, `AUTH_TOKEN_PASS: "maybe" `, `RATE_UPGRADES: "fast" `, `TRUSTED_PROXIES: "proxy" `,
			`ORIGINS: "example.com" `, `PATHS: "chat" `, `UPSTREAM_URL: "ftp://backend" `, `AUTH_TIMEOUT: "-1s" `, `AUTH_URL: "" `,
			`DRAIN_TIMEOUT: "0s" `, `RELAY_MODE: "opaque" `, `TLS_KEY_FILE: "" `,
		}},
		{"an upstream without authentication is no open door", []string{"UPSTREAM_URL=ws://127.0.0.1:1"},
			[]string{`AUTH_URL: "" would leave UPSTREAM_URL open`}},
		{"heads from nobody", []string{"PROXY_PROTOCOL=true", "LISTEN_ADDR=:3000,unix:/run/front.sock"}, []string{`PROXY_PROTOCOL: "true" believes nobody`}},
		{"listeners of all kinds", []string{"LISTEN_ADDR=:3000,127.0.0.1:3000,unix:front.sock,fd:,fd:web,fd:web"}, []string{
			`LISTEN_ADDR: "127.0.0.1:3000" clashes with ":3000"`, `LISTEN_ADDR: "unix:front.sock" is not the path`, `LISTEN_ADDR: "fd:" has no name`,
			`LISTEN_ADDR: "fd:web" clashes with "fd:web"`}},
		{"one of two listeners on the operator's port", []string{"LISTEN_ADDR=unix:/run/front.sock,:9090"}, []string{`ADMIN_ADDR: "127.0.0.1:9090" has the port of LISTEN_ADDR, ":9090"`}},
		{"a first message that nobody asks for", []string{"AUTH_MODE=none", "AUTH_FIRST_MESSAGE=true", "AUTH_FIRST_MESSAGE_FORMAT=json"},
			[]string{`AUTH_FIRST_MESSAGE: "true" `, `AUTH_FIRST_MESSAGE_FORMAT: "json" `}},
		{"certificates that nobody verifies", []string{"AUTH_MODE=certificate", "AUTH_CERTIFICATE_SUBJECT=serial", "AUTH_TOKEN_FROM=query:t", "TICKETS=true"},
			[]string{`AUTH_MODE: "certificate" needs TLS_CLIENT_CA_FILE`, `AUTH_CERTIFICATE_SUBJECT: "serial" `, `AUTH_TOKEN_FROM: "query:t" `, `TICKETS: "true" `, `ORIGINS: "" `}},
		{"authorities without a certificate of our own", []string{"TLS_CLIENT_CA_FILE=/nowhere.pem"}, []string{`TLS_CLIENT_CA_FILE: "/nowhere.pem" has no effect without TLS_CERT_FILE`}},
		{"renewal without subjects", []string{"AUTH_MODE=none", "RENEWAL=true"}, []string{`RENEWAL: "true" `}},
		{"names that were meant for others", []string{"TLS_CERT=/cert.pem", "TLS_KEY=hunter2", "auth_mode=jwt", "LISTEN_ADDRESS=:80", "LIMIT_SESSION="},
			[]string{"TLS_CERT: is no setting; want TLS_CERT_FILE, ", "TLS_KEY: is no setting", "auth_mode: is no setting"}},
		{"two listeners on one port", []string{"LISTEN_ADDR=127.0.0.1:9090"}, []string{`ADMIN_ADDR: "127.0.0.1:9090" has the port of LISTEN_ADDR`}},
		{"two listeners on one port of every address", []string{"LISTEN_ADDR=[::1]:3000", "ADMIN_ADDR=:3000"}, []string{`ADMIN_ADDR: ":3000" has the port`}},
		{"lists with a hole", []string{"PATHS=/a,,/b", "AUTH_AUDIENCE=a, ", "TRUSTED_PROXIES=,", "ORIGINS=https://a.example,"},
			[]string{`PATHS: "/a,,/b" has an empty entry`, `AUTH_AUDIENCE: "a, " has`, `TRUSTED_PROXIES: "," has`, `ORIGINS: "https://a.example," has`}},
		{"quotes of a file for Docker", []string{`UPSTREAM_URL="ws://app"`, "PING_INTERVAL='30s'", `LIMIT_SESSIONS="5"`, `PATHS="`},
			[]string{`UPSTREAM_URL: "\"ws://app\"" has quotes`, `PING_INTERVAL: "'30s'" has quotes`, `LIMIT_SESSIONS: "\"5\"" has quotes`, `PATHS: "\"" `}},
		{"every page", []string{"ORIGINS=*"}, []string{`ORIGINS: "*" would allow every web page; want `}},
		{"a greeting of no use", []string{"SESSION_HELLO=true"}, []string{`SESSION_HELLO: "true" `}},
		{"an operator's token that can be guessed", []string{"ADMIN_TOKEN=hunter2"}, []string{`ADMIN_TOKEN: "***" has not 16 `}},
		{"half of a pair", []string{"ADMIN_TLS_KEY_FILE=/key.pem"}, []string{`ADMIN_TLS_CERT_FILE: "" is empty, but ADMIN_TLS_KEY_FILE is set`}},
		{"sizes", []string{"ADMIN_TOKEN=0123456789abcdef", "PUSH_MAX_BYTES=1MB", "PUSH_QUEUE=-1", "MESSAGE_MAX_BYTES=9999999999GiB"},
			[]string{`PUSH_MAX_BYTES: "1MB" is no size`, `PUSH_QUEUE: "-1" `, `MESSAGE_MAX_BYTES: "9999999999GiB" is too large`}},
		{"a push of nothing", []string{"ADMIN_TOKEN=0123456789abcdef", "PUSH_MAX_BYTES=0"}, []string{`PUSH_MAX_BYTES: "0" lets no message be pushed`}},
		{"histories", []string{"ADMIN_TOKEN=0123456789abcdef", "PUSH_HISTORY=many"}, []string{`PUSH_HISTORY: "many" has no number of pushes`}},
		{"groups from nowhere", []string{"ADMIN_TOKEN=0123456789abcdef", "SESSION_GROUPS=groups,query:a,query:a"},
			[]string{`SESSION_GROUPS: "groups" is no place of groups`, `SESSION_GROUPS: "query:a" is there twice`}},
		{"groups of another mode", []string{"ADMIN_TOKEN=0123456789abcdef", "SESSION_GROUPS=claim:groups,auth:X Y"},
			[]string{`SESSION_GROUPS: "claim:groups" needs AUTH_MODE=jwt or introspect`, `SESSION_GROUPS: "auth:X Y" is not the name of a header`}},
		{"no mode of plain requests", []string{"HTTP_MODE=yes"}, []string{`HTTP_MODE: "yes" is no way to treat plain requests; want off, auth or open`}},
		{"a rate of plain requests, and none pass", []string{"RATE_REQUESTS_PER_IP=5/s", "RATE_REQUESTS_PER_IP_BURST=9"}, []string{
			`RATE_REQUESTS_PER_IP: "5/s" has no effect without HTTP_MODE`, `RATE_REQUESTS_PER_IP_BURST: "9" has no effect without HTTP_MODE`}},
		{"a burst of plain requests, and no rate", []string{"HTTP_MODE=open", "RATE_REQUESTS_PER_IP=", "RATE_REQUESTS_PER_IP_BURST=9"}, []string{
			`RATE_REQUESTS_PER_IP_BURST: "9" has no rate to go with`}},
		{"resumption without a largest message", []string{"RESUME=1m"}, []string{`RESUME: "1m0s" keeps whole messages and needs MESSAGE_MAX_BYTES`}},
		{"resumption of what is terminated", []string{"RESUME=1m", "RELAY_MODE=terminate", "MESSAGE_MAX_BYTES=1KiB"}, []string{`RESUME: "1m0s" needs RELAY_MODE=passthrough`}},
		{"resumption with buffers that nothing fits", []string{"RESUME=1m", "MESSAGE_MAX_BYTES=1MiB", "RESUME_TOTAL=1KiB", "ADMIN_TOKEN=0123456789abcdef", "PUSH_MAX_BYTES=1MiB"},
			[]string{`MESSAGE_MAX_BYTES: "1048576" does not fit RESUME_BUFFER`, `RESUME_TOTAL: "1024" is less than RESUME_BUFFER`, `PUSH_MAX_BYTES: "1048576" does not fit`}},
		{"a buffer of nothing", []string{"RESUME=1m", "MESSAGE_MAX_BYTES=10", "RESUME_BUFFER=100"}, []string{`RESUME_BUFFER: "100" is too small`}},
		{"resumption of the past", []string{"RESUME=-1m"}, []string{`RESUME: "-1m0s" is negative`}},
		{"no such mode", []string{"AUTH_MODE=saml"}, []string{`AUTH_MODE: "saml" `}},
		{"secret of another mode", []string{"AUTH_JWT_SECRET=hunter2"}, []string{`AUTH_JWT_SECRET: "***" `}},
		{"secret that is too short", []string{"AUTH_MODE=jwt", "AUTH_JWT_SECRET_FILE=" + secret}, []string{`AUTH_JWT_SECRET: "***" `}},
		{"cookie without origins", []string{"AUTH_TOKEN_FROM=cookie:session"}, []string{`ORIGINS: `}},
		{"per-subject limit without subjects", []string{"AUTH_MODE=none", "LIMIT_SESSIONS_PER_SUBJECT=5"}, []string{`AUTH_MODE: "none" `}},
		{"the loop engine cannot terminate", []string{"RELAY_MODE=terminate", "RELAY_ENGINE=loop"}, []string{`RELAY_ENGINE: "loop" `}},
		{"the loop engine has no TLS", []string{"RELAY_ENGINE=loop", "UPSTREAM_URL=wss://backend", "AUTH_MODE=none"}, []string{`RELAY_ENGINE: "loop" `}},
		{"secret that is no token", []string{"DEMO_TOKEN=hunter2 hunter2"}, []string{`DEMO_TOKEN: "***" `}},
		{"secret twice", []string{"DEMO_TOKEN=hunter2", "DEMO_TOKEN_FILE=" + secret}, []string{`DEMO_TOKEN_FILE: "` + secret + `" is set beside DEMO_TOKEN`}},
		{"secret in no file", []string{"DEMO_TOKEN_FILE=/nowhere/token"}, []string{`DEMO_TOKEN_FILE: "/nowhere/token" cannot be used: no such file`}},
		{"more than there can be", []string{"LIMIT_SESSIONS=99999999999999999999"}, []string{`LIMIT_SESSIONS: "99999999999999999999" is too large; `}},
		{"secret in an empty file", []string{"DEMO_TOKEN_FILE=" + empty}, []string{`DEMO_TOKEN_FILE: "` + empty + `" `}},
		{"password in a URL", []string{"UPSTREAM_URL=ws://ali:hunter2@backend", "AUTH_URL=http://ali:hunter2@auth"},
			[]string{`UPSTREAM_URL: `, `AUTH_URL: `}},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := execute(t, test.environ)
			if code != exitSettings || stdout != "" {
				t.Errorf("exit code %d, standard output %q, want %d and none", code, stdout, exitSettings)
			}
			lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
			for _, want := range test.want {
				i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, want) })
				if i < 0 {
					t.Errorf("no line begins with %s", want)
					continue
				}
				if !strings.Contains(lines[i], "; want ") {
					t.Errorf("this line does not say what is allowed: %s", lines[i])
				}
				lines = slices.Delete(lines, i, i+1)
			}
			if len(lines) > 0 {
				t.Errorf("further lines: %q", lines)
			}
			if strings.Contains(stderr, "hunter2") {
				t.Errorf("the secret is shown:\n%s", stderr)
			}
		})
	}
}

// TestMistakesComeInOneRound makes every pair of some mistakes, and looks for one that hides another.
func TestMistakesComeInOneRound(t *testing.T) {
	single := map[string]string{ // settings to the beginning of their line
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
		c, _, err := config.Read(environOf(text))
		p, buildErr := build(c)
		defer p.close()
		if buildErr == nil {
			p.proxy.Cut()
		}
		return "\n" + fmt.Sprint(errors.Join(err, buildErr))
	}
	for a, wantA := range single {
		for b, wantB := range single {
			if a >= b || strings.Contains(a+b, "AUTH_MODE=none") && strings.Contains(a+b, "AUTH_T") || wantA == wantB {
				continue // without a verifier neither a cookie nor a timeout matters
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

// withoutEffectTests are settings without effect, with the other settings that are the cause.
var withoutEffectTests = []struct {
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
	{"RATE_AUTH_FAILURES_PER_IP", "AUTH_MODE=certificate", "5/m"},
	{"TLS_CLIENT_CA_FILE", "", "/ca.pem"},
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
	{"ADMIN_TOKEN", "ADMIN_ADDR=", "hunter2hunter2hunter2"},
	{"ADMIN_TLS_CERT_FILE", "ADMIN_ADDR=", "/cert.pem"},
	{"SESSION_GROUPS", "", "query:room"},
	{"PUSH_HISTORY", "", "100,5m"},
	{"PUSH_MAX_BYTES", "", "2MiB"},
	{"PUSH_QUEUE", "", "1MiB"},
}

func TestSettingsWithoutEffect(t *testing.T) {
	for _, tt := range withoutEffectTests {
		t.Run(tt.name+" beside "+tt.beside, func(t *testing.T) {
			environ := environOf(tt.beside)
			if _, _, err := config.Read(environ); err != nil {
				t.Errorf("at its default: %v", err)
			}
			environ[tt.name] = tt.value
			_, _, err := config.Read(environ)
			shown := tt.value
			if isSecret(tt.name) {
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
		if _, _, err := config.Read(environOf(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

func TestListsAreTrimmed(t *testing.T) {
	c, _, err := config.Read(map[string]string{
		"PATHS": "/a, /b", "ORIGINS": " https://a.example ,\thttps://b.example", "TRUSTED_PROXIES": "10.0.0.1 , 10.0.0.2",
		"AUTH_AUDIENCE": "a, b", "AUTH_REQUIRE": "scope:a, role=b c", "AUTH_JWT_ALGORITHMS": "RS256, ES256",
		"AUTH_TOKEN_FROM": "query:token, header:Authorization", "AUTH_FORWARD": "sub:A, email:B", "AUTH_COPY_HEADERS": "A, B",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want []string }{
		{c.Proxy.Gate.Paths, []string{"/a", "/b"}},
		{c.Proxy.Origin.Origins, []string{"https://a.example", "https://b.example"}},
		{c.Proxy.ClientIP.TrustedProxies, []string{"10.0.0.1", "10.0.0.2"}},
		{c.Proxy.Auth.Audience, []string{"a", "b"}},
		{c.Proxy.Auth.Require, []string{"scope:a", "role=b c"}},
		{c.Proxy.Auth.JWTAlgorithms, []string{"RS256", "ES256"}},
		{c.Proxy.Auth.TokenFrom, []string{"query:token", "header:Authorization"}},
		{c.Proxy.Auth.Forward, []string{"sub:A", "email:B"}},
		{c.Proxy.Auth.CopyHeaders, []string{"A", "B"}},
	} {
		if !slices.Equal(tt.got, tt.want) {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestEmptyVariables(t *testing.T) {
	for _, test := range []struct {
		name, want string
		got        func(config.Config) string
	}{
		{"ADMIN_ADDR", "", func(c config.Config) string { return c.Admin.Addr }},
		{"AUTH_FORWARD", "0", func(c config.Config) string { return fmt.Sprint(len(c.Proxy.Auth.Forward)) }},
		{"RATE_UPGRADES_PER_IP", "0", func(c config.Config) string { return cmp.Or(c.Proxy.Limits.UpgradesPerIP.String(), "0") }},
		{"PING_INTERVAL", "30s", func(c config.Config) string { return c.Proxy.Relay.PingInterval.String() }},
		{"DEMO_TOKEN", "token", func(c config.Config) string { return c.Demo.Token }},
	} {
		c, _, err := config.Read(map[string]string{test.name: ""})
		if got := test.got(*c); err != nil || got != test.want {
			t.Errorf("%s set but empty: got %q (%v), want %q", test.name, got, err, test.want)
		}
	}
}

func TestSecretFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProgram(t, "DEMO_TOKEN_FILE="+file)
	p.open("/?token=hunter2")
	p.await("Try")
	if strings.Contains(p.text(), "hunter2") {
		t.Error("the greeting shows the secret")
	}
}

func TestMisspeltVariables(t *testing.T) {
	p := startProgram(t, "UPSTREAM_ULR=ws://127.0.0.1:1", "AUTH_CLIENT_SECRET_FILE=", "UPSTREAM_SERVICE_HOST=10.0.0.1", "AUTH_PORT=tcp://10.0.0.1:80", "AUTHOR=me")
	const warning = "a variable looks like a setting but is not one"
	if line := p.await(warning); !strings.Contains(line, `"level":"WARN"`) || !strings.Contains(line, `"variable":"UPSTREAM_ULR","meant":"UPSTREAM_URL"`) {
		t.Errorf("the line: %s", line)
	}
	p.open("/?token=token").Close()
	if n := strings.Count(p.text(), warning); n != 1 {
		t.Errorf("%d lines, want one", n)
	}
}

// The usual variables of a machine are never taken for misspelt settings.
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
		if got := list.Misspelt(environ, config.Families); len(got) > 0 {
			t.Errorf("%s: %+v", where, got)
		}
	}
}

// The tags make guards of exactly those settings whose names the page lists.
func TestGuards(t *testing.T) {
	for _, s := range list {
		want := s.Name == "ORIGINS" || strings.HasPrefix(s.Name, "REDIS_URL")
		for _, prefix := range []string{"TLS_", "ADMIN_TLS_", "AUTH_", "LIMIT_", "RATE_"} {
			want = want || strings.HasPrefix(s.Name, prefix)
		}
		if s.Guard != want {
			t.Errorf("%s: guard %t, want %t", s.Name, s.Guard, want)
		}
	}
	for _, word := range []string{"`TLS_*`", "`ADMIN_TLS_*`", "`AUTH_*`", "`LIMIT_*`", "`RATE_*`", "`ORIGINS`", "`REDIS_URL`"} {
		if !strings.Contains(readFile(t, settingsPage), word) {
			t.Errorf("%s does not name %s", settingsPage, word)
		}
	}
}

func TestSecretsAreKnownByTheirNames(t *testing.T) {
	for _, s := range list {
		if want := strings.HasSuffix(s.Name, "_TOKEN") || strings.HasSuffix(s.Name, "_SECRET") || s.Name == "REDIS_URL" || s.Name == "BUS_URL"; s.Secret != want {
			t.Errorf("%s: secret %t, want %t", s.Name, s.Secret, want)
		}
	}
}
