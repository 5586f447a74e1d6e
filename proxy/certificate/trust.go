package certificate

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// errOtherCertificate says that the server is not the expected one.
var errOtherCertificate = errors.New("the server shows another certificate than that of ADMIN_TLS_CERT_FILE")

// TrustOnly returns the TLS configuration of a client that accepts one certificate only, the first of a PEM file. Its issuer, its
// names and its age do not matter: only the owner of its key can use it.
func TrustOnly(file string) (*tls.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, unreadable("ADMIN_TLS_CERT_FILE", file, err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("ADMIN_TLS_CERT_FILE: %q does not begin with a certificate; want a PEM file", file)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection is stricter
		VerifyConnection: func(s tls.ConnectionState) error {
			if !bytes.Equal(s.PeerCertificates[0].Raw, block.Bytes) {
				return errOtherCertificate
			}
			return nil
		},
	}, nil
}
