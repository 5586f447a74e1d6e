package certificate

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Authorities hands out the certificates of the authorities that sign clients' certificates, and loads them anew when their file changes,
// as [Reloader] does. It is safe for concurrent use; make it with NewAuthorities.
type Authorities struct {
	// Warn is told of a changed file that does not load, while the authorities before it stay in use: once for each problem, until it
	// is solved. It runs inside a handshake, and never twice at the same time. Nil: nobody is told. Set it before the first Pool.
	Warn func(error)

	setting, file string
	elapsed       func() time.Duration // monotonic time since NewAuthorities; a seam for tests

	pool      atomic.Pointer[x509.CertPool] // never nil after NewAuthorities
	nextCheck atomic.Int64                  // elapsed time of the next check

	checking sync.Mutex  // held during a check; handshakes only try to lock it; guards what follows
	loaded   fileVersion // that pool was read from
	warned   string      // the problem reported last; empty: none since the file was last in order
}

// NewAuthorities loads a PEM file of certificates for the first time. The error names the setting.
func NewAuthorities(setting, file string) (*Authorities, error) {
	start := time.Now()
	a := &Authorities{setting: setting, file: file, elapsed: func() time.Duration { return time.Since(start) }}
	a.nextCheck.Store(int64(interval))
	if err := a.load(); err != nil {
		return nil, err
	}
	return a, nil
}

// Pool returns the authorities, those of a changed file within a second.
func (a *Authorities) Pool() *x509.CertPool {
	if now := int64(a.elapsed()); now >= a.nextCheck.Load() && a.checking.TryLock() {
		a.check(now)
	}
	return a.pool.Load()
}

// check loads a changed file and reports one that does not load. It is called with a.checking locked and unlocks it.
func (a *Authorities) check(now int64) {
	defer a.checking.Unlock()
	a.nextCheck.Store(now + int64(interval))
	err := a.load()
	if err == nil {
		a.warned = ""
		return
	}
	if problem := err.Error(); problem != a.warned {
		a.warned = problem
		if a.Warn != nil {
			a.Warn(fmt.Errorf("%w; until then the authorities before it stay in use", err))
		}
	}
}

// load reads the file if it has changed. See [Reloader.load] for the order.
func (a *Authorities) load() error {
	now, err := statFile(a.file)
	if err == nil && now == a.loaded {
		return nil
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(a.file)
	}
	if err != nil {
		return unreadable(a.setting, a.file, err)
	}
	pool, found := x509.NewCertPool(), false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%s: %q has a certificate that does not parse: %w; want the PEM certificates of authorities", a.setting, a.file, err)
		}
		pool.AddCert(c)
		found = true
	}
	if !found {
		return fmt.Errorf("%s: %q holds no certificate; want the PEM certificates of authorities", a.setting, a.file)
	}
	a.pool.Store(pool)
	a.loaded = now
	return nil
}
