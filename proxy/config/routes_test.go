package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/proxy"
	"portcullis/proxy/gate"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

func TestReadRoutes(t *testing.T) {
	environ := map[string]string{
		"AUTH_URL":     "http://auth",
		"MESSAGE_RATE": "10/s", "MESSAGE_BURST": "50",
		"ROUTE_CHAT": "/chat/* ws://chat-1:8080 ws://chat-2:8080 balance=sticky drain=1012:60s",
		"ROUTE_API":  "  api.example.com/v1/*\t wss://api/base?key=x relay=terminate http=open message_rate=5/s message_max_bytes=64KiB  message_limit_action=throttle ",
		"ROUTE_OPEN": "/public unix:/run/app.sock auth=none message_byte_rate=1000/s",
		// Kubernetes makes these of services called route and route-chat.
		"ROUTE_SERVICE_HOST": "10.0.0.1", "ROUTE_SERVICE_PORT": "80", "ROUTE_SERVICE_PORT_HTTP": "80", "ROUTE_PORT": "tcp://10.0.0.1:80",
		"ROUTE_PORT_80_TCP": "tcp://10.0.0.1:80", "ROUTE_PORT_80_TCP_PROTO": "tcp", "ROUTE_PORT_80_TCP_PORT": "80", "ROUTE_PORT_80_TCP_ADDR": "10.0.0.1",
		"ROUTE_CHAT_SERVICE_HOST": "10.0.0.2", "ROUTE_CHAT_PORT": "tcp://10.0.0.2:80", "ROUTE_CHAT_PORT_53_UDP": "udp://10.0.0.2:53",
		"ROUTE_UNSET": "",
	}
	c, _, err := Read(environ)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range c.Proxy.Routes {
		names = append(names, r.Name)
	}
	if want := []string{"API", "CHAT", "OPEN"}; !slices.Equal(names, want) {
		t.Fatalf("got routes %q, want %q", names, want)
	}
	api, chat, open := c.Proxy.Routes[0], c.Proxy.Routes[1], c.Proxy.Routes[2]
	tenPerSecond, fivePerSecond := ratelimit.Rate{N: 10, Per: time.Second}, ratelimit.Rate{N: 5, Per: time.Second}
	switch {
	case chat.Host != "" || chat.Paths[0] != "/chat/*" || chat.Upstream.URL != "ws://chat-1:8080 ws://chat-2:8080" || chat.Open:
		t.Errorf("chat: got %+v", chat)
	case !chat.Upstream.Balance.Sticky() || chat.Upstream.Drain != (upstream.Drain{Code: 1012, Over: time.Minute}):
		t.Errorf("chat: got %+v", chat.Upstream)
	case chat.Limits.Messages != tenPerSecond || chat.Limits.MessagesBurst != 50 || chat.Relay.Mode != "passthrough":
		t.Errorf("chat does not have what the settings say of all: %+v", chat)
	case api.HTTP != gate.HTTPOpen || chat.HTTP != gate.HTTPOff:
		t.Errorf("plain requests: got %q and %q", api.HTTP, chat.HTTP)
	case api.Host != "api.example.com" || api.Paths[0] != "/v1/*" || api.Upstream.URL != "wss://api/base?key=x":
		t.Errorf("api: got %+v", api)
	case api.Relay.Mode != "terminate" || api.Relay.MessageMaxBytes != 64<<10 || api.Relay.LimitAction != "throttle":
		t.Errorf("api: got %+v", api.Relay)
	case api.Limits.Messages != fivePerSecond || api.Limits.MessagesBurst != 0:
		t.Errorf("api: the burst is that of another rate: %+v", api.Limits)
	case !open.Open || open.Upstream.URL != "unix:/run/app.sock" || open.Limits.MessageBytes != (ratelimit.Rate{N: 1000, Per: time.Second}):
		t.Errorf("open: got %+v", open)
	}
}

// Each mistake is told once, with the variable and the word.
func TestWrongRoutes(t *testing.T) {
	for i, tt := range []struct {
		value string
		want  string // behind the variable
	}{
		{" ", `" " is empty; want [host]/path`},
		{"/chat", `"/chat" has no target; want [host]/path`},
		{"ws://a", `"ws://a" is a target, and the path is missing`},
		{"unix:/run/a.sock ws://a", `"unix:/run/a.sock" is a target, and the path is missing`},
		{"chat ws://a", `"chat" has no path`},
		{"* ws://a", `"*" has no path`},
		{"Chat.example.com/ ws://a", `"Chat.example.com/" does not begin with a host`},
		{"chat.example.com:3000/ ws://a", `"chat.example.com:3000/" does not begin with a host`},
		{"a_b!c/ ws://a", `"a_b!c/" does not begin with a host`},
		{"/chat?x ws://a", `"/chat?x" has a query`},
		{"/chat#x ws://a", `"/chat#x" is refused in requests`},
		{"/a*/b ws://a", `"/a*/b" has a * that is not its end`},
		{"/a/../b ws://a", `"/a/../b" is refused in requests (a dot segment)`},
		{"/a//b ws://a", `"/a//b" is refused in requests`},
		{"/a%2fb ws://a", `"/a%2fb" is refused in requests`},
		{"/%zz ws://a", `"/%zz" is refused in requests`},
		{"/.portcullis/* ws://a", `"/.portcullis/*" is among the gate's own`},
		{"/ a", `"a" has another scheme or none`},
		{"/ ftp://a", `"ftp://a" has another scheme or none`},
		{"/ ws://", `"ws://" has no valid host`},
		{"/ ws://a:0", `"ws://a:0" has no valid port`},
		{"/ ws://a:99999", `"ws://a:99999" has no valid port`},
		{"/ ws://user:hunter2@a", `"ws://…@a" holds user information`},
		{"/ ws://a#x", `"ws://a#…" has a fragment`},
		{"/ ws://a/../b", `"ws://a/../b" has a dot segment`},
		{"/ ws://a ws://a", `"ws://a" is there twice`},
		{"/ ws://a,ws://b", `"ws://a,ws://b" has a comma`},
		{"/ unix:app.sock", `"unix:app.sock" is no socket`},
		{"/ unix:/" + strings.Repeat("a", 200), `is no socket`},
		{"/ ws://a balance=sticky ws://b", `"ws://b" stands behind a key`},
		{"/ ws://a balance=stiky", `in "balance=stiky": "stiky" is no way to choose a target`},
		{"/ ws://a balance=hash:cookie", `in "balance=hash:cookie": "hash:cookie" is no way`},
		{"/ ws://a balance=", `"balance=" has no value`},
		{"/ ws://a balance=least balance=sticky", `"balance=sticky" is there twice`},
		{"/ ws://a ballance=sticky", `in "ballance=sticky": "ballance" is no key; want auth, balance, drain`},
		{"/ ws://a relay=opaque", `in "relay=opaque": "opaque" is not usable; want passthrough or terminate`},
		{"/ ws://a http=on", `in "http=on": "on" is no way to treat plain requests`},
		{"/ ws://a auth=jwt", `in "auth=jwt": "jwt" is not usable; want none`},
		{"/ ws://a drain=60s", `in "drain=60s": "60s" is no way to end sessions`},
		{"/ ws://a drain=1006:60s", `in "drain=1006:60s": "1006:60s" is no way`},
		{"/ ws://a drain=1012:-1s", `in "drain=1012:-1s": "1012:-1s" is no way`},
		{"/ ws://a message_rate=fast", `in "message_rate=fast": "fast" is not a rate`},
		{"/ ws://a message_byte_rate=1MiB/s", `in "message_byte_rate=1MiB/s": "1MiB/s" is not a rate`},
		{"/ ws://a message_rate=1/s message_burst=0", `in "message_burst=0": "0" is no number of messages`},
		{"/ ws://a message_burst=5", `"message_burst=5" has no rate to go with`},
		{"/ ws://a message_max_bytes=1MB", `in "message_max_bytes=1MB": "1MB" is no size`},
		{"/ ws://a message_max_bytes=99999999999GiB", `"99999999999GiB" is too large`},
		{"/ ws://a message_rate=1/s message_limit_action=drop", `in "message_limit_action=drop": "drop" is not usable`},
		{"/ ws://a message_limit_action=throttle", `"message_limit_action=throttle" has no effect without a rate`},
		{"/ ws://a relay=terminate", `RELAY_ENGINE: "loop" is not usable`}, // with RELAY_ENGINE=loop
	} {
		t.Run(fmt.Sprint(i, " ", tt.value), func(t *testing.T) {
			environ := map[string]string{"AUTH_URL": "http://auth", "ROUTE_X": tt.value}
			if strings.HasPrefix(tt.want, "RELAY_ENGINE") {
				environ["RELAY_ENGINE"] = "loop"
			}
			c, _, err := Read(environ)
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			p, err := proxy.New(c.Proxy)
			if err != nil {
				lines = append(lines, strings.Split(err.Error(), "\n")...)
			} else {
				p.Cut()
			}
			if len(lines) != 1 || !strings.HasPrefix(lines[0], "ROUTE_X: ") || !strings.Contains(lines[0], tt.want) || !strings.Contains(lines[0], "; want ") {
				t.Errorf("got %q, want one line with %q", lines, tt.want)
			}
			if strings.Contains(fmt.Sprint(lines), "hunter2") {
				t.Errorf("a password is shown: %q", lines)
			}
		})
	}
}

// What several variables get wrong together.
func TestRoutesThatContradict(t *testing.T) {
	for _, tt := range []struct {
		name    string
		environ map[string]string
		want    string
	}{
		{"UPSTREAM_URL", map[string]string{"ROUTE_A": "/ ws://a", "UPSTREAM_URL": "ws://b"}, `UPSTREAM_URL: "ws://b" stands beside ROUTE_A`},
		{"PATHS", map[string]string{"ROUTE_A": "/ ws://a", "PATHS": "/a"}, `PATHS: "/a" stands beside ROUTE_A`},
		{"the same path", map[string]string{"ROUTE_A": "/a/* ws://a", "ROUTE_B": "/a/* ws://b"}, `ROUTE_B: "/a/*" is that of ROUTE_A, too`},
		{"the same host and path", map[string]string{"ROUTE_A": "h/a ws://a", "ROUTE_B": "h/a ws://b"}, `ROUTE_B: "h/a" is that of ROUTE_A, too`},
		{"no name", map[string]string{"ROUTE_": "/ ws://a"}, `ROUTE_: "" is no name of a route`},
		{"a name with a dash", map[string]string{"ROUTE_A-B": "/ ws://a"}, `ROUTE_A-B: "A-B" is no name of a route`},
		{"a name of Kubernetes", map[string]string{"ROUTE_PORT": "/ ws://a", "ROUTE_A": "/a ws://a"}, `ROUTE_PORT: "/ ws://a" would be a route, but Kubernetes makes`},
		{"nobody needs a credential", map[string]string{"ROUTE_A": "/ ws://a auth=none", "AUTH_MODE": "none", "AUTH_URL": ""}, `ROUTE_A: in "auth=none": "none" says nothing with AUTH_MODE=none`},
		{"unsafe forms beside an open route", map[string]string{"ROUTE_A": "/ ws://a auth=none", "PATHS_UNSAFE_FORMS": "true"}, `PATHS_UNSAFE_FORMS: "true" would let forms through`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, isSet := tt.environ["AUTH_URL"]; !isSet {
				tt.environ["AUTH_URL"] = "http://auth"
			}
			c, _, err := Read(tt.environ)
			if err == nil {
				var p *proxy.Proxy
				if p, err = proxy.New(c.Proxy); err == nil {
					p.Cut()
				}
			}
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// One mistake in a setting that all routes share is one line.
func TestSharedMistakeIsToldOnce(t *testing.T) {
	c, _, err := Read(map[string]string{"AUTH_URL": "http://auth", "ROUTE_A": "/a ws://a", "ROUTE_B": "/b ws://b",
		"UPSTREAM_DIAL_TIMEOUT": "0s", "PONG_TIMEOUT": "0s"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = proxy.New(c.Proxy)
	if err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.Contains(err.Error(), "UPSTREAM_DIAL_TIMEOUT: ") || !strings.Contains(err.Error(), "PONG_TIMEOUT: ") {
		t.Errorf("got %v", err)
	}
}
