package fleet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// beatEvery and staleAfter say when an instance lives.
	beatEvery  = 3 * time.Second
	staleAfter = 12 * time.Second
	// nameTime is how long a starting instance waits for another of its name to be found dead.
	nameTime  = 15 * time.Second
	nameEvery = 500 * time.Millisecond
	// busTime is how long a starting instance is not ready because it is not on the bus.
	busTime = 5 * time.Second
)

var stale = int64(staleAfter / time.Millisecond)

// members are the instances as this one knows them, and how it stands among them.
type members struct {
	token    string // tells this process from another of its name
	secret   string // that all have
	started  time.Time
	joined   atomic.Bool              // it is one of them
	first    atomic.Bool              // it has been one of them
	taken    atomic.Bool              // another process has its name
	draining atomic.Bool              // it is one of them no more, but still has sessions
	size     atomic.Int64             // how many there were when that was last known; at least 1
	names    atomic.Pointer[[]string] // of all that live, draining ones too
	epoch    atomic.Int64             // of the counts in Redis: another one wants them written anew
	clock    atomic.Int64             // of Redis, less the time since started; in ms; 0: not known
	soon     chan struct{}            // a beat is wanted
}

func (m *members) init() {
	m.token, m.secret, m.started, m.soon = rand.Text(), rand.Text(), time.Now(), make(chan struct{}, 1)
	m.size.Store(1)
	m.names.Store(new([]string))
}

func (m *members) nudge() {
	select {
	case m.soon <- struct{}{}:
	default:
	}
}

// elapsed is the time since started, in ms.
func (m *members) elapsed() int64 { return time.Since(m.started).Milliseconds() }

// now is what the clock of Redis shows, in ms; 0: that is not known.
func (m *members) now() int64 {
	clock := m.clock.Load()
	if clock == 0 {
		return 0
	}
	return clock + m.elapsed()
}

// Ready says why this instance is not one of the fleet yet, though it may soon be. Nil, also for a nil Fleet: it is, or counts alone.
func (f *Fleet) Ready() error {
	switch {
	case f == nil:
	case f.members.taken.Load() && !f.members.first.Load():
		return f.nameError()
	case f.members.joined.Load() && f.bus != nil && !f.bus.joined.Load() && time.Since(f.members.started) < busTime:
		return errors.New("the bus of the fleet is being joined")
	}
	return nil
}

func (f *Fleet) nameError() error {
	return fmt.Errorf("INSTANCE: %q is the name of another instance that lives; want a name of its own", f.instance)
}

// Drain has this instance count for none from now on. What its sessions hold still counts, and they are still reached. A nil Fleet has
// nothing to leave.
func (f *Fleet) Drain() {
	if f != nil && !f.members.draining.Swap(true) {
		f.beat(f.ctx)
	}
}

// live tells that this instance lives, writes its counts anew where Redis has lost them, and forgets those that are dead.
func (f *Fleet) live() {
	for {
		wait := beatEvery
		if f.members.taken.Load() {
			wait = nameEvery
			if !f.members.first.Load() && time.Since(f.members.started) > nameTime {
				if f.failed != nil {
					f.failed(f.nameError())
				}
				return
			}
		}
		select {
		case <-time.After(wait):
		case <-f.members.soon:
		case <-f.ctx.Done():
			return
		}
		f.beat(f.ctx)
	}
}

func (f *Fleet) beat(ctx context.Context) {
	m := &f.members
	draining, asked := 0, m.elapsed()
	if m.draining.Load() {
		draining = 1
	}
	answer, err := f.tell(ctx, beat, []string{f.key("live"), f.key("owners"), f.key("draining"), f.key("epoch"), f.key("secret")},
		stale, f.instance, m.token, draining, m.secret)
	if err != nil {
		return
	}
	b, ok := readBeat(answer)
	if !ok {
		return
	}
	m.clock.Store(b.now - (asked+m.elapsed())/2)
	m.names.Store(&b.names)
	m.size.Store(max(b.size, 1))
	f.metrics.FleetSize(int(b.size))
	if !m.first.Load() {
		m.secret = b.secret
	}
	if b.standing == nameTaken {
		f.usurped()
		return
	}
	m.taken.Store(false)
	m.first.Store(true)
	m.joined.Store(true)
	if m.epoch.Swap(b.epoch) != b.epoch || b.standing == unknown || f.counts.stale.Load() {
		f.writeAll(ctx)
	}
	if b.dead != "" {
		f.bury(ctx, b.dead)
	}
	if f.share.Load() == nil {
		return
	}
	if _, err := f.ask(ctx, nothing, nil); err == nil && !f.counts.stale.Load() {
		f.share.Store(nil)
		f.metrics.FleetAlone(false)
	}
}

// usurped is where another process has the name of this one.
func (f *Fleet) usurped() {
	m := &f.members
	m.joined.Store(false)
	f.countAlone()
	if m.taken.Swap(true) {
		return
	}
	if m.first.Load() {
		f.log.Error("another instance has the name of this one, which counts alone until that is gone", "instance", f.instance)
	} else {
		f.log.Warn("another instance has the name of this one, which waits for that to be gone", "instance", f.instance, "at_most", nameTime)
	}
}

// standing is what Redis knows of an instance that tells it lives.
type standing int64

const (
	nameTaken standing = iota // it is another process
	unknown                   // it was not known to live
	known
)

// heartbeat is the answer to one.
type heartbeat struct {
	standing         standing
	size, epoch, now int64
	dead             string // one that lives no more
	secret           string
	names            []string
}

// readBeat reads the answer of beat.
func readBeat(answer any) (b heartbeat, ok bool) {
	parts, _ := answer.([]any)
	if len(parts) < 6 {
		return b, false
	}
	numbers := make([]int64, 4)
	for i := range numbers {
		if numbers[i], ok = parts[i].(int64); !ok {
			return b, false
		}
	}
	b = heartbeat{standing: standing(numbers[0]), size: numbers[1], epoch: numbers[2], now: numbers[3]}
	b.dead, _ = parts[4].(string)
	b.secret, _ = parts[5].(string)
	for _, part := range parts[6:] {
		if name, ok := part.(string); ok {
			b.names = append(b.names, name)
		}
	}
	slices.Sort(b.names)
	return b, true
}

// Secret is a key that all instances have, or this one alone where Redis was not there when it started. "" for a nil Fleet.
func (f *Fleet) Secret() string {
	if f == nil {
		return ""
	}
	return f.members.secret
}

// Others names the other instances that lived when that was last known.
func (f *Fleet) Others() []string {
	return slices.DeleteFunc(slices.Clone(*f.members.names.Load()), func(name string) bool { return name == f.instance })
}

// bury forgets what a dead instance held.
func (f *Fleet) bury(ctx context.Context, instance string) {
	for range 10_000 {
		answer, err := f.tell(ctx, bury, []string{f.key("live"), f.key("held", instance), f.key("owners"), f.key("draining")}, instance, stale)
		if more, _ := answer.(int64); err != nil || more == 0 {
			return
		}
	}
}

// leave has this instance forgotten, unless another has its name.
func (f *Fleet) leave(ctx context.Context) {
	answer, err := f.tell(ctx, leave, []string{f.key("live"), f.key("owners"), f.key("draining")}, f.instance, f.members.token)
	if ours, _ := answer.(int64); err == nil && ours == 1 {
		f.bury(ctx, f.instance)
	}
}
