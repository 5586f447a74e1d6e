package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeEnvFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gate.env")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The program and its commands read the file, and the environment wins.
func TestEnvFile(t *testing.T) {
	file := writeEnvFile(t, "# of the test\nexport ADMIN_TOKEN='"+adminToken+"' # secret\nLISTEN_ADDR=nowhere\nPATHS=/a, /\nDEMO_TOKEN=\"token\"\n")
	shown.Token(adminToken)
	p := startProgram(t, "ENV_FILE="+file)
	p.mainJob()
	further := writeEnvFile(t, "ADMIN_TOKEN="+adminToken+"\nADMIN_ADDR="+p.admin+"\n")
	for _, args := range [][]string{{"sessions"}, {"probe"}} {
		if stdout, stderr, code := execute(t, []string{"ENV_FILE=" + further}, args...); code != 0 || stderr != "" {
			t.Errorf("%q: exit code %d, %s%s", args, code, stdout, stderr)
		}
	}
}

func TestMistakesInEnvFile(t *testing.T) {
	shown.Token("hunter2")
	for _, test := range []struct {
		name, text string
		environ    []string
		want       []string // the beginnings of the lines; FILE is the path
	}{
		{"beside others", "LOG_FORMAT=xml\nAUTH_URL=http://localhost/?a=hunter2$B\n", []string{"UPSTREAM_URL=ws://app", "LOG_LEVEL=loud"},
			[]string{`ENV_FILE: "FILE" line 2, AUTH_URL: has a $`, `LOG_LEVEL: "loud" `, `LOG_FORMAT: "xml" `}},
		{"a name that was meant for another", "TLS_CERT=hunter2\n", nil, []string{"TLS_CERT: is no setting; want TLS_CERT_FILE, "}},
		{"alone, for nobody knows the rest", "AUTH_URL='hunter2\n", []string{"UPSTREAM_URL=ws://app", "LOG_LEVEL=loud"}, []string{`ENV_FILE: "FILE" line 1, AUTH_URL: has no closing`}},
		{"a secret in both places", "DEMO_TOKEN=hunter2\n", []string{"DEMO_TOKEN_FILE=/dev/null"}, []string{`DEMO_TOKEN_FILE: "/dev/null" is set beside DEMO_TOKEN`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := writeEnvFile(t, test.text)
			stdout, stderr, code := execute(t, append(test.environ, "ENV_FILE="+file))
			lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
			if code != exitSettings || stdout != "" || len(lines) != len(test.want) {
				t.Fatalf("exit code %d, %s%s, want %d and %d lines", code, stdout, stderr, exitSettings, len(test.want))
			}
			for i, want := range test.want {
				if want = strings.ReplaceAll(want, "FILE\"", file+"\""); !strings.HasPrefix(lines[i], want) {
					t.Errorf("got %s, want %s", lines[i], want)
				}
			}
		})
	}
}

// Commands tell of a file that they cannot read, but for a probe that succeeds without it: a file is edited while its gate serves.
func TestCommandsWithoutTheirEnvFile(t *testing.T) {
	p := startProgram(t, "ADMIN_TOKEN="+adminToken)
	for _, test := range []struct {
		environ []string
		args    []string
		code    int
	}{
		{[]string{"ADMIN_ADDR=" + p.admin}, []string{"probe"}, 0},
		{[]string{"ADMIN_ADDR=127.0.0.1:1"}, []string{"probe"}, 1},
		{[]string{"ADMIN_ADDR=" + p.admin, "ADMIN_TOKEN=" + adminToken}, []string{"sessions"}, 2},
	} {
		_, stderr, code := execute(t, append(test.environ, "ENV_FILE=/nowhere/gate.env"), test.args...)
		if told := strings.Contains(stderr, `ENV_FILE: "/nowhere/gate.env" cannot be read`); code != test.code || told != (code != 0) {
			t.Errorf("%q %q: exit code %d, %s", test.environ, test.args, code, stderr)
		}
	}
}
