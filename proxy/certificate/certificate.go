// Package certificate keeps the server's TLS certificate current: it loads a certificate and its key from two files
// and loads both anew when either changes, so that a renewal needs no restart and ends no session.
//
// A handshake checks the files, once a second at most, and uses what it finds. Other handshakes meanwhile use the pair in memory,
// so that a hanging file system holds up one of them and not all. Watch checks once a day as well, and warns of a certificate
// that clients refuse, or soon will.
//
// Two files cannot be replaced at the same moment. Between the first and the second, or in the middle of a write, certificate and
// key do not match or do not parse. Then the old pair stays in use, the problem is reported once, and the next check tries
// again. Whoever renews SHOULD write new files and rename them into place.
package certificate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// interval is the least time between two checks of the files. A check costs two calls of stat, which is cheap once a second. A
// renewal can wait that long, because it comes weeks before the old certificate expires.
const interval = time.Second

const (
	// day is the time between two warnings of a certificate that is not renewed.
	day = 24 * time.Hour
	// expiryWarning is how long before its end a certificate is first warned of. Tools renew certificates 30 days before.
	expiryWarning = 14 * day
)

// Reloader hands out the certificate. It is safe for concurrent use; make it with New.
type Reloader struct {
	// Warn is told of changed files that do not load, while the old pair stays in use: once for each problem, until it is
	// solved. It is told of a pair that is not valid, or not for long, when the pair is loaded and every day. It runs inside
	// a handshake or in Watch, and never twice at the same time. Nil: nobody is told. Set it before either runs.
	Warn func(error)

	prefix            string // of the settings' names
	certFile, keyFile string
	elapsed           func() time.Duration // monotonic time since New; a seam for tests

	pair      atomic.Pointer[tls.Certificate] // never nil after New
	nextCheck atomic.Int64                    // elapsed time of the next check

	checking sync.Mutex   // held during a check; handshakes only try to lock it; guards what follows
	loaded   fileVersions // of the files that pair was read from
	warned   string       // the problem reported last; empty: none since the files were last in order
}

// fileVersions are the versions of the two files.
type fileVersions struct{ cert, key fileVersion }

// fileVersion tells versions of a file apart. It is compared with ==, which is right for times from stat: they have no monotonic
// reading, and all have the same location. No file has the zero fileVersion.
type fileVersion struct {
	modified time.Time
	size     int64
}

// New loads the pair for the first time. The files hold PEM: the certificate and its chain, leaf first, and the unencrypted
// key. Errors name TLS_CERT_FILE and TLS_KEY_FILE with the prefix, both at once if both are wrong. One without the other is an
// error. So is neither, because then there is no reason to call New.
func New(prefix, certFile, keyFile string) (*Reloader, error) {
	certName, keyName := prefix+"TLS_CERT_FILE", prefix+"TLS_KEY_FILE"
	switch {
	case keyFile == "" && certFile != "":
		return nil, fmt.Errorf(`%s: "" is empty, but %s is set; want both or neither`, keyName, certName)
	case certFile == "" && keyFile != "":
		return nil, fmt.Errorf(`%s: "" is empty, but %s is set; want both or neither`, certName, keyName)
	}
	start := time.Now()
	r := &Reloader{
		prefix:   prefix,
		certFile: certFile,
		keyFile:  keyFile,
		elapsed:  func() time.Duration { return time.Since(start) },
	}
	r.nextCheck.Store(int64(interval))
	if err := r.load(); err != nil {
		return nil, err
	}
	return r, nil
}

// Get is for tls.Config.GetCertificate. It always has a pair and never fails.
func (r *Reloader) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if r.isDue() && r.checking.TryLock() {
		r.check(false)
	}
	return r.pair.Load(), nil
}

func (r *Reloader) isDue() bool {
	return int64(r.elapsed()) >= r.nextCheck.Load()
}

// check loads a changed pair and reports one that does not load. It is called with r.checking locked and unlocks it. It also
// reports a pair that is not valid for long: a new pair at once, any pair if daily is true.
func (r *Reloader) check(daily bool) {
	defer r.checking.Unlock() // even if Warn panics: net/http recovers, and later handshakes check again
	if !daily && !r.isDue() {
		return // another handshake has just checked
	}
	r.nextCheck.Store(int64(r.elapsed() + interval))

	before := r.pair.Load()
	if err := r.load(); err == nil {
		r.warned = ""
	} else if problem := err.Error(); problem != r.warned {
		r.warned = problem
		r.warn(fmt.Errorf("%w; until then the pair before it stays in use", err))
	}
	if daily || r.pair.Load() != before {
		r.warn(r.validity(time.Now()))
	}
}

func (r *Reloader) warn(err error) {
	if err != nil && r.Warn != nil {
		r.Warn(err)
	}
}

// Watch checks the files and the validity of the pair, now and once a day, until ctx ends.
func (r *Reloader) Watch(ctx context.Context) {
	for {
		r.checking.Lock()
		r.check(true)
		select {
		case <-ctx.Done():
			return
		case <-time.After(day):
		}
	}
}

// validity says what is wrong with the times of the certificates in use: the leaf, and those above it.
func (r *Reloader) validity(now time.Time) error {
	if wrong, _ := checkTimes(r.pair.Load().Certificate, now); wrong != "" {
		return fmt.Errorf("%sTLS_CERT_FILE: %q holds a certificate %s; want it renewed", r.prefix, r.certFile, wrong)
	}
	return nil
}

// load reads the pair if its files have changed. After an error r.loaded still names the old versions, so that the next call tries
// again whether or not the files have changed since: two writes can have the same time on a file system with a coarse clock.
func (r *Reloader) load() error {
	// The versions are taken before the files are read. If a file changes in between, the pair is newer than its versions and
	// is read once more than needed. The other way round, a change would be missed.
	cert, certErr := statFile(r.certFile)
	key, keyErr := statFile(r.keyFile)
	now := fileVersions{cert, key}
	if certErr == nil && keyErr == nil && now == r.loaded {
		return nil
	}

	var certPEM, keyPEM []byte
	if certErr == nil {
		certPEM, certErr = os.ReadFile(r.certFile)
	}
	if keyErr == nil {
		keyPEM, keyErr = os.ReadFile(r.keyFile)
	}
	if err := errors.Join(
		unreadable(r.prefix+"TLS_CERT_FILE", r.certFile, certErr),
		unreadable(r.prefix+"TLS_KEY_FILE", r.keyFile, keyErr),
	); err != nil {
		return err
	}

	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("%sTLS_CERT_FILE: %q does not load with %[1]sTLS_KEY_FILE %[3]q: %[4]w; want a PEM certificate chain, leaf first, and its unencrypted PEM key",
			r.prefix, r.certFile, r.keyFile, err)
	}
	r.pair.Store(&pair)
	r.loaded = now
	return nil
}

func statFile(name string) (fileVersion, error) {
	info, err := os.Stat(name) // follows the symbolic links by which Kubernetes swaps a mounted secret
	if err != nil {
		return fileVersion{}, err
	}
	return fileVersion{info.ModTime(), info.Size()}, nil
}

// unreadable turns a file's error into one of the setting; nil stays nil.
func unreadable(setting, name string, err error) error {
	if err == nil {
		return nil
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err // without the name, which the text has already
	}
	return fmt.Errorf("%s: %q cannot be read: %w; want a PEM file", setting, name, err)
}
