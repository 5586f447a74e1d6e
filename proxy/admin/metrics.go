package admin

import (
	"cmp"
	"maps"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Known names the reasons that are label values of their own, and what runs; every other reason is counted as "other".
type Known struct {
	RefusalReasons []string         // of [Metrics.Refused]
	PushDrops      []string         // of [Metrics.PushDropped]
	BusDrops       []string         // of [Metrics.BusDropped]
	EndReasons     map[string][]int // of [Metrics.SessionEnded], each with the codes that it usually comes with
	Version        string           // of the program; empty: what Go's build information says
}

// Results of [Metrics.AuthCall].
const (
	AuthAccepted    = "accepted"
	AuthRefused     = "refused"
	AuthUnavailable = "unavailable" // the verifier, not the credential, is at fault
	AuthOverload    = "overload"    // this side had nothing left to ask with: no descriptor, memory or port
	AuthAborted     = "aborted"     // the gate was closed first, or the session over
)

// Results of [Metrics.UpstreamDial].
const (
	DialConnected = "connected"
	DialFailed    = "failed"    // no connection: refused, unreachable, not resolved, TLS
	DialTimeout   = "timeout"   // no connection or no answer in time
	DialHandshake = "handshake" // an answer that is not a WebSocket handshake's
	DialRefused   = "refused"   // the upstream's own refusal
	DialOverload  = "overload"  // this side had nothing left to dial with: no descriptor, memory or port
	DialAborted   = "aborted"   // the client went away first
)

var (
	authResults = []string{AuthAccepted, AuthRefused, AuthUnavailable, AuthOverload, AuthAborted}
	dialResults = []string{DialConnected, DialFailed, DialTimeout, DialHandshake, DialRefused, DialOverload, DialAborted}

	// callBuckets resolve a call inside one data centre and still tell an AUTH_TIMEOUT of 3 s from a dial time-out of 5 s.
	callBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

	// sessionBuckets go from a page that reloads at once to a day, with the usual idle time-outs of what stands
	// in front (60 s, 5 min, 15 min, 1 h) as bounds: sessions that pile up below one of them were cut there.
	sessionBuckets = []float64{1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600}
)

// Metrics counts what the proxy does; the package comment lists the series. Its methods are safe for concurrent use
// and do not allocate once a series exists. The zero value is not usable.
type Metrics struct {
	registry *prometheus.Registry

	accepted prometheus.Counter
	refused  map[string]prometheus.Counter
	byRoute  *prometheus.CounterVec

	requests        *prometheus.CounterVec
	refusedRequests map[string]prometheus.Counter
	liveRequests    prometheus.Gauge

	live       prometheus.Gauge
	onRoute    *prometheus.GaugeVec
	ended      *prometheus.CounterVec
	endReasons map[string]string // a known reason to itself: what is absent is "other"
	duration   prometheus.Histogram

	fromClient, fromUpstream traffic

	detached       prometheus.Gauge
	resumptions    map[string]prometheus.Counter // returns, by what came of them
	resumptionLost prometheus.Counter
	instances      prometheus.Gauge
	alone          prometheus.Gauge
	busDropped     map[string]prometheus.Counter
	busMissed      prometheus.Counter
	redisCalls     map[string]prometheus.Observer
	kept           atomic.Pointer[func() float64] // nil: nothing keeps anything

	pushes      map[string]prometheus.Counter // by what became of them at first
	pushDropped map[string]prometheus.Counter // by why those that were queued came to nothing

	reloads reloads

	authCalls map[string]prometheus.Observer
	dials     map[string]prometheus.Observer
}

// traffic is one direction's counters.
type traffic struct{ messages, bytes prometheus.Counter }

// NewMetrics returns metrics at zero, in a registry of their own.
func NewMetrics(known Known) *Metrics {
	var (
		upgrades = newCounterVec("upgrades_total", "Upgrade requests answered, by result and reason.", "result", "reason")
		byRoute  = newCounterVec("route_upgrades_total", "Upgrade requests to a route, by result.", "route", "result")
		requests = newCounterVec("http_requests_total", "Plain requests, by the class of the upstream's answer, or by why there is none or not all of it.", "code", "reason")
		messages = newCounterVec("messages_total", "Complete data messages of ended sessions.", "direction")
		bytes    = newCounterVec("message_bytes_total", "Payload bytes of ended sessions, as on the wire.", "direction")
		pushes   = newCounterVec("pushes_total", "Pushes, one for each session, by whether its queue took them.", "result")
		dropped  = newCounterVec("pushes_dropped_total", "Pushes that were queued for a session and not delivered, by reason.", "reason")
		resumed  = newCounterVec("resumptions_total", "Clients that came back to their session, by result.", "result")
		onBus    = newCounterVec("bus_dropped_total", "Messages on the bus of the fleet that were dropped, by reason.", "reason")
		redis    = newHistogramVec("redis_call_duration_seconds", "Time Redis took for a call of the fleet.", "result")
		auth     = newHistogramVec("auth_call_duration_seconds", "Time a verifier took for one credential.", "result")
		dial     = newHistogramVec("upstream_dial_duration_seconds", "Time to reach an upstream, or to fail to.", "result")
	)
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		reloads:  newReloads(),

		accepted: upgrades.WithLabelValues("accepted", ""),
		refused: resolve(known.RefusalReasons, func(reason string) prometheus.Counter {
			return upgrades.WithLabelValues("refused", reason)
		}),
		byRoute: byRoute,

		requests: requests,
		refusedRequests: resolve(known.RefusalReasons, func(reason string) prometheus.Counter {
			return requests.WithLabelValues("", reason)
		}),
		liveRequests: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "portcullis_http_requests_live", Help: "Plain requests under way with the upstream.",
		}),

		live: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "portcullis_sessions_live", Help: "Sessions relayed now.",
		}),
		onRoute: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "portcullis_route_sessions", Help: "Sessions of a route.",
		}, []string{"route"}),
		ended:      newCounterVec("sessions_ended_total", "Sessions ended, by reason and close code.", "reason", "code"),
		endReasons: resolve(slices.Collect(maps.Keys(known.EndReasons)), func(reason string) string { return reason }),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "portcullis_session_duration_seconds", Help: "Length of ended sessions.", Buckets: sessionBuckets,
		}),

		fromClient:   traffic{messages.WithLabelValues("from_client"), bytes.WithLabelValues("from_client")},
		fromUpstream: traffic{messages.WithLabelValues("from_upstream"), bytes.WithLabelValues("from_upstream")},

		detached: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "portcullis_sessions_detached", Help: "Sessions whose client is away and may come back.",
		}),
		resumptions: resolve(resumeResults, func(result string) prometheus.Counter { return resumed.WithLabelValues(result) }),
		busDropped:  resolve(known.BusDrops, func(reason string) prometheus.Counter { return onBus.WithLabelValues(reason) }),
		busMissed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portcullis_bus_missed_total", Help: "Messages of the bus of the fleet that have not come, by their numbers.",
		}),
		instances: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "portcullis_fleet_instances", Help: "Instances of the fleet that live, as last known; 0 without one.",
		}),
		alone: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "portcullis_fleet_alone", Help: "1 while this instance holds its share of every limit, since Redis does not answer.",
		}),
		redisCalls: resolve(redisResults, func(result string) prometheus.Observer { return redis.WithLabelValues(result) }),
		resumptionLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portcullis_resumptions_lost_total", Help: "Open sessions that are not resumable any more because RESUME_TOTAL was used up.",
		}),

		pushes:      resolve(pushResults, func(result string) prometheus.Counter { return pushes.WithLabelValues(result) }),
		pushDropped: resolve(known.PushDrops, func(reason string) prometheus.Counter { return dropped.WithLabelValues(reason) }),

		authCalls: resolve(authResults, func(result string) prometheus.Observer { return auth.WithLabelValues(result) }),
		dials:     resolve(dialResults, func(result string) prometheus.Observer { return dial.WithLabelValues(result) }),
	}
	// At zero from the start, or rate and increase would miss the first of each.
	for _, status := range []int{200, 300, 400, 500} {
		requests.WithLabelValues(codeClass(status), "")
	}
	for reason, codes := range known.EndReasons {
		for _, code := range codes {
			m.ended.WithLabelValues(reason, codeLabel(code))
		}
	}
	kept := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "portcullis_resume_kept_bytes", Help: "Bytes that resumable sessions keep, of RESUME_TOTAL.",
	}, func() float64 {
		if kept := m.kept.Load(); kept != nil {
			return (*kept)()
		}
		return 0
	})
	m.registry.MustRegister(
		m.reloads.held, m.reloads.tried, m.reloads.succeeded,
		upgrades, byRoute, requests, m.liveRequests, m.live, m.onRoute, m.ended, m.duration, messages, bytes, m.detached, resumed, m.resumptionLost, kept, m.instances, m.alone, onBus, m.busMissed, redis, pushes, dropped, auth, dial, buildInfo(known.Version),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Registry holds every series, for tests and for metrics of the embedding program.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Upgraded counts an upgrade request to a route answered with 101.
func (m *Metrics) Upgraded(route string) {
	m.accepted.Inc()
	m.byRoute.WithLabelValues(routeLabel(route), "accepted").Inc()
}

// RouteRefused counts one to a route answered with anything else.
func (m *Metrics) RouteRefused(route string) {
	m.byRoute.WithLabelValues(routeLabel(route), "refused").Inc()
}

// routeLabel is the label of a route, of which the only one has no name.
func routeLabel(route string) string { return cmp.Or(route, "default") }

// WatchRoutes has those routes at zero.
func (m *Metrics) WatchRoutes(names []string) {
	for _, name := range names {
		m.byRoute.WithLabelValues(routeLabel(name), "accepted")
		m.byRoute.WithLabelValues(routeLabel(name), "refused")
		m.onRoute.WithLabelValues(routeLabel(name))
	}
}

// Refused counts an upgrade request answered with anything else.
func (m *Metrics) Refused(reason string) { childOf(m.refused, reason).Inc() }

// SessionStarted counts a session of a route as live. Each call is followed by exactly one of SessionEnded.
func (m *Metrics) SessionStarted(route string) {
	m.live.Inc()
	m.onRoute.WithLabelValues(routeLabel(route)).Inc()
}

// EndedSession is what a session leaves behind.
type EndedSession struct {
	Route  string
	Reason string
	Code   int // the close code that ended it; 0: none

	ClientMessages, ClientBytes     int64 // complete data messages from the client, and their payload
	UpstreamMessages, UpstreamBytes int64

	Duration time.Duration
}

// SessionEnded takes a session out of the live ones and adds up what it did.
func (m *Metrics) SessionEnded(s EndedSession) {
	m.live.Dec()
	m.onRoute.WithLabelValues(routeLabel(s.Route)).Dec()
	m.ended.WithLabelValues(childOf(m.endReasons, s.Reason), codeLabel(s.Code)).Inc()
	m.duration.Observe(s.Duration.Seconds())
	m.fromClient.add(s.ClientMessages, s.ClientBytes)
	m.fromUpstream.add(s.UpstreamMessages, s.UpstreamBytes)
}

var redisResults = []string{"answered", "failed"}

// FleetCall counts one call of Redis.
func (m *Metrics) FleetCall(answered bool, d time.Duration) {
	result := redisResults[1]
	if answered {
		result = redisResults[0]
	}
	m.redisCalls[result].Observe(d.Seconds())
}

// BusDropped counts a message on the bus that nobody obeys.
func (m *Metrics) BusDropped(reason string) { childOf(m.busDropped, reason).Inc() }

// BusMissed counts messages of the bus that have not come.
func (m *Metrics) BusMissed(n int64) { m.busMissed.Add(float64(n)) }

// FleetAlone notes whether this instance holds its share of every limit.
func (m *Metrics) FleetAlone(alone bool) {
	m.alone.Set(0)
	if alone {
		m.alone.Set(1)
	}
}

// FleetSize notes how many instances live.
func (m *Metrics) FleetSize(n int) { m.instances.Set(float64(n)) }

// Results of [Metrics.Resumption].
const (
	Resumed       = "resumed"
	ResumeStale   = "stale"
	ResumeUnknown = "unknown"
	ResumeRefused = "refused" // by a cap of the address, or for want of something on this side
)

var resumeResults = []string{Resumed, ResumeStale, ResumeUnknown, ResumeRefused}

// Resumption counts a client that came back to a session; result is Resumed or another of its constants.
func (m *Metrics) Resumption(result string) { childOf(m.resumptions, result).Inc() }

// Detached adds n to the sessions whose client is away.
func (m *Metrics) Detached(n int) { m.detached.Add(float64(n)) }

// ResumptionLost counts an open session that is not resumable any more.
func (m *Metrics) ResumptionLost() { m.resumptionLost.Inc() }

// WatchKept has kept say how many bytes resumable sessions keep.
func (m *Metrics) WatchKept(kept func() float64) { m.kept.Store(&kept) }

// Results of pushes.
var pushResults = []string{"queued", "ending", "too_slow", "extension", "full"}

// PushedSessions is how many sessions a push has reached, and not reached.
type PushedSessions struct{ Reached, Ending, TooSlow, Extension, Full int }

// Pushed counts a push, once for each session.
func (m *Metrics) Pushed(p PushedSessions) {
	for i, n := range []int{p.Reached, p.Ending, p.TooSlow, p.Extension, p.Full} {
		m.pushes[pushResults[i]].Add(float64(n))
	}
}

// PushDropped counts a push that was queued for a session and is not delivered.
func (m *Metrics) PushDropped(reason string) { childOf(m.pushDropped, reason).Inc() }

func (t traffic) add(messages, bytes int64) {
	t.messages.Add(float64(messages))
	t.bytes.Add(float64(bytes))
}

// AuthCall counts one call of a verifier; result is AuthAccepted or another of its constants.
func (m *Metrics) AuthCall(result string, d time.Duration) {
	childOf(m.authCalls, result).Observe(d.Seconds())
}

// UpstreamDial counts one attempt to reach an upstream; result is DialConnected or another of its constants.
// For a connection made d is the dial alone (TCP and TLS), for any other result the time until that was known.
func (m *Metrics) UpstreamDial(result string, d time.Duration) {
	childOf(m.dials, result).Observe(d.Seconds())
}

func newCounterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "portcullis_" + name, Help: help}, labels)
}

func newHistogramVec(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "portcullis_" + name, Help: help, Buckets: callBuckets,
	}, labels)
}

// buildInfo is a constant whose labels say what runs; a label is empty where the build did not record it.
func buildInfo(version string) prometheus.Collector {
	labels := prometheus.Labels{"version": version, "revision": "", "go_version": ""}
	if info, ok := debug.ReadBuildInfo(); ok {
		labels["version"], labels["go_version"] = cmp.Or(version, info.Main.Version), info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				labels["revision"] = s.Value
			}
		}
	}
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "portcullis_build_info", Help: "What runs; always 1.", ConstLabels: labels,
	}, func() float64 { return 1 })
}
