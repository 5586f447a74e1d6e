//go:build linux

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rowPush      = "CPU per delivered push of 64 B (µs)"
	pushPath     = "/push"                        // of the target that only writes
	tokenOfAPI   = "the-benchmark-is-an-operator" // ADMIN_TOKEN
	pushesBefore = 3                              // warm-up
)

// pushText is what is pushed: 64 bytes.
var pushText = strings.Repeat("0123456789abcdef", 4)

// pushFrame is the frame that every client must get: whole, text, unmasked (RFC 6455 section 5.2).
var pushFrame = append([]byte{0x81, byte(len(pushText))}, pushText...)

// pushTargets take part in the one measure of pushes, each with its own way to be told to send to everybody.
var pushTargets = []target{
	{name: "push", title: "Portcullis, loop, with /api", auth: true, only: "push memory", push: pushByAPI, command: func(e environment) (command, error) {
		return portcullis("RELAY_ENGINE=loop", "ADMIN_ADDR="+e.admin.String(), "ADMIN_TOKEN="+tokenOfAPI)(e)
	}},
	{name: "nchan", title: "nginx with nchan", only: "push", push: pushByNchan, command: nchan},
	{name: "write", title: "write(2) alone", only: "push", push: pushByWriter, command: library("writer")},
}

func pushByAPI(e environment) (*http.Request, error) {
	r, err := http.NewRequest(http.MethodPost, "http://"+e.admin.String()+"/api/messages?all=true", strings.NewReader(pushText))
	if err == nil {
		r.Header.Set("Authorization", "Bearer "+tokenOfAPI)
		r.Header.Set("Content-Type", "text/plain")
	}
	return r, err
}

func pushByNchan(e environment) (*http.Request, error) {
	return http.NewRequest(http.MethodPost, "http://"+e.listen.String()+"/publish", strings.NewReader(pushText))
}

func pushByWriter(e environment) (*http.Request, error) {
	return http.NewRequest(http.MethodGet, "http://"+e.listen.String()+pushPath, nil)
}

//go:embed nchan.conf
var nchanConf string

func nchan(e environment) (command, error) {
	if unix.Access(nchanModule, unix.R_OK) != nil {
		return command{}, fmt.Errorf("%s: %w", nchanModule, errAbsent)
	}
	path, err := find("nginx")
	if err != nil {
		return command{}, err
	}
	conf := filepath.Join(e.folder, "nchan.conf")
	return command{path: path, addr: e.listen, args: []string{"-e", "stderr", "-p", e.folder, "-c", conf}}, e.configure(conf, nchanConf)
}

// nchanModule is where Debian's libnginx-mod-nchan is.
const nchanModule = "/usr/lib/nginx/modules/ngx_nchan_module.so"

// push opens many idle sessions and pushes to all of them. It measures the CPU of the whole target, from a push to the last client
// that got it.
func (e scale) push(ctx context.Context, m measured) ([]float64, error) {
	l, err := newLoad(m.addr, "/")
	if err != nil {
		return nil, err
	}
	defer l.close()
	if err := l.open(ctx, e.sessions); err != nil {
		return nil, err
	}
	for range pushesBefore {
		if err := l.pushed(ctx, m.push); err != nil {
			return nil, err
		}
	}
	before, err := m.cpuAtRest(ctx)
	if err != nil {
		return nil, err
	}
	for range e.pushes {
		if err := l.pushed(ctx, m.push); err != nil {
			return nil, err
		}
	}
	after, err := m.cpuAtRest(ctx)
	if err != nil {
		return nil, err
	}
	return []float64{micros(after-before) / float64(e.pushes*e.sessions)}, nil
}

// pushed has something pushed and waits until every connection has it.
func (l *load) pushed(ctx context.Context, push func() (*http.Request, error)) error {
	r, err := push()
	if err != nil {
		return err
	}
	l.want = pushFrame
	left := len(l.conns)
	l.echoed = func(int, time.Time) error {
		left--
		return nil
	}
	answered := make(chan error, 1)
	go func() { answered <- ask(r.WithContext(ctx)) }()
	for left > 0 {
		if err := l.poll(ctx); err != nil {
			return fmt.Errorf("%d of %d pushes missing: %w", left, len(l.conns), err)
		}
	}
	return <-answered
}

func ask(r *http.Request) error {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("push: %s: %s", resp.Status, text)
	}
	return nil
}

// serveWriter is the measure of all: it does the handshake and, when asked, one write(2) for each socket.
func serveWriter(args []string) error {
	s, err := newEchoServer(netip.MustParseAddrPort(args[0]))
	if err != nil {
		return err
	}
	s.asked = func() error {
		for _, c := range s.conns {
			if c == nil || !c.upgraded {
				continue
			}
			if n, err := unix.Write(c.fd, pushFrame); n != len(pushFrame) {
				return errors.Join(errors.New("a socket does not take a push"), err)
			}
		}
		return nil
	}
	return s.serve()
}
