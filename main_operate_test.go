package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const adminToken = "an-operators-token"

// What an operator does from a shell, with TLS and without.
func TestOperatorsCommands(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	writeCertificate(t, dir, 1)
	writeCertificate(t, other, 2)
	certFile, keyFile, otherCert := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(other, "cert.pem")
	for name, settings := range map[string][]string{
		"plain": {"ADMIN_TOKEN=" + adminToken},
		"TLS":   {"ADMIN_TOKEN=" + adminToken, "ADMIN_TLS_CERT_FILE=" + certFile, "ADMIN_TLS_KEY_FILE=" + keyFile},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProgram(t, settings...)
			environ := append([]string{"ADMIN_ADDR=" + p.admin}, settings...)
			run := func(args ...string) string {
				t.Helper()
				stdout, stderr, code := execute(t, environ, args...)
				if code != 0 || stderr != "" {
					t.Errorf("%q: %d %s", args, code, stderr)
				}
				return stdout
			}
			run("probe")
			conn := p.open("/?token=token")
			if got := run("send", "-all", "hello, all"); got != "sent to 1 session\n" {
				t.Errorf("send: %q", got)
			}
			if _, got, err := conn.ReadMessage(); err != nil || string(got) != "hello, all" {
				t.Errorf("got %q, %v", got, err)
			}
			table := run("sessions")
			if lines := strings.Split(strings.TrimSpace(table), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "ID ") || lines[2] != "1 session" {
				t.Errorf("sessions:\n%s", table)
			}
			var s struct{ ID, Path string }
			if err := json.Unmarshal([]byte(run("sessions", "-json", "-path", "/")), &s); err != nil || s.ID == "" || s.Path != "/" {
				t.Errorf("sessions -json: %+v, %v", s, err)
			}
			if got := run("sessions", s.ID); !strings.Contains(got, s.ID) {
				t.Errorf("sessions ID: %q", got)
			}
			if got := run("sessions", "-subject", "nobody"); !strings.HasSuffix(got, "0 sessions\n") {
				t.Errorf("nobody's: %q", got)
			}
			if got := run("kick", "-code", "4000", "-reason", "bye", s.ID); got != "1 session told to go, 0 on their way out already\n" {
				t.Errorf("kick: %q", got)
			}
			if _, _, err := conn.ReadMessage(); fmt.Sprint(err) != "websocket: close 4000: bye" {
				t.Errorf("client: %v", err)
			}
			if got := run("kick", "-all", "-json"); !strings.HasPrefix(got, `{"reached":0,`) {
				t.Errorf("kick -json: %q", got)
			}
			if got := run("kick", "-h"); !strings.HasPrefix(got, "usage: portcullis kick [flags] [ID]\n") {
				t.Errorf("kick -h: %q", got)
			}

			for _, test := range []struct {
				args   []string
				env    string
				code   int
				stderr string
			}{
				{[]string{"kick"}, "", 2, "kick: want one session's ID, a flag that chooses, or -all\n"},
				{[]string{"kick", "a", "b"}, "", 2, "kick: unexpected argument \"b\"\n"},
				{[]string{"kick", "-all", "a"}, "", 2, "kick: want one session's ID, or flags that choose\n"},
				{[]string{"kick", "-nobody"}, "", 2, "kick: flag provided but not defined: -nobody\n"},
				{[]string{"kick", "-all", "-code", "1002"}, "", 1, "kick: code: want 1000, 1008, or one from 3000 to 4999 (RFC 6455, section 7.4) (400)\n"},
				{[]string{"send", "hello"}, "", 2, "send: want a flag that chooses, or -all\n"},
				{[]string{"send", "-all", "two", "words"}, "", 2, "send: unexpected argument \"words\"; want the message as one\n"},
				{[]string{"send", "-all", "\xff"}, "", 2, "send: the message is not UTF-8; want text, or -binary\n"},
				{[]string{"sessions", "nobody"}, "", 1, "sessions: no session with that id is open (404)\n"},
				{[]string{"sessions"}, "ADMIN_TOKEN=another-operators", 1, "sessions: the token is not ADMIN_TOKEN (401)\n"},
				{[]string{"sessions"}, "ADMIN_TOKEN=", 2, "sessions: ADMIN_TOKEN: \"\" opens nothing; want that of the instance at ADMIN_ADDR\n"},
				{[]string{"sessions"}, "ADMIN_ADDR=nowhere", 2, "sessions: ADMIN_ADDR: \"nowhere\" is no address to ask; want host:port\n"},
				{[]string{"sessions"}, "ADMIN_ADDR=127.0.0.1:1", 1, "connection refused"},
			} {
				_, stderr, code := execute(t, append(environ, test.env), test.args...)
				if code != test.code || !strings.Contains(stderr, test.stderr) {
					t.Errorf("%q with %q: got %d %q, want %d %q", test.args, test.env, code, stderr, test.code, test.stderr)
				}
			}
			if name == "TLS" {
				for _, args := range [][]string{{"sessions"}, {"probe"}} {
					_, stderr, code := execute(t, append(environ, "ADMIN_TLS_CERT_FILE="+otherCert), args...)
					if code != 1 || !strings.Contains(stderr, "another certificate") {
						t.Errorf("%q to a server with another certificate: %d %s", args, code, stderr)
					}
				}
			}
		})
	}
}

func TestNoAPIWithoutToken(t *testing.T) {
	p := startProgram(t)
	for _, path := range []string{"/api/sessions", "/api/openapi.json", "/api/"} {
		if resp, _ := ask(t, "GET", "http://"+p.admin+path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	_, stderr, code := execute(t, []string{"ADMIN_ADDR=" + p.admin, "ADMIN_TOKEN=" + adminToken}, "sessions")
	if code != 1 || stderr != "sessions: the instance has no API; it is there with ADMIN_TOKEN\n" {
		t.Errorf("%d %q", code, stderr)
	}
}

// A stream of events does not keep the program from ending.
func TestDrainEndsEvents(t *testing.T) {
	p := startProgram(t, "ADMIN_TOKEN="+adminToken)
	r, err := http.NewRequest("GET", "http://"+p.admin+"/api/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	defer resp.Body.Close()
	began := time.Now()
	p.signal(syscall.SIGTERM)
	p.exit(exitDrained)
	if took := time.Since(began); took > patience/2 {
		t.Errorf("it took %v", took)
	}
}
