package fleet

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
)

// Found is what [Check] has found.
type Found struct {
	Redis     string        // its address; empty: there is none
	Version   string        // empty: it does not tell
	Took      time.Duration // for an answer, on a connection that was there
	Instances int           // that live
	Evicts    string        // its maxmemory-policy, where it forgets keys for want of memory; empty: it keeps them
	Err       error         // why this instance could not count with the others; nil: it could

	Bus    string // the address of BUS_URL; empty: there is none
	BusErr error  // why nothing could be carried over it
}

// Check asks Redis and the bus, within 5 s each, and joins neither. It tries the commands that a fleet needs on a key that does not
// exist, where they change nothing. The error is that of [New].
func Check(ctx context.Context, c Config) (Found, error) {
	c.Idle = true
	if _, err := New(c); err != nil || c.RedisURL == "" {
		return Found{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	found := Found{Redis: hostOf(c.RedisURL), Bus: hostOf(c.BusURL)}
	var running sync.WaitGroup
	running.Go(func() { found.Err = found.askRedis(ctx, &c) })
	if c.BusURL != "" {
		running.Go(func() { found.BusErr = askBus(ctx, &c) })
	}
	running.Wait()
	return found, nil
}

const checkTime = 5 * time.Second

// hostOf is what may be shown of a URL that New has taken.
func hostOf(text string) string {
	u, err := url.Parse(text)
	if text == "" || err != nil {
		return ""
	}
	return cmp.Or(u.Host, u.Path)
}

func (found *Found) askRedis(ctx context.Context, c *Config) error {
	client, err := connect(c.RedisURL)
	if err != nil {
		return err
	}
	defer client.Close()
	for range 2 { // the first makes the connection
		began := time.Now()
		if err := client.Ping(ctx).Err(); err != nil {
			return err
		}
		found.Took = time.Since(began)
	}
	info := infoOf(client.Info(ctx).Val()) // which not every user may ask for
	found.Version = info["redis_version"]
	if policy := info["maxmemory_policy"]; info["maxmemory"] != "0" && policy != "noeviction" {
		found.Evicts = policy
	}
	if err := tryCommands(ctx, client, "{"+c.Name+"}:"); err != nil {
		return err
	}
	if c.BusURL == "" {
		if err := client.Publish(ctx, "{"+c.Name+"}:check", "").Err(); err != nil { // where nobody listens
			return err
		}
	}
	answer, err := alive.Run(ctx, client, []string{"{" + c.Name + "}:live", "{" + c.Name + "}:left"}, stale).Slice()
	if err == nil && len(answer) > 0 {
		names, _ := answer[0].([]any)
		found.Instances = len(names)
	}
	return err
}

// infoOf reads the answer of INFO.
func infoOf(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info
}

// attempts are the commands of all scripts, each so that it changes nothing where its key does not exist. HSET, SADD, INCR and HINCRBY
// would, so they are not tried.
var attempts = redis.NewScript(`
local wrong = {}
local function try(...)
	local answer = redis.pcall(...)
	if type(answer) == 'table' and answer.err then table.insert(wrong, (...) .. ' ' .. answer.err) end
end
try('TIME')
for _, command in ipairs({'GET', 'DEL', 'EXISTS', 'TYPE', 'HGETALL', 'HVALS', 'SPOP', 'ZCARD', 'XLEN'}) do try(command, KEYS[1]) end
for _, command in ipairs({'HGET', 'HMGET', 'HDEL', 'SISMEMBER', 'SREM', 'ZREM', 'ZSCORE'}) do try(command, KEYS[1], 'x') end
for _, command in ipairs({'ZRANGE', 'ZRANGEBYSCORE', 'ZREMRANGEBYRANK', 'ZREMRANGEBYSCORE'}) do try(command, KEYS[1], 0, 1) end
for _, command in ipairs({'EXPIRE', 'PEXPIRE', 'XDEL'}) do try(command, KEYS[1], 1) end
try('SET', KEYS[1], 1, 'XX')
try('ZADD', KEYS[1], 'XX', 1, 'x')
try('XADD', KEYS[1], 'NOMKSTREAM', '*', 'x', 'x')
try('XRANGE', KEYS[1], '-', '+')
return wrong
`)

// tryCommands returns why a command that is needed does not work.
func tryCommands(ctx context.Context, client redis.UniversalClient, prefix string) error {
	wrong, err := attempts.Run(ctx, client, []string{prefix + "check:" + rand.Text()}).StringSlice()
	if err != nil || len(wrong) == 0 {
		return err
	}
	slices.Sort(wrong)
	names := make([]string, len(wrong))
	for i, line := range wrong {
		names[i], _, _ = strings.Cut(line, " ")
	}
	_, why, _ := strings.Cut(wrong[0], " ")
	return fmt.Errorf("it refuses %s: %s", strings.Join(names, ", "), why)
}

// askBus connects to what BUS_URL names. With Kafka it looks for the topic, too.
func askBus(ctx context.Context, c *Config) error {
	engine, err := newEngine(c.BusURL, c.Name, defaultMaxMessage)
	if err != nil {
		return err
	}
	defer engine.close()
	switch engine := engine.(type) {
	case *rabbit:
		return engine.reach(ctx)
	case *kafka:
		_, err := engine.end(ctx)
		return err
	}
	return errors.New("its engine is not known")
}

// reach connects, and opens a channel.
func (r *rabbit) reach(ctx context.Context) error {
	conn, err := amqp.DialConfig(r.url, amqp.Config{Locale: "en_US", Dial: amqp.DefaultDial(rabbitDial)})
	if err != nil {
		return err
	}
	defer conn.CloseDeadline(time.Now().Add(time.Second))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, err = conn.Channel()
	return err
}
