package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// shows is an upgrade over TLS whose client has shown a certificate as the template says.
func shows(t *testing.T, template x509.Certificate) *http.Request {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	r := upgrade("token=secret", "Authorization: Bearer secret")
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c}}}
	return r
}

func byCertificate(place string, forward ...string) Config {
	return Config{Mode: "certificate", CertificateSubject: place, Timeout: 3 * time.Second, Forward: forward}
}

func TestSubjectOfACertificate(t *testing.T) {
	until := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	alice := x509.Certificate{
		Subject:        pkix.Name{CommonName: "alice", Organization: []string{"Example, Inc."}},
		DNSNames:       []string{"a.example", "b.example"},
		EmailAddresses: []string{"alice@example.org"},
		URIs:           []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/alice"}},
		NotAfter:       until,
	}
	two := x509.Certificate{NotAfter: until, Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidCommonName, Value: "alice"}, {Type: oidCommonName, Value: "bob"}}}}
	named := func(cn string) x509.Certificate {
		return x509.Certificate{NotAfter: until, Subject: pkix.Name{CommonName: cn}}
	}
	for _, tt := range []struct {
		name, place string
		template    x509.Certificate
		want        string // "": refused
	}{
		{"common name", "cn", alice, "alice"},
		{"distinguished name", "dn", alice, `CN=alice,O=Example\, Inc.`},
		{"DNS name", "dns", alice, "a.example"},
		{"address", "email", alice, "alice@example.org"},
		{"URI", "uri", alice, "spiffe://example.org/alice"},
		{"no common name", "cn", x509.Certificate{NotAfter: until, DNSNames: []string{"a.example"}}, ""},
		{"no subject at all", "dn", x509.Certificate{NotAfter: until}, ""},
		{"no DNS name", "dns", named("alice"), ""},
		{"no address", "email", named("alice"), ""},
		{"no URI", "uri", named("alice"), ""},
		{"two common names", "cn", two, ""},
		{"a name with a line break", "cn", named("alice\r\nX-Admin: yes"), ""},
		{"a name with a blank at its end", "cn", named("alice "), ""},
		{"a name that reads backwards", "cn", named("alice\u202e"), ""},
		{"a long name", "cn", named(strings.Repeat("a", 257)), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newFrom(t, byCertificate(tt.place))
			c, err := a.Find(shows(t, tt.template))
			if tt.want == "" {
				if refused, ok := errors.AsType[*CertificateError](err); !ok || strings.Contains(refused.Reason, "alice") {
					t.Errorf("got %v, want a CertificateError without its content", err)
				}
				return
			}
			d, verifyErr := a.Verify(t.Context(), c)
			if err != nil || verifyErr != nil || d.Subject != tt.want || d.Pseudonym {
				t.Fatalf("got %+v, %v, %v; want %q", d, err, verifyErr, tt.want)
			}
			if !d.Expires.Equal(until) || !d.Until.Equal(until) || !d.Final {
				t.Errorf("it holds until %v and %v, final %t; want %v", d.Until, d.Expires, d.Final, until)
			}
		})
	}
}

func TestClaimsOfACertificate(t *testing.T) {
	a := newFrom(t, byCertificate("email", "sub:X-Auth-Subject", "cn:X-Name", "uri:X-Uri"))
	c, err := a.Find(shows(t, x509.Certificate{Subject: pkix.Name{CommonName: "Alice"}, EmailAddresses: []string{"a@b"}, NotAfter: time.Now().Add(time.Hour)}))
	if err != nil {
		t.Fatal(err)
	}
	d, err := a.Verify(t.Context(), c)
	if err != nil || !maps.Equal(d.Claims, map[string]string{"cn": "Alice"}) {
		t.Fatalf("got %+v, %v", d, err)
	}
	h := http.Header{"X-Name": {"Mallory"}, "X_uri": {"forged"}, "Authorization": {"Bearer secret"}}
	if rest := a.StripToken("token=secret", h); rest != "token=secret" || h.Get("Authorization") == "" {
		t.Errorf("a token of the upstream's own was taken out: %q %v", rest, h)
	}
	a.StripIdentity(h)
	a.SetIdentity(h, d)
	if h.Get("X-Auth-Subject") != "a@b" || h.Get("X-Name") != "Alice" || h["X_uri"] != nil || h["X-Uri"] != nil {
		t.Errorf("upstream gets %v", h)
	}
}

func TestNoCertificate(t *testing.T) {
	a := newFrom(t, byCertificate("cn"))
	unverified := shows(t, x509.Certificate{Subject: pkix.Name{CommonName: "alice"}, NotAfter: time.Now().Add(time.Hour)})
	unverified.TLS.VerifiedChains = nil
	for name, r := range map[string]*http.Request{"no TLS": upgrade("token=secret"), "not verified": unverified} {
		if _, err := a.Find(r); !errors.Is(err, ErrMissing) {
			t.Errorf("%s: %v, want ErrMissing", name, err)
		}
	}
	if _, err := a.Verify(t.Context(), Credential{Token: "secret"}); err == nil {
		t.Error("a token was accepted")
	}
	c, err := a.Find(shows(t, x509.Certificate{Subject: pkix.Name{CommonName: "alice"}, NotAfter: time.Now().Add(-time.Minute)}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Verify(t.Context(), c); err == nil {
		t.Error("a certificate was accepted that has expired since its handshake")
	}
}

func TestModeCertificateRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config Config
		want   string
	}{
		{"no such name", byCertificate("serial"), `AUTH_CERTIFICATE_SUBJECT: "serial" is no name in a certificate; want cn, dn, dns, email, uri`},
		{"nothing", byCertificate(""), `AUTH_CERTIFICATE_SUBJECT: "" is no name`},
		{"a claim of tokens", byCertificate("cn", "role:X-Role"), `AUTH_FORWARD: "role:X-Role" names no part of a certificate; want sub, or one of cn, dn`},
		{"another mode", Config{Mode: "none", CertificateSubject: "dn"}, `AUTH_CERTIFICATE_SUBJECT: "dn" is no setting of AUTH_MODE=none`},
		{"a place of tokens", Config{Mode: "certificate", CertificateSubject: "cn", Timeout: 3 * time.Second, TokenFrom: []string{"cookie:a"}}, `AUTH_TOKEN_FROM: "cookie:a" is no setting of AUTH_MODE=certificate`},
		{"somebody to ask", Config{Mode: "certificate", CertificateSubject: "cn", Timeout: 3 * time.Second, URL: "http://auth.internal"}, `AUTH_URL: "http://auth.internal" is no setting of AUTH_MODE=certificate`},
		{"groups of tokens", Config{Mode: "certificate", CertificateSubject: "cn", Timeout: 3 * time.Second, GroupClaims: []string{"groups"}}, `SESSION_GROUPS: "claim:groups" needs AUTH_MODE=jwt`},
	} {
		if _, err := New(tt.config); err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %s", tt.name, err, tt.want)
		}
	}
	if c := byCertificate("cn"); c.ByToken() || c.TakesToken() || c.UsesCookie() || !c.UsesCertificate() || !c.NamesSubject() {
		t.Error("mode certificate takes tokens or cookies, or names nobody")
	}
}
