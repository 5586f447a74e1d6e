package auth

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// certificateNames are the places of a name in a certificate, which AUTH_CERTIFICATE_SUBJECT and the claims of AUTH_FORWARD are from. A
// certificate without that name, or with a name that is ambiguous, has none.
var certificateNames = map[string]func(*x509.Certificate) string{
	"cn":    commonName,
	"dn":    func(c *x509.Certificate) string { return c.Subject.String() }, // RFC 2253
	"dns":   func(c *x509.Certificate) string { return first(c.DNSNames) },
	"email": func(c *x509.Certificate) string { return first(c.EmailAddresses) },
	"uri": func(c *x509.Certificate) string {
		if len(c.URIs) == 0 {
			return ""
		}
		return c.URIs[0].String()
	},
}

// first is the first of a subject's alternative names: the order is that of the authority, which signs it.
func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// commonName is the one that a subject has. Of several, crypto/x509 has the last, others the first.
func commonName(c *x509.Certificate) string {
	n := 0
	for _, part := range c.Subject.Names {
		if part.Type.Equal(oidCommonName) {
			n++
		}
	}
	if n != 1 {
		return ""
	}
	return c.Subject.CommonName
}

// CertificateError says that a client's certificate, which the TLS handshake has verified, does not say who it is, or that it has expired
// since. The client gets 401.
type CertificateError struct {
	Reason string // has no byte of the certificate in it and may be shown
}

func (e *CertificateError) Error() string { return "certificate refused: " + e.Reason }

// shownCertificate is what mode certificate keeps of a client's certificate.
type shownCertificate struct {
	subject string
	claims  map[string]string
	until   time.Time // NotAfter
}

// certificates is the verifier of mode certificate. That the certificate is of an authority of TLS_CLIENT_CA_FILE, and its client has the
// key, was verified in the TLS handshake.
type certificates struct {
	place string   // of the subject
	keep  []string // claims
}

// newCertificates returns a mistake of one line.
func newCertificates(c *Config, identity []identityHeader) (*certificates, error) {
	if certificateNames[c.CertificateSubject] == nil {
		return nil, mistake("AUTH_CERTIFICATE_SUBJECT", c.CertificateSubject, "is no name in a certificate; want "+certificatePlaces())
	}
	v := &certificates{place: c.CertificateSubject}
	for _, id := range identity {
		if id.claim != subjectClaim {
			v.keep = append(v.keep, id.claim)
		}
	}
	return v, nil
}

// certificatePlaces lists the keys of certificateNames.
func certificatePlaces() string {
	return strings.Join(slices.Sorted(maps.Keys(certificateNames)), ", ")
}

// find is [Auth.Find] in mode certificate.
func (v *certificates) find(r *http.Request) (Credential, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Credential{}, ErrMissing
	}
	c := r.TLS.VerifiedChains[0][0]
	shown := &shownCertificate{subject: certificateNames[v.place](c), until: c.NotAfter}
	if shown.subject == "" {
		return Credential{}, &CertificateError{Reason: "the certificate has no " + v.place + ", or more than one"}
	}
	if checkSubject(shown.subject) != nil {
		return Credential{}, &CertificateError{Reason: "the " + v.place + " of the certificate is too long, or has characters that no header may carry"}
	}
	for _, claim := range v.keep {
		if value, ok := headerValue(certificateNames[claim](c)); ok && value != "" {
			if shown.claims == nil {
				shown.claims = make(map[string]string, len(v.keep))
			}
			shown.claims[claim] = value
		}
	}
	return Credential{certificate: shown}, nil
}

// CertificateSubject is the subject of the certificate with which r came, "" for none; false: it is not what authenticates.
func (a *Auth) CertificateSubject(r *http.Request) (subject string, authenticates bool) {
	if a.certificates == nil {
		return "", false
	}
	c, err := a.certificates.find(r)
	if err != nil {
		return "", true
	}
	return c.certificate.subject, true
}

// verify accepts a certificate until its end. Asking again would change nothing.
func (v *certificates) verify(_ context.Context, c Credential) (Decision, error) {
	shown := c.certificate
	if shown == nil {
		return Decision{}, errors.New("a credential that Find did not return")
	}
	if !time.Now().Before(shown.until) { // since the handshake: a connection may be kept
		return Decision{}, &CertificateError{Reason: "the certificate has expired"}
	}
	return Decision{Subject: shown.subject, Claims: shown.claims, Until: shown.until, Expires: shown.until, Final: true}, nil
}

func (v *certificates) close() {}
