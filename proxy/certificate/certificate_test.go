package certificate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// pair is a self-signed certificate for 127.0.0.1 and its key, in PEM.
type pair struct {
	serial    int64
	cert, key []byte
}

func newPair(t testing.TB, serial int64) pair {
	t.Helper()
	return newPairValid(t, serial, -time.Hour, 90*day)
}

// newPairValid makes a pair that is valid from and until then, as seen from now.
func newPairValid(t testing.TB, serial int64, from, until time.Duration) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "127.0.0.1"},
		NotBefore:    time.Now().Add(from),
		NotAfter:     time.Now().Add(until),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		serial: serial,
		cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		key:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}
}

// files are the two files in a directory of their own. Each write gets a later modification time, however quick the test is.
type files struct {
	cert, key string
	written   time.Time
}

// epoch is before the first write.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newFiles(t testing.TB, p pair) *files {
	t.Helper()
	dir := t.TempDir()
	f := &files{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), written: epoch}
	f.write(t, f.cert, p.cert)
	f.write(t, f.key, p.key)
	return f
}

func (f *files) write(t testing.TB, name string, data []byte) {
	t.Helper()
	f.written = f.written.Add(time.Second)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, f.written, f.written); err != nil {
		t.Fatal(err)
	}
}

// clock stands in for the time since New.
type clock struct{ atomic.Int64 }

func (c *clock) elapsed() time.Duration  { return time.Duration(c.Load()) }
func (c *clock) advance(d time.Duration) { c.Add(int64(d)) }

// newReloader returns a Reloader that runs on the clock and collects its warnings.
func newReloader(t testing.TB, f *files) (*Reloader, *clock, *[]string) {
	t.Helper()
	r, err := New("", f.cert, f.key)
	if err != nil {
		t.Fatal(err)
	}
	c := new(clock)
	r.elapsed = c.elapsed
	warnings := new([]string)
	r.Warn = func(err error) { *warnings = append(*warnings, err.Error()) }
	return r, c, warnings
}

func wantSerial(t *testing.T, r *Reloader, want int64) {
	t.Helper()
	cert, err := r.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := cert.Leaf.SerialNumber.Int64(); got != want {
		t.Errorf("certificate %d, want %d", got, want)
	}
}

// wantHandshake does a TLS handshake over TCP with a client that trusts p alone.
func wantHandshake(t *testing.T, r *Reloader, p pair) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: r.Get})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			err = errors.Join(conn.(*tls.Conn).Handshake(), conn.Close())
		}
		served <- err
	}()

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.cert)
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	conn, err := tls.DialWithDialer(dialer, "tcp", ln.Addr().String(), &tls.Config{RootCAs: roots})
	if err != nil {
		ln.Close()
		<-served
		t.Fatalf("handshake: %v", err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); got != p.serial {
		t.Errorf("handshake with certificate %d, want %d", got, p.serial)
	}
	if err := <-served; err != nil {
		t.Errorf("server: %v", err)
	}
}

func TestRotationInRealHandshakes(t *testing.T) {
	a, b := newPair(t, 1), newPair(t, 2)
	f := newFiles(t, a)
	r, clock, warnings := newReloader(t, f)
	wantHandshake(t, r, a)

	f.write(t, f.cert, b.cert)
	f.write(t, f.key, b.key)
	wantHandshake(t, r, a) // not looked yet
	clock.advance(interval)
	wantHandshake(t, r, b)
	if len(*warnings) != 0 {
		t.Errorf("warnings %q, want none", *warnings)
	}
}

func TestLooksOnceASecond(t *testing.T) {
	a, b, c := newPair(t, 1), newPair(t, 2), newPair(t, 3)
	f := newFiles(t, a)
	r, clock, _ := newReloader(t, f)
	replace := func(p pair) {
		f.write(t, f.cert, p.cert)
		f.write(t, f.key, p.key)
	}
	for _, step := range []struct {
		at   time.Duration
		put  *pair
		want int64
	}{
		{0, nil, 1},
		{0, &b, 1},
		{interval - 1, nil, 1},
		{interval, nil, 2},
		{interval, &c, 2},
		{2*interval - 1, nil, 2},
		{5 * interval, nil, 3},
		{5 * interval, &a, 3},
		{6*interval - 1, nil, 3}, // a second from the last look, not from the last multiple
		{6 * interval, nil, 1},
	} {
		t.Logf("at %v", step.at)
		clock.Store(int64(step.at))
		if step.put != nil {
			replace(*step.put)
		}
		wantSerial(t, r, step.want)
	}
}

// One file can change alone: a certificate can be renewed for the key that it had.
func TestEitherFileOrStampIsAChange(t *testing.T) {
	a, b := newPair(t, 1), newPair(t, 2)
	both := func(first, second []byte) []byte { return append(bytes.Clone(first), second...) }
	for _, tt := range []struct {
		name   string
		change func(f *files)
		want   func(*tls.Certificate) bool
	}{
		{"certificate", func(f *files) { f.write(t, f.cert, both(a.cert, b.cert)) }, func(c *tls.Certificate) bool { return len(c.Certificate) == 2 }},
		{"size alone", func(f *files) {
			f.written = f.written.Add(-2 * time.Second) // the certificate was written first of two
			f.write(t, f.cert, both(a.cert, b.cert))
		}, func(c *tls.Certificate) bool { return len(c.Certificate) == 2 }},
		{"time alone", func(f *files) { f.write(t, f.key, a.key) }, func(c *tls.Certificate) bool { return len(c.Certificate) == 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiles(t, a)
			r, clock, warnings := newReloader(t, f)
			before, _ := r.Get(nil)
			tt.change(f)
			clock.advance(interval)
			after, _ := r.Get(nil)
			if after == before || !tt.want(after) {
				t.Errorf("the pair was not loaded anew")
			}
			clock.advance(interval)
			if again, _ := r.Get(nil); again != after {
				t.Errorf("the pair was loaded anew without a change")
			}
			if len(*warnings) != 0 {
				t.Errorf("warnings %q, want none", *warnings)
			}
		})
	}
}

// A mounted secret of Kubernetes: the names stay, and a symbolic link on the way is renamed over the old one.
func TestSymbolicLinkIsSwapped(t *testing.T) {
	dir := t.TempDir()
	swap := func(version string) {
		t.Helper()
		tmp := filepath.Join(dir, "..data_tmp")
		if err := errors.Join(os.Symlink(version, tmp), os.Rename(tmp, filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	f := &files{cert: filepath.Join(dir, "..data", "tls.crt"), key: filepath.Join(dir, "..data", "tls.key"), written: epoch}
	for _, version := range []pair{newPair(t, 1), newPair(t, 2)} {
		name := fmt.Sprintf("..v%d", version.serial)
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		f.write(t, filepath.Join(dir, name, "tls.crt"), version.cert)
		f.write(t, filepath.Join(dir, name, "tls.key"), version.key)
	}
	swap("..v1")
	r, clock, _ := newReloader(t, f)
	wantSerial(t, r, 1)
	swap("..v2")
	clock.advance(interval)
	wantSerial(t, r, 2)
}

func TestBrokenRotationKeepsTheOldPair(t *testing.T) {
	a, b := newPair(t, 1), newPair(t, 2)
	for _, tt := range []struct {
		name  string
		spoil func(f *files)
		warn  string
	}{
		{"certificate without its key", func(f *files) { f.write(t, f.cert, b.cert) }, "private key does not match public key"},
		{"key without its certificate", func(f *files) { f.write(t, f.key, b.key) }, "private key does not match public key"},
		{"half a certificate", func(f *files) { f.write(t, f.cert, b.cert[:len(b.cert)/2]) }, "failed to find any PEM data in certificate input"},
		{"half a key", func(f *files) { f.write(t, f.key, b.key[:len(b.key)/2]) }, "failed to find any PEM data in key input"},
		{"emptied", func(f *files) { f.write(t, f.cert, nil) }, "failed to find any PEM data in certificate input"},
		{"swapped", func(f *files) { f.write(t, f.cert, b.key); f.write(t, f.key, b.cert) }, "PEM inputs may have been switched"},
		{"removed", func(f *files) { os.Remove(f.key) }, "TLS_KEY_FILE: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiles(t, a)
			r, clock, warnings := newReloader(t, f)
			tt.spoil(f)
			for range 3 {
				clock.advance(interval)
				wantSerial(t, r, 1)
			}
			wantHandshake(t, r, a)
			if len(*warnings) != 1 || !strings.Contains((*warnings)[0], tt.warn) || !strings.Contains((*warnings)[0], f.key) {
				t.Fatalf("warnings %q, want one with %q that names the file", *warnings, tt.warn)
			}

			// The rotation is completed, and the next mistake is news again.
			f.write(t, f.cert, b.cert)
			f.write(t, f.key, b.key)
			clock.advance(interval)
			wantSerial(t, r, 2)
			tt.spoil(f)
			f.write(t, f.cert, []byte("x"))
			clock.advance(interval)
			wantSerial(t, r, 2)
			if len(*warnings) != 2 {
				t.Errorf("warnings %q, want two", *warnings)
			}
		})
	}
}

// A write that does not change the stamps (a coarse clock, the same size) must not leave the last failure for ever.
func TestFailedLoadIsTriedAgainWithoutAChange(t *testing.T) {
	a, b := newPair(t, 1), newPair(t, 2)
	f := newFiles(t, a)
	r, clock, _ := newReloader(t, f)

	f.write(t, f.key, b.key)
	f.write(t, f.cert, bytes.Repeat([]byte{'x'}, len(b.cert)))
	clock.advance(interval)
	wantSerial(t, r, 1)

	f.written = f.written.Add(-time.Second)
	f.write(t, f.cert, b.cert)
	clock.advance(interval)
	wantSerial(t, r, 2)
}

func TestUndoneMistakeIsForgotten(t *testing.T) {
	a := newPair(t, 1)
	f := newFiles(t, a)
	r, clock, warnings := newReloader(t, f)
	aside := f.key + ".aside"
	for range 2 {
		if err := os.Rename(f.key, aside); err != nil {
			t.Fatal(err)
		}
		clock.advance(interval)
		wantSerial(t, r, 1)
		if err := os.Rename(aside, f.key); err != nil {
			t.Fatal(err)
		}
		clock.advance(interval)
		wantSerial(t, r, 1)
	}
	if len(*warnings) != 2 {
		t.Errorf("warnings %q, want one for each time", *warnings)
	}
}

func TestWithoutWarn(t *testing.T) {
	f := newFiles(t, newPair(t, 1))
	r, clock, _ := newReloader(t, f)
	r.Warn = nil
	f.write(t, f.cert, nil)
	clock.advance(interval)
	wantSerial(t, r, 1)
}

// The handshake that looks is held up inside Warn, as it would be by a hanging file system. The others must not wait, and
// must not look either, even when the next look is due.
func TestOthersGoOnWhileOneLooks(t *testing.T) {
	a, b := newPair(t, 1), newPair(t, 2)
	f := newFiles(t, a)
	r, clock, _ := newReloader(t, f)
	warning, release := make(chan error), make(chan struct{})
	r.Warn = func(err error) {
		warning <- err
		<-release
	}
	f.write(t, f.cert, b.cert)
	clock.advance(interval)
	done := make(chan struct{})
	go func() {
		defer close(done)
		wantSerial(t, r, 1)
	}()
	<-warning

	f.write(t, f.key, b.key)
	clock.advance(interval)
	wantSerial(t, r, 1) // would hang if it waited, and say 2 if it looked

	close(release)
	<-done
	wantSerial(t, r, 2)
}

func TestPanickingWarnDoesNotStopReloading(t *testing.T) {
	a, b := newPair(t, 1), newPair(t, 2)
	f := newFiles(t, a)
	r, clock, _ := newReloader(t, f)
	r.Warn = func(error) { panic("warn") }
	f.write(t, f.cert, b.cert)
	clock.advance(interval)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_, _ = r.Get(nil)
	}()
	f.write(t, f.key, b.key)
	clock.advance(interval)
	wantSerial(t, r, 2)
}

// For the race detector: many handshakes, each due, while the files rotate. Whatever is handed out is whole.
func TestConcurrentHandshakesGetMatchingPairs(t *testing.T) {
	pairs := []pair{newPair(t, 1), newPair(t, 2)}
	f := newFiles(t, pairs[0])
	r, clock, _ := newReloader(t, f)
	r.Warn = nil

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				clock.advance(interval)
				cert, err := r.Get(nil)
				if err != nil || !cert.PrivateKey.(*ecdsa.PrivateKey).PublicKey.Equal(cert.Leaf.PublicKey) {
					t.Errorf("certificate and key do not match (%v)", err)
					return
				}
			}
		})
	}
	for i := range 50 {
		p := pairs[(i+1)%2]
		f.write(t, f.cert, p.cert)
		f.write(t, f.key, p.key)
	}
	close(stop)
	wg.Wait()
	clock.advance(interval)
	wantSerial(t, r, 1)
}

func TestNewErrors(t *testing.T) {
	a, b := newPair(t, 1), newPair(t, 2)
	f := newFiles(t, a)
	other := newFiles(t, b)
	missing := filepath.Join(t.TempDir(), "missing.pem")
	dir := t.TempDir()
	const notFound = "no such file or directory; want a PEM file"
	for _, tt := range []struct{ name, cert, key, want string }{
		{"key missing from the settings", f.cert, "", `TLS_KEY_FILE: "" is empty, but TLS_CERT_FILE is set; want both or neither`},
		{"certificate missing from the settings", "", f.key, `TLS_CERT_FILE: "" is empty, but TLS_KEY_FILE is set; want both or neither`},
		{"neither", "", "", `TLS_CERT_FILE: "" cannot be read: ` + notFound + "\n" + `TLS_KEY_FILE: "" cannot be read: ` + notFound},
		{"certificate not there", missing, f.key, fmt.Sprintf("TLS_CERT_FILE: %q cannot be read: %s", missing, notFound)},
		{"key not there", f.cert, missing, fmt.Sprintf("TLS_KEY_FILE: %q cannot be read: %s", missing, notFound)},
		{"both not there", missing, missing, fmt.Sprintf("TLS_CERT_FILE: %q cannot be read: %s\nTLS_KEY_FILE: %[1]q cannot be read: %[2]s", missing, notFound)},
		{"a directory", dir, f.key, fmt.Sprintf("TLS_CERT_FILE: %q cannot be read: is a directory; want a PEM file", dir)},
		{"not a pair", f.cert, other.key, fmt.Sprintf("TLS_CERT_FILE: %q does not load with TLS_KEY_FILE %q: tls: private key does not match public key; "+
			"want a PEM certificate chain, leaf first, and its unencrypted PEM key", f.cert, other.key)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := New("", tt.cert, tt.key)
			if r != nil || err == nil || err.Error() != tt.want {
				t.Errorf("error\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
	if _, err := New("", missing, f.key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
}

// BenchmarkGet measures what a handshake pays between two looks, and for a look at files that have not changed.
func BenchmarkGet(b *testing.B) {
	for _, bb := range []struct {
		name string
		step time.Duration
	}{{"between looks", 0}, {"look", interval}} {
		b.Run(bb.name, func(b *testing.B) {
			r, clock, _ := newReloader(b, newFiles(b, newPair(b, 1)))
			b.ReportAllocs()
			for b.Loop() {
				clock.advance(bb.step)
				_, _ = r.Get(nil)
			}
		})
	}
}
