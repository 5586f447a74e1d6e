package session

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/proxy/relay"
)

func send(m *Manager, f Filter, text string) (relay.Reach, string) {
	return m.Send(f, Message{Body: []byte(text)}, "")
}

func TestSend(t *testing.T) {
	m := newManager(t, Config{})
	alice, alice2, bob := open(t, m, opening("1", "alice")), open(t, m, opening("2", "alice")), open(t, m, opening("3", "bob"))
	for _, tt := range []struct {
		filter Filter
		want   int
	}{
		{Filter{}, 3}, {Filter{Subject: "alice"}, 2}, {Filter{Subject: "alice", Except: "1"}, 1}, {Filter{Session: "nobody"}, 0},
	} {
		if got, id := send(m, tt.filter, "to "+fmt.Sprint(tt.filter)); got != (relay.Reach{Reached: tt.want}) || id != "" {
			t.Errorf("%+v: reached %+v with the id %q, want %d and no id", tt.filter, got, id, tt.want)
		}
	}
	send(m, Filter{}, "end")
	alice.want(t, "to "+fmt.Sprint(Filter{}), "to "+fmt.Sprint(Filter{Subject: "alice"}), "end")
	alice2.want(t, "to "+fmt.Sprint(Filter{}), "to "+fmt.Sprint(Filter{Subject: "alice"}), "to "+fmt.Sprint(Filter{Subject: "alice", Except: "1"}), "end")
	bob.want(t, "to "+fmt.Sprint(Filter{}), "end")
}

// A session is reached from when its client may know its id, though the relay has it later, and all comes in order.
func TestSendToASessionThatIsAboutToStart(t *testing.T) {
	m := newManager(t, Config{})
	p := opened(t, m, opening("1", "alice"))
	for i := range 3 {
		if got, _ := send(m, Filter{}, fmt.Sprint("early ", i)); got.Reached != 1 {
			t.Errorf("reached %+v", got)
		}
	}
	p.start(t)
	send(m, Filter{}, "late")
	p.want(t, "early 0", "early 1", "early 2", "late")
}

func TestKick(t *testing.T) {
	m := newManager(t, Config{})
	alice, bob, early := open(t, m, opening("1", "alice")), open(t, m, opening("2", "bob")), opened(t, m, opening("3", "alice"))
	k := Kick{Closing: relay.Closing{Code: 3003, Reason: "kicked"}}
	k.KeepOut = time.Hour
	if got, err := m.Kick(Filter{Subject: "alice"}, k); err != nil || got.Reached != 2 {
		t.Errorf("reached %+v, %v", got, err)
	}
	alice.want(t, "close 3003 kicked")
	early.start(t)
	early.want(t, "close 3003 kicked")
	if _, err := m.Open(opening("4", "alice")); err != ErrKicked || !m.KeptOut("alice") || m.KeptOut("bob") {
		t.Errorf("alice comes back: %v", err)
	}
	if got, _ := m.Kick(Filter{Subject: "alice"}, k); got.Reached != 0 || got.Ending != 2 {
		t.Errorf("again: reached %+v, want 2 that are ending", got)
	}
	if got, _ := send(m, Filter{}, "hello"); got != (relay.Reach{Reached: 1, Ending: 2}) {
		t.Errorf("sent to %+v", got)
	}
	bob.want(t, "hello")
}

func TestKeptOut(t *testing.T) {
	now := time.Now()
	var k keptOut
	for i := range maxKeptOut {
		if !k.add(fmt.Sprint(i), now.Add(time.Hour)) {
			t.Fatalf("full after %d", i)
		}
	}
	if k.add("one too many", now.Add(time.Hour)) {
		t.Error("there is no bound")
	}
	if !k.add("0", now.Add(time.Minute)) || !k.has("0", now.Add(59*time.Minute)) {
		t.Error("a shorter time replaces a longer one")
	}
	if k.has("0", now.Add(time.Hour)) {
		t.Error("kept out for longer than was asked for")
	}
	if !k.add("room for one", now.Add(time.Hour)) {
		t.Error("who may come back still takes a place")
	}
}

func lastPush(id string) *string { return &id }

// pushIDs is how a history that is not shared numbers its pushes. It is called before there are any.
func pushIDs(m *Manager) func(n int) string {
	ms := m.history.lastID.ms
	return func(n int) string { return pushID{ms, uint64(n)}.String() }
}

func (p *peer) wantPushes(t *testing.T, idOf func(int) string, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		p.want(t, fmt.Sprint("push ", i), fmt.Sprintf(`{"portcullis":{"push":"%s"}}`, idOf(i)))
	}
}

func TestHistory(t *testing.T) {
	m := newManager(t, Config{History: HistorySize{5, time.Hour}})
	idOf := pushIDs(m)
	alice := Filter{Subject: "alice"}
	for i := 1; i <= 3; i++ {
		if _, id := send(m, alice, fmt.Sprint("push ", i)); id != idOf(i) {
			t.Errorf("push %d has the id %q", i, id)
		}
	}
	from := func(id, last string) *peer {
		o := opening(id, "alice")
		o.LastPush = lastPush(last)
		return open(t, m, o)
	}
	all, some, none, new := from("all", idOf(0)), from("some", idOf(2)), from("none", idOf(3)), from("new", "")
	bob := opening("bob", "bob")
	bob.LastPush = lastPush(idOf(0))
	other := open(t, m, bob)
	plain := open(t, m, opening("plain", "alice"))
	send(m, alice, "push 4")
	all.wantPushes(t, idOf, 1, 4)
	some.wantPushes(t, idOf, 3, 4)
	none.wantPushes(t, idOf, 4, 4)
	new.wantPushes(t, idOf, 4, 4)
	plain.want(t, "push 4")
	send(m, Filter{}, "push 5")
	other.wantPushes(t, idOf, 5, 5)

	// What is not kept any more is told, and then comes what is.
	for i := 6; i <= 8; i++ {
		send(m, alice, fmt.Sprint("push ", i))
	}
	for _, id := range []string{idOf(1), "another-1", idOf(9), "", "nonsense", idOf(0)[:len(idOf(0))-1] + "01"} {
		if id == "" {
			continue
		}
		p := from("gap "+id, id)
		p.want(t, fmt.Sprintf(`{"portcullis":{"push_gap":"%s"}}`, idOf(3)))
		p.wantPushes(t, idOf, 4, 8)
	}
	reaches := from("reaches", idOf(3))
	reaches.wantPushes(t, idOf, 4, 8)
}

// A session with an extension that the gate does not know is told nothing, also not that it was reached.
func TestHistoryOfASessionThatCannotBeTold(t *testing.T) {
	m := newManager(t, Config{History: HistorySize{5, time.Hour}})
	o := opening("1", "alice")
	o.LastPush = lastPush("")
	p := opened(t, m, o)
	p.extensions = "x-unknown"
	p.start(t)
	if got, _ := send(m, Filter{}, "hello"); got != (relay.Reach{Extension: 1}) {
		t.Errorf("reached %+v", got)
	}
}

func TestHistoryForgetsTheOld(t *testing.T) {
	h := newHistory(HistorySize{10, time.Minute}, false)
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for range 3 {
		h.add(Filter{}, 1, make([]byte, historyBytes/2-100), pushID{}, 0)
	}
	if len(h.kept) != 2 || h.oldest() != 2 {
		t.Errorf("%d are kept from %d on, want 2 in 64 MiB", len(h.kept), h.oldest())
	}
	h.expire(now.Add(2 * time.Minute))
	if len(h.kept) != 0 || h.bytes != 0 || h.oldest() != 4 {
		t.Errorf("%d are kept, of %d bytes, from %d on", len(h.kept), h.bytes, h.oldest())
	}
}

func TestHistorySize(t *testing.T) {
	for text, want := range map[string]string{
		"10000,5m": "", "": "", "1, 1s": "",
		"10000":      `"10000" has no number of pushes from 1 to 1000000; want a number of pushes and how long they are kept, as 10000,5m`,
		"0,5m":       `"0,5m" has no number of pushes from 1 to 1000000; want a number of pushes and how long they are kept, as 10000,5m`,
		"10,5":       `"10,5" has no duration above zero; want a number of pushes and how long they are kept, as 10000,5m`,
		"10,-5m":     `"10,-5m" has no duration above zero; want a number of pushes and how long they are kept, as 10000,5m`,
		"9999999,1m": `"9999999,1m" has no number of pushes from 1 to 1000000; want a number of pushes and how long they are kept, as 10000,5m`,
	} {
		var h HistorySize
		if err := h.UnmarshalText([]byte(text)); want == "" && err != nil || want != "" && fmt.Sprint(err) != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

// Pushes from many at once come to each session in one order, that of the history, whenever it comes and from wherever it reads.
func TestPushesAreInOneOrder(t *testing.T) {
	m := newManager(t, Config{History: HistorySize{10_000, time.Hour}})
	idOf := pushIDs(m)
	const senders, each = 8, 100
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				send(m, Filter{}, fmt.Sprintf("%d %d", s, i))
			}
		})
	}
	var peers []*peer
	for i := range 10 {
		o := opening(fmt.Sprint(i), "alice")
		o.LastPush = lastPush(idOf(0))
		peers = append(peers, open(t, m, o))
	}
	for _, p := range peers {
		wg.Go(func() {
			var next [senders]int
			for n := range senders * each {
				var s, i int
				if got := p.read(t); true {
					fmt.Sscanf(got, "%d %d", &s, &i)
				}
				if i != next[s] {
					t.Errorf("session %s: sender %d's push %d, want %d", p.ID, s, i, next[s])
					return
				}
				next[s]++
				if got, want := p.read(t), idOf(n+1); !strings.Contains(got, want) {
					t.Errorf("session %s: marker %s, want %s", p.ID, got, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestEvents(t *testing.T) {
	m := newManager(t, Config{})
	s := m.Subscribe()
	defer s.Close()
	p := open(t, m, opening("1", "alice", "query:room:lobby"))
	send(m, Filter{}, "hello")
	m.Kick(Filter{}, Kick{Closing: relay.Closing{Code: 3003, Reason: "kicked"}})
	p.want(t, "hello", "close 3003 kicked")
	p.conn.Close()
	for _, want := range []string{"opened", "ended"} {
		select {
		case e := <-s.Events():
			if e.Type != want || e.Session.ID != "1" || e.Session.Subject != "alice" || len(e.Session.Groups) != 1 {
				t.Errorf("got %+v, want one of session 1 that it is %s", e, want)
			}
			if want == "ended" && (e.Reason != "kicked" || e.Code != 3003) {
				t.Errorf("it ended: %+v", e)
			}
		case <-time.After(patience):
			t.Fatalf("no event %q", want)
		}
		if want == "opened" {
			m.relay.Cut() // the upstream does not answer the Close frame
		}
	}
}

func TestSubscriptionThatFallsBehind(t *testing.T) {
	m := newManager(t, Config{})
	slow, quick := m.Subscribe(), m.Subscribe()
	defer slow.Close()
	defer quick.Close()
	for range maxEvents + 1 {
		m.events.publish(Event{Type: "opened"})
		<-quick.Events()
	}
	n := 0
	for range slow.Events() {
		n++
	}
	if n != maxEvents || !slow.Lost() || quick.Lost() {
		t.Errorf("%d events came and lost is %t, want %d and that it is told", n, slow.Lost(), maxEvents)
	}
	var all []*Subscription
	for s := m.Subscribe(); s != nil; s = m.Subscribe() {
		all = append(all, s)
	}
	if len(all) != maxSubscribers-1 {
		t.Errorf("%d subscribers beside one, want a bound of %d", len(all), maxSubscribers)
	}
	for _, s := range all {
		s.Close()
	}
}
