package fleet

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// keepOut notes until when a subject is kept out. KEYS: kept_out. ARGV: the subject, for how long in ms.
var keepOut = redis.NewScript(scriptHead + `
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], 'GT', now + ARGV[2], ARGV[1])
return 0
`)

// keptOut lists the subjects that are kept out, each with how long, in ms. KEYS: kept_out.
var keptOut = redis.NewScript(scriptHead + `
local all = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 100000)
for i = 2, #all, 2 do all[i] = tonumber(all[i]) - now end
return all
`)

// KeepOut has instances that start later, or that have missed the kick, keep a subject out. It reports false where Redis does not know.
func (f *Fleet) KeepOut(subject string, d time.Duration) bool {
	_, err := f.tell(f.ctx, keepOut, []string{f.key("kept_out")}, subject, d.Milliseconds())
	return err == nil
}

// keptOut returns the subjects that are kept out in the whole fleet, each with how long.
func (f *Fleet) keptOut(ctx context.Context) (map[string]time.Duration, error) {
	answer, err := f.tell(ctx, keptOut, []string{f.key("kept_out")})
	parts, _ := answer.([]any)
	all := make(map[string]time.Duration, len(parts)/2)
	for i := 0; i+1 < len(parts); i += 2 {
		subject, ok1 := parts[i].(string)
		ms, ok2 := parts[i+1].(int64)
		if ok1 && ok2 {
			all[subject] = time.Duration(ms) * time.Millisecond
		}
	}
	return all, err
}
