package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Found is what [Check] has found.
type Found struct {
	Setting string        // that names who was asked; empty: nobody was, for nobody needs to be
	Asked   string        // its URL, without what may be secret
	Took    time.Duration // for an answer
	Keys    int           // how many usable ones were fetched
	Answer  string        // by which a token that nobody has issued was refused; empty: it was not asked about one
	// Accepted says that it was let in. In mode forward it was a request without any credential, which some services let in on some paths.
	Accepted bool
	Warnings []string // those of [Auth.Warnings]
	Err      error    // why clients would get 503; nil: they would not
}

// Check asks once whom c says: for the keys, or about a credential that cannot be good, a token of its own making or, in mode forward, a
// request for / that has none. It takes AUTH_TIMEOUT at most, and twice that where the keys have to be discovered. The error is
// that of [New].
func Check(ctx context.Context, c Config) (Found, error) {
	c.Idle, c.CacheTTL, c.StaleTTL, c.Observe = true, 0, 0, nil
	a, err := New(c)
	if err != nil {
		return Found{}, err
	}
	defer a.Close()
	start := time.Now()
	found := Found{Warnings: a.Warnings()}
	switch c.Mode {
	case modeNone:
		return found, nil
	case modeJWT:
		if !c.fetchesKeys() {
			return found, nil
		}
		found.Setting, found.Asked = "AUTH_ISSUER", maskURL(c.Issuer)
		if c.JWKSURL != "" {
			found.Setting, found.Asked = "AUTH_JWKS_URL", maskURL(c.JWKSURL)
		}
		found.Keys, found.Err = a.fetchKeys(ctx)
	default:
		found.Setting, found.Asked = "AUTH_URL", maskURL(c.URL)
		_, err := a.Verify(ctx, impostor(&c, a))
		found.Answer, found.Accepted, found.Err = outcome(err)
	}
	found.Took = time.Since(start)
	return found, nil
}

// impostor is a credential that is not good.
func impostor(c *Config, a *Auth) Credential {
	if c.Mode != modeForward {
		return Credential{Token: "portcullis-check-" + rand.Text()}
	}
	u, _ := url.Parse(c.URL)
	r := &http.Request{Method: http.MethodGet, RequestURI: "/", URL: &url.URL{Path: "/"}, Host: u.Host, Header: http.Header{}}
	credential, _ := a.Find(r) // in this mode its absence is one
	return credential.WithForwarded(Forwarded{Scheme: "https", Host: u.Host, For: "127.0.0.1"})
}

// outcome reads what came of asking about an impostor.
func outcome(err error) (answer string, accepted bool, wrong error) {
	if err == nil {
		return "", true, nil
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused.Cause.Error(), false, nil
	}
	if denied, ok := errors.AsType[*DeniedError](err); ok {
		return denied.Cause.Error(), false, nil
	}
	if unavailable, ok := errors.AsType[*UnavailableError](err); ok {
		return "", false, unavailable.Cause
	}
	return "", false, err
}

// fetchKeys fetches the keys once, and returns how many can be used.
func (a *Auth) fetchKeys(ctx context.Context) (int, error) {
	v, ok := a.verifier.(*jwtVerifier)
	if !ok {
		return 0, errors.New("no keys are fetched")
	}
	k, ok := v.keys.(*remoteKeys)
	if !ok {
		return 0, errors.New("no keys are fetched")
	}
	defer context.AfterFunc(ctx, k.stop)()
	if err := k.fetch(); err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // without the URL, whose query may be secret
		}
		return 0, fmt.Errorf("the keys cannot be fetched: %w", cmp.Or(ctx.Err(), err))
	}
	keys, err := k.store.KeyReadAll(ctx)
	return len(keys), err
}
