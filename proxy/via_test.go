package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"portcullis/proxy/refusal"
	"portcullis/upstream"
)

// behindItself has a gate for its own upstream.
func behindItself(t *testing.T, edit func(*Config)) *gate {
	t.Helper()
	elsewhere := newBackend(t, nil)
	g := newGate(t, elsewhere.url, edit)
	c := defaults(t).Upstream
	c.URL = "ws://" + g.addr
	var err error
	if g.Proxy.upstream, err = upstream.New(c); err != nil { // its address is known only now
		t.Fatal(err)
	}
	return g
}

// One request recursed until the descriptors were gone.
func TestGateThatIsItsOwnUpstream(t *testing.T) {
	const warning = "UPSTREAM_URL leads back to this gate: what is sent there comes in here again"
	t.Run("by HTTP", func(t *testing.T) {
		g := behindItself(t, nil)
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
		g := behindItself(t, refusingWithClose())
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
	outer.upgraded(t, handshake("/?token=good", viaHeader+": First", viaHeader+": second,Third"))
	want := strings.Join([]string{"First", "second,Third", outer.id, inner.id}, ", ")
	if got := b.next(t).Header[viaHeader]; len(got) != 1 || got[0] != want {
		t.Errorf("upstream got %q, want %q", got, want)
	}
	if outer.id == inner.id || len(inner.id) > maxViaID {
		t.Errorf("ids %q and %q", outer.id, inner.id)
	}
}

func TestCheckLoop(t *testing.T) {
	g := newGate(t, newBackend(t, nil).url, nil)
	ids := func(n int) string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("GATE%d", i)
		}
		return strings.Join(list, ", ")
	}
	for _, tt := range []struct {
		name  string
		lines []string
		want  refusal.Reason
	}{
		{"none", nil, ""},
		{"another", []string{ids(1)}, ""},
		{"15 others", []string{ids(15)}, ""},
		{"16 others: ours does not fit", []string{ids(16)}, refusal.Loop},
		{"16 in two lines", []string{ids(8), ids(8)}, refusal.Loop},
		{"a thousand, the last malformed", []string{ids(1000) + ", ?;"}, refusal.Loop},
		{"ours", []string{g.id}, refusal.Loop},
		{"ours among others", []string{ids(14) + "," + g.id, ids(1)}, refusal.Loop},
		{"ours in other case is another's", []string{strings.ToLower(g.id)}, ""},
		{"empty", []string{""}, refusal.Handshake},
		{"empty element", []string{"a,,b"}, refusal.Handshake},
		{"two words", []string{"a b"}, refusal.Handshake},
		{"as Via has it", []string{"1.1 gate (x)"}, refusal.Handshake},
		{"64 bytes", []string{strings.Repeat("a", 64)}, ""},
		{"65 bytes", []string{strings.Repeat("a", 65)}, refusal.Handshake},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got refusal.Reason
			if no := g.checkLoop(&upgrade{r: &http.Request{Header: http.Header{viaHeader: tt.lines}}}); no != nil {
				got = no.Reason
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
