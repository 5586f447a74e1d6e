package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// Questions are asked, and answers given, by Redis Pub/Sub, whatever the bus is: {F}:questions is heard by all instances,
// {F}:answers:INSTANCE by one.

// question is one that all instances answer.
type question struct {
	ID      string          `json:"id"`
	ReplyTo string          `json:"reply_to"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// tellLost has all instances look whether Redis has lost what they have written.
func (f *Fleet) tellLost() {
	if b := f.bus.Load(); b != nil {
		b.publishJSON(f.ctx, f.key("questions"), question{ID: "lost", ReplyTo: f.instance})
	}
}

// maxAnswering bounds the questions that are answered at once. One beyond is not.
const maxAnswering = 32

// wait is for the answers to one question or command.
type wait struct {
	id   string
	came chan answer
}

func (b *Bus) await() *wait {
	w := &wait{rand.Text(), make(chan answer, 1024)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting[w.id] = w.came
	return w
}

func (b *Bus) forget(w *wait) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, w.id)
}

// collect returns the answers that come in time, and who of the living gave none. It ends early with one that is enough; nil: none is.
func (w *wait) collect(live []string, enough func(answer []byte) bool) (answers [][]byte, silent []string) {
	silent = live
	timeout := time.NewTimer(answerTime)
	defer timeout.Stop()
	for len(silent) > 0 {
		select {
		case a := <-w.came:
			answers = append(answers, a.Body)
			silent = slices.DeleteFunc(silent, func(name string) bool { return name == a.From })
			if enough != nil && enough(a.Body) {
				return answers, nil
			}
		case <-timeout.C:
			return answers, silent
		}
	}
	return answers, nil
}

// Ask has all instances answer a question, and returns what they say. Those that live and did not answer in time are named. It ends
// early with an answer that is enough; nil: none is. The error is ErrBusAway.
func (b *Bus) Ask(ctx context.Context, body any, enough func(answer []byte) bool) (answers [][]byte, silent []string, err error) {
	live, err := b.fleet.alive(ctx)
	if err != nil || !b.ready.answers.Load() {
		return nil, nil, ErrBusAway
	}
	w := b.await()
	defer b.forget(w)
	q := question{ID: w.id, ReplyTo: b.fleet.instance}
	if q.Body, err = json.Marshal(body); err != nil {
		return nil, nil, err
	}
	if err := b.publishJSON(ctx, b.fleet.key("questions"), q); err != nil {
		return nil, nil, ErrBusAway
	}
	answers, silent = w.collect(live, enough)
	return answers, silent, nil
}

// listen hears questions and answers.
func (b *Bus) listen(ctx context.Context, up func()) error {
	questions := b.fleet.key("questions")
	answering := make(chan struct{}, maxAnswering)
	return b.fleet.subscribe(ctx, func() {
		up()
		b.fleet.counts.stale.Store(true) // it may be another Redis, or one with older data
		b.fleet.members.nudge()
	}, func(channel string, text []byte) {
		if channel != questions {
			b.answered(text)
			return
		}
		var q question
		if len(text) > b.fleet.maxMessage || Strict(text, &q) != nil || !isName(q.ReplyTo) || len(q.ID) > maxName {
			b.fleet.metrics.BusDropped(dropMalformed)
			return
		}
		if q.ID == "lost" {
			b.fleet.members.nudge()
			return
		}
		select {
		case answering <- struct{}{}:
			b.fleet.begin(func() {
				defer func() { <-answering }()
				b.reply(q.ReplyTo, q.ID, b.handler.Answer(q.Body))
			})
		default:
		}
	}, questions, b.fleet.key("answers", b.fleet.instance))
}

// answered takes an answer to who waits for it.
func (b *Bus) answered(text []byte) {
	var a answer
	if Strict(text, &a) != nil {
		b.fleet.metrics.BusDropped(dropMalformed)
		return
	}
	b.mu.Lock()
	came := b.waiting[a.ID]
	b.mu.Unlock()
	select {
	case came <- a: // nil where nobody waits any more
	default:
	}
}

// reply gives an answer.
func (b *Bus) reply(to, id string, body any) {
	text, err := json.Marshal(body)
	if err == nil {
		b.publishJSON(b.fleet.ctx, b.fleet.key("answers", to), answer{id, b.fleet.instance, text})
	}
}

func (b *Bus) publishJSON(ctx context.Context, channel string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	return b.fleet.redis.Publish(ctx, channel, text).Err()
}

// quietTime is how long a subscription may say nothing before it is asked whether it is there, and then again before it is given up.
const quietTime = 3 * time.Second

// subscribe hears what is published to channels, in order, until the connection fails.
func (f *Fleet) subscribe(ctx context.Context, up func(), hear func(channel string, text []byte), channels ...string) error {
	s := f.redis.Subscribe(ctx)
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Subscribe(ctx, channels...); err != nil {
		return err
	}
	confirmed, asked := 0, false
	for {
		m, err := s.ReceiveTimeout(ctx, quietTime)
		if isTimeout(err) && !asked {
			asked = true
			err = s.Ping(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		asked = false
		switch m := m.(type) {
		case *redis.Subscription:
			if confirmed++; confirmed == len(channels) {
				up()
			}
		case *redis.Message:
			hear(m.Channel, []byte(m.Payload))
		}
	}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout()
}
