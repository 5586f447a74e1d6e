package main

import (
	"strings"
	"testing"
)

func TestCommands(t *testing.T) {
	for _, test := range []struct {
		args           []string
		stdout, stderr string // a part
		code           int
	}{
		{[]string{"version"}, "portcullis ", "", 0},
		{[]string{"--version"}, "portcullis ", "", 0},
		{[]string{"-v"}, "portcullis ", "", 0},
		{[]string{"help"}, "portcullis probe [URL]", "", 0},
		{[]string{"--help"}, "config.example.env", "", 0},
		{[]string{"-h"}, "config.example.env", "", 0},
		{[]string{"serv"}, "", `unknown command "serv"`, 2},
		{[]string{"version", "2"}, "", "usage:", 2},
		{[]string{"probe", "a", "b"}, "", "usage:", 2},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			stdout, stderr, code := execute(t, nil, test.args...)
			if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("got %d %q %q, want %d %q %q", code, stdout, stderr, test.code, test.stdout, test.stderr)
			}
		})
	}
}

func TestProbe(t *testing.T) {
	p := startProgram(t)
	for _, test := range []struct {
		name string
		args []string
		env  []string
		code int
	}{
		{"a session", []string{"probe", "ws://" + p.front + "/?token=token"}, nil, 0},
		{"a refusal", []string{"probe", "ws://" + p.front + "/?token=rogers"}, nil, 1},
		{"readiness", []string{"probe"}, []string{"ADMIN_ADDR=" + p.admin}, 0},
		{"nobody there", []string{"probe"}, []string{"ADMIN_ADDR=127.0.0.1:1"}, 1},
		{"no listener to ask", []string{"probe"}, []string{"ADMIN_ADDR="}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := execute(t, test.env, test.args...)
			if code != test.code {
				t.Errorf("exit code %d, want %d; it says %s%s", code, test.code, stdout, stderr)
			}
			if stdout+stderr == "" || (test.code != 0) != (stderr != "") {
				t.Errorf("standard output %q, standard error %q", stdout, stderr)
			}
			if strings.Contains(stdout+stderr, "token=") {
				t.Errorf("the query is shown: %s%s", stdout, stderr)
			}
		})
	}
}
