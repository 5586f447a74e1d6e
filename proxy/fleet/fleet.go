// Package fleet has several gates count as one: their rates, and their caps on open sessions, are held in a Redis that they share.
//
// # Keys
//
// All begin with {FLEET}, a hash tag: in a cluster they are on one shard.
//
//	{F}:live                 sorted set   the instances, each with its last heartbeat in ms, by the clock of Redis
//	{F}:rate:a:ADDRESS       string       upgrades of an address: when all that it took would have been due, in ms
//	{F}:rate:s:HASH          string       upgrades of a subject
//	{F}:rate:all             string       upgrades of all
//	{F}:fail:ADDRESS         string       refused credentials of an address
//	{F}:cap:a:ADDRESS        hash         open sessions of an address, by instance
//	{F}:cap:s:HASH           hash         open sessions of a subject, by instance
//	{F}:cap:all              hash         all open sessions, by instance
//	{F}:held:INSTANCE        set          the keys of which an instance has a part, for whoever forgets it when it is dead
//
// A count is the sum over the instances whose heartbeat is fresh (staleAfter). So nothing is written for a session but when it begins
// and ends, and what an instance held that was killed is free when its heartbeat is stale.
//
// # Without Redis
//
// A Redis that is slow or away is asked for no longer than the budget, and then by one call a second. Meanwhile each instance holds its
// share of every limit, by the last known number of instances: the door is neither open nor shut.
package fleet

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"

	"portcullis/proxy/admin"
	"portcullis/ratelimit"
)

// Config is what a Fleet needs.
type Config struct {
	// RedisURL is the Redis that all instances share: redis://, rediss:// (TLS), unix://, or redis://SENTINEL/?master_name=NAME with
	// further sentinels as addr=HOST:PORT. Empty: this instance is alone.
	RedisURL string `env:"REDIS_URL" secret:"true"`
	// Name begins every key. Instances of one name count together.
	Name string `env:"FLEET" envDefault:"portcullis" needs:"REDIS_URL"`
	// Instance names this one among them, and in the API. Empty: the host's name and a random part.
	Instance string `env:"INSTANCE"`

	// Budget is how long an upgrade waits for Redis, each of two times. Zero: 25 ms.
	Budget time.Duration `env:"-"`
	// Limits are those that hold for all instances together.
	Limits ratelimit.Config `env:"-"`
	// Logger gets a line when Redis goes away, and when it is back. It must not be nil, as Metrics.
	Logger  *slog.Logger   `env:"-"`
	Metrics *admin.Metrics `env:"-"`
}

const (
	defaultBudget = 25 * time.Millisecond
	// pause is how long Redis is left alone when it does not answer. Then one call tries.
	pause = time.Second
	// beatEvery and staleAfter say when an instance lives.
	beatEvery  = 3 * time.Second
	staleAfter = 12 * time.Second
)

// Fleet is this instance among the others. It is safe for concurrent use.
type Fleet struct {
	name     string
	instance string
	limits   ratelimit.Config
	budget   time.Duration
	redis    redis.UniversalClient
	circuit  *gobreaker.CircuitBreaker[any]
	log      *slog.Logger
	metrics  *admin.Metrics
	counts   counts
	size     atomic.Int64 // how many instances there were when that was last known; at least 1
	share    atomic.Pointer[share]
	stop     context.CancelFunc
	leave    func() // the bus; nil: it has not been joined
	closed   sync.Once
	running  sync.WaitGroup
}

// InstanceName is Instance, or what it is where that is empty.
func (c *Config) InstanceName() string {
	if c.Instance != "" {
		return c.Instance
	}
	host, _ := os.Hostname()
	if host == "" {
		host = "portcullis"
	}
	return host + "-" + strings.ToLower(rand.Text()[:6])
}

// New returns a Fleet, or nil where RedisURL is empty. Redis need not be there yet. The error joins every mistake, one a line.
func New(c Config) (*Fleet, error) {
	if c.RedisURL == "" {
		return nil, nil
	}
	client, err := connect(c.RedisURL)
	var mistakes []error
	if err != nil {
		mistakes = append(mistakes, fmt.Errorf("REDIS_URL: %q cannot be used: %w; want redis://, rediss:// or unix://", "***", err))
	}
	for _, setting := range []struct{ name, value string }{{"FLEET", c.Name}, {"INSTANCE", c.Instance}} {
		if strings.ContainsAny(setting.value, "{} \t\r\n") || len(setting.value) > 128 {
			mistakes = append(mistakes, fmt.Errorf("%s: %q is no name; want up to 128 characters without blanks and braces", setting.name, setting.value))
		}
	}
	if err := errors.Join(mistakes...); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	f := &Fleet{
		name: c.Name, instance: c.Instance, limits: c.Limits, redis: client, log: c.Logger, metrics: c.Metrics,
		budget: cmp.Or(c.Budget, defaultBudget), stop: stop,
	}
	f.counts.held, f.counts.changes, f.counts.more = make(map[string]int64), make(map[string]int64), make(chan struct{}, 1)
	f.size.Store(1)
	f.circuit = gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
		Timeout:       pause,
		ReadyToTrip:   func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= 1 },
		IsSuccessful:  func(err error) bool { return err == nil || errors.Is(err, redis.Nil) },
		OnStateChange: f.circuitChanged,
	})
	f.running.Go(func() { f.live(ctx) })
	f.running.Go(func() { f.writeChanges(ctx) })
	return f, nil
}

// connect makes a client. Its errors quote nothing of the URL, which may hold a password.
func connect(text string) (redis.UniversalClient, error) {
	target, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("it is no URL")
	}
	if target.Query().Has("master_name") {
		o, err := redis.ParseFailoverURL(text)
		if err != nil {
			return nil, errors.New("it names no sentinels")
		}
		o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled = -1, 1, true
		return redis.NewFailoverClient(o), nil
	}
	o, err := redis.ParseURL(text)
	if err != nil {
		return nil, errors.New("it names no Redis")
	}
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled = -1, 1, true // one try: the breaker decides about more
	return redis.NewClient(o), nil
}

// quiet is the log of the Redis client, which would go to standard error past ours: what it says the breaker tells.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(quiet{}) }

// Close leaves the fleet: what this instance held is free. A nil Fleet has nothing to leave.
func (f *Fleet) Close() {
	if f == nil {
		return
	}
	f.closed.Do(f.close)
}

func (f *Fleet) close() {
	f.stop()
	if f.leave != nil {
		f.leave()
	}
	f.running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	f.redis.ZRem(ctx, f.key("live"), f.instance)
	f.bury(ctx, f.instance)
	f.redis.Close()
}

// key is the name of a key.
func (f *Fleet) key(parts ...string) string { return "{" + f.name + "}:" + strings.Join(parts, ":") }

var stale = int64(staleAfter / time.Millisecond)

// ask runs a script within the budget. Its error says that Redis did not answer, or is left alone.
func (f *Fleet) ask(ctx context.Context, s *redis.Script, keys []string, args ...any) (any, error) {
	return f.circuit.Execute(func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.budget)
		defer cancel()
		began := time.Now()
		answer, err := s.Run(ctx, f.redis, keys, args...).Result()
		f.metrics.FleetCall(err == nil, time.Since(began))
		return answer, err
	})
}

// circuitChanged tells the operator that Redis has gone, or is back.
func (f *Fleet) circuitChanged(_ string, _, to gobreaker.State) {
	switch to {
	case gobreaker.StateOpen:
		if f.share.Load() == nil {
			n := f.size.Load()
			f.share.Store(newShare(f.limits, int(n)))
			f.log.Warn("Redis does not answer: this instance holds its share of every limit", "instances", n)
		}
		f.counts.stale.Store(true)
	case gobreaker.StateClosed:
		if f.share.Swap(nil) != nil {
			f.log.Info("Redis answers again")
		}
	}
}

// live tells that this instance lives, writes its counts anew where Redis has lost them, and forgets those that are dead.
func (f *Fleet) live(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		f.beat(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (f *Fleet) beat(ctx context.Context) {
	answer, err := f.ask(ctx, beat, []string{f.key("live")}, stale, f.instance)
	if err != nil {
		return
	}
	known, size, dead, ok := readBeat(answer)
	if !ok {
		return
	}
	f.size.Store(max(size, 1))
	f.metrics.FleetSize(int(size))
	if !known || f.counts.stale.Load() {
		f.writeAll(ctx)
	}
	if dead != "" && dead != f.instance {
		f.bury(ctx, dead)
	}
}

// readBeat reads the answer of beat.
func readBeat(answer any) (known bool, size int64, dead string, ok bool) {
	parts, _ := answer.([]any)
	if len(parts) != 3 {
		return false, 0, "", false
	}
	k, ok1 := parts[0].(int64)
	size, ok2 := parts[1].(int64)
	dead, ok3 := parts[2].(string)
	return k == 1, size, dead, ok1 && ok2 && ok3
}

// bury forgets what a dead instance held.
func (f *Fleet) bury(ctx context.Context, instance string) {
	for range 10_000 {
		more, err := bury.Run(ctx, f.redis, []string{f.key("live"), f.key("held", instance)}, instance, stale).Int()
		if err != nil || more == 0 {
			return
		}
	}
}
