package admin

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

var testKnown = Known{
	RefusalReasons: []string{"origin", "rate_address"},
	EndReasons:     map[string][]int{"closed": {1000, 1001}, "drain": {1001}},
}

func TestExposition(t *testing.T) {
	tests := []struct {
		name   string
		count  func(*Metrics)
		metric string
		want   string // the whole metric
	}{
		{
			name:   "known reasons are there at zero",
			count:  func(*Metrics) {},
			metric: "portcullis_upgrades_total",
			want: `
				# HELP portcullis_upgrades_total Upgrade requests answered, by result and reason.
				# TYPE portcullis_upgrades_total counter
				portcullis_upgrades_total{reason="",result="accepted"} 0
				portcullis_upgrades_total{reason="origin",result="refused"} 0
				portcullis_upgrades_total{reason="other",result="refused"} 0
				portcullis_upgrades_total{reason="rate_address",result="refused"} 0
			`,
		},
		{
			name: "upgrades",
			count: func(m *Metrics) {
				m.Upgraded("")
				m.Upgraded("")
				m.Refused("origin")
				m.Refused("accepted")
				m.Refused("")
			},
			metric: "portcullis_upgrades_total",
			want: `
				# HELP portcullis_upgrades_total Upgrade requests answered, by result and reason.
				# TYPE portcullis_upgrades_total counter
				portcullis_upgrades_total{reason="",result="accepted"} 2
				portcullis_upgrades_total{reason="origin",result="refused"} 1
				portcullis_upgrades_total{reason="other",result="refused"} 2
				portcullis_upgrades_total{reason="rate_address",result="refused"} 0
			`,
		},
		{
			name: "live sessions",
			count: func(m *Metrics) {
				m.SessionStarted("")
				m.SessionStarted("")
				m.SessionStarted("")
				m.SessionEnded(EndedSession{})
			},
			metric: "portcullis_sessions_live",
			want: `
				# HELP portcullis_sessions_live Sessions relayed now.
				# TYPE portcullis_sessions_live gauge
				portcullis_sessions_live 2
			`,
		},
		{
			name: "ended sessions",
			count: func(m *Metrics) {
				m.SessionEnded(EndedSession{Reason: "closed", Code: 1000})
				m.SessionEnded(EndedSession{Reason: "closed", Code: 4001})
				m.SessionEnded(EndedSession{Reason: "closed", Code: 4002})
				m.SessionEnded(EndedSession{Reason: "drain", Code: 1001})
				m.SessionEnded(EndedSession{Reason: "made up", Code: 1001})
			},
			metric: "portcullis_sessions_ended_total",
			want: `
				# HELP portcullis_sessions_ended_total Sessions ended, by reason and close code.
				# TYPE portcullis_sessions_ended_total counter
				portcullis_sessions_ended_total{code="1000",reason="closed"} 1
				portcullis_sessions_ended_total{code="1001",reason="closed"} 0
				portcullis_sessions_ended_total{code="1001",reason="drain"} 1
				portcullis_sessions_ended_total{code="1001",reason="other"} 1
				portcullis_sessions_ended_total{code="4xxx",reason="closed"} 2
			`,
		},
		{
			name: "messages by direction",
			count: func(m *Metrics) {
				m.SessionEnded(EndedSession{ClientMessages: 3, ClientBytes: 300, UpstreamMessages: 2, UpstreamBytes: 5e9})
				m.SessionEnded(EndedSession{ClientMessages: 1})
			},
			metric: "portcullis_messages_total",
			want: `
				# HELP portcullis_messages_total Complete data messages of ended sessions.
				# TYPE portcullis_messages_total counter
				portcullis_messages_total{direction="from_client"} 4
				portcullis_messages_total{direction="from_upstream"} 2
			`,
		},
		{
			name: "bytes by direction",
			count: func(m *Metrics) {
				m.SessionEnded(EndedSession{ClientMessages: 3, ClientBytes: 300, UpstreamMessages: 2, UpstreamBytes: 5e9})
				m.SessionEnded(EndedSession{ClientBytes: 1})
			},
			metric: "portcullis_message_bytes_total",
			want: `
				# HELP portcullis_message_bytes_total Payload bytes of ended sessions, as on the wire.
				# TYPE portcullis_message_bytes_total counter
				portcullis_message_bytes_total{direction="from_client"} 301
				portcullis_message_bytes_total{direction="from_upstream"} 5e+09
			`,
		},
		{
			name: "session durations",
			count: func(m *Metrics) {
				m.SessionEnded(EndedSession{Duration: 500 * time.Millisecond})
				m.SessionEnded(EndedSession{Duration: time.Minute})
				m.SessionEnded(EndedSession{Duration: 48 * time.Hour})
			},
			metric: "portcullis_session_duration_seconds",
			want: `
				# HELP portcullis_session_duration_seconds Length of ended sessions.
				# TYPE portcullis_session_duration_seconds histogram
				portcullis_session_duration_seconds_bucket{le="1"} 1
				portcullis_session_duration_seconds_bucket{le="5"} 1
				portcullis_session_duration_seconds_bucket{le="15"} 1
				portcullis_session_duration_seconds_bucket{le="60"} 2
				portcullis_session_duration_seconds_bucket{le="300"} 2
				portcullis_session_duration_seconds_bucket{le="900"} 2
				portcullis_session_duration_seconds_bucket{le="3600"} 2
				portcullis_session_duration_seconds_bucket{le="14400"} 2
				portcullis_session_duration_seconds_bucket{le="43200"} 2
				portcullis_session_duration_seconds_bucket{le="86400"} 2
				portcullis_session_duration_seconds_bucket{le="+Inf"} 3
				portcullis_session_duration_seconds_sum 172860.5
				portcullis_session_duration_seconds_count 3
			`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMetrics(testKnown)
			tt.count(m)
			if err := testutil.GatherAndCompare(m.Registry(), strings.NewReader(unindent(tt.want)), tt.metric); err != nil {
				t.Error(err)
			}
		})
	}
}

// unindent takes the tables' indentation off: the text format has none.
func unindent(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n") + "\n"
}

func TestCallsAreCountedByResult(t *testing.T) {
	m := NewMetrics(Known{})
	m.AuthCall(AuthAccepted, 3*time.Millisecond)
	m.AuthCall(AuthAccepted, 4*time.Millisecond)
	m.AuthCall(AuthUnavailable, time.Hour)
	m.AuthCall("made up", time.Second)
	m.UpstreamDial(DialTimeout, 5*time.Second)
	m.UpstreamDial("", time.Second)

	tests := []struct {
		metric, result string
		want           uint64
	}{
		{"portcullis_auth_call_duration_seconds", "accepted", 2},
		{"portcullis_auth_call_duration_seconds", "refused", 0},
		{"portcullis_auth_call_duration_seconds", "unavailable", 1},
		{"portcullis_auth_call_duration_seconds", "aborted", 0},
		{"portcullis_auth_call_duration_seconds", "other", 1},
		{"portcullis_upstream_dial_duration_seconds", "connected", 0},
		{"portcullis_upstream_dial_duration_seconds", "failed", 0},
		{"portcullis_upstream_dial_duration_seconds", "timeout", 1},
		{"portcullis_upstream_dial_duration_seconds", "handshake", 0},
		{"portcullis_upstream_dial_duration_seconds", "refused", 0},
		{"portcullis_upstream_dial_duration_seconds", "aborted", 0},
		{"portcullis_upstream_dial_duration_seconds", "other", 1},
	}
	for _, tt := range tests {
		t.Run(tt.metric+" "+tt.result, func(t *testing.T) {
			if got := histogramCount(t, m, tt.metric, tt.result); got != tt.want {
				t.Errorf("count %d, want %d", got, tt.want)
			}
		})
	}
}

func histogramCount(t *testing.T, m *Metrics, metric, result string) uint64 {
	t.Helper()
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != metric {
			continue
		}
		for _, series := range family.GetMetric() {
			if series.GetLabel()[0].GetValue() == result {
				return series.GetHistogram().GetSampleCount()
			}
		}
	}
	t.Fatalf("no series %s{result=%q}", metric, result)
	return 0
}

// A client chooses its close code, and whatever came to be used as a reason could hold its bytes: neither may make
// series, for those stay for the life of the process.
func TestHostileLabelValuesStayBounded(t *testing.T) {
	m := NewMetrics(testKnown)
	for code := range 6000 { // every range of codes and beyond
		hostile := fmt.Sprintf("x%d\xff\n\"}", code) // not UTF-8, which the client library panics on as a label
		m.Refused(hostile)
		m.AuthCall(hostile, time.Second)
		m.UpstreamDial(hostile, time.Second)
		m.SessionEnded(EndedSession{Reason: hostile, Code: code})
		m.SessionEnded(EndedSession{Reason: "closed", Code: -code})
		m.SessionEnded(EndedSession{Reason: "closed", Code: code})
	}
	tests := []struct {
		metric string
		want   int
	}{
		{"portcullis_upgrades_total", 1 + 2 + 1},
		{"portcullis_auth_call_duration_seconds", 5 + 1},
		{"portcullis_upstream_dial_duration_seconds", 7 + 1},
		{"portcullis_sessions_ended_total", 2*(17+4) + 1}, // closed and other with each code label, drain with none
	}
	for _, tt := range tests {
		t.Run(tt.metric, func(t *testing.T) {
			got, err := testutil.GatherAndCount(m.Registry(), tt.metric)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("%d series, want %d", got, tt.want)
			}
		})
	}
}

func TestCodeLabel(t *testing.T) {
	tests := []struct {
		name string
		code int
		want string
	}{
		{"no Close frame", 0, "none"},
		{"normal", 1000, "1000"},
		{"going away", 1001, "1001"},
		{"reserved without meaning", 1004, "other"},
		{"never on the wire, but in a log: no status", 1005, "1005"},
		{"never on the wire, but in a log: abnormal", 1006, "1006"},
		{"bad gateway", 1014, "1014"},
		{"never on the wire: TLS", 1015, "other"},
		{"unassigned", 2999, "other"},
		{"unauthorized", 3000, "3000"},
		{"unregistered", 3001, "3xxx"},
		{"forbidden", 3003, "3003"},
		{"timeout", 3008, "3008"},
		{"last of the libraries'", 3999, "3xxx"},
		{"first private", 4000, "4xxx"},
		{"last private", 4999, "4xxx"},
		{"above", 5000, "other"},
		{"largest on the wire", 65535, "other"},
		{"impossible", -1, "other"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := codeLabel(tt.code); got != tt.want {
				t.Errorf("codeLabel(%d) = %q, want %q", tt.code, got, tt.want)
			}
		})
	}
}

func TestExpositionFollowsConventions(t *testing.T) {
	m := NewMetrics(testKnown)
	problems, err := testutil.GatherAndLint(m.Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestBuildInfoTellsTheVersion(t *testing.T) {
	m := NewMetrics(Known{Version: "v1.2.3"})
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := make(map[string]string)
	for _, family := range families {
		if family.GetName() == "portcullis_build_info" {
			for _, label := range family.GetMetric()[0].GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
		}
	}
	if labels["version"] != "v1.2.3" || labels["go_version"] != runtime.Version() {
		t.Errorf("got %v, want version v1.2.3 and go_version %s", labels, runtime.Version())
	}
}

// The package comment is what an operator reads to write queries: it lists every series of ours and no other.
func TestPackageCommentListsEveryMetric(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`portcullis_[a-z_]+`).FindAllString(string(doc), -1)
	slices.Sort(want)

	m := NewMetrics(Known{EndReasons: map[string][]int{"drain": {1001}}})
	m.WatchTargets(func() []Target { return []Target{{"a:1", 2, true}, {"b:1", 0, false}} })
	m.WatchRoutes([]string{"", "CHAT"})
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, family := range families { // sorted by name
		if strings.HasPrefix(family.GetName(), "portcullis_") {
			got = append(got, family.GetName())
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("gathered   %q\ndocumented %q", got, want)
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	m := NewMetrics(testKnown)
	tests := []struct {
		name  string
		count func()
	}{
		{"accepted", func() { m.Upgraded("") }},
		{"refused", func() { m.Refused("origin") }},
		{"refused, unknown", func() { m.Refused("made up") }},
		{"auth call", func() { m.AuthCall(AuthRefused, time.Millisecond) }},
		{"upstream dial", func() { m.UpstreamDial(DialConnected, time.Millisecond) }},
		{"session", func() {
			m.SessionStarted("")
			m.SessionEnded(EndedSession{Reason: "closed", Code: 1000, ClientBytes: 1, Duration: time.Second})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := testing.AllocsPerRun(100, tt.count); got != 0 {
				t.Errorf("%v allocations, want 0", got)
			}
		})
	}
}

// What one session costs in metrics, all told: accepted, verified, dialled, started and ended. It leaves out the scrape.
func BenchmarkSession(b *testing.B) {
	m := NewMetrics(testKnown)
	b.ReportAllocs()
	for b.Loop() {
		m.AuthCall(AuthAccepted, time.Millisecond)
		m.UpstreamDial(DialConnected, time.Millisecond)
		m.Upgraded("")
		m.SessionStarted("")
		m.SessionEnded(EndedSession{Reason: "closed", Code: 1000, ClientMessages: 2, ClientBytes: 128, Duration: time.Minute})
	}
}
