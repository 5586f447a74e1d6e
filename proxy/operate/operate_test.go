package operate

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "an-operators-token"

// serve answers calls as an instance would, and returns whom to ask and what was asked.
func serve(t *testing.T, answer func(query func(string) string, body string) string) (c Config, out *strings.Builder, asked *[]string) {
	t.Helper()
	asked, out = new([]string), new(strings.Builder)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			t.Errorf("%s %s without the token", r.Method, r.URL)
		}
		body, _ := io.ReadAll(r.Body)
		*asked = append(*asked, r.Method+" "+r.URL.String()+" "+r.Header.Get("Content-Type"))
		io.WriteString(w, answer(r.URL.Query().Get, string(body)))
	}))
	t.Cleanup(s.Close)
	return Config{Addr: s.Listener.Addr().String(), Token: token, Out: out}, out, asked
}

// A list goes on from page to page, as far as it is wanted and no further.
func TestSessionsFollowsPages(t *testing.T) {
	// Five sessions, two to a page at most.
	pages := func(query func(string) string, _ string) string {
		var first, limit int
		fmt.Sscan(query("cursor"), &first)
		fmt.Sscan(query("limit"), &limit)
		var page []string
		for n := first; n < min(first+min(limit, 2), 5); n++ {
			page = append(page, fmt.Sprintf(`{"id":"s%d"}`, n))
		}
		next := "null"
		if end := first + len(page); end < 5 {
			next = fmt.Sprintf(`"%d"`, end)
		}
		return fmt.Sprintf(`{"sessions":[%s],"next":%s}`, strings.Join(page, ","), next)
	}
	for _, tt := range []struct {
		args        []string
		ids, limits string
	}{
		{nil, "s0 s1 s2 s3 s4", "1000 1000 1000"},
		{[]string{"-limit", "1"}, "s0", "1"},
		{[]string{"-limit", "2"}, "s0 s1", "2"},
		{[]string{"-limit", "3"}, "s0 s1 s2", "3 1"},
		{[]string{"-limit", "9"}, "s0 s1 s2 s3 s4", "9 7 5"},
	} {
		var limits []string
		c, out, _ := serve(t, func(query func(string) string, body string) string {
			limits = append(limits, query("limit"))
			if query("subject") != "alice" {
				t.Errorf("%q: a page without the filter", tt.args)
			}
			return pages(query, body)
		})
		if err := Run(t.Context(), c, "sessions", append([]string{"-json", "-subject", "alice"}, tt.args...)); err != nil {
			t.Errorf("%q: %v", tt.args, err)
		}
		var ids []string
		for line := range strings.Lines(out.String()) {
			_, id, _ := strings.Cut(line, `"id":"`)
			ids = append(ids, id[:2])
		}
		if got := strings.Join(ids, " "); got != tt.ids || strings.Join(limits, " ") != tt.limits {
			t.Errorf("%q: got %s by pages of %v, want %s by %s", tt.args, got, limits, tt.ids, tt.limits)
		}
	}
}

// A message is the argument, also an empty one, or what is read where there is none.
func TestSendReadsMessage(t *testing.T) {
	for _, tt := range []struct {
		name, in, want, kind string
		args                 []string
	}{
		{"argument", "not this", "hello", "text/plain; charset=utf-8", []string{"hello"}},
		{"empty argument", "not this", "", "text/plain; charset=utf-8", []string{""}},
		{"input", "from a pipe\n", "from a pipe\n", "text/plain; charset=utf-8", nil},
		{"binary input", "\x00\xff", "\x00\xff", "application/octet-stream", []string{"-binary"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, out, asked := serve(t, func(_ func(string) string, body string) string {
				if body != tt.want {
					t.Errorf("sent %q, want %q", body, tt.want)
				}
				return `{"reached":2,"ending":1,"too_slow":0,"extension":0}`
			})
			c.In = strings.NewReader(tt.in)
			if err := Run(t.Context(), c, "send", append([]string{"-group", "query:room:a b"}, tt.args...)); err != nil {
				t.Fatal(err)
			}
			if want := []string{"POST /api/messages?group=query%3Aroom%3Aa+b " + tt.kind}; !slices.Equal(*asked, want) {
				t.Errorf("asked %q, want %q", *asked, want)
			}
			if want := "sent to 2 sessions, not to 1: 1 on their way out, 0 too slow, 0 with an extension that the gate does not know, 0 with a full buffer\n"; out.String() != want {
				t.Errorf("printed %q, want %q", out, want)
			}
		})
	}
}

// Nothing that a client or a verifier has chosen drives the terminal of whoever looks.
func TestTableIsPrintable(t *testing.T) {
	c, out, _ := serve(t, func(func(string) string, string) string {
		return `{"sessions":[{"id":"a","subject":"\u001b[2J\nb","path":"/\u009b1m","groups":["query:room:\u202e"]}],"next":null}`
	})
	if err := Run(t.Context(), c, "sessions", nil); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\u009b\u202e") || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("printed %q", out)
	}
}

// What is wrong with a command is told before anybody is asked.
func TestWrongUsage(t *testing.T) {
	c, _, asked := serve(t, func(func(string) string, string) string { return "{}" })
	for _, args := range [][]string{
		{"sessions", "a", "b"}, {"sessions", "-subject", "a", "b"}, {"sessions", "-limit", "-1"}, {"sessions", "-limit", "x"},
		{"kick"}, {"kick", "a", "b"}, {"kick", "-all", "a"}, {"kick", "-subject", "a", "b"}, {"kick", "-for", "1m"},
		{"send", "hello"}, {"send", "-except", "a", "hello"}, {"send", "-all", "a", "b"}, {"send", "-all", "\xff"}, {"other"},
	} {
		err := Run(t.Context(), c, args[0], args[1:])
		if _, usage := errors.AsType[*UsageError](err); !usage {
			t.Errorf("%q: %v, want a mistake in usage", args, err)
		}
	}
	if len(*asked) > 0 {
		t.Errorf("asked %q", *asked)
	}
}
