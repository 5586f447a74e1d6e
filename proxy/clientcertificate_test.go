package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/refusal"
)

// authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.sign(t, x509.Certificate{
		Subject: pkix.Name{CommonName: "an authority"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// sign makes a key and signs what the template says of it; the authority's own is signed by itself.
func (a *authority) sign(t *testing.T, template x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<60)); err != nil {
		t.Fatal(err)
	}
	parent, signer := &template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// client is a certificate for a client.
func (a *authority) client(t *testing.T, subject pkix.Name, until time.Duration) *tls.Certificate {
	t.Helper()
	cert, key := a.sign(t, x509.Certificate{
		Subject: subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(until), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// write writes the certificates of authorities to a file, as tools do: by renaming over it.
func write(t *testing.T, file string, all ...*authority) {
	t.Helper()
	var text []byte
	for _, a := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// byCertificate is a gate whose clients have certificates of an authority.
func byCertificate(t *testing.T, target string, of *authority, edit func(*Config)) (g *testGate, caFile string) {
	t.Helper()
	certFile, keyFile, _ := selfSigned(t)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	write(t, caFile, of)
	return newGate(t, target, func(c *Config) {
		c.Front.CertFile, c.Front.KeyFile, c.Front.ClientCAFile = certFile, keyFile, caFile
		c.Auth = defaults(t).Auth
		c.Auth.Mode, c.Origin.Origins = "certificate", []string{"https://app.example"}
		if edit != nil {
			edit(c)
		}
	}), caFile
}

func TestClientCertificates(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	alice := pkix.Name{CommonName: "alice"}
	expired := ours.client(t, alice, -time.Minute)
	server, key := ours.sign(t, x509.Certificate{Subject: alice, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	for _, tt := range []struct {
		name   string
		shown  *tls.Certificate
		status int // 0: the handshake fails
	}{
		{"a good one", ours.client(t, alice, time.Hour), 101},
		{"none", nil, 0},
		{"expired", expired, 0},
		{"of another authority", other.client(t, alice, time.Hour), 0},
		{"of a server", &tls.Certificate{Certificate: [][]byte{server.Raw}, PrivateKey: key}, 0},
		{"without a subject", ours.client(t, pkix.Name{}, time.Hour), 401},
		{"without a common name", ours.client(t, pkix.Name{Organization: []string{"Example"}}, time.Hour), 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, nil)
			g, _ := byCertificate(t, b.url, ours, nil)
			c := &tls.Config{InsecureSkipVerify: true}
			if tt.shown != nil { // whatever the server asks for
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.shown, nil }
			}
			conn := tls.Client(g.dial(t), c)
			io.WriteString(conn, handshake("/?token=mine", "X-Auth-Subject: mallory", "Authorization: Bearer mine"))
			if tt.status == 0 {
				if got, err := io.ReadAll(conn); len(got) > 0 || err == nil || isTimeout(err) {
					t.Errorf("got %q, %v; want the handshake to fail", got, err)
				}
				b.untouched(t)
				return
			}
			a := readAnswer(t, conn)
			if a.StatusCode != tt.status {
				t.Fatalf("got %d %q, want %d", a.StatusCode, a.body, tt.status)
			}
			if tt.status == 401 {
				if !strings.HasPrefix(a.body, refusal.Certificate.Text()) || a.Header.Get("WWW-Authenticate") == "" || g.refused(t, refusal.Certificate) != 1 {
					t.Errorf("got %q %v", a.body, a.Header)
				}
				b.untouched(t)
				return
			}
			r := b.next(t)
			if got := r.Header.Values("X-Auth-Subject"); len(got) != 1 || got[0] != "alice" {
				t.Errorf("the upstream is told the subject %q", got)
			}
			if r.URL.Query().Get("token") != "mine" || r.Header.Get("Authorization") != "Bearer mine" {
				t.Errorf("a token of the upstream's own is gone: %s %v", r.RequestURI, r.Header)
			}
		})
	}
}

// A session ends when its certificate does, as it ends with a token.
func TestSessionEndsWithItsCertificate(t *testing.T) {
	ours := newAuthority(t)
	g, _ := byCertificate(t, newEcho(t), ours, nil)
	conn := overTLS(t, g.dial(t), ours.client(t, pkix.Name{CommonName: "alice"}, 3*time.Second))
	io.WriteString(conn, handshake("/"))
	if a := readAnswer(t, conn); a.StatusCode != 101 {
		t.Fatalf("got %d %q, want 101", a.StatusCode, a.body)
	}
	if line := g.journal.next(t, "session ended"); line["reason"] != "expired" || line["subject"] != "alice" {
		t.Errorf("line: %v", line)
	}
}

// An authority that is taken out of the file lets in nobody any more, not by a resumed TLS session either.
func TestAuthoritiesFollowTheirFile(t *testing.T) {
	old, young := newAuthority(t), newAuthority(t)
	b := newBackend(t, nil)
	g, caFile := byCertificate(t, b.url, old, nil)
	cache := tls.NewLRUClientSessionCache(10)
	enters := func(with *tls.Certificate) bool {
		t.Helper()
		conn := tls.Client(g.dial(t), &tls.Config{InsecureSkipVerify: true, ServerName: "gate", Certificates: []tls.Certificate{*with}, ClientSessionCache: cache})
		defer conn.Close()
		io.WriteString(conn, handshake("/"))
		answer := make([]byte, len("HTTP/1.1 101"))
		_, err := io.ReadFull(conn, answer)
		return err == nil && string(answer) == "HTTP/1.1 101"
	}
	mine, next := old.client(t, pkix.Name{CommonName: "alice"}, time.Hour), young.client(t, pkix.Name{CommonName: "bob"}, time.Hour)
	if !enters(mine) || enters(next) {
		t.Fatal("not those of the authority enter, and no others")
	}
	write(t, caFile, young)
	for deadline := time.Now().Add(patience); !enters(next); {
		if time.Now().After(deadline) {
			t.Fatal("the new authority is not taken up")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if enters(mine) {
		t.Error("a certificate of an authority that is gone lets its client in")
	}
}

// A token of resumption gives a session back to the subject of its certificate alone. Another client begins one of its own.
func TestSessionIsItsCertificates(t *testing.T) {
	ours := newAuthority(t)
	g, _ := byCertificate(t, newEcho(t), ours, resuming())
	showing := func(name string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*ours.client(t, pkix.Name{CommonName: name}, time.Hour)}}
	}
	c := newResumer(t, g, "/")
	c.secure = showing("alice")
	c.open()
	id := c.welcome.Session
	c.cut()
	stolen := *c
	stolen.secure = showing("mallory")
	if err := stolen.back(); err != nil || stolen.welcome.Session == id || stolen.welcome.Resumed {
		t.Fatalf("with another's certificate: %v, %+v", err, stolen.welcome)
	}
	c.secure = showing("alice") // renewed meanwhile
	c.mustBack()
	c.send("mine")
	c.want("mine")
}

// Certificates are no tokens: what needs a token has no place beside them, and mutual TLS is their condition.
func TestModeCertificateForbids(t *testing.T) {
	certFile, keyFile, _ := selfSigned(t)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	write(t, caFile, newAuthority(t))
	for name, tt := range map[string]struct {
		edit func(*Config)
		want string // the beginning of the only line; "": none
	}{
		"nothing":         {func(*Config) {}, ""},
		"tickets":         {func(c *Config) { c.API.Tickets = true }, "TICKETS: "},
		"renewal":         {func(c *Config) { c.Session.Renewal = true }, "RENEWAL: "},
		"first message":   {func(c *Config) { c.Gate.FirstMessage = true }, "AUTH_FIRST_MESSAGE: "},
		"any page":        {func(c *Config) { c.Origin.Origins = nil }, "ORIGINS: "},
		"no authorities":  {func(c *Config) { c.Front.ClientCAFile = "" }, `AUTH_MODE: "certificate" needs TLS_CLIENT_CA_FILE`},
		"token places":    {func(c *Config) { c.Auth.TokenFrom = []string{"query:t"} }, "AUTH_TOKEN_FROM: "},
		"no such file":    {func(c *Config) { c.Front.ClientCAFile = "/nowhere.pem" }, `TLS_CLIENT_CA_FILE: "/nowhere.pem" cannot be read`},
		"the loop engine": {func(c *Config) { c.Relay.Engine = "loop" }, "RELAY_ENGINE: "},
	} {
		c := defaults(t)
		c.Upstream.URL, c.Auth.Mode, c.Origin.Origins = "ws://127.0.0.1:1", "certificate", []string{"https://app.example"}
		c.Front.CertFile, c.Front.KeyFile, c.Front.ClientCAFile = certFile, keyFile, caFile
		tt.edit(&c)
		err := Check(c)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
