//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// scale says how long and how often everything is measured.
type scale struct {
	rounds       int
	warmUp       time.Duration // of every echo measure
	window       time.Duration // of every echo measure
	upgrades     int
	sessions     int           // idle ones
	pushes       int           // to each of them
	memoryRounds int           // memory takes longest and varies least
	pause        time.Duration // between the last message and the reading of the memory
}

var (
	full = scale{rounds: 7, warmUp: 100 * time.Millisecond, window: 500 * time.Millisecond, upgrades: 2000, sessions: 8000, pushes: 20,
		memoryRounds: 3, pause: 3 * time.Second}
	// quick shows that everything works; its figures are not to be quoted.
	quick = scale{rounds: 1, warmUp: 50 * time.Millisecond, window: 150 * time.Millisecond, upgrades: 200, sessions: 500, pushes: 2,
		memoryRounds: 1, pause: 200 * time.Millisecond}
)

func (e scale) String() string {
	s := fmt.Sprintf("rounds: %d, idle sessions: %d", e.rounds, e.sessions)
	if e.window == quick.window {
		s += ", too quick to be quoted"
	}
	return s
}

// measure is one thing done to a target, and the figures that it yields.
type measure struct {
	name   string // for -measures
	rows   []string
	fresh  bool // needs a process that has done nothing yet
	rounds int
	run    func(context.Context, measured) ([]float64, error) // one figure per row; less is better
}

// measured is a running target.
type measured struct {
	addr netip.AddrPort
	push func() (*http.Request, error) // has it send to all its sessions; nil: it only relays
	used usage
}

// checkReady opens one session and echoes one message. A proxy, with all its processes, is ready when that has worked.
func (s measured) checkReady(ctx context.Context) error {
	l, err := newLoad(s.addr, "/")
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.open(ctx, 1); err != nil {
		return err
	}
	if s.push != nil {
		return l.pushed(ctx, s.push)
	}
	return l.echoOnce(ctx, newMessage(64))
}

const (
	rowStream  = "CPU per MiB streamed (µs)"
	rowUpgrade = "CPU per authenticated upgrade (µs)"
	rowFresh   = "Memory of the fresh process (MiB)"
	rowIdle    = "Memory per idle session (KiB)"
	rowP50     = "Echo at 64 connections, p50 (µs)"
	rowP99     = "Echo at 64 connections, p99 (µs)"
)

func rowMessage(size, conns int) string {
	name := fmt.Sprintf("%d B", size)
	if size >= 1024 {
		name = fmt.Sprintf("%d KiB", size/1024)
	}
	return fmt.Sprintf("CPU per message of %s, %d connections (µs)", name, conns)
}

func measures(e scale) []measure {
	var all []measure
	for _, size := range []int{64, 4096} {
		for _, conns := range []int{8, 64, 512} {
			all = append(all, measure{name: "message", rows: []string{rowMessage(size, conns)}, rounds: e.rounds, run: e.message(size, conns)})
		}
	}
	return append(all,
		measure{name: "stream", rows: []string{rowStream}, rounds: e.rounds, run: e.stream},
		measure{name: "latency", rows: []string{rowP50, rowP99}, rounds: e.rounds, run: e.latency},
		measure{name: "upgrade", rows: []string{rowUpgrade}, rounds: e.rounds, run: e.upgrade},
		measure{name: "push", rows: []string{rowPush}, rounds: e.rounds, fresh: true, run: e.push},
		measure{name: "memory", rows: []string{rowFresh, rowIdle}, rounds: e.memoryRounds, fresh: true, run: e.memory},
	)
}

func (e scale) message(size, conns int) func(context.Context, measured) ([]float64, error) {
	return func(ctx context.Context, s measured) ([]float64, error) {
		got, err := e.echo(ctx, s, newMessage(size), conns)
		if err != nil {
			return nil, err
		}
		return []float64{micros(got.cpu) / float64(len(got.latency))}, nil
	}
}

// stream echoes large messages: a MiB has gone through the proxy twice, there and back.
func (e scale) stream(ctx context.Context, s measured) ([]float64, error) {
	m := newMessage(256 << 10)
	got, err := e.echo(ctx, s, m, 8)
	if err != nil {
		return nil, err
	}
	return []float64{micros(got.cpu) / (float64(len(got.latency)*m.payload) / (1 << 20))}, nil
}

func (e scale) latency(ctx context.Context, s measured) ([]float64, error) {
	got, err := e.echo(ctx, s, newMessage(64), 64)
	if err != nil {
		return nil, err
	}
	slices.Sort(got.latency)
	return []float64{micros(quantile(got.latency, 0.50)), micros(quantile(got.latency, 0.99))}, nil
}

// echoes are the figures of one window.
type echoes struct {
	cpu     time.Duration   // that the proxy used
	latency []time.Duration // of each echo
}

func (e scale) echo(ctx context.Context, s measured, m message, conns int) (echoes, error) {
	l, err := newLoad(s.addr, "/")
	if err != nil {
		return echoes{}, err
	}
	defer l.close()
	if err := l.open(ctx, conns); err != nil {
		return echoes{}, err
	}
	var got echoes
	p := pingPong{message: m, warmUp: e.warmUp, window: e.window, mark: func() error {
		cpu, err := s.used.cpu()
		got.cpu = cpu - got.cpu
		return err
	}}
	if err := p.run(ctx, l); err != nil {
		return echoes{}, err
	}
	got.latency = p.latency
	return got, nil
}

// authPath is the path at which nginx authenticates; nginx.conf has it too. At other paths it does not, because auth_request
// keeps what it takes from its memory pool for as long as the session lasts. The other targets treat all paths alike.
const authPath = "/gated"

func (e scale) upgrade(ctx context.Context, s measured) ([]float64, error) {
	l, err := newLoad(s.addr, authPath)
	if err != nil {
		return nil, err
	}
	defer l.close()
	if err := l.churn(ctx, e.upgrades/10); err != nil { // warm-up: the pool of connections to the token endpoint fills
		return nil, err
	}
	before, err := s.cpuAtRest(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.churn(ctx, e.upgrades); err != nil {
		return nil, err
	}
	after, err := s.cpuAtRest(ctx)
	if err != nil {
		return nil, err
	}
	return []float64{micros(after-before) / float64(e.upgrades)}, nil
}

// cpuAtRest waits until the proxy has finished its work, the closing of the last sessions included, and returns its CPU time.
func (s measured) cpuAtRest(ctx context.Context) (time.Duration, error) {
	const still = 20 * time.Millisecond
	last, err := s.used.cpu()
	for range 50 {
		if err != nil {
			return 0, err
		}
		if err := wait(ctx, still); err != nil {
			return 0, err
		}
		before := last
		if last, err = s.used.cpu(); last-before < still/200 {
			break
		}
	}
	return last, err
}

// memory opens sessions on a process that has done nothing yet, lets each echo one message, waits, and reads how much
// the process has grown.
func (e scale) memory(ctx context.Context, s measured) ([]float64, error) {
	l, err := newLoad(s.addr, "/")
	if err != nil {
		return nil, err
	}
	defer l.close()
	before, err := s.used.memory()
	if err != nil {
		return nil, err
	}
	if err := l.open(ctx, e.sessions); err != nil {
		return nil, err
	}
	if err := l.echoOnce(ctx, newMessage(64)); err != nil {
		return nil, err
	}
	if err := wait(ctx, e.pause); err != nil {
		return nil, err
	}
	after, err := s.used.memory()
	if err != nil {
		return nil, err
	}
	return []float64{float64(before) / (1 << 20), float64(after-before) / 1024 / float64(e.sessions)}, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
