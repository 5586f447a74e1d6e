package session

import (
	"errors"
	"sync"
	"time"

	"portcullis/proxy/relay"
)

// Kick is how sessions are ended.
type Kick struct {
	relay.Closing
	// KeepOut refuses the filter's subject for that long. Zero: it may come back at once.
	KeepOut time.Duration
}

// ErrKeptOutFull says that too many subjects are kept out.
var ErrKeptOutFull = errors.New("too many subjects are kept out")

// Kick ends the sessions that f chooses. If it cannot keep their subject out it ends none.
func (m *Manager) Kick(f Filter, k Kick) (relay.Reach, error) {
	if k.KeepOut > 0 && !m.keptOut.add(f.Subject, time.Now().Add(k.KeepOut)) {
		return relay.Reach{}, ErrKeptOutFull
	}
	e := ending{relay.Kicked, k.Closing}
	var told int
	var live []relay.Session
	m.registry.mu.Lock()
	for s := range m.registry.find(&f, 0) {
		c := s.control
		c.mu.Lock()
		switch {
		case c.live != nil:
			live = append(live, c.live)
		case c.wait(&e, nil):
			told++
		}
		c.mu.Unlock()
	}
	m.registry.mu.Unlock()
	reach := m.relay.CloseAll(live, e.reason, e.closing)()
	reach.Reached += told
	return reach, nil
}

// AllKeptOut are the subjects that are kept out, each with how long.
func (m *Manager) AllKeptOut() map[string]time.Duration {
	k := &m.keptOut
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make(map[string]time.Duration, len(k.until))
	for subject, until := range k.until {
		if d := time.Until(until); d > 0 {
			all[subject] = d
		}
	}
	return all
}

// KeptOut reports whether a subject was kicked and is kept out for now.
func (m *Manager) KeptOut(subject string) bool { return m.keptOut.has(subject, time.Now()) }

// maxKeptOut bounds the subjects that are kept out at once.
const maxKeptOut = 10_000

// keptOut are subjects that may not come back yet. The zero value has none.
type keptOut struct {
	mu    sync.Mutex
	until map[string]time.Time // guarded by mu
}

// add keeps a subject out until then, or for longer if it was. It reports false where there are too many.
func (k *keptOut) add(subject string, until time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.until == nil {
		k.until = make(map[string]time.Time)
	}
	old, known := k.until[subject]
	if !known && len(k.until) >= maxKeptOut {
		now := time.Now()
		for s, t := range k.until {
			if !now.Before(t) {
				delete(k.until, s)
			}
		}
		if len(k.until) >= maxKeptOut {
			return false
		}
	}
	if until.After(old) {
		k.until[subject] = until
	}
	return true
}

func (k *keptOut) has(subject string, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	until, known := k.until[subject]
	if known && !now.Before(until) {
		delete(k.until, subject)
		return false
	}
	return known
}
