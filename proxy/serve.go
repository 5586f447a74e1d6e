package proxy

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"portcullis/proxy/certificate"
	"portcullis/proxy/clientip"
	"portcullis/proxy/refusal"
)

const (
	// headerTimeout is for a client to send its request line and headers, and before that its TLS handshake.
	headerTimeout = 10 * time.Second
	// answerTimeout is for a client to take an answer, beyond the time that the steps take.
	answerTimeout = 10 * time.Second
	// idleTimeout is between two requests of one connection, of which there are none.
	idleTimeout = time.Second
	// maxHeaderBytes leaves room for the longest token beside a browser's cookies.
	maxHeaderBytes = 64 << 10
	// cutTimeout is for what was cut to notice.
	cutTimeout = time.Second
)

// newServer compiles the part of c that concerns the listener.
func (p *Proxy) newServer(c *Config) (*http.Server, error) {
	// The steps that wait: for a failure token, for the verifier to have time and to answer, for the dial and the upstream.
	steps := 3*c.Auth.Timeout + c.Upstream.DialTimeout + c.Upstream.HandshakeTimeout
	s := &http.Server{
		Handler:           p,
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: headerTimeout,
		// ReadTimeout, when it passes, ends the request's context as a client that went away does: it must not pass before the
		// steps are through. It is there for requests with a body.
		ReadTimeout:                  headerTimeout + steps + answerTimeout,
		WriteTimeout:                 steps + answerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true, // OPTIONS * is refused like any other
		ErrorLog:                     slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return p.base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, marked(c))
		},
		ConnState: p.connState,
	}
	s.Protocols.SetHTTP1(true) // an HTTP/2 connection cannot be taken over
	if c.TLSCertFile == "" && c.TLSKeyFile == "" {
		return s, nil
	}
	pair, err := certificate.New(c.TLSCertFile, c.TLSKeyFile)
	if err != nil {
		return nil, err
	}
	pair.Warn = func(err error) { p.log.Warn("the certificate needs care", "error", err) }
	p.certificate = pair
	s.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: pair.Get,
	}
	return s, nil
}

// Serve accepts connections from l until Drain or Cut, which make it return nil, or until l fails. It closes l. It is called
// once.
func (p *Proxy) Serve(l net.Listener) error {
	p.mu.Lock()
	p.listener = l
	closing := p.closing
	p.mu.Unlock()
	if closing {
		l.Close()
		return nil
	}
	err := error(nil)
	if l = newListener(l, p.log, p.waiting); p.certificate != nil {
		watching, stop := context.WithCancel(p.base)
		defer stop()
		go p.certificate.Watch(watching)
		err = p.server.ServeTLS(l, "", "")
	} else {
		err = p.server.Serve(l)
	}
	if p.isClosing() {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

// Drain ends the life of p in order. It returns nil when all is over, and an error when it cut what was left: because
// DRAIN_TIMEOUT ran out, ctx ended or Cut was called.
//
//  1. For DRAIN_DELAY all goes on as before. The caller has /readyz say 503 by now.
//  2. The listener closes. Requests in progress finish or get 503; there are no new ones.
//  3. Sessions get Close 1001, spread over the first half of DRAIN_TIMEOUT.
//  4. When the last has ended, what is left are connections that never asked for anything. They are closed.
func (p *Proxy) Drain(ctx context.Context) error {
	defer p.Cut()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.base, cancel)()

	select {
	case <-time.After(p.drainDelay):
	case <-ctx.Done():
		return fmt.Errorf("drain: %w", ctx.Err())
	}
	p.close()
	ctx, cancel = context.WithTimeout(ctx, p.drainTimeout)
	defer cancel()
	p.relay.Drain(ctx, p.drainTimeout/2)
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("drain: %d sessions left: %w", p.relay.Len(), err)
	}
	return nil
}

// Cut ends everything at once: requests, sessions, Serve and Drain. It may be called at any time, and again.
func (p *Proxy) Cut() {
	p.close()
	p.cut()
	p.server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cutTimeout)
	defer cancel()
	p.waitRequests(ctx) // none starts a session after this
	p.relay.Cut()
	p.relay.Wait(ctx) // for the line of each in the log
	p.keeper.Close()
	if p.tickets != nil {
		p.tickets.Close()
	}
	p.report.Flush()
	p.auth.Close()
}

// close has no further request accepted.
func (p *Proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closing = true
	p.stopAccepting()
	if p.listener != nil {
		p.listener.Close()
	}
	p.server.SetKeepAlivesEnabled(false)
}

func (p *Proxy) isClosing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing
}

// wait returns nil when neither request nor session is left, and ctx's error when that ends first. It is called after close.
func (p *Proxy) wait(ctx context.Context) error {
	if err := p.waitRequests(ctx); err != nil {
		return err
	}
	return p.relay.Wait(ctx)
}

func (p *Proxy) waitRequests(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		p.requests.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listener marks the connections it accepts, and tells of those it could not accept, once a second: net/http only retries, as
// often as every 5 ms.
type listener struct {
	net.Listener
	log     *slog.Logger
	tell    rate.Sometimes
	waiting *waiting
}

func newListener(l net.Listener, log *slog.Logger, w *waiting) *listener {
	return &listener{l, log, rate.Sometimes{Interval: time.Second}, w}
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			l.tell.Do(func() { l.log.Error("accept", "error", err) })
		}
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return l.waiting.add(tcp), nil
	}
	return c, nil
}

// markedConn knows whether a request on it has not reached our handler. What net/http refuses itself it answers without
// telling anyone; all that shows is a connection that became active, was written to, and closed without the handler having run.
type markedConn struct {
	*net.TCPConn
	// Only the connection's goroutine in net/http touches these, until the connection is hijacked.
	asking   bool // a request has begun, and has not reached our handler
	answered bool // net/http has answered it
	waiting  *waiting
	place    *list.Element // in waiting, and guarded by its mutex; nil: it is not there any more
	closed   bool          // guarded by waiting's mutex
}

// maxAlert is the size of a TLS alert at most, with its record's header, nonce and tag: what is written as a connection closes.
const maxAlert = 64

func (m *markedConn) Write(b []byte) (int, error) {
	m.answered = m.answered || m.asking && len(b) > maxAlert // net/http's shortest answer has 103 bytes
	return m.TCPConn.Write(b)
}

func (m *markedConn) Close() error {
	m.waiting.remove(m, true)
	return m.TCPConn.Close()
}

type connKey struct{}

// marked finds the mark of a connection, below TLS; nil if it has none.
func marked(c net.Conn) *markedConn {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	m, _ := c.(*markedConn)
	return m
}

// unmarked is a hijacked connection as the relay wants it: a plain *net.TCPConn where there is no TLS.
func unmarked(c net.Conn) net.Conn {
	if m, ok := c.(*markedConn); ok {
		return m.TCPConn
	}
	return c
}

// reached notes that r is not net/http's to refuse any more, nor its connection to be evicted. It reports false if that has
// happened already.
func reached(r *http.Request) bool {
	m, _ := r.Context().Value(connKey{}).(*markedConn)
	if m == nil {
		return true
	}
	m.asking = false
	return m.waiting.remove(m, false)
}

// connState counts and logs the requests that net/http refused.
func (p *Proxy) connState(c net.Conn, state http.ConnState) {
	m := marked(c)
	switch {
	case m == nil:
	case state == http.StateActive:
		m.asking = true
	case state == http.StateClosed && m.asking && m.answered && !p.isClosing():
		peer := clientip.ParsePeer(c.RemoteAddr().String())
		p.report.Report(&refusal.Refusal{Reason: refusal.Malformed}, slog.String("client", peer.Addr().Unmap().String()))
	}
}
