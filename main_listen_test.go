package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, name := range []string{"LISTEN_ADDR", "ADMIN_ADDR"} {
		environ := map[string]string{"LISTEN_ADDR": "127.0.0.1:0", "ADMIN_ADDR": "127.0.0.1:0"}
		environ[name] = taken.Addr().String()
		_, stderr, code := execute(t, []string{"LISTEN_ADDR=" + environ["LISTEN_ADDR"], "ADMIN_ADDR=" + environ["ADMIN_ADDR"]})
		if code != exitFailed || !strings.Contains(stderr, name) || !strings.Contains(stderr, "address already in use; another process") {
			t.Errorf("%s: got %d %s, want %d, its name and why", name, code, stderr, exitFailed)
		}
	}
}

// writeCertificate replaces the pair of files as tools that renew certificates do: by renaming over them.
func writeCertificate(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		temporary := filepath.Join(dir, name+".new")
		if err := os.WriteFile(temporary, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTLSAtTheFrontFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir, 1)
	p := startProgram(t, "TLS_CERT_FILE="+filepath.Join(dir, "cert.pem"), "TLS_KEY_FILE="+filepath.Join(dir, "key.pem"))

	if line := p.await("TLS_CERT_FILE"); !strings.Contains(line, `"level":"WARN"`) || !strings.Contains(line, "expires soon") {
		t.Errorf("of a certificate that ends within an hour the log says %s", line)
	}

	// present returns the serial number of the certificate that a session gets to see.
	present := func() int64 {
		conn, _, err := p.dial("wss://" + p.front + "/?token=token")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		state := conn.NetConn().(*tls.Conn).ConnectionState()
		if state.Version < tls.VersionTLS12 {
			t.Errorf("TLS version %x", state.Version)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	if got := present(); got != 1 {
		t.Fatalf("certificate %d, want 1", got)
	}
	writeCertificate(t, dir, 2)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for deadline := time.After(patience); present() != 2; {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal("the new certificate is not picked up")
		}
	}
	// An HTTP/2 connection cannot be hijacked, so ALPN must not choose it.
	conn, err := tls.Dial("tcp", p.front, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("ALPN chose %q, want http/1.1", got)
	}
}
