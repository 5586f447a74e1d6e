package certificate

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// errOther says that a server is not the one that was meant.
var errOther = errors.New("the server shows another certificate than that of ADMIN_TLS_CERT_FILE")

// TrustOnly returns how a client speaks to the server that shows exactly the first certificate of a PEM file: whoever issued it,
// whatever names it has, and however old it is. Only its key's owner can show it.
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
				return errOther
			}
			return nil
		},
	}, nil
}
