package certificate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A changed file is loaded within a second; one that does not load is told of once, and changes nothing.
func TestAuthoritiesFollowTheirFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ca.pem")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	first, second := string(newPair(t, 1).cert), string(newPair(t, 2).cert)
	write(first)
	a, err := NewAuthorities("TLS_CLIENT_CA_FILE", file)
	if err != nil {
		t.Fatal(err)
	}
	var elapsed time.Duration
	a.elapsed = func() time.Duration { return elapsed }
	var warnings []string
	a.Warn = func(err error) { warnings = append(warnings, err.Error()) }

	one := a.Pool()
	write(second + "\n" + first)
	if !a.Pool().Equal(one) {
		t.Error("the file was read again within a second")
	}
	elapsed += interval
	both := a.Pool()
	if both.Equal(one) {
		t.Error("the new authority is not known")
	}
	for range 3 {
		write("nothing of that kind")
		elapsed += interval
		if !a.Pool().Equal(both) {
			t.Error("a file without a certificate took the authorities away")
		}
	}
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], `TLS_CLIENT_CA_FILE: "`+file+`" holds no certificate; want `) || !strings.HasSuffix(warnings[0], "stay in use") {
		t.Errorf("warnings: %q", warnings)
	}
	write(first)
	elapsed += interval
	if !a.Pool().Equal(one) || len(warnings) != 1 {
		t.Errorf("the file that is in order again was not loaded, or warned of: %q", warnings)
	}
}

func TestAuthoritiesThatDoNotLoad(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"empty": "", "no PEM": "hello", "broken": "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
		"one is broken": string(newPair(t, 1).cert) + "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewAuthorities("TLS_CLIENT_CA_FILE", file); err == nil || !strings.HasPrefix(err.Error(), `TLS_CLIENT_CA_FILE: "`+file+`" h`) || !strings.Contains(err.Error(), "; want ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, file := range []string{dir, filepath.Join(dir, "nowhere")} {
		if _, err := NewAuthorities("TLS_CLIENT_CA_FILE", file); err == nil || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("%s: %v", file, err)
		}
	}
}
