package session

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
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

// history keeps the last pushes, in one order, and each with its filter, by which it is read. Alone it numbers them itself; in a fleet
// their ids are those of a stream that all instances read.
type history struct {
	size   HistorySize
	shared bool // in a fleet

	mu     sync.Mutex // guards what follows, and every position; taken before the registry's
	kept   []keptPush // the oldest first, without a gap in the numbers
	last   int64      // the number of the newest; 0: there was none
	lastID pushID     // of that, or of what is known of the time before
	gone   pushID     // what came up to it is not kept
	bytes  int
}

type keptPush struct {
	number int64 // in this process
	id     pushID
	at     time.Time
	filter Filter
	push   *relay.Push
}

// pushID is the id of a push: when it was pushed, or when the process that numbers them began, in ms since 1970, and a number.
type pushID struct{ ms, n uint64 }

func (id pushID) String() string {
	return strconv.FormatUint(id.ms, 10) + "-" + strconv.FormatUint(id.n, 10)
}

func (id pushID) compare(other pushID) int {
	return cmp.Or(cmp.Compare(id.ms, other.ms), cmp.Compare(id.n, other.n))
}

// parsePushID reports false for what no push has as its id.
func parsePushID(text string) (id pushID, ok bool) {
	ms, n, _ := strings.Cut(text, "-")
	var err1, err2 error
	id.ms, err1 = strconv.ParseUint(ms, 10, 64)
	id.n, err2 = strconv.ParseUint(n, 10, 64)
	return id, err1 == nil && err2 == nil && id.String() == text
}

// position is how far a session has come in the history.
type position struct {
	seen   int64  // the number up to which it has everything, or will never have it
	after  pushID // beyond that it has everything up to this, which another instance has sent it
	newest string // the id of the newest push as the session was opened
	gap    bool   // it missed what is not kept any more, and has not been told
	behind bool   // it reads from the history; what is pushed meanwhile it finds there
}

func newHistory(size HistorySize, shared bool) *history {
	if size.Pushes == 0 {
		return nil
	}
	h := &history{size: size, shared: shared}
	if !shared {
		h.lastID.ms = uint64(time.Now().UnixMilli())
		h.gone = h.lastID
	}
	return h
}

// newest is the id of the newest push; if there was none one that is before the first.
func (h *history) newest() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lastID.String()
}

// ahead is how far the clock of one who numbers pushes may be ahead of this process's.
const ahead = 10 * time.Minute

// position is where a session begins that has seen everything up to last. Nil, also without a history: it did not ask.
func (h *history) position(last *string) *position {
	if h == nil || last == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &position{seen: h.last, newest: h.lastID.String(), behind: true}
	if *last == "" {
		return p
	}
	h.expire(time.Now())
	id, ok := parsePushID(*last)
	switch {
	case !ok || id.compare(h.gone) < 0:
		p.seen, p.gap = h.oldest()-1, true
	case id.compare(h.lastID) <= 0:
		n, known := slices.BinarySearchFunc(h.kept, id, func(k keptPush, id pushID) int { return k.id.compare(id) })
		if p.seen = h.oldest() - 1 + int64(n); known {
			p.seen++
		}
	case h.shared && id.ms < uint64(time.Now().Add(ahead).UnixMilli()):
		p.after = id // another instance was quicker
	default:
		p.seen, p.gap = h.oldest()-1, true
	}
	return p
}

// oldest is the number of the oldest push that is kept, or of the next one. The caller holds mu.
func (h *history) oldest() int64 { return h.last - int64(len(h.kept)) + 1 }

// add keeps a push that was made that long ago. The zero id is for the next one of a history that is not shared. The caller holds mu.
func (h *history) add(f Filter, op frame.Opcode, body []byte, id pushID, age time.Duration) (*relay.Push, pushID) {
	now := time.Now()
	if id == (pushID{}) {
		id = pushID{h.lastID.ms, h.lastID.n + 1}
	}
	h.last++
	h.lastID = id
	p := relay.NewPush(op, id.String(), body, marker("push", id.String()))
	h.kept = append(h.kept, keptPush{h.last, id, now.Add(-age), f, p})
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
		h.gone = k.id
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
		return relay.NewPush(frame.Text, "", marker("push_gap", h.idOf(p.seen).String()), nil)
	}
	s.manager.registry.mu.Lock()
	defer s.manager.registry.mu.Unlock()
	for p.seen < h.last {
		k := &h.kept[p.seen+1-h.oldest()]
		p.seen++
		if k.id.compare(p.after) > 0 && k.filter.matches(s) {
			return k.push
		}
	}
	p.behind = false
	return nil
}

// idOf is the id of a number that is kept, or that was before. The caller holds mu.
func (h *history) idOf(number int64) pushID {
	if n := number - h.oldest(); n >= 0 && n < int64(len(h.kept)) {
		return h.kept[n].id
	}
	return h.gone
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

// Restore takes a push into the history that was made that long ago, before this instance was there.
func (m *Manager) Restore(f Filter, msg Message, id string, age time.Duration) {
	parsed, ok := parsePushID(id)
	if m.history == nil || !ok {
		return
	}
	m.history.mu.Lock()
	defer m.history.mu.Unlock()
	m.history.add(f, msg.opcode(), msg.Body, parsed, age)
}

// ForgetPushes says that pushes before that one are not known, and tells so the clients that want them.
func (m *Manager) ForgetPushes(id string) {
	parsed, ok := parsePushID(id)
	if m.history == nil || !ok {
		return
	}
	m.publisher.Lock()
	defer m.publisher.Unlock()
	live, to := m.forgetPushes(parsed)
	m.relay.Push(nil, live, to)
}

// forgetPushes returns whom to tell.
func (m *Manager) forgetPushes(id pushID) (live []relay.Session, to []relay.Recipient) {
	h := m.history
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept, h.bytes, h.gone = nil, 0, id
	if h.lastID.compare(id) < 0 {
		h.lastID = id
	}
	m.registry.mu.Lock()
	defer m.registry.mu.Unlock()
	for s := range m.registry.find(&Filter{}, 0) {
		c := s.control
		if c.history == nil {
			continue
		}
		c.history.seen, c.history.gap, c.history.behind = h.last, true, true
		c.mu.Lock()
		if c.live != nil {
			live, to = append(live, c.live), append(to, (*recipient)(s))
		}
		c.mu.Unlock()
	}
	return live, to
}
