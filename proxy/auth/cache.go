package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxRefusalTTL bounds how long a refusal is used again: a user who has just
	// been given access must not be refused for long.
	maxRefusalTTL = 5 * time.Second
	// cacheSize bounds each table, in tokens; an entry takes some 500 bytes.
	// The least recently used entry makes room for a new one.
	cacheSize = 1 << 14
)

// cacheTimes are AUTH_CACHE_TTL and AUTH_STALE_TTL.
type cacheTimes struct{ fresh, stale time.Duration }

// A cache uses an answer again for a while, and one that accepts for a while
// longer when there is no other to be had. Each answer is kept no longer than
// it says. Refusals have a table of their own, so that guessing tokens does not
// drive out good ones.
type cache struct {
	verifier
	hash     tokenHash
	times    cacheTimes
	accepted *lru.Cache[[sha256.Size]byte, acceptedEntry]
	refused  *lru.Cache[[sha256.Size]byte, refusedEntry]
}

type acceptedEntry struct {
	decision Decision
	fresh    time.Time // until then it is used without asking
	stale    time.Time // until then it is used when nobody answers
}

type refusedEntry struct {
	err   error
	fresh time.Time
}

func newCache(v verifier, hash tokenHash, times cacheTimes) *cache {
	c := &cache{verifier: v, hash: hash, times: times}
	c.accepted, _ = lru.New[[sha256.Size]byte, acceptedEntry](cacheSize) // fails for sizes of 0 and less
	c.refused, _ = lru.New[[sha256.Size]byte, refusedEntry](cacheSize)
	return c
}

func (c *cache) verify(ctx context.Context, cred Credential) (Decision, error) {
	key := c.hash.sum(cred.Token)
	now := time.Now()
	if entry, ok := c.refused.Get(key); ok && now.Before(entry.fresh) {
		return Decision{}, entry.err
	}
	entry, ok := c.accepted.Get(key)
	if ok && now.Before(entry.fresh) {
		return entry.decision, nil
	}
	d, err := c.ask(ctx, cred)
	if _, unavailable := errors.AsType[*UnavailableError](err); unavailable && ok && time.Now().Before(entry.stale) {
		return entry.decision, nil
	}
	return d, err
}

// ask asks the verifier even if an answer is stored, and stores the new one.
func (c *cache) ask(ctx context.Context, cred Credential) (Decision, error) {
	key, asked := c.hash.sum(cred.Token), time.Now()
	d, err := c.verifier.verify(ctx, cred)
	switch {
	case err == nil:
		c.refused.Remove(key)
		c.storeAccepted(key, d, asked)
	case isRefusal(err):
		c.accepted.Remove(key)
		c.storeRefused(key, err, asked)
	}
	return d, err
}

func (c *cache) storeAccepted(key [sha256.Size]byte, d Decision, asked time.Time) {
	if d.noStore {
		c.accepted.Remove(key)
		return
	}
	fresh := earlier(asked.Add(c.times.fresh), d.Until)
	c.accepted.Add(key, acceptedEntry{d, fresh, earlier(fresh.Add(c.times.stale), d.Expires)})
}

func (c *cache) storeRefused(key [sha256.Size]byte, err error, asked time.Time) {
	refused, _ := errors.AsType[*RefusedError](err)
	denied, _ := errors.AsType[*DeniedError](err)
	if refused != nil && refused.noStore || denied != nil && denied.noStore {
		c.refused.Remove(key)
		return
	}
	c.refused.Add(key, refusedEntry{err, asked.Add(min(c.times.fresh, maxRefusalTTL))})
}
