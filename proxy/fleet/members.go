package fleet

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
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
	// rewriteEvery is how often all counts are written, for what nobody has noticed: a Redis with older data, a call that came late.
	rewriteEvery = time.Minute
	settleTime   = 10 * time.Second
	// lostTime is how long the others have to write their counts when Redis has lost them, and lostEvery how often is looked whether they
	// have.
	lostTime  = beatEvery + time.Second
	lostEvery = 200 * time.Millisecond
	// busTime is how long a starting instance is not ready because it is not on the bus.
	busTime = 5 * time.Second
)

var stale = int64(staleAfter / time.Millisecond)

// members are the instances as this one knows them, and how it stands among them.
type members struct {
	token    string // tells this process from another of its name
	secret   string // that all have
	started  time.Time
	joined   atomic.Bool   // it is one of them
	first    atomic.Bool   // it has been one of them
	taken    atomic.Bool   // another process has its name
	draining atomic.Bool   // it is one of them no more, but still has sessions
	size     atomic.Int64  // how many there were when that was last known; at least 1
	seen     seen          // of all that live, draining ones too, and of those that lived lately
	epoch    atomic.Int64  // of the counts in Redis: another one wants them written anew
	clock    atomic.Int64  // of Redis, less the time since started; in ms; 0: not known
	soon     chan struct{} // a beat is wanted
	beating  sync.Mutex    // held for a beat
	written  time.Time     // when all counts were written; guarded by beating
	alone    time.Time     // until when it counts alone, for the others to write what Redis has lost; guarded by beating
	unread   atomic.Bool   // who is kept out is to be read
	lost     atomic.Bool   // and to be written before
}

func (m *members) init() {
	m.token, m.secret, m.started, m.soon = rand.Text(), rand.Text(), time.Now(), make(chan struct{}, 1)
	m.size.Store(1)
	m.seen.last = make(map[string]time.Time)
}

// seen are the names of instances, each with when it was known to live. Redis may have lost them.
type seen struct {
	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
}

// seenFor is how long an instance counts as one that may have sessions after it was last known to live, unless it has said that it
// leaves.
const seenFor = 30 * time.Second

// note notes who lives, and who has left, and returns who may have sessions.
func (s *seen) note(alive, left []string) (all []string) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range left {
		delete(s.last, name)
	}
	for _, name := range alive {
		s.last[name] = now
	}
	for name, at := range s.last {
		if now.Sub(at) > seenFor {
			delete(s.last, name)
			continue
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return all
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
		return fmt.Errorf("INSTANCE: %q: waits for another process of that name to be found dead", f.instance)
	case f.members.joined.Load() && f.joining() && time.Since(f.members.started) < busTime:
		return errors.New("the bus of the fleet is being joined")
	}
	return nil
}

// joining reports whether the bus has not been joined yet, though it is to be.
func (f *Fleet) joining() bool {
	b := f.bus.Load()
	return b != nil && !b.joined.Load()
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
	m.beating.Lock()
	defer m.beating.Unlock()
	draining, asked := 0, m.elapsed()
	if m.draining.Load() {
		draining = 1
	}
	b, ok := f.tellBeat(ctx, draining, 0)
	if ok && b.standing == unknown {
		if m.first.Load() {
			f.writeAll(ctx) // before it counts, so that it counts at once with all that it has
		}
		dead := b.dead
		if b, ok = f.tellBeat(ctx, draining, 1); ok && b.standing == known {
			b.standing = unknown // another beat was quicker
		}
		b.dead = cmp.Or(b.dead, dead)
	}
	if !ok {
		return
	}
	m.clock.Store(b.now - (asked+m.elapsed())/2)
	m.seen.note(b.names, nil)
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
	first := !m.first.Swap(true)
	if !m.joined.Swap(true) {
		f.log.Info("this instance is one of the fleet", "fleet", f.name, "instance", f.instance, "instances", b.size, "again", !first)
	}
	if time.Since(m.written) > rewriteEvery {
		f.counts.stale.Store(true)
	}
	if m.epoch.Swap(b.epoch) != b.epoch || b.standing == unknown || f.counts.stale.Load() {
		m.written = time.Now()
		f.writeAll(ctx)
	}
	if b.standing == unknown {
		m.lost.Store(true)
		m.unread.Store(true)
		if !first {
			f.countAlone()
			m.alone = time.Now().Add(lostTime)
			f.tellLost()
		}
	}
	f.refresh(ctx)
	if b.dead != "" {
		f.log.Info("an instance of the fleet is dead", "instance", b.dead)
		f.bury(ctx, b.dead)
	}
	if f.share.Load() == nil {
		return
	}
	if time.Now().Before(m.alone) && len(m.seen.note(nil, nil)) > len(b.names) {
		time.AfterFunc(lostEvery, m.nudge)
		return
	}
	if _, err := f.ask(ctx, nothing, nil); err == nil && !f.counts.stale.Load() {
		f.share.Store(nil)
		m.written = time.Now().Add(settleTime - rewriteEvery) // a call that was given up may still reach Redis
		f.metrics.FleetAlone(false)
	}
}

// tellBeat tells that this instance lives. join has one be noted that was not known to.
func (f *Fleet) tellBeat(ctx context.Context, draining, join int) (heartbeat, bool) {
	m := &f.members
	keys := []string{f.key("live"), f.key("owners"), f.key("draining"), f.key("epoch"), f.key("secret"), f.key("left")}
	answer, err := f.tell(ctx, beat, keys, stale, f.instance, m.token, draining, m.secret, join)
	if err != nil {
		return heartbeat{}, false
	}
	return readBeat(answer)
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
	return slices.DeleteFunc(f.members.seen.note(nil, nil), func(name string) bool { return name == f.instance })
}

// refreshSoon has what is known of subjects that are kept out read anew. lost: Redis may have lost what this instance knows of them.
func (f *Fleet) refreshSoon(lost bool) {
	if lost {
		f.members.lost.Store(true)
	}
	f.members.unread.Store(true)
	f.members.nudge()
}

// refresh does so.
func (f *Fleet) refresh(ctx context.Context) {
	m, b := &f.members, f.bus.Load()
	if b == nil {
		return
	}
	if m.lost.Swap(false) {
		for subject, d := range b.handler.KeptOut() {
			if !f.KeepOut(subject, d) {
				m.lost.Store(true)
				return
			}
		}
	}
	if m.unread.Swap(false) {
		all, err := f.keptOut(ctx)
		if err != nil {
			m.unread.Store(true)
			return
		}
		b.handler.KeepOut(all)
	}
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
	answer, err := f.tell(ctx, leave, []string{f.key("live"), f.key("owners"), f.key("draining"), f.key("left")}, f.instance, f.members.token)
	if ours, _ := answer.(int64); err == nil && ours == 1 {
		f.bury(ctx, f.instance)
	}
}
