package check

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis/proxy/config"
	"portcullis/proxy/redistest"
	"portcullis/upstream/echo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run checks the settings of an environment, NAME=value each. They must have no mistake that shows in reading them.
func run(t *testing.T, environ []string, args ...string) (exit int, out string) {
	t.Helper()
	c := Config{Environ: map[string]string{}}
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		c.Environ[name] = value
	}
	var err error
	if c.All, err = config.Environ(c.Environ); err != nil {
		t.Fatal(err)
	}
	if c.Settings, c.Misspelt, err = config.Read(c.All); err != nil {
		t.Fatal(err)
	}
	c.Backend, c.Tokens = !c.Settings.NamesBackend(), c.Settings.LacksTokenEndpoint()
	var printed, wrong bytes.Buffer
	c.Out, c.Errors = &printed, &wrong
	if exit, err = Run(t.Context(), c, args); err != nil || wrong.Len() > 0 {
		t.Fatalf("%v, %s", err, wrong.String())
	}
	if strings.Contains(printed.String(), "hunter2") {
		t.Errorf("a secret is shown:\n%s", printed.String())
	}
	return exit, printed.String()
}

// backend is a WebSocket server with a token endpoint.
func backend(t *testing.T) *echo.Server {
	t.Helper()
	s, err := echo.Start(echo.Config{Token: "token"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

// answering is a server that says always the same.
func answering(t *testing.T, status int, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// gone is the address of nobody. A port that was free a moment ago may be another test's by now.
const gone = "127.0.0.1:1"

// silent is the address of a server that says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// certificateFile is one that holds from and until so long from now.
func certificateFile(t *testing.T, from, until time.Duration) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"gate.example"}, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(until)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The document of -json, as programs rely on it.
func TestJSON(t *testing.T) {
	b := backend(t)
	redis := redistest.Start(t)
	envFile := file(t, "PATHS=/a, /b/*\nREDIS_URL="+redis.URL()+"\nLIMIT_SESSIONS=5\n")
	exit, out := run(t, []string{
		"ENV_FILE=" + envFile, "UPSTREAM_URL=" + b.URL() + "?key=hunter2 ws://" + gone, "AUTH_URL=" + b.TokenURL() + "?key=hunter2",
		"LIMIT_SESSIONS=6", "REDIS_TIMEOUT=20s", "AUTH_CLIENT_SECRET_FILE=" + file(t, "hunter2"), "UPSTREAM_HEALTH_PATH=/token?token=token",
	}, "-json")
	if exit != Faulty {
		t.Errorf("exit code %d", exit)
	}
	var r Report
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	some := r.Settings[:0]
	for _, s := range r.Settings {
		if s.From != "default" || s.Name == "UPSTREAM_BALANCE" || s.Name == "DEMO_TOKEN" {
			some = append(some, s)
		}
	}
	if len(r.Settings) < 100 {
		t.Errorf("%d settings", len(r.Settings))
	}
	r.Settings = some
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	for pattern, instead := range map[string]string{
		`127\.0\.0\.1:[0-9]+`: "HOST", `"connect_seconds": [0-9.e-]+`: `"connect_seconds": 1`, `after [0-9.]+(µs|ms|s)`: "after T", `Redis [0-9.]+`: "Redis V",
		`[0-9]+ descriptors .* some [0-9]+ sessions`: "N descriptors", `"/[^" ]*/file"`: `"FILE"`,
	} {
		got = regexp.MustCompile(pattern).ReplaceAllString(got, instead)
	}
	want, err := os.ReadFile("testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	if got+"\n" != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFindings(t *testing.T) {
	b := backend(t)
	right := []string{"UPSTREAM_URL=" + b.URL(), "AUTH_URL=" + b.TokenURL()}
	day := 24 * time.Hour
	for _, test := range []struct {
		name    string
		environ []string
		exit    int
		want    []string // parts of the output
	}{
		{"all well", nil, Well, []string{"ok: AUTH_URL: " + b.TokenURL() + " refuses a token that nobody has issued: status 400", "\n0 faults, 0 warnings\n"}},
		{"the bundled backend", []string{"UPSTREAM_URL=", "AUTH_URL="}, Well,
			[]string{"the bundled backend", "warning: UPSTREAM_URL: is empty: ", "warning: AUTH_URL: is empty: ", "\n0 faults, 2 warnings\n"}},
		{"everyone", []string{"AUTH_URL=", "AUTH_MODE=none"}, Well, []string{"ok: AUTH_MODE: none lets everyone in"}},
		{"a secret", []string{"AUTH_URL=", "AUTH_MODE=jwt", "AUTH_JWT_SECRET=0123456789abcdef0123456789abcdef"}, Well, []string{"ok: AUTH_MODE: jwt asks nobody"}},
		{"an upstream that is gone", []string{"UPSTREAM_URL=ws://" + gone}, Faulty, []string{"connection refused; want it started, or UPSTREAM_URL with", "1 fault, "}},
		{"one of two is gone", []string{"UPSTREAM_URL=ws://" + gone + " " + b.URL()}, Faulty, []string{"connection refused", "1 fault, "}},
		{"an upstream that hangs", []string{"UPSTREAM_URL=wss://" + silent(t), "UPSTREAM_DIAL_TIMEOUT=100ms"}, Faulty, []string{"or a longer UPSTREAM_DIAL_TIMEOUT"}},
		{"a health check that fails", []string{"UPSTREAM_HEALTH_PATH=/token?token=hunter2"}, Faulty, []string{"its health check says 400; want a target in UPSTREAM_URL that takes"}},
		{"a health check that hangs", []string{"UPSTREAM_URL=ws://" + silent(t), "UPSTREAM_HEALTH_PATH=/", "UPSTREAM_HEALTH_TIMEOUT=100ms"}, Faulty,
			[]string{"its health check has no answer in 100ms"}},
		{"no TLS where it is wanted", []string{"UPSTREAM_URL=" + strings.Replace(b.URL(), "ws:", "wss:", 1)}, Faulty, []string{"want UPSTREAM_URL with ws or http, for it speaks no TLS"}},
		{"an endpoint that accepts everything", []string{"AUTH_URL=" + answering(t, 200, "1")}, Faulty, []string{"fault: AUTH_URL: ", "accepts a token that nobody has issued"}},
		{"an endpoint that is not there", []string{"AUTH_URL=" + answering(t, 404, "")}, Faulty, []string{"fault: AUTH_URL: ", ": status 404; want an endpoint that answers 400"}},
		{"an endpoint that hangs", []string{"AUTH_URL=http://" + silent(t) + "/?key=hunter2", "AUTH_TIMEOUT=100ms"}, Faulty, []string{"/?…: no answer in 100ms", "or a longer AUTH_TIMEOUT"}},
		{"an endpoint that says JSON", []string{"AUTH_URL=" + answering(t, 200, `{"active":false}`)}, Well, []string{"warning: AUTH_ACCEPT: the token endpoint answers 200 with JSON", ", 1 warning\n"}},
		{"a forward without a door", []string{"AUTH_MODE=forward", "AUTH_URL=" + answering(t, 200, "")}, Well, []string{"warning: AUTH_URL: ", "lets in a request for / without any credential"}},
		{"keys that are none", []string{"AUTH_MODE=jwt", "AUTH_URL=", "AUTH_JWKS_URL=" + answering(t, 200, "no"), "AUTH_AUDIENCE=a"}, Faulty,
			[]string{"fault: AUTH_JWKS_URL: ", "want a key set there"}},
		{"in clear text", []string{"AUTH_URL=http://0.0.0.0:1/"}, Faulty, []string{"warning: AUTH_URL: ", "is not encrypted"}},
		{"a certificate for a day", []string{"TLS_CERT_FILE=" + certificateFile(t, -day, day)}, Well, []string{"warning: TLS_CERT_FILE: ", "holds a certificate that expires soon, at ", "; want it renewed"}},
		{"a certificate for long", []string{"ADMIN_TLS_CERT_FILE=" + certificateFile(t, -day, 90*day)}, Well, []string{"ok: ADMIN_TLS_CERT_FILE: ", `is for ["gate.example"] and holds until `}},
		{"a certificate of yesterday", []string{"TLS_CERT_FILE=" + certificateFile(t, -2*day, -day)}, Faulty, []string{"fault: TLS_CERT_FILE: ", "holds a certificate that expired at "}},
		{"a certificate of tomorrow", []string{"TLS_CERT_FILE=" + certificateFile(t, day, 90*day)}, Faulty, []string{"is not valid before "}},
		{"no certificate", []string{"TLS_CERT_FILE=" + file(t, "hello")}, Faulty, []string{"holds no certificate"}},
		{"Redis that is gone", []string{"REDIS_URL=redis://:hunter2@" + gone}, Faulty, []string{"fault: REDIS_URL: 127.0.0.1:", "want it started, or REDIS_URL with"}},
		{"a bus that is gone", []string{"REDIS_URL=redis://" + gone, "BUS_URL=amqp://gate:hunter2@" + gone}, Faulty, []string{"fault: BUS_URL: 127.0.0.1:", "want it started, or BUS_URL with"}},
		{"more sessions than descriptors", []string{"LIMIT_SESSIONS=2000000000"}, Well, []string{"warning: LIMIT_SESSIONS: 2000000000 is more than ", "want a limit of 4000000200 descriptors or more"}},
		{"a name that is none", []string{"UPSTREAM_ROUTE=x"}, Well, []string{"warning: UPSTREAM_ROUTE: looks like a setting but is none; want it unset"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			exit, out := run(t, append(right[:len(right):len(right)], test.environ...))
			if exit != test.exit {
				t.Errorf("exit code %d, want %d", exit, test.exit)
			}
			for _, part := range test.want {
				if !strings.Contains(out, part) {
					t.Errorf("no %q", part)
				}
			}
			if t.Failed() {
				_, out, _ := strings.Cut(out, "\n\n")
				t.Logf("it says\n%s", out)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	newServer := func(edit func(*httptest.Server)) (address, caFile string) {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are meant to fail
		edit(s)
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.Listener.Addr().String(), file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	}
	address, caFile := newServer(func(*httptest.Server) {})
	asking, _ := newServer(func(s *httptest.Server) {
		s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}
	})
	_, port, _ := net.SplitHostPort(address)
	for _, test := range []struct {
		name    string
		environ []string
		exit    int
		want    string
	}{
		{"right", []string{"UPSTREAM_URL=wss://" + address, "UPSTREAM_CA_FILE=" + caFile}, Well, "TLS 1.3"},
		{"an upstream of another authority", []string{"UPSTREAM_URL=wss://" + address}, Faulty, "want UPSTREAM_CA_FILE with the authority that signed its certificate"},
		{"an upstream of another name", []string{"UPSTREAM_URL=wss://localhost:" + port, "UPSTREAM_CA_FILE=" + caFile}, Faulty, "or that in UPSTREAM_SERVER_NAME"},
		{"an upstream that asks for a certificate", []string{"UPSTREAM_URL=wss://" + asking, "UPSTREAM_CA_FILE=" + caFile}, Faulty, "want UPSTREAM_CERT_FILE and UPSTREAM_KEY_FILE with a certificate that it accepts"},
		{"an endpoint of another authority", []string{"AUTH_MODE=endpoint", "AUTH_URL=https://" + address}, Faulty, "want AUTH_CA_FILE with the authority"},
		{"an endpoint of another name", []string{"AUTH_MODE=endpoint", "AUTH_URL=https://localhost:" + port, "AUTH_CA_FILE=" + caFile}, Faulty, "want AUTH_URL with a name that its certificate has"},
	} {
		t.Run(test.name, func(t *testing.T) {
			exit, out := run(t, append([]string{"AUTH_MODE=none", "UPSTREAM_URL=" + backend(t).URL()}, test.environ...))
			if exit != test.exit || !strings.Contains(out, test.want) {
				_, out, _ := strings.Cut(out, "\n\n")
				t.Errorf("exit code %d, want %d and %q; it says\n%s", exit, test.exit, test.want, out)
			}
		})
	}
}

// With mistakes nothing is asked.
func TestMistakes(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer s.Close()
	environ := map[string]string{"UPSTREAM_URL": s.URL, "AUTH_URL": s.URL}
	for _, all := range []map[string]string{environ, nil} { // nil: ENV_FILE cannot be read
		settings, _, _ := config.Read(environ)
		var out, wrong bytes.Buffer
		c := Config{Settings: settings, Environ: environ, All: all, Mistakes: errors.Join(errors.New("A: is wrong"), errors.New("B: is wrong")), Out: &out, Errors: &wrong}
		if exit, err := Run(t.Context(), c, nil); exit != Mistaken || err != nil || out.Len() > 0 || wrong.String() != "A: is wrong\nB: is wrong\n" {
			t.Errorf("exit code %d, %v, %s%s", exit, err, out.String(), wrong.String())
		}
		if exit, err := Run(t.Context(), c, []string{"-json"}); exit != Mistaken || err != nil {
			t.Errorf("exit code %d, %v", exit, err)
		}
		var r Report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Exit != Mistaken || fmt.Sprint(r.Mistakes) != "[A: is wrong B: is wrong]" || r.Routes == nil || (len(r.Settings) > 0) != (all != nil) {
			t.Errorf("%v in %s", err, out.String())
		}
	}
	if asked.Load() > 0 {
		t.Errorf("%d requests", asked.Load())
	}
}

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args  []string
		exit  int
		usage bool // it is a mistake on the command line
	}{{[]string{"-h"}, Well, false}, {[]string{"-yaml"}, Mistaken, true}, {[]string{"all"}, Mistaken, true}} {
		var out bytes.Buffer
		exit, err := Run(t.Context(), Config{Out: &out, Errors: &out}, test.args)
		_, wrong := errors.AsType[*UsageError](err)
		if exit != test.exit || wrong != test.usage || errors.Is(err, flag.ErrHelp) == test.usage || strings.Contains(out.String(), "usage: portcullis check") == test.usage {
			t.Errorf("%q: %d, %v, %s", test.args, exit, err, out.String())
		}
	}
}

func TestMask(t *testing.T) {
	for value, want := range map[string]string{
		"":                                "",
		"/chat,/b/*":                      "/chat,/b/*",
		"ws://a/x?k=hunter2 ws://b?k":     "ws://a/x?… ws://b?…",
		"ws://ali:hunter2@a/x@y":          "ws://…@y",
		"https://a, https://ali:x@b?c":    "https://a, https://…@b?…",
		"/health?key=hunter2":             "/health?…",
		"sub:X-Auth-Subject,email:X-Mail": "sub:X-Auth-Subject,email:X-Mail",
		"***":                             "***",
	} {
		if got := mask(value); got != want {
			t.Errorf("%q is shown as %q, want %q", value, got, want)
		}
	}
}

// What others choose drives no terminal.
func TestPrintable(t *testing.T) {
	var out bytes.Buffer
	r := Report{Findings: []Finding{{OK, "A", "x\x1b[2Jy", ""}, {Fault, "A", "x\ny\u202e", "z\r"}}, Settings: []Setting{{Name: "A", Value: "\x1b[2J"}}}
	r.print(&out)
	for _, c := range []string{"\x1b", "\u202e", "\r", "x\ny"} {
		if strings.Contains(out.String(), c) {
			t.Errorf("%q is printed", c)
		}
	}
}

// The table has every route, with its rules, and a fault names the variable.
func TestRoutesAreAsked(t *testing.T) {
	up := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(up.Close)
	host := strings.TrimPrefix(up.URL, "http://")
	exit, out := run(t, []string{"AUTH_MODE=none",
		"ROUTE_CHAT=/chat/* ws://" + host + " balance=hash:cookie:sid drain=1012:60s", "ROUTE_NEWS=b.example/* ws://127.0.0.1:1 http=open relay=terminate"})
	if exit != Faulty {
		t.Errorf("exit code %d, want %d", exit, Faulty)
	}
	for _, want := range []string{
		"CHAT   /chat/*      auth=none balance=hash:cookie:sid http=off relay=passthrough drain=1012:1m0s",
		"NEWS   b.example/*  auth=none balance=least http=open relay=terminate",
		"or ROUTE_NEWS with the address where it listens",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
}
