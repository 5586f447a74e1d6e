package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"portcullis/ratelimit"
)

func keeps(pushes int) func(*Config) {
	return func(c *Config) { c.HistoryPushes, c.HistoryAge = pushes, time.Hour }
}

func (m *member) text() string { return strings.Join(m.list(), " ") }

// With a history kicks stay behind what was sent before, everywhere, whoever publishes; and nothing is said to be missed.
func TestOrderWithHistory(t *testing.T) {
	s := newServer(t)
	a, b := s.newMember("a", "", keeps(100)), s.newMember("b", "", keeps(100))
	ctx := context.Background()
	want := []string{"forgotten"}
	for i := range 10 {
		s.Publish(ctx, "{test}:bus", fmt.Sprintf(`{"v":1,"from":"billing","n":%d,"to":"x","send":"bye%d"}`, 2*i+1, i))
		s.Publish(ctx, "{test}:bus", fmt.Sprintf(`{"v":1,"from":"billing","n":%d,"to":"x","kick":"kick%d"}`, 2*i+2, i))
		want = append(want, fmt.Sprintf(`kept "bye%d"`, i), fmt.Sprintf(`kept "kick%d"`, i))
	}
	s.until("all has come", func() bool { return len(a.list()) == len(want) && len(b.list()) == len(want) })
	for i := range 3 {
		for _, c := range []Command{kick(fmt.Sprint("k", i)), push(fmt.Sprint("p", i))} {
			if _, silent, err := a.Command(ctx, c); err != nil || silent != nil {
				t.Errorf("silent %s, %v", silent, err)
			}
		}
		want = append(want, fmt.Sprintf(`kept "k%d"`, i), fmt.Sprintf(`kept "p%d"`, i))
	}
	for _, m := range []*member{a, b} {
		if got := m.list(); !slices.Equal(got, want) {
			t.Errorf("%s obeyed %q, want %q", m.recorder.name, got, want)
		}
		if n := m.metric(t, "portcullis_bus_missed_total", ""); n != 0 {
			t.Errorf("%s says that it has missed %v", m.recorder.name, n)
		}
	}
}

// An instance that Redis has forgotten may have sessions all the same: it answers, or it is named.
func TestForgottenInstance(t *testing.T) {
	s := newServer(t)
	a, b := s.newMember("a", ""), s.newMember("b", "")
	s.known(2, a.Fleet, b.Fleet)
	ctx := context.Background()
	for name, ask := range map[string]func() ([][]byte, []string, error){
		"command":  func() ([][]byte, []string, error) { return a.Command(ctx, kick("x")) },
		"question": func() ([][]byte, []string, error) { return a.Ask(ctx, "who", nil) },
	} {
		s.FlushAll(ctx)
		if answers, silent, err := ask(); len(answers)+len(silent) != 2 || err != nil {
			t.Errorf("%s: %d answers, silent %s, %v", name, len(answers), silent, err)
		}
	}
}

// A Redis that comes back with older data is told the counts anew, though no call has failed.
func TestOlderData(t *testing.T) {
	s := newServer(t)
	m := s.newMember("a", "", func(c *Config) { c.Limits = ratelimit.Config{Sessions: 10} })
	s.known(1, m.Fleet)
	ctx := context.Background()
	for i := range 4 {
		if i == 1 {
			s.Save(ctx)
		}
		if _, v := m.Enter(ctx, Entry{Address: here}); v.Scope != "" {
			t.Fatalf("got %+v", v)
		}
	}
	s.Kill()
	s.Server.Start()
	s.until("the counts are right", func() bool { return s.HGet(ctx, "{test}:cap:all", "a").Val() == "4" })
}

// All counts are written beside upgrades that go on, and then the instance counts with the others again.
func TestWriteAllBesideUpgrades(t *testing.T) {
	s := newServer(t)
	f, _ := s.newInstance("a", ratelimit.Config{SessionsPerIP: 10, SessionsPerSubject: 4, Sessions: 10_000_000})
	s.known(1, f)
	ctx := context.Background()
	const sessions = 20_000
	for i := range sessions {
		address := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String() + "/32"
		f.counts.add([]string{f.key("cap:a", address), f.key("cap:s", subjectKey(fmt.Sprint(i))), f.key("cap:all")}, 1)
	}
	f.countAlone() // a hiccup
	f.members.nudge()
	s.until("it counts with the others", func() bool {
		if p, v := f.Enter(ctx, Entry{Address: here, Subject: "new"}); v.Scope == "" {
			p.Release()
		}
		return f.share.Load() == nil
	})
	s.until("all is counted", func() bool { return s.HGet(ctx, "{test}:cap:all", "a").Val() == fmt.Sprint(sessions) })
}

// A backend's message is kept though another instance was quicker with the next.
func TestRecordsOutOfOrder(t *testing.T) {
	s := newServer(t)
	link := s.NewLink(t)
	a, b := s.newMember("a", "", keeps(100)), s.newMember("b", "", keeps(100), func(c *Config) { c.RedisURL = link.URL() })
	text := func(n int) string { return fmt.Sprintf(`{"v":1,"from":"billing","n":%d,"to":"x","send":"p%d"}`, n, n) }
	release, reopen := link.HoldCalls()
	received := make(chan struct{})
	b.Bus.receive([]byte(text(1)), func(do func()) { // which a has not got
		go func() {
			do()
			close(received)
		}()
	})
	s.Publish(context.Background(), "{test}:bus", text(2))
	s.until("a has the second", func() bool { return strings.Contains(a.text(), "p2") })
	release()
	reopen()
	<-received
	for _, m := range []*member{a, b} {
		s.until("both have both", func() bool { return strings.Contains(m.text(), "p1") && strings.Contains(m.text(), "p2") })
		if n := strings.Count(m.text(), "p2"); n != 1 {
			t.Errorf("%s has the second %d times", m.recorder.name, n)
		}
	}
}

// Where the engine's answer is lost nobody says that nobody was reached.
func TestLostAnswer(t *testing.T) {
	s := newServer(t)
	link := s.NewLink(t)
	a, b := s.newMember("a", "", func(c *Config) { c.RedisURL = link.URL() }), s.newMember("b", "")
	s.known(2, a.Fleet, b.Fleet)
	release, reopen := link.HoldAnswers()
	err := a.give(context.Background(), push("invoice"), "x")
	reopen()
	release()
	s.until("b has obeyed", func() bool { return strings.Contains(b.text(), "invoice") })
	if err != ErrUnknown {
		t.Errorf("got %v", err)
	}
}

// A reader for whom the history is too short is told so.
func TestTrimmedHistory(t *testing.T) {
	s := newServer(t)
	link := s.NewLink(t)
	a, b := s.newMember("a", "", keeps(10)), s.newMember("b", "", keeps(10), func(c *Config) { c.RedisURL = link.URL() })
	ctx := context.Background()
	if _, _, err := a.Command(ctx, push("first")); err != nil {
		t.Fatal(err)
	}
	release, reopen := link.HoldAnswers()
	defer release()
	for i := range 30 {
		a.give(ctx, push(fmt.Sprint("p", i)), "x")
	}
	reopen() // what was held is lost: those connections end
	s.until("b has the last", func() bool { return strings.Contains(b.text(), `"p29"`) })
	got := b.list()
	if i := slices.Index(got, `kept "first"`); i < 0 || !slices.Contains(got[i:], "forgotten") {
		t.Errorf("b obeyed %q, and is told of no gap", got)
	}
}

// A Redis that hangs holds up no kick for longer than that counts: it is obeyed in time or never.
func TestKickBehindPushes(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "bus"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.DefaultProduceTopic("bus"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	s := newServer(t)
	a := s.newMember("a", "kafka://"+cluster.ListenAddrs()[0]+"/bus", keeps(100))
	publish := func(text string) {
		t.Helper()
		if err := client.ProduceSync(context.Background(), kgo.StringRecord(text)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	s.Stop()
	for i := range 15 {
		publish(fmt.Sprintf(`{"v":1,"from":"billing","n":%d,"to":"x","send":"p%d"}`, i+1, i))
	}
	publish(fmt.Sprintf(`{"v":1,"from":"billing","n":16,"to":"x","kick":"now","until":%d}`, a.members.now()+1000))
	s.until("all are dropped", func() bool { return a.metric(t, "portcullis_bus_dropped_total", "") >= 16 })
	s.Continue()
	s.until("it is back", func() bool {
		_, _, err := a.Command(context.Background(), kick("later"))
		return err == nil
	})
	if strings.Contains(a.text(), "now") {
		t.Errorf("it obeyed %s", a.text())
	}
}

// A history of another type is deleted by who reads it, and by who starts.
func TestForeignHistory(t *testing.T) {
	s := newServer(t)
	a := s.newMember("a", "", keeps(10))
	ctx := context.Background()
	foreign := func() {
		s.Del(ctx, "{test}:history")
		s.Set(ctx, "{test}:history", "mine", 0)
	}
	foreign()
	s.until("it is mended", func() bool {
		_, _, err := a.Command(ctx, push("x"))
		return err == nil
	})
	foreign()
	b := s.newMember("b", "", keeps(10))
	s.until("both are there", func() bool {
		answers, silent, err := b.Command(ctx, push("y"))
		return len(answers) == 2 && silent == nil && err == nil
	})
}
