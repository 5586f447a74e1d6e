package certificate

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestValidityIsWatched(t *testing.T) {
	for _, tt := range []struct {
		name        string
		from, until time.Duration
		days        []string // what the warning says, day after day; "" for none
	}{
		{"for long", -day, 90 * day, []string{"", ""}},
		{"just long enough", -day, expiryWarning + day/2, []string{"", "expires soon, at 2000-01-15T12:00:00Z", "expires soon"}},
		{"to its end", -day, day / 2, []string{"expires soon, at 2000-01-01T12:00:00Z", "expired at 2000-01-01T12:00:00Z", "expired"}},
		{"over", -2 * day, -day, []string{"expired at 1999-12-31T00:00:00Z"}},
		{"not yet", day / 2, 90 * day, []string{"is not valid before 2000-01-01T12:00:00Z", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFiles(t, newPairValid(t, 1, tt.from, tt.until))
				r, _, _ := newReloader(t, f)
				warnings := make(chan string, 10)
				r.Warn = func(err error) { warnings <- err.Error() }
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go r.Watch(ctx)
				for i, want := range tt.days {
					synctest.Wait()
					var got []string
					for len(warnings) > 0 {
						got = append(got, <-warnings)
					}
					if (want == "") != (len(got) == 0) || want != "" && (len(got) != 1 ||
						!strings.HasPrefix(got[0], "TLS_CERT_FILE: "+strconv.Quote(f.cert)) || !strings.Contains(got[0], want) || !strings.Contains(got[0], "; want ")) {
						t.Errorf("day %d: %q, want %q", i, got, want)
					}
					time.Sleep(day)
				}
			})
		})
	}
}

// A daily warning ends when the files are renewed, and a new pair that is no better is told at once.
func TestValidityOfARenewedPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFiles(t, newPairValid(t, 1, -day, day))
		r, clock, warnings := newReloader(t, f)
		want := func(when, text string) {
			t.Helper()
			if got := strings.Join(*warnings, "\n"); (text == "") != (got == "") || !strings.Contains(got, text) || len(*warnings) > 1 {
				t.Errorf("%s: %q, want %q", when, got, text)
			}
			*warnings = nil
		}
		renew := func(serial int64, until time.Duration) {
			p := newPairValid(t, serial, -90*day, until)
			f.write(t, f.cert, p.cert)
			f.write(t, f.key, p.key)
			clock.advance(interval)
			wantSerial(t, r, serial)
		}
		wantSerial(t, r, 1)
		want("at a handshake", "")
		renew(2, -time.Second)
		want("with one that is over", "expired at 1999-12-31T23:59:59Z")
		clock.advance(interval)
		wantSerial(t, r, 2)
		want("at the next handshake", "")
		renew(3, 90*day)
		want("with a good one", "")
	})
}

// Clients need the certificates between theirs and the root, which they have: it may be over.
func TestValidityOfTheChain(t *testing.T) {
	for _, tt := range []struct{ name, want string }{
		{"an issuer", ` of its issuer "CN=127.0.0.1" that expired`},
		{"a root", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaf, above := newPair(t, 1), newPairValid(t, 2, -2*day, -day)
			if tt.want != "" {
				above.cert = issued(t, above)
			}
			f := newFiles(t, pair{cert: append(leaf.cert, above.cert...), key: leaf.key})
			r, _, warnings := newReloader(t, f)
			r.checking.Lock()
			r.check(true)
			if got := strings.Join(*warnings, "\n"); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("warnings %q, want %q", got, tt.want)
			}
		})
	}
}

// issued is the certificate of p as signed by somebody else.
func issued(t *testing.T, p pair) []byte {
	t.Helper()
	signed, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	root := x509.Certificate{Subject: pkix.Name{CommonName: "root"}, SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, signed.Leaf, &root, signed.Leaf.PublicKey, signed.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
