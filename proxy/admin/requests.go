package admin

import "strconv"

// HTTPBegan counts a plain request as under way with the upstream. Each call is followed by exactly one of HTTPEnded.
func (m *Metrics) HTTPBegan() { m.liveRequests.Inc() }

// HTTPEnded takes a plain request out of those under way.
func (m *Metrics) HTTPEnded() { m.liveRequests.Dec() }

// HTTPAnswered counts a plain request with the status of the upstream's answer, and why that broke off; "": it is whole.
func (m *Metrics) HTTPAnswered(status int, why string) {
	m.requests.WithLabelValues(codeClass(status), why).Inc()
}

// HTTPRefused counts a plain request that was refused.
func (m *Metrics) HTTPRefused(reason string) { childOf(m.refusedRequests, reason).Inc() }

// codeClass is the first digit of a status, as in 2xx.
func codeClass(status int) string { return strconv.Itoa(status/100) + "xx" }
