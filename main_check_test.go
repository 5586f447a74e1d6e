package main

import (
	"encoding/json"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"portcullis/proxy/config"
	"portcullis/proxy/redistest"
)

// The exit codes of check, and where it says what.
func TestCheck(t *testing.T) {
	p := startProgram(t) // which answers what its backend does
	token := "AUTH_URL=http://" + p.front + "/token"
	for _, test := range []struct {
		name           string
		environ        []string
		args           []string
		stdout, stderr string // parts
		code           int
	}{
		{"the demonstration", nil, nil, "the bundled backend", "", 0},
		{"all well", []string{"UPSTREAM_URL=ws://" + p.front, token}, nil, "ok: AUTH_URL: ", "", 0},
		{"nobody there", []string{"UPSTREAM_URL=ws://127.0.0.1:1", token}, nil, "connection refused; want ", "", 1},
		{"mistakes", []string{"LOG_LEVEL=loud", "PATHS=chat", "ENV_FILE=" + writeEnvFile(t, "LOG_FORMAT=$\n")}, nil, "", `LOG_LEVEL: "loud" `, 2},
		{"no file", []string{"ENV_FILE=/nowhere/gate.env"}, nil, "", `ENV_FILE: "/nowhere/gate.env" cannot be read`, 2},
		{"help", []string{"LOG_LEVEL=loud"}, []string{"-h"}, "usage: portcullis check", "", 0},
		{"no such flag", nil, []string{"-yaml"}, "", "check: flag provided but not defined", 2},
		{"no arguments", nil, []string{"all"}, "", "check: want no arguments", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := execute(t, test.environ, append([]string{"check"}, test.args...)...)
			if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) || (stderr == "") != (test.stderr == "") {
				t.Errorf("got %d %q %q, want %d %q %q", code, stdout, stderr, test.code, test.stdout, test.stderr)
			}
			if len(test.args) > 0 {
				return
			}
			stdout, stderr, code = execute(t, test.environ, "check", "-json")
			var document struct{ Exit int }
			if err := json.Unmarshal([]byte(stdout), &document); err != nil || code != test.code || document.Exit != code || stderr != "" {
				t.Errorf("-json: exit code %d, %v, %s%s", code, err, stdout, stderr)
			}
		})
	}
}

// What stops a gate from starting is what check says, word for word.
func TestCheckSaysWhatServeSays(t *testing.T) {
	for _, environ := range [][]string{
		{"LISTEN_ADDR=3000", "ADMIN_ADDR=nowhere", "LOG_FORMAT=xml", "UPSTREAM_URL=ftp://backend", "DRAIN_TIMEOUT=0s", "TLS_CERT_FILE=/nowhere.pem", "RELAY_MODE=opaque"},
		{"UPSTREAM_URL=ws://127.0.0.1:1"},
		{"DEMO_TOKEN=hunter2 hunter2", "TLS_CERT=hunter2", "PROXY_PROTOCOL=true"},
		{"REDIS_URL=http://hunter2", "BUS_URL=http://hunter2", "FLEET={}"},
		{"REDIS_URL=redis://127.0.0.1:1", "BUS_URL=kafka://hunter2"},
		{"AUTH_MODE=jwt", "AUTH_JWKS_URL=https://127.0.0.1:1/keys"},
		{"ENV_FILE=" + writeEnvFile(t, "A=1\nA=$\nPATHS=chat\n")},
	} {
		_, served, code := execute(t, environ)
		_, checked, checkCode := execute(t, environ, "check")
		if code != exitSettings || checkCode != exitSettings || served != checked {
			t.Errorf("%q: serve says %d\n%scheck says %d\n%s", environ, code, served, checkCode, checked)
		}
	}
}

// A check that only looks for mistakes asks nobody, joins no fleet and opens no port.
func TestMistakesAreFoundAlone(t *testing.T) {
	server := redistest.Start(t)
	asked := make(chan struct{}, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			asked <- struct{}{}
		}
	}()
	for _, text := range []string{
		"REDIS_URL=" + server.URL() + " INSTANCE=a UPSTREAM_URL=ws://" + l.Addr().String() + " UPSTREAM_HEALTH_PATH=/ AUTH_MODE=jwt AUTH_AUDIENCE=a AUTH_JWKS_URL=http://" + l.Addr().String(),
		"",
	} {
		c, _, err := config.Read(environOf(text))
		p := &program{Config: *c, log: slog.New(slog.DiscardHandler), checking: true}
		if err != nil || p.build() != nil || p.backend != nil || p.proxy != nil {
			t.Errorf("%s: %v, %v, %+v", text, err, p.build(), p)
		}
	}
	select {
	case <-asked:
		t.Error("somebody was asked")
	default:
	}
	client := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer client.Close()
	if n, err := client.DBSize(t.Context()).Result(); n != 0 || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
}

// Neither a secret nor a query is in what check says.
func TestCheckShowsNoSecret(t *testing.T) {
	environ := []string{
		"UPSTREAM_URL=ws://127.0.0.1:1/?key=hunter2 wss://127.0.0.1:1/a?key=hunter2", "AUTH_URL=http://127.0.0.1:1/?key=hunter2", "AUTH_CLIENT_SECRET=hunter2",
		"REDIS_URL=redis://gate:hunter2@127.0.0.1:1", "BUS_URL=amqp://gate:hunter2@127.0.0.1:1", "ADMIN_TOKEN=hunter2hunter2hunter2", "UPSTREAM_HEALTH_PATH=/?key=hunter2",
	}
	for _, args := range [][]string{{"check"}, {"check", "-json"}} {
		stdout, stderr, code := execute(t, environ, args...)
		if code != exitFailed || strings.Contains(stdout+stderr, "hunter2") {
			t.Errorf("exit code %d, %s%s", code, stdout, stderr)
		}
	}
}
