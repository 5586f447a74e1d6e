package upstream

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis/proxy/dnstest"
)

// check is Check with time-outs that a crowded machine keeps.
func check(t *testing.T, c Config) []Found {
	t.Helper()
	if c.DialTimeout == 0 {
		c.DialTimeout = 20 * time.Second
	}
	c.HandshakeTimeout = time.Second
	if c.HealthTimeout == 0 {
		c.HealthTimeout = 20 * time.Second
	}
	found, err := Check(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCheckOfTargets(t *testing.T) {
	well, ill := newApp(t, "tcp", "127.0.0.1:0"), newApp(t, "tcp", "127.0.0.1:0")
	ill.status.Store(500)
	socket := filepath.Join(t.TempDir(), "app")
	newApp(t, "unix", socket)
	const gone = "127.0.0.1:1" // a port that was free a moment ago may be another test's by now
	found := check(t, Config{
		URL:        well.url() + "/base?key=hunter2 " + ill.url() + " unix:" + socket + " ws://" + gone + " unix:" + socket + ".gone",
		HealthPath: "/health",
	})
	if len(found) != 5 {
		t.Fatalf("got %+v", found)
	}
	if f := found[0]; f.Err != nil || !f.Health || f.Target != well.url()+"/base?…" || f.Address != well.Addr().String() || f.TLS != "" || !f.Until.IsZero() || f.Took <= 0 {
		t.Errorf("the one that is well: %+v", f)
	}
	if f := found[1]; f.Err == nil || f.Health || f.Err.Error() != "its health check says 500" {
		t.Errorf("the one that is ill: %+v", f)
	}
	if f := found[2]; f.Err != nil || !f.Health || f.Address != socket {
		t.Errorf("the socket: %+v", f)
	}
	if f := found[3]; !errors.Is(f.Err, syscall.ECONNREFUSED) || f.Address != gone {
		t.Errorf("the one that is gone: %+v", f)
	}
	if f := found[4]; !errors.Is(f.Err, os.ErrNotExist) {
		t.Errorf("the socket that is gone: %+v", f)
	}
	if well.checked.Load() != 1 {
		t.Errorf("%d health checks, want 1", well.checked.Load())
	}
}

func TestCheckWithoutHealthChecks(t *testing.T) {
	app := newApp(t, "tcp", "127.0.0.1:0")
	if found := check(t, Config{URL: app.url()}); found[0].Err != nil || found[0].Health || app.checked.Load() != 0 {
		t.Errorf("got %+v, and %d health checks", found, app.checked.Load())
	}
}

func TestCheckOfNames(t *testing.T) {
	app := newApp(t, "tcp", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(app.Addr().String())
	zone := dnstest.Start(t)
	for _, addresses := range [][]string{{"127.0.0.1"}, {"127.0.0.1", "127.0.0.3"}} {
		zone.Set(addresses...)
		found := check(t, Config{URL: "ws://app.test:" + port, Resolver: zone.Resolver()})
		if len(found) != len(addresses) {
			t.Fatalf("got %+v", found)
		}
		for i, f := range found {
			if f.Address != addresses[i]+":"+port || (f.Err == nil) != (addresses[i] == "127.0.0.1") {
				t.Errorf("%s: %+v", addresses[i], f)
			}
		}
	}
	zone.Set()
	found := check(t, Config{URL: "ws://app.test " + app.url(), Resolver: zone.Resolver()})
	if _, ok := errors.AsType[*net.DNSError](found[0].Err); !ok || found[1].Err != nil {
		t.Errorf("a name without addresses: %+v", found)
	}
}

func TestCheckOfTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = discard
	server.StartTLS()
	defer server.Close()
	address := server.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	caFile := writeCertificate(t, server)
	plain := newApp(t, "tcp", "127.0.0.1:0")
	for _, test := range []struct{ name, url, caFile, want string }{
		{"right", "wss://" + address, caFile, ""},
		{"of another authority", "wss://" + address, "", "unknown authority"},
		{"of another name", "wss://localhost:" + port, caFile, "not localhost"},
		{"without TLS", "wss://" + plain.Addr().String(), caFile, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := check(t, Config{URL: test.url, CAFile: test.caFile})[0]
			switch {
			case test.name == "right":
				if f.Err != nil || f.TLS != "TLS 1.3" || !f.Until.Equal(server.Certificate().NotAfter) {
					t.Errorf("got %+v", f)
				}
			case f.Err == nil || !strings.Contains(f.Err.Error(), test.want):
				t.Errorf("got %+v, want %q", f, test.want)
			}
		})
	}
}

// In TLS 1.3 a server tells only after the handshake that it wants a certificate of its client.
func TestCheckWithoutClientCertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = discard
	server.StartTLS()
	defer server.Close()
	f := check(t, Config{URL: "wss://" + server.Listener.Addr().String(), CAFile: writeCertificate(t, server), HealthPath: "/"})[0]
	if f.Err == nil || f.TLS != "TLS 1.3" {
		t.Errorf("got %+v", f)
	}
}

func TestCheckOfTargetsThatHang(t *testing.T) {
	hang := func(c net.Conn) { io.Copy(io.Discard, c) }
	found := check(t, Config{
		URL: "ws://" + startBackend(t, hang) + " wss://" + startBackend(t, hang), HealthPath: "/",
		DialTimeout: 100 * time.Millisecond, HealthTimeout: 100 * time.Millisecond,
	})
	for _, f := range found {
		if !isTimeout(f.Err) && f.Err.Error() != "its health check has no answer in 100ms" {
			t.Errorf("got %+v", f)
		}
	}
}

func TestCheckOfMistakes(t *testing.T) {
	if found, err := Check(t.Context(), Config{URL: "ftp://app"}); found != nil || err == nil {
		t.Errorf("got %+v, %v", found, err)
	}
}

// Nothing runs in an idle Upstream.
func TestIdle(t *testing.T) {
	app := newApp(t, "tcp", "127.0.0.1:0")
	u := newUpstream(t, Config{URL: app.url(), HealthPath: "/health", HealthInterval: time.Millisecond, Idle: true})
	u.running.Wait() // at once
	if app.checked.Load() > 0 {
		t.Error("it has been checked")
	}
}

var discard = log.New(io.Discard, "", 0) // of handshakes that are meant to fail

// writeCertificate writes the certificate of a server to a file.
func writeCertificate(t *testing.T, server *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
