package admin

import "github.com/prometheus/client_golang/prometheus"

// Target is one of the upstream's, as it is at the moment.
type Target struct {
	Name   string
	Live   int  // sessions, and handshakes and plain requests under way
	Usable bool // it gets new ones
}

// WatchTargets has targets say which there are. It is called once; those that are gone are told no more.
func (m *Metrics) WatchTargets(targets func() []Target) {
	m.registry.MustRegister(targetCollector(targets))
}

// targetCollector is a prometheus.Collector of targets, which come and go.
type targetCollector func() []Target

var (
	targetSessions = prometheus.NewDesc("portcullis_upstream_sessions", "Sessions of a target, and handshakes and plain requests under way.", []string{"target"}, nil)
	targetUsable   = prometheus.NewDesc("portcullis_upstream_usable", "1 while a target gets new sessions.", []string{"target"}, nil)
)

// Describe implements [prometheus.Collector].
func (targetCollector) Describe(to chan<- *prometheus.Desc) {
	to <- targetSessions
	to <- targetUsable
}

// Collect implements [prometheus.Collector].
func (c targetCollector) Collect(to chan<- prometheus.Metric) {
	for _, t := range c() {
		usable := 0.0
		if t.Usable {
			usable = 1
		}
		to <- prometheus.MustNewConstMetric(targetSessions, prometheus.GaugeValue, float64(t.Live), t.Name)
		to <- prometheus.MustNewConstMetric(targetUsable, prometheus.GaugeValue, usable, t.Name)
	}
}
