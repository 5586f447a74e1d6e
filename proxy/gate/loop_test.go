package gate

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"portcullis/proxy/refusal"
)

func TestCheckLoop(t *testing.T) {
	g := newGate(t)
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
		{"ours", []string{g.loops.id}, refusal.Loop},
		{"ours among others", []string{ids(14) + "," + g.loops.id, ids(1)}, refusal.Loop},
		{"ours in other case is another's", []string{strings.ToLower(g.loops.id)}, ""},
		{"empty", []string{""}, refusal.Handshake},
		{"empty element", []string{"a,,b"}, refusal.Handshake},
		{"two words", []string{"a b"}, refusal.Handshake},
		{"as Via has it", []string{"1.1 gate (x)"}, refusal.Handshake},
		{"64 bytes", []string{strings.Repeat("a", 64)}, ""},
		{"65 bytes", []string{strings.Repeat("a", 65)}, refusal.Handshake},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got refusal.Reason
			if no := g.checkLoop(&upgrade{route: g.routes[0], Request: &Request{HTTP: &http.Request{Header: http.Header{viaHeader: tt.lines}}}}); no != nil {
				got = no.Reason
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
