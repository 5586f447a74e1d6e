package session

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"portcullis/proxy/frame"
	"portcullis/proxy/relay"
)

// HistorySize bounds the pushes that are kept. In text it reads "10000,5m". The zero value keeps none.
type HistorySize struct {
	Pushes int
	Age    time.Duration
}

const wantHistory = "want a number of pushes and how long they are kept, as 10000,5m"

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *HistorySize) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	number, age, two := strings.Cut(string(text), ",")
	var err error
	if h.Pushes, err = strconv.Atoi(strings.TrimSpace(number)); !two || err != nil || h.Pushes <= 0 || h.Pushes > maxHistory {
		return fmt.Errorf("%q has no number of pushes from 1 to %d; %s", text, maxHistory, wantHistory)
	}
	if h.Age, err = time.ParseDuration(strings.TrimSpace(age)); err != nil || h.Age <= 0 {
		return fmt.Errorf("%q has no duration above zero; %s", text, wantHistory)
	}
	return nil
}

const (
	// maxHistory bounds the pushes of a history, since who was away for long has to look at all of them.
	maxHistory = 1_000_000
	// historyBytes bounds what they take on the wire, together.
	historyBytes = 64 << 20
)

// LastPushParam is the query parameter of an upgrade by which a client asks for what it has missed, and for the ids of what is
// pushed to it.
const LastPushParam = "portcullis_last_push"

// LastPush is the id of the last push that the client of an upgrade has seen, by its query; empty: it wants those from now on.
// Nil: it does not ask, or there is no history.
func (m *Manager) LastPush(query string) *string {
	if m.history == nil {
		return nil
	}
	values, err := queryValues(query, LastPushParam)
	if err != nil || len(values) == 0 {
		return nil
	}
	id := strings.Clone(values[0])
	return &id
}

// KeepsHistory reports whether LastPushParam is the gate's own.
func (m *Manager) KeepsHistory() bool { return m.history != nil }

// history keeps the last pushes, in one order, and each with its filter, by which it is read.
type history struct {
	size HistorySize
	// name begins every id, and tells this history from that of an earlier process.
	name string

	mu    sync.Mutex // guards what follows, and every position; taken before the registry's
	kept  []keptPush // the oldest first, without a gap in the numbers
	last  int64      // the number of the newest; 0: there was none
	bytes int
}

type keptPush struct {
	number int64
	at     time.Time
	filter Filter
	push   *relay.Push
}

// position is how far a session has come in the history.
type position struct {
	seen   int64 // the number up to which it has everything, or will never have it
	newest int64 // of the history as the session was opened
	gap    bool  // it missed what is not kept any more, and has not been told
	behind bool  // it reads from the history; what is pushed meanwhile it finds there
}

func newHistory(size HistorySize) *history {
	if size.Pushes == 0 {
		return nil
	}
	return &history{size: size, name: strings.ToLower(rand.Text()[:8])}
}

func (h *history) id(number int64) string { return h.name + "-" + strconv.FormatInt(number, 10) }

// number is what stands in an id; 0: it is none of this history, or of a push that is still to come.
func (h *history) number(id string) int64 {
	name, digits, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(digits, 10, 64)
	if name != h.name || err != nil || n < 0 || n > h.last || h.id(n) != id {
		return -1
	}
	return n
}

// newest is the id of the newest push; that of number 0 if there was none.
func (h *history) newest() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.id(h.last)
}

// position is where a session begins that has seen everything up to last. Nil, also without a history: it did not ask.
func (h *history) position(last *string) *position {
	if h == nil || last == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &position{seen: h.last, newest: h.last, behind: true}
	if *last != "" {
		h.expire(time.Now())
		if p.seen = h.number(*last); p.seen < h.oldest()-1 {
			p.seen, p.gap = h.oldest()-1, true
		}
	}
	return p
}

// oldest is the number of the oldest push that is kept, or of the next one. The caller holds mu.
func (h *history) oldest() int64 { return h.last - int64(len(h.kept)) + 1 }

// add keeps a push. The caller holds mu.
func (h *history) add(f Filter, op frame.Opcode, body []byte) (p *relay.Push, id string) {
	now := time.Now()
	h.last++
	id = h.id(h.last)
	p = relay.NewPush(op, id, body, marker("push", id))
	h.kept = append(h.kept, keptPush{h.last, now, f, p})
	h.bytes += p.Size()
	h.expire(now)
	return p, id
}

// expire forgets pushes that are too many, too old or too large. The caller holds mu.
func (h *history) expire(now time.Time) {
	n := 0
	for ; n < len(h.kept); n++ {
		k := &h.kept[n]
		if len(h.kept)-n <= h.size.Pushes && now.Sub(k.at) < h.size.Age && h.bytes <= historyBytes {
			break
		}
		h.bytes -= k.push.Size()
		*k = keptPush{}
	}
	h.kept = h.kept[n:]
}

// next returns the next push that a session has missed. Nil: there is none, and it gets from now on what is pushed.
func (h *history) next(s *Session) *relay.Push {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := s.control.history
	h.expire(time.Now())
	if oldest := h.oldest(); p.seen < oldest-1 {
		p.seen, p.gap = oldest-1, true
	}
	if p.gap {
		p.gap = false
		return relay.NewPush(frame.Text, "", marker("push_gap", h.id(p.seen)), nil)
	}
	s.manager.registry.mu.Lock()
	defer s.manager.registry.mu.Unlock()
	for p.seen < h.last {
		k := &h.kept[p.seen+1-h.oldest()]
		p.seen++
		if k.filter.matches(s) {
			return k.push
		}
	}
	p.behind = false
	return nil
}

// skip has a session read nothing from the history any more.
func (h *history) skip(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.control.history.behind = false
}

// marker is a message of the gate's own: where the client stands in the history, from here on.
func marker(name, id string) []byte {
	var b bytes.Buffer
	json.NewEncoder(&b).Encode(map[string]map[string]string{"portcullis": {name: id}})
	return bytes.TrimSpace(b.Bytes())
}
