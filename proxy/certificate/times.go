package certificate

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"
)

// Facts are what is to be known of the certificates of a file.
type Facts struct {
	Names []string  // of the first: its DNS names and addresses
	Until time.Time // the end of the first
	// Wrong is what is wrong with the times of one of them, as "expired at ..."; empty: nothing. Refused says that it is so now, not only
	// soon.
	Wrong   string
	Refused bool
}

// Read reads the PEM file of a certificate and its chain.
func Read(file string) (Facts, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Facts{}, fmt.Errorf("cannot be read: %w", errors.Unwrap(err))
	}
	var chain [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			chain = append(chain, block.Bytes)
		}
	}
	if len(chain) == 0 {
		return Facts{}, errors.New("holds no certificate")
	}
	first, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return Facts{}, err
	}
	facts := Facts{Names: first.DNSNames, Until: first.NotAfter}
	for _, address := range first.IPAddresses {
		facts.Names = append(facts.Names, address.String())
	}
	facts.Wrong, facts.Refused = checkTimes(chain, time.Now())
	return facts, nil
}

// checkTimes says what is wrong with the times of a chain, and whether it is so now. It leaves out roots, which sign themselves,
// because clients have their own copies.
func checkTimes(chain [][]byte, now time.Time) (wrong string, refused bool) {
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil || i > 0 && bytes.Equal(c.RawSubject, c.RawIssuer) {
			continue
		}
		switch left := c.NotAfter.Sub(now); {
		case left < 0:
			wrong, refused = "expired at "+c.NotAfter.Format(time.RFC3339), true
		case now.Before(c.NotBefore):
			wrong, refused = "is not valid before "+c.NotBefore.Format(time.RFC3339), true
		case ExpiresSoon(c.NotAfter, now):
			wrong = "expires soon, at " + c.NotAfter.Format(time.RFC3339)
		default:
			continue
		}
		if i > 0 {
			return fmt.Sprintf("of its issuer %q that %s", c.Subject, wrong), refused
		}
		return "that " + wrong, refused
	}
	return "", false
}

// ExpiresSoon reports whether a certificate is warned of that ends then.
func ExpiresSoon(until, now time.Time) bool { return until.Sub(now) < expiryWarning }
