package session

import (
	"portcullis/proxy/admin"
	"portcullis/proxy/frame"
	"portcullis/proxy/relay"
)

// Message is what is pushed.
type Message struct {
	Binary bool
	Body   []byte // UTF-8 unless Binary
}

// Reserved reports whether a text message begins as those do that the gate and the library of a client exchange.
func Reserved(text []byte) bool { return relay.Reserved(text) }

func (msg *Message) opcode() frame.Opcode {
	if msg.Binary {
		return frame.Binary
	}
	return frame.Text
}

// Send pushes a message to the sessions that f chooses. kept is its id in the history of a fleet; empty: it gets its own, where there is
// a history. The id that is returned is empty where there is none. Where Send has returned, a push that is sent after it comes after it
// everywhere.
func (m *Manager) Send(f Filter, msg Message, kept string) (reach relay.Reach, id string) {
	m.publisher.Lock()
	p, id, live, to, taken := m.publish(f, &msg, kept)
	wait := m.relay.Push(p, live, to)
	m.publisher.Unlock()
	reach = wait()
	reach.Reached += taken
	m.metrics.Pushed(admin.PushedSessions(reach))
	return reach, id
}

// publish keeps a push in the history, and returns the sessions that get it now. Others, which it counts as taken, get it as soon
// as the relay has them, or read it from the history because they are still behind.
func (m *Manager) publish(f Filter, msg *Message, kept string) (p *relay.Push, name string, live []relay.Session, to []relay.Recipient, taken int) {
	var id pushID
	if m.history != nil {
		m.history.mu.Lock() // until the sessions are known: one that is behind now will find this push
		defer m.history.mu.Unlock()
		id, _ = parsePushID(kept)
		p, id = m.history.add(f, msg.opcode(), msg.Body, id, 0)
		name = id.String()
	} else {
		p = relay.NewPush(msg.opcode(), "", msg.Body, nil)
	}
	m.registry.mu.Lock()
	defer m.registry.mu.Unlock()
	for s := range m.registry.find(&f, 0) {
		c := s.control
		if c.history != nil && c.history.behind {
			taken++
			continue
		}
		if c.history != nil && id.compare(c.history.after) <= 0 {
			continue // it has it already
		}
		c.mu.Lock()
		switch {
		case c.live != nil:
			live, to = append(live, c.live), append(to, (*recipient)(s))
		case c.wait(nil, p):
			taken++
		}
		c.mu.Unlock()
	}
	return p, name, live, to, taken
}

// recipient is a session as the relay sees it when something is pushed to it.
type recipient Session

// NextPush implements [relay.Recipient].
func (r *recipient) NextPush() *relay.Push {
	if r.control.history == nil {
		return nil
	}
	return r.manager.history.next((*Session)(r))
}

// Markers implements [relay.Recipient].
func (r *recipient) Markers() bool { return r.control.history != nil || r.resume != nil }

// PushDropped implements [relay.Recipient].
func (r *recipient) PushDropped(why relay.Drop) {
	r.manager.metrics.PushDropped(string(why))
	r.manager.events.pushDropped((*Session)(r), why)
}
