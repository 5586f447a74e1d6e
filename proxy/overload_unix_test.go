//go:build unix

package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
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
			g.awaitWaiting(t, clients)
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

func TestExhausted(t *testing.T) {
	dial := func(address string, err error) error {
		to, _ := net.ResolveTCPAddr("tcp", address)
		return fmt.Errorf("dial upstream: %w", &net.OpError{Op: "dial", Addr: to, Err: os.NewSyscallError("connect", err)})
	}
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"none", nil, false},
		{"descriptors of the process", dial("127.0.0.1:1", syscall.EMFILE), true},
		{"descriptors of the machine", dial("127.0.0.1:1", syscall.ENFILE), true},
		{"memory", dial("127.0.0.1:1", syscall.ENOMEM), true},
		{"memory for sockets", dial("[::1]:1", syscall.ENOBUFS), true},
		{"ports", dial("192.0.2.1:1", syscall.EADDRNOTAVAIL), true},
		{"ports, or no IPv6 at all", dial("[::1]:1", syscall.EADDRNOTAVAIL), false},
		{"refused", dial("127.0.0.1:1", syscall.ECONNREFUSED), false},
		{"unreachable", dial("127.0.0.1:1", syscall.ENETUNREACH), false},
		{"not resolved for want of a descriptor", &net.DNSError{Err: "dial udp 192.0.2.1:53: socket: too many open files"}, true},
		{"not resolved", &net.DNSError{Err: "no such host"}, false},
		{"a name that says so", &net.DNSError{Err: "no such host", Name: "too many open files"}, false},
		{"an address that is none", syscall.EADDRNOTAVAIL, false},
	} {
		if got := exhausted(tt.err); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
}

// failing is a listener that accepts nothing.
type failing struct {
	net.Listener
	err error
}

func (f failing) Accept() (net.Conn, error) { return nil, f.err }

func TestAcceptErrorsAreToldOnceASecond(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want int // in two seconds and a half
	}{
		{"no descriptor", &net.OpError{Op: "accept", Err: syscall.EMFILE}, 3},
		{"closed", net.ErrClosed, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := newJournal()
				l := newListener(failing{err: tt.err}, slog.New(slog.NewJSONHandler(j, nil)), nil)
				for range 500 { // as often as net/http tries
					if _, err := l.Accept(); !errors.Is(err, tt.err) {
						t.Fatalf("got %v", err)
					}
					time.Sleep(5 * time.Millisecond)
				}
				if got := j.count("accept"); got != tt.want {
					t.Errorf("%d lines, want %d", got, tt.want)
				}
			})
		})
	}
}
