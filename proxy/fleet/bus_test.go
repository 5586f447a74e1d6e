package fleet

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"portcullis/proxy/admin"
	"portcullis/proxy/rabbittest"
)

var withRabbit = flag.Bool("rabbitmq", false, "start RabbitMQ, too")

// recorder obeys by noting.
type recorder struct {
	name string

	mu  sync.Mutex
	did []string
	out map[string]time.Duration // who is kept out
}

func (r *recorder) note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.did = append(r.did, text)
}

func (r *recorder) Obey(c Command, id string) (any, error) {
	if strings.Contains(string(c.To), "bad") {
		return nil, fmt.Errorf("bad")
	}
	kept := ""
	if id != "" {
		kept = "kept "
	}
	r.note(kept + string(c.Kick) + string(c.Send))
	return r.name, nil
}

func (r *recorder) Restore(c Command, id string, age time.Duration) {
	r.note(fmt.Sprint("restored ", string(c.Send), age < testPatience))
}
func (r *recorder) Forgotten(id string) { r.note("forgotten") }
func (r *recorder) Answer(q []byte) any { return r.name + " " + string(q) }
func (r *recorder) KeepOut(subjects map[string]time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for subject, d := range subjects {
		r.out[subject] = d
	}
}
func (r *recorder) KeptOut() map[string]time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.out)
}

func (r *recorder) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.did)
}

// member is an instance on a bus.
type member struct {
	*Fleet
	*Bus
	*recorder
	log     *lines
	metrics *admin.Metrics
}

func (s *server) newMember(name, bus string, edits ...func(*Config)) *member {
	s.t.Helper()
	m := &member{log: &lines{Handler: slog.DiscardHandler}, metrics: admin.NewMetrics(admin.Known{BusDrops: Drops()}), recorder: &recorder{name: name, out: make(map[string]time.Duration)}}
	c := Config{RedisURL: s.URL(), Name: "test", Instance: name, BusURL: bus, Timeout: testPatience, MaxMessage: 1 << 16, Logger: slog.New(m.log), Metrics: m.metrics}
	for _, edit := range edits {
		edit(&c)
	}
	f, err := New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(f.Close)
	m.Fleet, m.Bus = f, f.Join(m.recorder)
	s.until("it is on the bus", m.Connected)
	return m
}

// metric is the value of a counter with a label.
func (m *member) metric(t testing.TB, name, label string) (value float64) {
	t.Helper()
	families, err := m.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, series := range f.GetMetric() {
			if f.GetName() == name && (label == "" || series.GetLabel()[0].GetValue() == label) {
				value += series.GetCounter().GetValue()
			}
		}
	}
	return value
}

func quoted(s string) json.RawMessage {
	text, _ := json.Marshal(s)
	return text
}

func kick(what string) Command { return Command{To: quoted("x"), Kick: quoted(what)} }
func push(what string) Command { return Command{To: quoted("x"), Send: quoted(what)} }

// engines are those that a bus can have: each with a function that publishes past the gate, and one that restarts it where that can be.
func engines(t *testing.T, test func(t *testing.T, s *server, url string, publish func(text string))) {
	t.Run("redis", func(t *testing.T) {
		s := newServer(t)
		test(t, s, "", func(text string) { s.Publish(context.Background(), "{test}:bus", text) })
	})
	t.Run("kafka", func(t *testing.T) {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "bus"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.DefaultProduceTopic("bus"), kgo.ProducerBatchMaxBytes(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		test(t, newServer(t), "kafka://"+strings.Join(cluster.ListenAddrs(), ",")+"/bus", func(text string) {
			if err := client.ProduceSync(context.Background(), kgo.StringRecord(text)).FirstErr(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("rabbitmq", func(t *testing.T) {
		if !*withRabbit {
			t.Skip("without -rabbitmq")
		}
		r := rabbittest.Start(t)
		test(t, newServer(t), r.URL(), func(text string) {
			conn, err := amqp.Dial(r.URL())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			c, err := conn.Channel()
			if err == nil {
				err = c.Confirm(false)
			}
			if err != nil {
				t.Fatal(err)
			}
			given, err := c.PublishWithDeferredConfirm("test", "", false, false, amqp.Publishing{Body: []byte(text)})
			if err != nil {
				t.Fatal(err)
			}
			given.Wait()
		})
	})
}

// What one gives all get, in one order, and what they say comes back. A backend may publish there, too, and what is none of ours is
// counted and harms nobody.
func TestBus(t *testing.T) {
	engines(t, func(t *testing.T, s *server, url string, publish func(string)) {
		var all []*member
		for _, name := range []string{"a", "b", "c"} {
			all = append(all, s.newMember(name, url))
		}
		ctx := context.Background()
		for _, m := range all {
			answers, silent, err := m.Command(ctx, kick("by "+m.recorder.name))
			if got := fmt.Sprintf("%s", slices.SortedFunc(slices.Values(answers), func(a, b []byte) int { return strings.Compare(string(a), string(b)) })); err != nil || silent != nil || got != `["a" "b" "c"]` {
				t.Errorf("answers %s, silent %s, %v", got, silent, err)
			}
		}
		var giving sync.WaitGroup
		for i := range 30 {
			giving.Go(func() {
				if _, silent, err := all[i%3].Command(ctx, push(fmt.Sprint(i))); err != nil || silent != nil {
					t.Errorf("%d: silent %s, %v", i, silent, err)
				}
			})
		}
		giving.Wait()
		want := all[0].list()
		if len(want) != 33 {
			t.Errorf("%d commands, want 33: %q", len(want), want)
		}
		for _, m := range all[1:] {
			if got := m.list(); !slices.Equal(got, want) {
				t.Errorf("%s got %q, want %q", m.recorder.name, got, want)
			}
		}

		good := func(from string, n int) string {
			return fmt.Sprintf(`{"v":1,"from":%q,"n":%d,"to":"x","send":"direct %d"}`, from, n, n)
		}
		for _, text := range []string{
			"", "{", "null", "[]", "7", `"x"`, good("billing", 1) + "x",
			`{"v":1}`, `{"v":"1","from":"x","n":1,"to":1,"send":1}`, `{"v":0,"from":"x","n":1,"to":1,"send":1}`, `{"v":-1,"from":"x","n":1,"to":1,"send":1}`,
			`{"v":1,"from":"","n":1,"to":1,"send":1}`, `{"v":1,"from":7,"n":1,"to":1,"send":1}`, `{"v":1,"from":"a\u0000b","n":1,"to":1,"send":1}`,
			`{"v":1,"from":"` + strings.Repeat("x", 129) + `","n":1,"to":1,"send":1}`,
			`{"v":1,"from":"x","n":0,"to":1,"send":1}`, `{"v":1,"from":"x","n":-1,"to":1,"send":1}`, `{"v":1,"from":"x","n":1.5,"to":1,"send":1}`,
			`{"v":1,"from":"x","n":99999999999999999999,"to":1,"send":1}`, `{"v":1,"from":"x","to":1,"send":1}`,
			`{"v":1,"from":"x","n":1,"send":1}`, `{"v":1,"from":"x","n":1,"to":1}`, `{"v":1,"from":"x","n":1,"to":1,"send":1,"kick":1}`,
			`{"v":1,"from":"x","n":1,"to":1,"send":1,"until":-1}`, `{"v":1,"from":"x","n":1,"to":1,"send":1,"until":"x"}`,
			`{"v":1,"from":"x","n":1,"to":1,"send":1,"id":7}`, `{"v":1,"from":"x","n":1,"to":1,"send":1,"reply_to":"\n"}`,
			`{"v":1,"from":"x","n":1,"to":1,"send":1,"more":1}`,
			`{"v":1,"from":"bad","n":1,"to":"bad","send":1}`,
		} {
			publish(text)
		}
		malformed := 29.0
		publish(`{"v":2,"whatever":true}`)
		publish(fmt.Sprintf(`{"v":1,"from":"x","n":1,"to":1,"send":%q}`, strings.Repeat("x", 1<<16)))
		publish(`{"v":1,"from":"late","n":1,"to":1,"send":1,"until":1}`)
		publish(good("billing", 1))
		publish(good("billing", 2))
		publish(good("billing", 2))
		publish(good("billing", 1))
		publish(good("billing", 6))
		for _, m := range all {
			s.until("all has come", func() bool { return strings.Contains(strings.Join(m.list(), " "), "direct 6") })
			if got, want := strings.Join(m.list()[33:], " "), `"direct 1" "direct 2" "direct 6"`; got != want {
				t.Errorf("%s: got %s, want %s", m.recorder.name, got, want)
			}
			for label, want := range map[string]float64{dropMalformed: malformed, dropVersion: 1, dropTooLarge: 1, dropLate: 1, dropRepeated: 2} {
				if got := m.metric(t, "portcullis_bus_dropped_total", label); got != want {
					t.Errorf("%s: %v dropped as %s, want %v", m.recorder.name, got, label, want)
				}
			}
			if got := m.metric(t, "portcullis_bus_missed_total", ""); got != 3 {
				t.Errorf("%s: %v missed, want 3", m.recorder.name, got)
			}
		}
		answers, silent, err := all[1].Ask(ctx, "who", nil)
		if err != nil || silent != nil || len(answers) != 3 {
			t.Errorf("asked: %s, %s, %v", answers, silent, err)
		}
		if answers, _, err := all[1].Ask(ctx, "who", func(a []byte) bool { return true }); err != nil || len(answers) != 1 {
			t.Errorf("asked for one: %s, %v", answers, err)
		}
		if _, _, err := all[0].Command(ctx, push(strings.Repeat("x", 1<<16))); err != ErrTooLarge {
			t.Errorf("too large: %v", err)
		}
		all[2].Close()
		if answers, silent, err := all[0].Command(ctx, kick("after c")); err != nil || len(answers) != 2 || silent != nil {
			t.Errorf("without c: %s, %s, %v", answers, silent, err)
		}
		if _, _, err := all[2].Command(ctx, kick("by c")); err != ErrBusAway {
			t.Errorf("after its end: %v", err)
		}
	})
}

// An instance that lives and does not answer is named.
func TestSilentInstance(t *testing.T) {
	s := newServer(t)
	a, b := s.newMember("a", ""), s.newMember("b", "")
	s.Client.ZAdd(context.Background(), "{test}:live", redisNow(s, "ghost"))
	for _, ask := range []func() ([][]byte, []string, error){
		func() ([][]byte, []string, error) { return a.Command(context.Background(), kick("x")) },
		func() ([][]byte, []string, error) { return b.Ask(context.Background(), "x", nil) },
	} {
		answers, silent, err := ask()
		if len(answers) != 2 || !slices.Equal(silent, []string{"ghost"}) || err != nil {
			t.Errorf("got %s, silent %s, %v", answers, silent, err)
		}
	}
}

// A Redis that hangs has nobody obey what was given meanwhile, also not when it goes on.
func TestBusThatHangs(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	a, b := s.newMember("a", ""), s.newMember("b", "")
	s.Stop()
	if _, _, err := a.Command(context.Background(), kick("lost")); err != ErrBusAway {
		t.Errorf("got %v", err)
	}
	// Past what asks who lives, too: the message is with Redis, which has not read it.
	a.give(context.Background(), kick("late"), "x")
	s.Continue()
	s.until("it is back", func() bool {
		_, silent, err := a.Command(context.Background(), kick("back"))
		return err == nil && silent == nil
	})
	for _, m := range []*member{a, b} {
		if got := strings.Join(m.list(), " "); strings.Contains(got, "lost") || strings.Contains(got, "late") || !strings.Contains(got, "back") {
			t.Errorf("%s obeyed %s", m.recorder.name, got)
		}
	}
}

// With a history each push is kept once and comes from there, whoever published it; who starts later finds it, and who was away
// gets it.
func TestBusWithHistory(t *testing.T) {
	engines(t, func(t *testing.T, s *server, url string, publish func(string)) {
		keeps := func(c *Config) { c.HistoryPushes, c.HistoryAge = 5, time.Hour }
		a, b := s.newMember("a", url, keeps), s.newMember("b", url, keeps)
		ctx := context.Background()
		for i := range 3 {
			if answers, silent, err := a.Command(ctx, push(fmt.Sprint(i))); err != nil || silent != nil || len(answers) != 2 {
				t.Fatalf("%d: %s, silent %s, %v", i, answers, silent, err)
			}
		}
		if _, _, err := b.Command(ctx, kick("k")); err != nil {
			t.Fatal(err)
		}
		publish(`{"v":1,"from":"billing","n":1,"to":"x","send":"direct"}`)
		want := []string{"forgotten", `kept "0"`, `kept "1"`, `kept "2"`, `kept "k"`, `kept "direct"`}
		for _, m := range []*member{a, b} {
			s.until("all has come", func() bool { return len(m.list()) == len(want) })
			if got := m.list(); !slices.Equal(got, want) {
				t.Errorf("%s: got %q", m.recorder.name, got)
			}
		}
		if n := s.XLen(ctx, "{test}:history").Val(); n != 5 {
			t.Errorf("%d are kept, want 5", n)
		}
		c := s.newMember("c", url, keeps)
		if got, want := c.list(), []string{"forgotten", `restored "0"true`, `restored "1"true`, `restored "2"true`, `restored "direct"true`}; !slices.Equal(got, want) {
			t.Errorf("c: got %q", got)
		}
		for i := range 4 {
			if _, _, err := c.Command(ctx, push(fmt.Sprint("more ", i))); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.XLen(ctx, "{test}:history").Val(); n != 5 {
			t.Errorf("%d are kept, want 5", n)
		}
		d := s.newMember("d", url, keeps)
		if got := d.list(); len(got) != 7 || got[1] != "forgotten" || got[2] != `restored "direct"true` {
			t.Errorf("d: got %q", got)
		}
	})
}

// What a history keeps is bounded in bytes.
func TestHistoryIsBounded(t *testing.T) {
	s := newServer(t)
	a := s.newMember("a", "", func(c *Config) { c.HistoryPushes, c.HistoryAge = 100, time.Hour })
	a.history.bytes = 64 << 10
	ctx := context.Background()
	large := strings.Repeat("x", 4<<10)
	for range 18 {
		if _, _, err := a.Command(ctx, push(large)); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.XLen(ctx, "{test}:history").Val(); n != 15 {
		t.Errorf("%d of 4 KiB are kept, want 15 in 64", n)
	}
}

// redisNow is a member of {F}:live that has just told it lives.
func redisNow(s *server, name string) redis.Z {
	now := s.Client.Time(context.Background()).Val()
	return redis.Z{Score: float64(now.UnixMilli()), Member: name}
}
