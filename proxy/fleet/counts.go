package fleet

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// counts are the sessions that this instance has of each key. They are what counts: Redis has a copy, which is written anew where it
// may be wrong.
type counts struct {
	stale atomic.Bool // the copy may be wrong
	// writing is held for reading from a change of the copy to that of the number, and for writing while a part of the copy is written
	// anew.
	writing sync.RWMutex
	telling sync.Mutex // held while Redis is told of changes

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

// keys are all that there are.
func (c *counts) keys() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.held))
}

// numbers are those of keys, and the changes of which Redis is to be told by the caller.
func (c *counts) numbers(keys []string) (held, changes []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		held, changes = append(held, c.held[key]), append(changes, c.changes[key])
		delete(c.changes, key)
	}
	return held, changes
}

// perScript is how many keys a script changes: Redis does nothing else meanwhile.
const perScript = 200

// writeChanges tells Redis of sessions that have ended or moved, many at a time.
func (f *Fleet) writeChanges() {
	for {
		select {
		case <-f.counts.more:
			f.writeSome()
		case <-f.ctx.Done():
			return
		}
	}
}

func (f *Fleet) writeSome() {
	f.counts.telling.Lock()
	defer f.counts.telling.Unlock()
	f.counts.writing.RLock()
	defer f.counts.writing.RUnlock()
	some := f.counts.take(perScript)
	if len(some) == 0 {
		return
	}
	keys, args := []string{f.key("held", f.instance)}, []any{f.instance}
	for key, n := range some {
		keys, args = append(keys, key), append(args, n)
	}
	if !f.members.joined.Load() {
		f.counts.stale.Store(true)
	} else if _, err := f.tell(f.ctx, change, keys, args...); err != nil {
		f.counts.stale.Store(true)
	}
}

// Settle returns when Redis has been told of the sessions that have ended, or will be by the next Enter.
func (f *Fleet) Settle() {
	f.counts.telling.Lock()
	defer f.counts.telling.Unlock()
}

// writeAll writes all numbers, some at a time, and takes back what Redis has beside them.
func (f *Fleet) writeAll(ctx context.Context) {
	f.counts.stale.Store(false)
	said, err := f.heldKeys(ctx)
	all := append(f.counts.keys(), said...)
	slices.Sort(all)
	for some := range slices.Chunk(slices.Compact(all), perScript) {
		if err != nil {
			break
		}
		err = f.writeNumbers(ctx, some)
	}
	if err != nil {
		f.counts.stale.Store(true)
	}
}

// heldKeys are the keys of which Redis says that this instance has a part, some at a time: Redis does nothing else meanwhile.
func (f *Fleet) heldKeys(ctx context.Context) (all []string, err error) {
	held := f.key("held", f.instance)
	for cursor := uint64(0); ; {
		ctx, cancel := context.WithTimeout(ctx, patience)
		some, next, err := f.redis.SScan(ctx, held, cursor, "", perScript).Result()
		if isForeign(err) && f.mend(ctx, []string{held}) {
			err = nil
		}
		cancel()
		if err != nil {
			return nil, err
		}
		if all = append(all, some...); next == 0 {
			return all, nil
		}
		cursor = next
	}
}

// writeNumbers writes the numbers of some keys, while no change of the copy is under way.
func (f *Fleet) writeNumbers(ctx context.Context, some []string) error {
	f.counts.writing.Lock()
	defer f.counts.writing.Unlock()
	args := []any{f.instance}
	held, _ := f.counts.numbers(some) // of which the changes are a part
	for _, n := range held {
		args = append(args, n)
	}
	_, err := f.tell(ctx, set, append([]string{f.key("held", f.instance)}, some...), args...)
	return err
}
