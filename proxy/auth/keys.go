package auth

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
)

const (
	// maxKeyBytes bounds a key set and a discovery document.
	maxKeyBytes = 512 << 10
	// maxKeys bounds a key set: a token without a kid is tried with each.
	maxKeys = 64
	// refreshInterval is how long a key that was withdrawn may still be used.
	refreshInterval = 5 * time.Minute
	// refreshCooldown is how often at most an unknown kid makes us fetch the
	// keys again: anyone can make one up.
	refreshCooldown = 30 * time.Second
	// The first fetch is tried again after firstRetry, twice as long after each
	// failure, up to lastRetry.
	firstRetry = time.Second
	lastRetry  = 15 * time.Second
)

var (
	errUnknownKey = errors.New("the token names a key that nobody publishes")
	errNoKeys     = errors.New("none of the keys published is one to rely on")
)

// remoteKeys are the keys that a URL publishes. While it cannot be reached the
// last ones are used; before the first ones are there nobody is let in.
type remoteKeys struct {
	jwksURL string // "": issuer's discovery document names it
	issuer  string
	source  string // the setting that says where they are, and its value
	client  *http.Client
	timeout time.Duration
	log     *slog.Logger

	store        *keyStore
	keyfunc      atomic.Pointer[keyfunc.Keyfunc] // nil until the first fetch
	refetchLimit *rate.Limiter
	refresh      singleflight.Group

	ctx  context.Context // of what runs in the background
	stop context.CancelFunc
	done chan struct{} // closed when the first fetch is over
}

// newRemoteKeys starts to fetch, unless c is idle. c is checked.
func newRemoteKeys(c *Config, transport http.RoundTripper) *remoteKeys {
	source := fmt.Sprintf("AUTH_ISSUER: %q", maskURL(c.Issuer))
	if c.JWKSURL != "" {
		source = fmt.Sprintf("AUTH_JWKS_URL: %q", maskURL(c.JWKSURL))
	}
	k := &remoteKeys{
		jwksURL: c.JWKSURL,
		issuer:  c.Issuer,
		source:  source,
		timeout: c.Timeout,
		log:     c.Logger,
		client: &http.Client{
			Transport:     boundedBody{transport},
			Timeout:       c.Timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		store:        &keyStore{MemoryJWKSet: jwkset.NewMemoryStorage(), log: c.Logger.With("source", source)},
		refetchLimit: rate.NewLimiter(rate.Every(refreshCooldown), 1),
		done:         make(chan struct{}),
	}
	k.ctx, k.stop = context.WithCancel(context.Background())
	if c.Idle {
		close(k.done)
		return k
	}
	go k.fetchFirst()
	return k
}

func (k *remoteKeys) close() {
	k.stop()
	<-k.done
	k.client.CloseIdleConnections()
}

// fetchFirst tries until it has keys or k is closed.
func (k *remoteKeys) fetchFirst() {
	defer close(k.done)
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := k.fetch()
		if err == nil {
			return
		}
		k.store.recordFailure(err)
		select {
		case <-time.After(wait):
		case <-k.ctx.Done():
			return
		}
	}
}

// fetch tries once, and publishes the keys when it has them.
func (k *remoteKeys) fetch() (err error) {
	// The library refreshes in the background from before its first try, so
	// each try has a context of its own.
	ctx, stop := context.WithCancel(k.ctx)
	defer func() {
		if err != nil {
			stop()
		}
	}()
	keys, err := k.load(ctx)
	if err == nil {
		k.keyfunc.Store(&keys)
	}
	return err
}

// load fetches the keys once. On success they are refreshed until ctx ends.
func (k *remoteKeys) load(ctx context.Context) (keyfunc.Keyfunc, error) {
	location := k.jwksURL
	if location == "" {
		var err error
		if location, err = k.discover(ctx); err != nil {
			return nil, fmt.Errorf("discovery: %w", err)
		}
	}
	store, err := jwkset.NewStorageFromHTTP(location, jwkset.HTTPClientStorageOptions{
		Client:              k.client,
		Ctx:                 ctx,
		HTTPTimeout:         k.timeout,
		RefreshErrorHandler: func(_ context.Context, err error) { k.store.recordFailure(err) },
		RefreshInterval:     refreshInterval,
		Storage:             k.store,
		// One odd key must not take the others down; keyStore checks each.
		ValidateOptions: jwkset.JWKValidateOptions{SkipAll: true},
	})
	if err != nil {
		return nil, err
	}
	storage, err := jwkset.NewHTTPClient(jwkset.HTTPClientOptions{
		HTTPURLs:          map[string]jwkset.Storage{location: store},
		RateLimitWaitMax:  k.timeout, // of the fetch too
		RefreshUnknownKID: k.refetchLimit,
	})
	if err != nil {
		return nil, err
	}
	return keyfunc.New(keyfunc.Options{Ctx: ctx, Storage: storage})
}

// discoveryPath is where an issuer keeps that document, below its own path.
const discoveryPath = "/.well-known/openid-configuration"

// discover returns the jwks_uri of the issuer's discovery document (OpenID
// Connect Discovery 1.0 section 4).
func (k *remoteKeys) discover(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	location := strings.TrimSuffix(k.issuer, "/") + discoveryPath
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return "", err
	}
	resp, err := k.client.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&document); err != nil {
		return "", err
	}
	if document.Issuer != k.issuer { // section 4.3
		return "", fmt.Errorf("the document is of the issuer %q", document.Issuer)
	}
	u, err := url.Parse(document.JWKSURI)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && !(u.Scheme == "http" && strings.HasPrefix(k.issuer, "http:")) {
		return "", errors.New("its jwks_uri is not an https URL")
	}
	return document.JWKSURI, nil
}

// key returns the key that t's kid names, or all keys if it names none.
func (k *remoteKeys) key(ctx context.Context, t *jwt.Token) (any, error) {
	keys := k.keyfunc.Load()
	if keys == nil {
		return nil, &UnavailableError{Cause: k.notFetched(), RetryAfter: firstRetry}
	}
	if kid, ok := t.Header["kid"].(string); ok && !k.store.has(kid) {
		if err := k.refetchFor(ctx, *keys, kid); err != nil {
			return nil, err
		}
	}
	return (*keys).KeyfuncCtx(ctx)(t)
}

// notFetched is the error before the first fetch.
func (k *remoteKeys) notFetched() error {
	return fmt.Errorf("%s: the keys are not fetched yet: %w", k.source, k.store.lastFailure())
}

// refetchFor fetches the keys again because of an unknown kid, unless that was done
// within refreshCooldown. All callers wait for the same fetch, since it may bring
// the key of each.
func (k *remoteKeys) refetchFor(ctx context.Context, keys keyfunc.Keyfunc, kid string) error {
	fetched := k.refresh.DoChan("", func() (any, error) {
		if k.refetchLimit.Tokens() >= 1 {
			keys.Storage().KeyRead(k.ctx, kid) // its error says no more than the store does
		}
		return nil, nil
	})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-fetched:
	}
	if k.store.has(kid) {
		return nil
	}
	if failure := k.store.failure.Load(); failure != nil {
		// The key may be a new one, so the token cannot be refused.
		return &UnavailableError{Cause: fmt.Errorf("the keys cannot be fetched again: %w", *failure), RetryAfter: refreshCooldown}
	}
	return errUnknownKey
}

// A keyStore keeps the usable keys, and remembers whether the last fetch failed.
type keyStore struct {
	*jwkset.MemoryJWKSet
	log     *slog.Logger
	failure atomic.Pointer[error] // of the last fetch; nil if it succeeded
}

// KeyReplaceAll is called with the keys that were fetched. A set without a usable
// key does not replace the one before it: its server is out of order.
func (s *keyStore) KeyReplaceAll(ctx context.Context, fetched []jwkset.JWK) error {
	usable := make([]jwkset.JWK, 0, len(fetched))
	for _, jwk := range fetched {
		key := jwk.Key()
		if private, ok := key.(interface{ Public() crypto.PublicKey }); ok {
			key = private.Public()
		}
		if use := jwk.Marshal().USE; use != "" && use != jwkset.UseSig {
			continue
		}
		if _, ok := algorithmsFor(key); ok && len(usable) < maxKeys {
			usable = append(usable, jwk)
		}
	}
	if len(usable) == 0 {
		return errNoKeys
	}
	if s.failure.Swap(nil) != nil {
		s.log.Info("the keys of tokens can be fetched again")
	}
	return s.MemoryJWKSet.KeyReplaceAll(ctx, usable)
}

// recordFailure remembers why a fetch failed, and logs the first failure in a row.
func (s *keyStore) recordFailure(err error) {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the URL, whose query may be secret
	}
	if s.failure.Swap(&err) == nil {
		s.log.Warn("the keys of tokens cannot be fetched", "error", err)
	}
}

// lastFailure says why there are no keys.
func (s *keyStore) lastFailure() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return errors.New("no answer so far")
}

func (s *keyStore) has(kid string) bool {
	_, err := s.KeyRead(context.Background(), kid)
	return err == nil
}

// boundedBody is a transport whose answers are not longer than maxKeyBytes.
type boundedBody struct{ http.RoundTripper }

func (b boundedBody) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxKeyBytes)
	}
	return resp, err
}

// CloseIdleConnections is called by http.Client.
func (b boundedBody) CloseIdleConnections() {
	if closer, ok := b.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}
