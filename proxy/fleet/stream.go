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

// record has Redis keep a message in the history, unless it does already, or it is later than until.
func (b *Bus) record(m *message, text []byte, until int64) error {
	f := b.fleet
	answer, err := f.call(f.ctx, engineTime, record, []string{f.key("history"), f.key("history_bytes"), f.key("published", m.From)},
		text, m.Number, until, f.history.pushes, f.history.age.Milliseconds(), f.history.bytes)
	switch {
	case err != nil:
		f.metrics.BusDropped(dropAway)
		return err
	case answer == dropLate:
		f.metrics.BusDropped(dropLate)
		return ErrBusAway
	}
	return nil
}

// load reads the history, and returns the id behind which it goes on. It reports false where Redis did not say.
func (b *Bus) load() (last string, loaded bool) {
	f := b.fleet
	ctx, cancel := context.WithTimeout(f.ctx, 10*patience)
	defer cancel()
	last = "0-0"
	for {
		page, err := f.redis.XRangeN(ctx, f.key("history"), "("+last, "+", perRead).Result()
		if err != nil {
			return "", false
		}
		if last == "0-0" && len(page) > 0 && !f.isWhole(ctx) {
			b.handler.Forgotten(page[0].ID)
		}
		for _, entry := range page {
			last = entry.ID
			text, _ := entry.Values["m"].(string)
			if m, wrong := f.parse([]byte(text)); wrong == "" && m.Send != nil {
				b.handler.Restore(m.Command, entry.ID, f.age(entry.ID))
			}
		}
		if len(page) < perRead {
			return last, true
		}
	}
}

// isWhole reports whether the history has all that it ever had.
func (f *Fleet) isWhole(ctx context.Context) bool {
	info, err := f.redis.XInfoStream(ctx, f.key("history")).Result()
	return err == nil && info.EntriesAdded == info.Length
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

// follow reads the history behind last, and has it obeyed, until Redis fails. Where there is no last it begins at the end.
func (b *Bus) follow(ctx context.Context, last *string, up func(), queue func(func())) error {
	f := b.fleet
	if *last == "" {
		newest, err := f.redis.XRevRangeN(ctx, f.key("history"), "+", "-", 1).Result()
		if err != nil {
			return err
		}
		if *last = "0-0"; len(newest) > 0 {
			*last = newest[0].ID
		}
		b.handler.Forgotten(*last)
	}
	up()
	for {
		reading, cancel := context.WithTimeout(ctx, blockTime+quietTime)
		streams, err := f.reader.XRead(reading, &redis.XReadArgs{Streams: []string{f.key("history"), *last}, Count: perRead, Block: blockTime}).Result()
		cancel()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		for _, stream := range streams {
			for _, entry := range stream.Messages {
				*last = entry.ID
				text, _ := entry.Values["m"].(string)
				if m, wrong := f.parse([]byte(text)); wrong != "" || m.Send == nil {
					f.metrics.BusDropped(dropMalformed)
				} else {
					queue(func() { b.obey(&m, entry.ID) })
				}
			}
		}
	}
}
