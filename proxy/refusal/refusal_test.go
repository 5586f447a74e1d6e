package refusal

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

func TestEveryReasonHasAnAnswer(t *testing.T) {
	silent := []Reason{Malformed, ProxyHead, UpstreamRefused, ClientGone}
	for reason, a := range answers {
		if (a.status == 0) != slices.Contains(silent, reason) || (a.text == "") != (a.status == 0) {
			t.Errorf("%s: status %d, text %q", reason, a.status, a.text)
		}
		if a.status == http.StatusServiceUnavailable && reason != RateGlobal && reason.retryAfter() == 0 {
			t.Errorf("%s: a 503 without Retry-After", reason)
		}
	}
	if got := len(Reasons()); got != len(answers) {
		t.Errorf("reasons: got %d, want %d", got, len(answers))
	}
}

func TestJitter(t *testing.T) {
	for _, tt := range []struct {
		wait             time.Duration
		least, most      int
		differentAnswers int
	}{
		{1, 1, 3, 2},
		{time.Second, 1, 4, 3},
		{1500 * time.Millisecond, 2, 5, 3},
		{time.Minute, 60, 92, 10},
	} {
		seen := make(map[int]bool)
		for range 1000 {
			got := jitter(tt.wait)
			if got < tt.least || got > tt.most {
				t.Fatalf("jitter(%v): got %d, want %d to %d", tt.wait, got, tt.least, tt.most)
			}
			seen[got] = true
		}
		if len(seen) < tt.differentAnswers {
			t.Errorf("jitter(%v): %d different answers in 1000, want %d", tt.wait, len(seen), tt.differentAnswers)
		}
	}
}

func TestLinesAreLimited(t *testing.T) {
	p := NewReporter(nil, nil)
	start := time.Now()
	for _, tt := range []struct {
		name    string
		why     Reason
		after   time.Duration
		allowed int // of 150
	}{
		{"a burst", Path, 0, 100},
		{"nothing yet", Path, 0, 0},
		{"half a second later", Path, 500 * time.Millisecond, 50},
		{"a second later", Path, 1500 * time.Millisecond, 100},
		{"of an overload one a second", Overload, 3 * time.Second, 1},
		{"which is not over", Overload, 3900 * time.Millisecond, 0},
		{"now it is", Overload, 4 * time.Second, 1},
		{"others have theirs", Path, 4 * time.Second, 99},
	} {
		allowed := 0
		for range 150 {
			if p.allows(tt.why, start.Add(tt.after)) {
				allowed++
			}
		}
		if allowed != tt.allowed {
			t.Errorf("%s: got %d, want %d", tt.name, allowed, tt.allowed)
		}
	}
}

// Every refusal can be a Close frame, with a code that may be sent and a reason that fits.
func TestCloseFrames(t *testing.T) {
	for reason := range answers {
		r := &Refusal{Reason: reason, RetryAfter: time.Hour}
		if reason == UpstreamRefused {
			r.Status = 404
		}
		code, wire := r.CloseFrame()
		if code == 0 {
			if r.StatusCode() != 0 {
				t.Errorf("%s has no code", reason)
			}
			continue
		}
		got, text, err := frame.ParseClose(wire[2:])
		if err != nil || got != code || code == 1014 || text == "" || len(text) > frame.MaxReason {
			t.Errorf("%s: Close %d %q, %v", reason, got, text, err)
		}
	}
}

func TestCloseCodes(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refusal Refusal
		code    int
	}{
		{"draining", Refusal{Reason: Draining}, 1001},
		{"denied", Refusal{Reason: TokenDenied}, 3003},
		{"overload", Refusal{Reason: Overload}, 1013},
		{"upstream not reached", Refusal{Reason: UpstreamDial}, 1013},
		{"upstream silent", Refusal{Reason: UpstreamTimeout}, 1013},
		{"upstream's nonsense", Refusal{Reason: UpstreamHandshake}, 1011},
		{"upstream's 401", Refusal{Reason: UpstreamRefused, Status: 401}, 1011},
		{"upstream's 429", Refusal{Reason: UpstreamRefused, Status: 429}, 1013},
		{"upstream's 500", Refusal{Reason: UpstreamRefused, Status: 500}, 1013},
		{"our fault", Refusal{Reason: Internal}, 1011},
		{"gone", Refusal{Reason: ClientGone}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.refusal.closeCode(); got != tt.code {
				t.Errorf("got %d, want %d", got, tt.code)
			}
		})
	}
}
