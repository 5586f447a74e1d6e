package proxy

import (
	"regexp"
	"strings"
	"testing"

	"portcullis/proxy/refusal"
)

// One request recursed until the descriptors were gone.
func TestGateThatIsItsOwnUpstream(t *testing.T) {
	const warning = "UPSTREAM_URL leads back to this gate: what is sent there comes in here again"
	t.Run("by HTTP", func(t *testing.T) {
		g := newGate(t, itself, nil)
		for range 2 {
			if a := g.send(t, handshake("/?token=good")); a.StatusCode != 508 || a.body != refusal.Loop.Text()+"\n" {
				t.Errorf("got %d %q, want 508", a.StatusCode, a.body)
			}
		}
		if looped, passedOn := g.refused(t, refusal.Loop), g.refused(t, refusal.UpstreamRefused); looped != 2 || passedOn != 2 {
			t.Errorf("counted %v loops and %v refusals of the upstream, want 2 and 2", looped, passedOn)
		}
		if line := g.journal.next(t, warning); line["level"] != "WARN" || g.journal.count(warning) != 1 {
			t.Errorf("%d lines, the first %v, want one WARN", g.journal.count(warning), line)
		}
	})
	t.Run("by Close frame", func(t *testing.T) {
		g := newGate(t, itself, refusingWithClose())
		code, reason := g.upgraded(t, handshake("/?token=good")).lastWords(t)
		if code != 1011 || reason != refusal.Loop.Text() {
			t.Errorf("got Close %d %q, want 1011", code, reason)
		}
	})
}

// Two gates in a row are no loop, whatever list comes with the request.
func TestGatesInARow(t *testing.T) {
	b := newBackend(t, nil)
	inner := newGate(t, b.url, nil)
	outer := newGate(t, "ws://"+inner.addr, func(c *Config) { c.Auth.TokenPass = true })
	outer.upgraded(t, handshake("/?token=good", "Portcullis-Via"+": First", "Portcullis-Via"+": second,Third"))
	got := strings.Join(b.next(t).Header["Portcullis-Via"], " and ")
	ids := regexp.MustCompile(`^First, second,Third, ([A-Z2-7]{26}), ([A-Z2-7]{26})$`).FindStringSubmatch(got)
	if ids == nil || ids[1] == ids[2] {
		t.Errorf("upstream got %q, want what came and two ids", got)
	}
}
