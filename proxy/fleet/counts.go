package fleet

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// counts are the sessions that this instance has of each key. They are what counts: Redis has a copy, which is written anew where it
// may be wrong.
type counts struct {
	stale atomic.Bool // the copy may be wrong
	// writing is held for reading from a change of the copy to that of the number, and for writing while the copy is written anew.
	writing sync.RWMutex

	mu      sync.Mutex       // guards what follows
	held    map[string]int64 // without zeros
	changes map[string]int64 // that Redis is to be told
	more    chan struct{}    // there are some
}

// begin lets a change of the copy begin, unless all of it is being written for longer than that. writing.RUnlock has to follow.
func (c *counts) begin(within time.Duration) bool {
	for deadline := time.Now().Add(within); !c.writing.TryRLock(); {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// add changes the number of each key, which Redis knows already.
func (c *counts) add(keys []string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.change(keys, n)
}

// change is called with mu held.
func (c *counts) change(keys []string, n int64) {
	for _, key := range keys {
		if c.held[key] += n; c.held[key] <= 0 {
			delete(c.held, key)
		}
	}
}

// tell changes the number of each key, and has Redis told.
func (c *counts) tell(keys []string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.change(keys, n)
	for _, key := range keys {
		c.changes[key] += n
	}
	c.wake()
}

// wake has the changes written.
func (c *counts) wake() {
	select {
	case c.more <- struct{}{}:
	default: // somebody has asked for that already
	}
}

// take returns up to most of the changes that Redis is to be told.
func (c *counts) take(most int) map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	some := make(map[string]int64)
	for key, n := range c.changes {
		if len(some) == most {
			c.wake()
			break
		}
		some[key] = n
		delete(c.changes, key)
	}
	return some
}

func (c *counts) number(key string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[key]
}

// snapshot returns all numbers, for a copy that needs no change beside them.
func (c *counts) snapshot() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.changes)
	return maps.Clone(c.held)
}

// perScript is how many keys a script changes: Redis does nothing else meanwhile.
const perScript = 200

// writeChanges tells Redis of sessions that have ended or moved, many at a time.
func (f *Fleet) writeChanges() {
	for {
		select {
		case <-f.counts.more:
		case <-f.ctx.Done():
			return
		}
		f.counts.writing.RLock()
		some := f.counts.take(perScript)
		keys, args := []string{f.key("held", f.instance)}, []any{f.instance}
		for key, n := range some {
			keys, args = append(keys, key), append(args, n)
		}
		if !f.members.joined.Load() {
			f.counts.stale.Store(true)
		} else if len(some) > 0 {
			if _, err := f.tell(f.ctx, change, keys, args...); err != nil {
				f.counts.stale.Store(true)
			}
		}
		f.counts.writing.RUnlock()
	}
}

// writeAll writes all numbers, and takes back what Redis has beside them.
func (f *Fleet) writeAll(ctx context.Context) {
	f.counts.writing.Lock()
	defer f.counts.writing.Unlock()
	f.counts.stale.Store(false)
	answer, err := f.tell(ctx, heldKeys, []string{f.key("held", f.instance)})
	said, _ := answer.([]any)
	all := f.counts.snapshot()
	for _, key := range said {
		if key, ok := key.(string); ok {
			all[key] += 0
		}
	}
	for len(all) > 0 && err == nil {
		keys, args := []string{f.key("held", f.instance)}, []any{f.instance}
		for key, n := range all {
			if keys, args = append(keys, key), append(args, n); len(keys) > perScript {
				break
			}
		}
		for _, key := range keys {
			delete(all, key)
		}
		_, err = f.tell(ctx, set, keys, args...)
	}
	if err != nil {
		f.counts.stale.Store(true)
	}
}
