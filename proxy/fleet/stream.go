package fleet

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// historySize bounds the pushes that Redis keeps.
type historySize struct {
	pushes int
	age    time.Duration
	bytes  int // of all together
}

const (
	historyBytes = 64 << 20
	// perRead is how many are read at once.
	perRead = 100
	// blockTime is how long Redis waits for one.
	blockTime = 2 * time.Second
)

// record has Redis keep a message in the history, unless it does already, or it is later than until; then the error is ErrBusAway.
func (b *Bus) record(m *message, text []byte, until int64, patience time.Duration) error {
	f := b.fleet
	keys := []string{f.key("history"), f.key("history_bytes"), f.key("history_count"), f.key("published", m.From)}
	answer, err := f.call(f.ctx, patience, record, keys, text, m.Number, until, f.history.pushes, f.history.age.Milliseconds(), f.history.bytes)
	switch {
	case err != nil:
		b.dropped(dropAway)
		return err
	case answer == dropLate:
		b.dropped(dropLate)
		return ErrBusAway
	}
	return nil
}

// reading is where this instance is in the history.
type reading struct {
	id     string // it has read everything up to this; empty: it has not begun
	number int64  // of that, among all that there ever were
}

// entry is one of the history.
type entry struct {
	id     string
	number int64 // among all that there ever were
	message
	wrong string // why it is dropped; empty: it is not
}

func (f *Fleet) entryOf(m redis.XMessage) entry {
	e := entry{id: m.ID}
	number, _ := m.Values["s"].(string)
	text, _ := m.Values["m"].(string)
	e.number, _ = strconv.ParseInt(number, 10, 64)
	e.message, e.wrong = f.parse([]byte(text))
	return e
}

// load reads the history. It reports false where Redis did not say.
func (b *Bus) load(at *reading) bool {
	f := b.fleet
	ctx, cancel := context.WithTimeout(f.ctx, 10*patience)
	defer cancel()
	begin, err := b.begin(ctx)
	if err != nil {
		return false
	}
	b.handler.Forgotten(begin.id)
	*at = reading{}
	for last := "0-0"; ; {
		page, err := f.redis.XRangeN(ctx, f.key("history"), "("+last, "+", perRead).Result()
		if isForeign(err) && f.mend(ctx, []string{f.key("history"), f.key("history_bytes")}) {
			page, err = nil, nil
		}
		if err != nil {
			return false
		}
		for _, m := range page {
			e := f.entryOf(m)
			if at.id == "" && e.number != 1 {
				b.handler.Forgotten(e.id) // what was before it is gone
			}
			if *at = (reading{e.id, e.number}); e.wrong == "" && e.Send != nil {
				b.handler.Restore(e.Command, e.id, f.age(e.id))
			}
			last = e.id
		}
		if len(page) < perRead {
			break
		}
	}
	if at.id == "" {
		*at = begin
	}
	return true
}

// begin is before what comes next.
func (b *Bus) begin(ctx context.Context) (at reading, err error) {
	f := b.fleet
	answer, err := f.tell(ctx, since, []string{f.key("history_since"), f.key("history_count")})
	parts, _ := answer.([]any)
	if err == nil && len(parts) == 2 {
		at.id, _ = parts[0].(string)
		at.number, _ = parts[1].(int64)
	}
	if at.id == "" && err == nil {
		err = errors.New("how far the history goes is not known")
	}
	return at, err
}

// age is how long ago a push was kept, by the clock of Redis.
func (f *Fleet) age(id string) time.Duration {
	ms, _, _ := strings.Cut(id, "-")
	at, err := strconv.ParseInt(ms, 10, 64)
	now := f.members.now()
	if err != nil || now == 0 || at > now {
		return 0
	}
	return time.Duration(now-at) * time.Millisecond
}

// follow reads the history from a place on, and has it obeyed, until Redis fails. Where it has not begun it begins at the end.
func (b *Bus) follow(ctx context.Context, at *reading, up func(), queue func(func())) error {
	f := b.fleet
	begin, err := b.begin(ctx) // which says whether Redis is there, too
	if err != nil {
		return err
	}
	if at.id == "" {
		newest, err := f.redis.XRevRangeN(ctx, f.key("history"), "+", "-", 1).Result()
		if isForeign(err) && f.mend(ctx, []string{f.key("history"), f.key("history_bytes")}) {
			err = nil
		}
		if err != nil {
			return err
		}
		if *at = begin; len(newest) > 0 {
			e := f.entryOf(newest[0])
			*at = reading{e.id, e.number}
		}
		id := at.id
		queue(func() { b.handler.Forgotten(id) })
	}
	up()
	for {
		reading, cancel := context.WithTimeout(ctx, blockTime+quietTime)
		streams, err := f.reader.XRead(reading, &redis.XReadArgs{Streams: []string{f.key("history"), at.id}, Count: perRead, Block: blockTime}).Result()
		cancel()
		if isForeign(err) && f.mend(ctx, []string{f.key("history"), f.key("history_bytes")}) {
			continue
		}
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		for _, stream := range streams {
			for _, m := range stream.Messages {
				b.follows(f.entryOf(m), at, queue)
			}
		}
	}
}

// lateKick is how old a kick may be that comes from the history: whom it meant is gone, or has come back since.
const lateKick = 5 * time.Second

// follows has the next entry of the history obeyed.
func (b *Bus) follows(e entry, at *reading, queue func(func())) {
	missed := e.number != at.number+1
	at.id, at.number = e.id, e.number
	queue(func() {
		if missed {
			b.handler.Forgotten(e.id) // some before it were forgotten before they were read, or Redis has lost them
		}
		switch {
		case e.wrong != "":
			b.dropped(e.wrong)
		case e.Kick != nil && b.fleet.age(e.id) > lateKick:
			b.dropped(dropLate)
		default:
			b.obey(&e.message, e.id)
		}
	})
}
