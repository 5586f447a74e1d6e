//go:build unix

package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/proxy/refusal"
	"portcullis/ratelimit"
)

// starve leaves this process no descriptor to open, until fed is called or the test ends.
func starve(t *testing.T) (fed func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 3 // which are open: nothing that is closed meanwhile makes room
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	fed = func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }
	t.Cleanup(fed)
	return fed
}

// A process without descriptors blames neither the upstream nor the verifier, to whoever asks, in the log or in the metrics.
func TestOwnExhaustionIsOverload(t *testing.T) {
	const clients = 20 // more than the breaker takes
	for _, tt := range []struct {
		name string
		edit func(*Config)
	}{
		{"dial", func(c *Config) { c.Auth.Mode, c.Auth.URL = "none", "" }},
		{"dial by name", func(c *Config) {
			c.Auth.Mode, c.Auth.URL = "none", ""
			c.Upstream.URL = strings.Replace(c.Upstream.URL, "127.0.0.1", "localhost", 1)
			net.LookupHost("localhost") // has /etc/hosts read, as it is in a process that runs
		}},
		{"verifier", func(*Config) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t, newEcho(t), func(c *Config) {
				c.Limits = ratelimit.Config{}
				tt.edit(c)
			})
			var conns []net.Conn
			for range clients {
				conns = append(conns, g.dial(t))
			}
			g.awaitPending(t, clients)
			began := time.Now()
			fed := starve(t)
			for _, conn := range conns {
				io.WriteString(conn, handshake("/?token=good"))
				a := readAnswer(t, conn)
				if a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || a.body != "this server is overloaded\n" {
					t.Fatalf("got %d %q, want 503 (%v)", a.StatusCode, a.body, g.journal.next(t, "refused"))
				}
			}
			fed()
			took := time.Since(began)
			line := g.journal.next(t, "refused")
			if line["reason"] != "overload" || line["level"] != "WARN" || !strings.Contains(fmt.Sprint(line["error"]), "too many open files") {
				t.Errorf("line: got %v, want a warning of the overload, and its cause", line)
			}
			if n, most := g.journal.count("refused"), 1+int(took/time.Second); n > most {
				t.Errorf("%d lines in %v, want %d", n, took, most)
			}
			if got := g.refused(t, refusal.Overload); got != clients {
				t.Errorf("counted %v times, want %d", got, clients)
			}
			echoes(t, g.connect(t, "/?token=good", nil), "as before")
		})
	}
}
