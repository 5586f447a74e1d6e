package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// The bus carries commands to every instance, and their answers back, by Redis Pub/Sub: a command goes to {F}:bus, an answer to
// {F}:answers:INSTANCE. Who gives a command obeys it when it comes back to him, as everybody does: so all instances see all commands in
// one order, and a bus that is away has nobody obey.

const (
	busVersion = 1
	// answerTime is how long answers to a command are waited for.
	answerTime = time.Second
	// publishTime bounds the giving of a command.
	publishTime = time.Second
	// maxEnvelope bounds what is taken from the bus, in bytes.
	maxEnvelope = 64 << 20
)

// envelope is what is on the bus: a command, or an answer to one.
type envelope struct {
	Version int             `json:"v"`
	ID      string          `json:"id"`   // of the command
	From    string          `json:"from"` // an instance
	Body    json.RawMessage `json:"body"`
}

// ErrBusAway says that nobody has got a command.
var ErrBusAway = errors.New("the bus of the fleet is away")

// Bus is this instance on the bus. It is safe for concurrent use.
type Bus struct {
	fleet *Fleet
	obey  func(command []byte) (answer any)

	mu      sync.Mutex
	waiting map[string]chan envelope // for answers, by the command; guarded by mu
}

// Join has every command of the bus obeyed, in their order, until the fleet is closed. The answer is encoded as JSON.
func (f *Fleet) Join(obey func(command []byte) (answer any)) *Bus {
	b := &Bus{fleet: f, obey: obey, waiting: make(map[string]chan envelope)}
	ctx, stop := context.WithCancel(context.Background())
	subscription := f.redis.Subscribe(ctx, f.key("bus"), f.key("answers", f.instance))
	f.leave = func() {
		subscription.Close()
		stop()
	}
	commands := make(chan envelope, 1024)
	f.running.Go(func() {
		defer close(commands)
		b.listen(subscription, commands)
	})
	f.running.Go(func() {
		for e := range commands {
			b.answer(ctx, e)
		}
	})
	return b
}

// listen takes what comes, and reconnects for as long as it takes. What is no envelope is counted and dropped.
func (b *Bus) listen(s *redis.PubSub, commands chan<- envelope) {
	bus := b.fleet.key("bus")
	for m := range s.Channel(redis.WithChannelSize(4096), redis.WithChannelSendTimeout(time.Minute)) {
		var e envelope
		if len(m.Payload) > maxEnvelope || json.Unmarshal([]byte(m.Payload), &e) != nil || e.Version != busVersion || e.ID == "" || e.From == "" {
			b.fleet.metrics.BusDropped()
			continue
		}
		if m.Channel == bus {
			commands <- e
			continue
		}
		b.mu.Lock()
		waiting := b.waiting[e.ID]
		b.mu.Unlock()
		select {
		case waiting <- e: // nil where nobody waits any more
		default:
		}
	}
}

// answer obeys a command and tells who gave it.
func (b *Bus) answer(ctx context.Context, e envelope) {
	body, err := json.Marshal(b.obey(e.Body))
	if err != nil {
		return
	}
	text, _ := json.Marshal(envelope{busVersion, e.ID, b.fleet.instance, body})
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	b.fleet.redis.Publish(ctx, b.fleet.key("answers", e.From), text)
}

// Command has all instances obey, and returns their answers. Those that live and did not answer in time are named. The error is
// ErrBusAway: nobody was told.
func (b *Bus) Command(ctx context.Context, command any) (answers [][]byte, silent []string, err error) {
	body, err := json.Marshal(command)
	if err != nil {
		return nil, nil, err
	}
	e := envelope{busVersion, rand.Text(), b.fleet.instance, body}
	text, _ := json.Marshal(e)
	came := make(chan envelope, 1024)
	b.mu.Lock()
	b.waiting[e.ID] = came
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.waiting, e.ID)
	}()

	publishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTime)
	defer cancel()
	reached, err := b.fleet.redis.Publish(publishing, b.fleet.key("bus"), text).Result()
	if err != nil || reached == 0 {
		return nil, nil, ErrBusAway
	}
	live, _ := b.fleet.redis.ZRange(publishing, b.fleet.key("live"), 0, -1).Result()
	timeout := time.NewTimer(answerTime)
	defer timeout.Stop()
	for int64(len(answers)) < reached {
		select {
		case a := <-came:
			answers = append(answers, a.Body)
			live = slices.DeleteFunc(live, func(name string) bool { return name == a.From })
		case <-timeout.C:
			return answers, live, nil
		}
	}
	return answers, live, nil
}
