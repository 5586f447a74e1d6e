// Package fleet has several gates count as one: their rates, and their caps on open sessions, are held in a Redis that they share.
//
// # Keys
//
// All begin with {FLEET}, a hash tag: in a cluster they are on one shard. docs/fleet.md lists them. A count of open sessions is the sum
// over the instances whose heartbeat is fresh (staleAfter). So nothing is written for a session but when it begins and ends, and what an
// instance held that was killed is free when its heartbeat is stale.
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
	// RedisURL is the Redis that all instances share: redis://, rediss:// (TLS), unix://, redis://NODE/?addr=NODE2:PORT for a cluster, or
	// redis://SENTINEL/?master_name=NAME with further sentinels as addr=HOST:PORT. Empty: this instance is alone.
	RedisURL string `env:"REDIS_URL" secret:"true" guard:"true"`
	// Name begins every key. Instances of one name count together.
	Name string `env:"FLEET" envDefault:"portcullis" needs:"REDIS_URL"`
	// Instance names this one among them, and in the API. Empty: the host's name and a random part.
	Instance string `env:"INSTANCE"`
	// BusURL is what carries messages and kicks to all instances: amqp:// or amqps:// (RabbitMQ), or kafka://HOST:PORT/TOPIC.
	// Empty: the Redis.
	BusURL string `env:"BUS_URL" secret:"true" needs:"REDIS_URL"`

	// Timeout is how long an upgrade waits for Redis, all its calls together. Zero is refused.
	Timeout time.Duration `env:"REDIS_TIMEOUT" envDefault:"50ms" needs:"REDIS_URL"`
	// Limits are those that hold for all instances together.
	Limits ratelimit.Config `env:"-"`
	// MaxMessage is the largest message that is taken from the bus, in bytes. Zero: 1 MiB.
	MaxMessage int `env:"-"`
	// HistoryPushes and HistoryAge bound the pushes that Redis keeps for clients that come back. Zero: none is kept.
	HistoryPushes int           `env:"-"`
	HistoryAge    time.Duration `env:"-"`
	// Idle has New join nothing and return nil where there is no mistake. It is for who wants to know the mistakes alone.
	Idle bool `env:"-"`
	// Failed is told once, with the reason, where this instance cannot be one of the fleet and is to end. Nil: nobody is.
	Failed func(error) `env:"-"`
	// Logger gets a line when Redis goes away, and when it is back. It must not be nil, as Metrics.
	Logger  *slog.Logger   `env:"-"`
	Metrics *admin.Metrics `env:"-"`
}

const (
	defaultMaxMessage = 1 << 20
	// patience is for the calls of Redis that no upgrade waits for.
	patience = time.Second
	// idleConns are ready for upgrades, which need not wait for a connection to be made.
	idleConns = 4
	// pause is how long Redis is left alone when it does not answer an upgrade in time. Then one call tries.
	pause = time.Second
)

// Fleet is this instance among the others. It is safe for concurrent use.
type Fleet struct {
	name     string
	instance string
	limits   atomic.Pointer[ratelimit.Config]
	timeout  time.Duration // of an upgrade's calls together
	redis    redis.UniversalClient
	circuit  *gobreaker.CircuitBreaker[any]
	log      *slog.Logger
	metrics  *admin.Metrics
	failed   func(error)
	members  members
	counts   counts
	share    atomic.Pointer[share] // of the limits, while it counts alone; nil: it counts with the others
	spare    atomic.Pointer[share] // for single calls that were not answered
	away     atomic.Bool           // Redis is, and that was said

	lastError atomic.Pointer[error] // of Redis

	bus  atomic.Pointer[Bus] // nil: it has not been joined
	ctx  context.Context     // ends when the fleet is left
	stop context.CancelFunc

	mu      sync.Mutex // guards over, and running's Add
	over    bool       // nothing is begun any more
	running sync.WaitGroup

	maxMessage int
	history    historySize
	engine     engine                // of the bus
	reader     redis.UniversalClient // of the history: it waits for what comes
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
	if c.Timeout <= 0 {
		mistakes = append(mistakes, fmt.Errorf("REDIS_TIMEOUT: %q leaves Redis no time to answer; want more than 0s", c.Timeout))
	}
	engine, err := newEngine(c.BusURL, c.Name, max(c.MaxMessage, defaultMaxMessage))
	if err != nil {
		mistakes = append(mistakes, fmt.Errorf("BUS_URL: %q cannot be used: %w; want amqp://, amqps:// or kafka://HOST:PORT/TOPIC", "***", err))
	}
	if err := errors.Join(mistakes...); err != nil {
		return nil, err
	}
	if c.Idle {
		client.Close()
		if engine != nil {
			engine.close()
		}
		return nil, nil
	}
	f := &Fleet{
		name: c.Name, instance: c.Instance, redis: client, log: c.Logger, metrics: c.Metrics, failed: c.Failed,
		timeout: c.Timeout, maxMessage: cmp.Or(c.MaxMessage, defaultMaxMessage),
		history: historySize{c.HistoryPushes, c.HistoryAge, historyBytes}, engine: engine,
	}
	f.limits.Store(&c.Limits)
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.counts.held, f.counts.changes, f.counts.more = make(map[string]int64), make(map[string]int64), make(chan struct{}, 1)
	f.members.init()
	f.metrics.FleetSize(1)
	f.circuit = gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
		Timeout:       pause,
		ReadyToTrip:   func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= 1 },
		IsSuccessful:  answered,
		OnStateChange: f.circuitChanged,
	})
	if engine == nil {
		f.engine = (*pubSub)(f)
	}
	f.reader, _ = connect(c.RedisURL)
	f.beat(f.ctx) // so that it counts from its first upgrade on with the others, where Redis is there
	f.running.Go(f.live)
	f.running.Go(f.writeChanges)
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
			return nil, errors.New("its host, its path (a database) or a parameter is wrong")
		}
		o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.MinIdleConns = -1, 1, true, idleConns
		return redis.NewFailoverClient(o), nil
	}
	if target.Query().Has("addr") {
		o, err := redis.ParseClusterURL(text)
		if err != nil {
			return nil, errors.New("its host or a parameter is wrong")
		}
		o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.MinIdleConns = -1, 1, true, idleConns
		return redis.NewClusterClient(o), nil
	}
	o, err := redis.ParseURL(text)
	if err != nil {
		return nil, errors.New("its host, its path (a database) or a parameter is wrong")
	}
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.MinIdleConns = -1, 1, true, idleConns // one try: the breaker decides about more
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
	f.mu.Lock()
	closed := f.over
	f.over = true
	f.mu.Unlock()
	if closed {
		return
	}
	f.stop()
	f.engine.close()
	f.reader.Close() // which may be waiting
	f.running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f.leave(ctx)
	f.redis.Close()
}

// begin runs something for as long as the fleet is not closed. It reports false where that is.
func (f *Fleet) begin(run func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false
	}
	f.running.Go(run)
	return true
}

// key is the name of a key.
func (f *Fleet) key(parts ...string) string { return "{" + f.name + "}:" + strings.Join(parts, ":") }

// errLate says that an upgrade had little time left for Redis, which need not be ill.
var errLate = errors.New("an upgrade has waited for Redis for as long as it may")

// errNotJoined says that this instance is not, or no more, one of the fleet.
var errNotJoined = errors.New("this instance is not one of the fleet")

// waitedKey is the key in a context of how long has been waited for Redis.
type waitedKey struct{}

// NewContext is for one upgrade, whose calls wait for Redis no longer than REDIS_TIMEOUT together.
func (f *Fleet) NewContext(ctx context.Context) context.Context {
	return context.WithValue(ctx, waitedKey{}, new(time.Duration))
}

// ask runs a script for an upgrade, in what is left of its time. Its error says that Redis did not answer, or is left alone.
func (f *Fleet) ask(ctx context.Context, s *redis.Script, keys []string, args ...any) (any, error) {
	if !f.members.joined.Load() {
		return nil, errNotJoined
	}
	timeout := f.timeout
	if waited, ok := ctx.Value(waitedKey{}).(*time.Duration); ok {
		timeout -= *waited
		defer func(began time.Time) { *waited += time.Since(began) }(time.Now())
	}
	answer, err := f.circuit.Execute(func() (any, error) {
		answer, err := f.call(ctx, timeout, s, keys, args...)
		if timeout < f.timeout/2 && errors.Is(err, context.DeadlineExceeded) {
			err = errLate
		}
		return answer, err
	})
	switch {
	case err == errLate:
		f.counts.stale.Store(true)
	case err != nil:
		f.countAlone()
	}
	return answer, err
}

// tell runs a script that no upgrade waits for.
func (f *Fleet) tell(ctx context.Context, s *redis.Script, keys []string, args ...any) (any, error) {
	answer, err := f.call(ctx, patience, s, keys, args...)
	if !answered(err) {
		f.circuit.Execute(func() (any, error) { return nil, err }) // no upgrade has to find that out
	}
	return answer, err
}

// call runs a script. A key that is none of ours is mended.
func (f *Fleet) call(ctx context.Context, timeout time.Duration, s *redis.Script, keys []string, args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	began := time.Now()
	answer, err := s.Run(ctx, f.redis, keys, args...).Result()
	if isForeign(err) && f.mend(ctx, keys) {
		answer, err = s.Run(ctx, f.redis, keys, args...).Result()
	}
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	if err != nil {
		f.lastError.Store(&err)
	}
	f.metrics.FleetCall(err == nil, time.Since(began))
	return answer, err
}

// answered reports whether Redis is there and at work, whatever it said.
func answered(err error) bool {
	return err == nil || err == errLate || isForeign(err) || redis.HasErrorPrefix(err, "ERR")
}

// isForeign reports whether a key has what we have not put there.
func isForeign(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "WRONGTYPE") || strings.Contains(err.Error(), "is not an integer"))
}

// mend deletes those of keys that are not what they are to be.
func (f *Fleet) mend(ctx context.Context, keys []string) bool {
	kinds := make([]any, len(keys))
	for i, key := range keys {
		kind, _, _ := strings.Cut(strings.TrimPrefix(key, f.key()), ":")
		kinds[i] = kindOf[kind]
	}
	n, err := mend.Run(ctx, f.redis, append(keys, f.key("epoch")), kinds...).Int()
	if n > 0 {
		f.log.Warn("keys in Redis were none of ours, and are deleted", "keys", n)
	}
	return err == nil && n > 0
}

// circuitChanged tells the operator that Redis has gone, or is back.
func (f *Fleet) circuitChanged(_ string, _, to gobreaker.State) {
	switch to {
	case gobreaker.StateOpen:
		f.countAlone()
		if !f.away.Swap(true) {
			attrs := []any{"instances", f.members.size.Load()}
			if err := f.lastError.Load(); err != nil {
				attrs = append(attrs, "error", *err)
			}
			f.log.Warn("Redis does not answer: this instance holds its share of every limit", attrs...)
		}
	case gobreaker.StateClosed:
		if f.away.Swap(false) {
			f.log.Info("Redis answers again")
		}
		f.refreshSoon(false)
	}
}

// countAlone has this instance hold its share of every limit, until it counts with the others again.
func (f *Fleet) countAlone() {
	f.counts.stale.Store(true)
	if f.share.Load() == nil {
		f.share.CompareAndSwap(nil, newShare(*f.limits.Load(), int(f.members.size.Load())))
		f.metrics.FleetAlone(true)
	}
}
