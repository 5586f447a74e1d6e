package admin

import "github.com/prometheus/client_golang/prometheus"

// reloads tells of the settings, and when they were last read.
type reloads struct{ held, tried, succeeded prometheus.Gauge }

func newReloads() reloads {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "portcullis_config_" + name, Help: help})
	}
	return reloads{
		held:      gauge("last_reload_successful", "1 unless the settings had a mistake when they were last read."),
		tried:     gauge("last_reload_timestamp_seconds", "When the settings were last read."),
		succeeded: gauge("last_reload_success_timestamp_seconds", "When the settings that hold were read."),
	}
}

// Reloaded notes that the settings were read, and whether those are the ones that hold now.
func (m *Metrics) Reloaded(held bool) {
	m.reloads.tried.SetToCurrentTime()
	m.reloads.held.Set(0)
	if held {
		m.reloads.held.Set(1)
		m.reloads.succeeded.SetToCurrentTime()
	}
}
