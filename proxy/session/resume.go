package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"portcullis/proxy/relay"
)

// resumable is what a session has more whose client may come back.
type resumable struct {
	handle   handle
	binding  Binding
	answer   string                 // the subprotocol that its client was answered with
	secret   *[16]byte              // of its first token, until the relay has that; nil from then on
	client   atomic.Pointer[string] // the address from which it has come back; nil: that of the beginning
	push     *string                // the id of the newest push when it was opened; nil: there is no history
	detached *detachment            // nil: a client is attached; guarded by resumables.mu
}

// handle finds the session of a token. Each token of a session has it, so it is worth nothing without a token's secret.
type handle [12]byte

// Binding is what a return must have in common with the upgrade, since the upstream judged the session by it.
type Binding [16]byte

// BindingOf is the binding of a request by its path and its Origin headers.
func BindingOf(path string, origins []string) Binding {
	sum := sha256.Sum256([]byte(path + "\x00" + strings.Join(origins, "\x00")))
	return Binding(sum[:])
}

// tokenText is a token as a client shows it: the handle, the generation and the secret, in base64url.
func tokenText(h handle, t relay.Token) string {
	var b [32]byte
	copy(b[:12], h[:])
	binary.BigEndian.PutUint32(b[12:], t.Generation)
	copy(b[16:], t.Secret[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// parseToken is the inverse of tokenText.
func parseToken(text string) (h handle, t relay.Token, ok bool) {
	var b [33]byte
	if len(text) != base64.RawURLEncoding.EncodedLen(32) {
		return h, t, false
	}
	if n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(text)); err != nil || n != 32 {
		return h, t, false
	}
	copy(h[:], b[:12])
	t.Generation = binary.BigEndian.Uint32(b[12:])
	copy(t.Secret[:], b[16:32])
	return h, t, true
}

// newSecret is a token's.
func newSecret() (secret [16]byte) {
	rand.Read(secret[:])
	return secret
}

// resumables finds the sessions whose clients may come back.
type resumables struct {
	mu        sync.Mutex // guards what follows, and which sessions are away
	byHandle  map[handle]*Session
	all       ring // of those that are away, the longest first
	bySubject map[string]ring
	byAddress map[netip.Prefix]ring

	relay  *relay.Relay
	watch  sync.Once     // begins to evict, with the first session
	full   chan struct{} // sessions keep more than they may
	stop   chan struct{}
	closed sync.Once
}

// detachment is the place of a session whose client is, among the others.
type detachment struct {
	since                       time.Time
	address                     netip.Prefix // of its slot
	inAll, inSubject, inAddress link
}

func detachedAll(s *Session) *link       { return &s.resume.detached.inAll }
func detachedOfSubject(s *Session) *link { return &s.resume.detached.inSubject }
func detachedOfAddress(s *Session) *link { return &s.resume.detached.inAddress }

// newResumables returns nil where no session is resumable. Without a relay there is none.
func newResumables(r *relay.Relay) *resumables {
	if r == nil {
		return nil
	}
	if window, _, _ := r.Resumption(); window == 0 {
		return nil
	}
	back := &resumables{
		byHandle:  make(map[handle]*Session),
		bySubject: make(map[string]ring),
		byAddress: make(map[netip.Prefix]ring),
		relay:     r,
		full:      make(chan struct{}, 1),
		stop:      make(chan struct{}),
	}
	return back
}

// close has nothing evicted any more.
func (r *resumables) close() {
	if r != nil {
		r.closed.Do(func() { close(r.stop) })
	}
}

// add makes a session one whose client may come back.
func (r *resumables) add(s *Session, o *Resumption) {
	r.watch.Do(func() {
		r.relay.OnFull(func() {
			select {
			case r.full <- struct{}{}:
			default:
			}
		})
		go r.evict()
	})
	secret := newSecret()
	s.resume = &resumable{binding: o.Binding, answer: o.Answer, secret: &secret}
	if push := s.firstMessage().Push; push != "" {
		s.resume.push = &push
	}
	rand.Read(s.resume.handle[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byHandle[s.resume.handle] = s
}

// remove has nobody come back to a session. A second call changes nothing.
func (r *resumables) remove(s *Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byHandle, s.resume.handle)
	r.attach(s)
}

// detach notes that the client of a session is away. The caller holds mu.
func (r *resumables) detach(s *Session) {
	if r.byHandle[s.resume.handle] != s || s.resume.detached != nil {
		return
	}
	s.resume.detached = &detachment{since: time.Now(), address: s.slot.Address()}
	s.manager.metrics.Detached(1)
	r.all = r.all.push(s, detachedAll)
	r.bySubject[s.Subject] = r.bySubject[s.Subject].push(s, detachedOfSubject)
	r.byAddress[s.resume.detached.address] = r.byAddress[s.resume.detached.address].push(s, detachedOfAddress)
}

// attach notes that it is not any more. The caller holds mu.
func (r *resumables) attach(s *Session) {
	if s.resume.detached == nil {
		return
	}
	r.all = r.all.remove(s, detachedAll)
	replace(r.bySubject, s.Subject, r.bySubject[s.Subject].remove(s, detachedOfSubject))
	replace(r.byAddress, s.resume.detached.address, r.byAddress[s.resume.detached.address].remove(s, detachedOfAddress))
	s.resume.detached = nil
	s.manager.metrics.Detached(-1)
}

// detachedSince is since when the client of a session is away; zero: it is not.
func (r *resumables) detachedSince(s *Session) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.resume.detached == nil {
		return time.Time{}
	}
	return s.resume.detached.since
}

// longest returns the session of a ring whose client has been away for longest; nil: there is none.
func (r *resumables) longest(in func() ring) *Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return in().first
}

// evict frees memory while sessions keep more than they may: first those end whose clients have been away for longest, then those
// that keep most are not resumable any more.
func (r *resumables) evict() {
	for {
		select {
		case <-r.full:
		case <-r.stop:
			return
		}
		for r.over() {
			s := r.longest(func() ring { return r.all })
			if s == nil {
				r.forgetLargest()
				break
			}
			s.evictDetached()
		}
	}
}

// over reports whether sessions keep more than they may.
func (r *resumables) over() bool {
	bytes, limit := r.relay.KeptTotal()
	return bytes > limit
}

// evictDetached ends a session whose client is away, and reports whether it did. Its slot is free then, even if its upstream takes its
// time to close.
func (s *Session) evictDetached() bool {
	m := s.manager
	if live := s.control.relayed(); live != nil && m.relay.Evict(live) {
		m.resumables.remove(s)
		s.slot.Release()
		return true
	}
	m.resumables.mu.Lock()
	defer m.resumables.mu.Unlock()
	m.resumables.attach(s) // it has come back, or is ending by itself
	return false
}

// forgetLargest has sessions lose their resumability until there is room, those that keep most first.
func (r *resumables) forgetLargest() {
	type candidate struct {
		session *Session
		live    relay.Session
		kept    int
	}
	var all []candidate
	var live []relay.Session
	r.mu.Lock()
	for _, s := range r.byHandle {
		if l := s.control.relayed(); l != nil {
			all, live = append(all, candidate{s, l, 0}), append(live, l)
		}
	}
	r.mu.Unlock()
	for i, n := range r.relay.KeptBytes(live) {
		all[i].kept = n
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(b.kept, a.kept) })
	for _, c := range all {
		if c.kept == 0 || !r.over() {
			return
		}
		r.relay.LoseResumability(c.live)
		r.remove(c.session)
		c.session.manager.forgotten(c.session)
	}
}

// forgotten tells that a session which keeps too much is not resumable any more.
func (m *Manager) forgotten(s *Session) {
	m.metrics.ResumptionLost()
	m.warn.forgotten.Do(func() {
		m.log.Warn("RESUME_TOTAL is used up: sessions that keep much are not resumable any more", "session", s.ID)
	})
}

// relayed returns the session as the relay has it; nil: it has not.
func (c *control) relayed() relay.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live
}

// HasDetached reports whether the client of any session of that address is away.
func (m *Manager) HasDetached(address netip.Prefix) bool {
	return m.resumables != nil && m.resumables.longest(func() ring { return m.resumables.byAddress[address] }) != nil
}

// EvictDetachedOfAddress ends the session of that address whose client has been away for longest. It reports false where there is none.
func (m *Manager) EvictDetachedOfAddress(address netip.Prefix) bool {
	return m.evictFirst(func() ring { return m.resumables.byAddress[address] })
}

// EvictDetachedOfSubject does the same for a subject.
func (m *Manager) EvictDetachedOfSubject(subject string) bool {
	return m.evictFirst(func() ring { return m.resumables.bySubject[subject] })
}

func (m *Manager) evictFirst(in func() ring) bool {
	if m.resumables == nil {
		return false
	}
	for s := m.resumables.longest(in); s != nil; s = m.resumables.longest(in) {
		if s.evictDetached() {
			return true
		}
	}
	return false
}

// Resumes reports whether sessions are resumable.
func (m *Manager) Resumes() bool { return m.resumables != nil }

// Resumption is what a session begins with whose client may come back.
type Resumption struct {
	Binding Binding
	Answer  string // the subprotocol that the client is answered with
}

// Return is a client that comes back.
type Return struct {
	Token          string
	Count, Attempt uint64
	Binding        Binding
	Offers         func(protocol string) bool // whether the client offers that subprotocol
}

// FindReturn returns the session to which a client comes back, and what is known of the return before it is tried. The session is nil
// unless the return is accepted.
func (m *Manager) FindReturn(r Return) (*Session, relay.Verdict) {
	h, token, ok := parseToken(r.Token)
	if m.resumables == nil || !ok {
		return nil, relay.Unknown
	}
	m.resumables.mu.Lock()
	s := m.resumables.byHandle[h]
	m.resumables.mu.Unlock()
	if s == nil || s.resume.binding != r.Binding || !r.Offers(s.resume.answer) {
		return nil, relay.Unknown
	}
	live := s.control.relayed()
	if live == nil {
		// Its first message has gone, and it is being noted that the relay has it.
		m.publisher.Lock()
		live = s.control.relayed()
		m.publisher.Unlock()
	}
	if live == nil {
		return nil, relay.Unknown
	}
	verdict := m.relay.CheckReturn(live, relay.Return{Token: token, Count: r.Count, Attempt: r.Attempt})
	if verdict != relay.Accepted {
		s = nil
	}
	return s, verdict
}

// Answer is the subprotocol that the client of a resumable session was answered with.
func (s *Session) Answer() string { return s.resume.answer }

// MoveSlot counts the session at another address. undo counts it where it was; false: the address has as many as it may.
func (s *Session) MoveSlot(to netip.Prefix) (undo func(), ok bool) { return s.slot.Move(to) }

// Back is the connection on which a client has come back.
type Back struct {
	relay.Arrival        // without Secret and First
	Client        string // its address
	Switching     []byte // the 101, which has not been written
}

// Resume gives the session the connection of its client, if the return still holds. Else it stays the caller's.
func (s *Session) Resume(r Return, b Back) (relay.Verdict, error) {
	_, token, _ := parseToken(r.Token)
	hello := s.firstMessage()
	hello.Resumed = true
	b.Secret = newSecret()
	b.First = func(st relay.Standing) []byte {
		hello.Resume = tokenText(s.resume.handle, relay.Token{Generation: st.Generation, Secret: b.Secret})
		hello.Received = st.Received
		s.resume.client.Store(&b.Client)
		if hello.Push = st.Pushed; st.Pushed == "" && s.resume.push != nil {
			hello.Push = *s.resume.push
		}
		return append(b.Switching, hello.frame()...)
	}
	return s.manager.relay.Attach(s.control.relayed(), relay.Return{Token: token, Count: r.Count, Attempt: r.Attempt}, b.Arrival)
}

// Address is that of the session's client.
func (s *Session) Address() string {
	if s.resume != nil {
		if moved := s.resume.client.Load(); moved != nil {
			return *moved
		}
	}
	return s.Client
}

// Detached implements [relay.Owner].
func (r *recipient) Detached() {
	s := (*Session)(r)
	s.manager.resumables.mu.Lock()
	s.manager.resumables.detach(s)
	s.manager.resumables.mu.Unlock()
	s.manager.log.LogAttrs(context.Background(), slog.LevelDebug, "session detached", s.attrs()...)
}

// Attached implements [relay.Owner].
func (r *recipient) Attached() {
	s := (*Session)(r)
	s.manager.resumables.mu.Lock()
	s.manager.resumables.attach(s)
	s.manager.resumables.mu.Unlock()
	s.manager.log.LogAttrs(context.Background(), slog.LevelDebug, "session resumed", s.attrs()...)
}

// firstMessage is the first message to a client that offers resumption: all that the gate knows of the session.
type firstMessage struct {
	Session   string    `json:"session"`
	Resume    string    `json:"resume,omitempty"` // the token
	Resumed   bool      `json:"resumed"`
	Resumable bool      `json:"resumable"`
	Received  uint64    `json:"received"`
	Window    float64   `json:"window"` // seconds
	Beat      float64   `json:"beat"`   // seconds
	Buffer    int       `json:"buffer"` // bytes
	Expires   Timestamp `json:"expires"`
	Push      string    `json:"push,omitempty"`
	Limits    Limits    `json:"limits"`
}

// Limits are the rates that a client's library keeps to. Zero: there is none.
type Limits struct {
	Messages float64 `json:"messages,omitempty"` // a second
	Burst    int     `json:"burst,omitempty"`
	Bytes    float64 `json:"bytes,omitempty"` // a second
}

func (h *firstMessage) frame() []byte {
	text, _ := json.Marshal(h) // strings, numbers and a time
	return relay.LibraryMessage(text)
}

// firstMessage returns what the first message says of the session as it is now.
func (s *Session) firstMessage() *firstMessage {
	m := s.manager
	h := &firstMessage{Session: s.ID}
	if s.limits != nil {
		h.Limits = *s.limits
	}
	if s.control != nil && s.control.credential != nil {
		h.Expires = Timestamp(m.leases.End(&s.control.credential.lease))
	}
	if m.history != nil && s.control != nil && s.control.history != nil {
		h.Push = s.control.history.newest
	} else if m.history != nil {
		h.Push = m.history.newest()
	}
	if s.resume == nil {
		return h
	}
	window, beat, buffer := m.relay.Resumption()
	h.Resumable, h.Buffer = true, buffer
	h.Window, h.Beat = seconds(window), seconds(beat)
	return h
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// FirstMessage is the first message, as a frame, of a session whose client offers resumption.
func (s *Session) FirstMessage() []byte {
	h := s.firstMessage()
	if s.resume != nil {
		h.Resume = tokenText(s.resume.handle, relay.Token{Generation: 1, Secret: *s.resume.secret})
	}
	return h.frame()
}
