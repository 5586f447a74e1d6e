package fleet

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// runTime is how long a call that has begun may take to its answer. One whose instance died meanwhile can then be made again.
const runTime = time.Minute

// beginReply enters a call, or returns what is there of it. KEYS: the reply. ARGV: the call, how long it may run in ms.
var beginReply = redis.NewScript(`
local kept = redis.call('HMGET', KEYS[1], 'call', 'reply')
if kept[1] then return {kept[1], kept[2] or ''} end
redis.call('HSET', KEYS[1], 'call', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {}
`)

// finishReply keeps the answer of a call; an empty one forgets the call. KEYS: the reply. ARGV: the call, the answer, its time in ms.
var finishReply = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'call') ~= ARGV[1] and ARGV[2] == '' then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'call', ARGV[1], 'reply', ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
`)

// BeginReply enters a call by its Idempotency-Key. Where there is one already it returns which, and its answer; "": it is running. The
// error is ErrAway: the call is not to be made.
func (f *Fleet) BeginReply(ctx context.Context, key, call string) (earlier, answer string, err error) {
	got, err := f.tell(ctx, beginReply, []string{f.key("reply", subjectKey(key))}, call, runTime.Milliseconds())
	parts, _ := got.([]any)
	if err != nil {
		return "", "", ErrAway
	}
	if len(parts) == 2 {
		earlier, _ = parts[0].(string)
		answer, _ = parts[1].(string)
	}
	return earlier, answer, nil
}

// FinishReply keeps an answer for that long. An empty one has the call forgotten.
func (f *Fleet) FinishReply(key, call, answer string, keep time.Duration) {
	f.tell(f.ctx, finishReply, []string{f.key("reply", subjectKey(key))}, call, answer, keep.Milliseconds())
}
