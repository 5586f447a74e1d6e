package probe

import (
	"context"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var timing = regexp.MustCompile(`after [0-9.]+(ns|µs|ms|s)\b`)

// probe runs one probe that must not hang. It returns what was printed, with "after T" for times, and the error's text.
func probe(t *testing.T, c Config) (out, failure string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var printed strings.Builder
	c.Out = &printed
	if err := Run(ctx, c); err != nil {
		failure = err.Error()
	}
	checkText(t, "output", strings.ReplaceAll(printed.String(), "\n", ""))
	checkText(t, "error", failure)
	for line := range strings.Lines(printed.String()) {
		if n := utf8.RuneCountInString(line); n > maxText+60 {
			t.Errorf("a line of %d characters: %s", n, line)
		}
	}
	if n := utf8.RuneCountInString(failure); n > maxText+60 {
		t.Errorf("an error of %d characters: %s", n, failure)
	}
	return timing.ReplaceAllString(printed.String(), "after T"), failure
}

// checkText fails the test if text could do more to a terminal than be read.
func checkText(t *testing.T, what, text string) {
	t.Helper()
	for _, r := range text {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			t.Errorf("%s holds %U: %q", what, r, text)
			return
		}
	}
}

// serve accepts connections until the test ends and hands each to handle, which must return once its connection is closed.
// It returns host:port.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			handle(conn) // one after another: a probe opens one connection
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-stopped
	})
	return listener.Addr().String()
}

// closedPort is the host:port of nobody: it was free a moment ago.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
