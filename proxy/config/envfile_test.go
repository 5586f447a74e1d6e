package config

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gate.env")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFileIsBeneathTheEnvironment(t *testing.T) {
	path := writeFile(t, "LISTEN_ADDR=:1\nLOG_LEVEL=debug\nADMIN_ADDR=:2\nRATE_UPGRADES=5/s\nLIMIT_SESSIONS=7\nother=x\n")
	environ := map[string]string{"ENV_FILE": path, "LISTEN_ADDR": ":3", "LOG_LEVEL": "", "ADMIN_ADDR": "", "LIMIT_SESSIONS": "", "HOME": "/"}
	before := maps.Clone(environ)
	for range 2 {
		got, err := Environ(environ)
		want := map[string]string{
			"ENV_FILE": path, "LISTEN_ADDR": ":3", "LOG_LEVEL": "debug", "ADMIN_ADDR": "", "RATE_UPGRADES": "5/s", "LIMIT_SESSIONS": "7", "HOME": "/", "other": "x",
		}
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if !maps.Equal(environ, before) {
		t.Errorf("the environment has changed to %q", environ)
	}
	if err := os.WriteFile(path, []byte("LISTEN_ADDR=:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Environ(environ); err != nil || got["LOG_LEVEL"] != "" || got["other"] != "" {
		t.Errorf("read again: %q, %v", got, err)
	}
}

func TestNoFile(t *testing.T) {
	environ := map[string]string{"LISTEN_ADDR": ":3", "ENV_FILE": ""}
	if got, err := Environ(environ); err != nil || !maps.Equal(got, environ) {
		t.Errorf("got %q, %v, want %q", got, err, environ)
	}
}

func TestValues(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{ // want is of A
		{"plain", "A=b", "b"},
		{"empty", "A=", ""},
		{"blanks around", "  A =\tb c \n", "b c"},
		{"several targets", "A=ws://a:1/?x=1&y=2 ws://b:1\n", "ws://a:1/?x=1&y=2 ws://b:1"},
		{"a comment behind", "A=b # c # d\n", "b"},
		{"a comment without a blank", "A=b#c\n", "b#c"},
		{"export", "export A=b", "b"},
		{"export and a tab", "export\tA=b", "b"},
		{"a comment before", "# A=c\n\n   \nA=b\n", "b"},
		{"a mark of Windows and its line ends", "\uFEFF# x\r\nA=b\r\nB=c\r\n", "b"},
		{"single quotes", `A='b $C ${D} \n "e" # f' # g`, `b $C ${D} \n "e" # f`},
		{"double quotes", `A="b \$C \\ \" 'e'\n# f" # g`, "b $C \\ \" 'e'\n# f"},
		{"empty quotes", `A=""`, ""},
		{"an equals sign", "A=b=c==", "b=c=="},
		{"quotes inside", `A=b"c"'d'`, `b"c"'d'`},
		{"a backslash", `A=b\nc\`, `b\nc\`},
		{"a colon", "A=:3000", ":3000"},
		{"letters of all kinds", "A=é 世界", "é 世界"},
		{"no line end", "B=1\nA=b", "b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Environ(map[string]string{"ENV_FILE": writeFile(t, test.text)})
			if err != nil || got["A"] != test.want {
				t.Errorf("got %q, %v, want %q", got["A"], err, test.want)
			}
		})
	}
}

func TestMistakesInFile(t *testing.T) {
	const secret = "hunter2"
	for _, test := range []struct {
		name, text string
		want       []string // the beginning of each line of the error, behind the path
		whole      bool     // all variables are there nevertheless
	}{
		{"empty", "", []string{" sets nothing; want "}, true},
		{"comments alone", "# A=1\n\n#B=2\n", []string{" sets nothing; want "}, true},
		{"a mark alone", "\uFEFF", []string{" sets nothing; want "}, true},
		{"NUL", "A=hun\x00ter2\nB=1\n", []string{" line 1 has a control character; want "}, false},
		{"a line end of another age", "A=hunter2\rB=1\n", []string{" line 1 has a control character; want "}, false},
		{"not UTF-8", "A=1\nB=\xff\xfehunter2\n", []string{" line 2 is not UTF-8; want "}, false},
		{"UTF-16", "A\x00=\x001\x00\n\x00", []string{" line 1 has a control", " line 2 has a control"}, false},
		{"too large", "A=" + strings.Repeat("x", maxFile), []string{" has more than 1048576 bytes; want "}, false},
		{"no equals sign", "A=1\nhunter2\n", []string{" line 2 is no NAME=value; want "}, false},
		{"no name", "=hunter2\n", []string{" line 1 is no NAME=value; want "}, false},
		{"no variable's name", "9A=1\nA-B=2\nA B=3\nÄ=4\n", []string{" line 1 is no", " line 2 is no", " line 3 is no", " line 4 is no"}, false},
		{"YAML", "A: hunter2\n", []string{" line 1 is no NAME=value; want "}, false},
		{"$", "B=1\nA=hunter2$B\n", []string{" line 2, A: has a $ without quotes"}, true},
		{"${}", "A=${hunter2}\n", []string{" line 1, A: has a $ without quotes"}, true},
		{"$ that is escaped for others", `A=hunter2\$B`, []string{" line 1, A: has a $ without quotes"}, true},
		{"$ alone", "A=$\n", []string{" line 1, A: has a $ without quotes"}, true},
		{"$ in double quotes", `A="hunter2$B"`, []string{" line 1, A: has a $ in double quotes"}, true},
		{"$ behind a backslash", `A="hunter2\\$B"`, []string{" line 1, A: has a $ in double quotes"}, true},
		{"$ of a command", `A="$(hunter2)"`, []string{" line 1, A: has a $ in double quotes"}, true},
		{"twice", "A=1\nB=1\nA=hunter2\nexport A=1\n", []string{" line 3, A: is set in line 1 already; want ", " line 4, A: is set in line 1"}, true},
		{"an open quote", "B=1\nA='hunter2\nC=1\n", []string{" line 2, A: has no closing quote in its line; want "}, false},
		{"several lines", "A=\"-----BEGIN\nhunter2\n\"\nC=1\n", []string{" line 1, A: has no closing quote in its line; want "}, false},
		{"an open quote that is set already", "A=1\nA='hunter2\nhunter2=\n", []string{" line 2, A: is set in line 1 already"}, false},
		{"text behind a quote", `A="hunter2"hunter2`, []string{" line 1, A: has text behind its closing quote; want "}, true},
		{"two in a line", `A="1" B="hunter2"`, []string{" line 1, A: has text behind its closing quote; want "}, true},
		{"a quote that would be lost", `A="b \"hunter2\""`, []string{" line 1, A: has an escaped quote"}, true},
		{"a comment for a value", "A= # hunter2\n", []string{" line 1, A: begins with #"}, true},
		{"a further file", "A=1\nENV_FILE=/etc/hunter2\n", []string{" line 2, ENV_FILE: names a further file"}, true},
		{"all at once", "A=$\nB=1\nB=2\nC= #\nENV_FILE=x\n", []string{" line 1, A: ", " line 3, B: ", " line 4, C: ", " line 5, ENV_FILE: "}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := writeFile(t, test.text)
			got, err := Environ(map[string]string{"ENV_FILE": path})
			if err == nil {
				t.Fatalf("no mistake; got %q", got)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(test.want) {
				t.Errorf("got %q, want %d lines", lines, len(test.want))
			}
			for i, want := range test.want[:min(len(lines), len(test.want))] {
				if want = `ENV_FILE: "` + path + `"` + want; !strings.HasPrefix(lines[i], want) || !strings.Contains(lines[i], "; want ") {
					t.Errorf("got %s, want %s ... ; want ...", lines[i], want)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("a value is shown: %v", err)
			}
			if (got != nil) != test.whole {
				t.Errorf("got %q, want a map: %t", got, test.whole)
			}
			if got != nil && got["ENV_FILE"] != path {
				t.Errorf("ENV_FILE is %q", got["ENV_FILE"])
			}
		})
	}
}

// What can be meant by a variable with a mistake is there, so that nobody complains about the lack of it.
func TestMistakenVariablesAreThere(t *testing.T) {
	got, err := Environ(map[string]string{"ENV_FILE": writeFile(t, "A=x$y\nB=\"x$y\"\nC='1' 2\nD=1\nD=2\n")})
	for name, want := range map[string]string{"A": "x$y", "B": "x$y", "C": "1", "D": "1"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if err == nil {
		t.Error("no mistake")
	}
}

func TestNoFileToRead(t *testing.T) {
	dir := t.TempDir()
	unreadable := writeFile(t, "A=1\n")
	if err := os.Chmod(unreadable, 0); err != nil {
		t.Fatal(err)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, want string }{
		{"absent", filepath.Join(dir, "absent"), "cannot be read: no such file or directory"},
		{"a directory", dir, "is a directory"},
		{"a device", os.DevNull, "is no regular file"},
		{"a link to itself", loop, "cannot be read: too many"},
		{"in no directory", unreadable + "/x", "cannot be read: not a directory"},
		{"unreadable", unreadable, "cannot be read: permission denied"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "unreadable" && os.Geteuid() == 0 {
				t.Skip("root may read everything")
			}
			got, err := Environ(map[string]string{"ENV_FILE": test.path, "A": "1"})
			want := `ENV_FILE: "` + test.path + `" ` + test.want
			if got != nil || err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "; want ") {
				t.Errorf("got %q, %v, want %s", got, err, want)
			}
		})
	}
}

// FuzzValue: a value is read as it is written, however it is quoted, or it is a mistake that is told.
func FuzzValue(f *testing.F) {
	for _, seed := range []string{"", "a", "a b", `a\`, `\`, `"`, "'", `\"`, `\'`, "$", `\$`, `\\$`, "# a", "a # b # c", "${A}", "$(a)", "a\u00a0", `a\n`, `\\n`, "=", "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) || len(value) > 1000 {
			t.Skip()
		}
		escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(value)
		forms := map[string]string{`A='` + value + `'`: value, `A="` + escaped + `"`: value}
		if unquoted := strings.Trim(value, " \u00a0"); unquoted == "" || !strings.ContainsRune(`"'`, rune(unquoted[0])) {
			withoutComment, _, _ := strings.Cut(unquoted, " #")
			forms["A="+value] = strings.TrimRight(withoutComment, " \u00a0")
		}
		for text, want := range forms {
			got, err := Environ(map[string]string{"ENV_FILE": writeFile(t, "B=b\n"+text+"\nC=c\n")})
			switch {
			case err != nil:
				if !strings.Contains(err.Error(), "line 2") {
					t.Errorf("%s: %v", text, err)
				}
			case got["A"] != want || got["B"] != "b" || got["C"] != "c":
				t.Errorf("%s: read as %q", text, got)
			}
		}
	})
}
