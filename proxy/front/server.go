package front

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"portcullis/proxy/certificate"
)

const (
	// headerTimeout is for a client to send its request line and headers, and before that its TLS handshake.
	headerTimeout = 10 * time.Second
	// answerTimeout is for a client to take an answer, beyond the time that the request takes.
	answerTimeout = 10 * time.Second
	// maxHeaderBytes leaves room for the longest token beside a browser's cookies.
	maxHeaderBytes = 64 << 10
)

// Config is what a Server needs.
type Config struct {
	// CertFile and KeyFile are PEM files, read again when they change. Both empty: no TLS.
	CertFile string `env:"TLS_CERT_FILE" guard:"true"`
	KeyFile  string `env:"TLS_KEY_FILE" guard:"true"`

	// Handler gets each request, whose context ends with Base or when its client is gone.
	Handler http.Handler `env:"-"`
	// Base is of every request; its end ends them all.
	Base context.Context `env:"-"`
	// RequestTimeout is how long the handler may take for a request.
	RequestTimeout time.Duration `env:"-"`
	// HalfClosed is how long a client that has shut its direction is waited for while its request waits.
	HalfClosed time.Duration `env:"-"`
	// Malformed is called with a client whose request net/http refused by itself, so that Handler never saw it.
	Malformed func(client netip.Addr) `env:"-"`
	// Logger gets what an operator should know. Nil: nothing is logged.
	Logger *slog.Logger `env:"-"`
}

// Server accepts connections and reads their requests.
type Server struct {
	http        *http.Server
	certificate *certificate.Reloader // nil: no TLS
	base        context.Context
	malformed   func(netip.Addr)
	pending     *pendingConns
	presences   *presences
	log         *slog.Logger
	listener    atomic.Pointer[net.Listener] // Serve's; nil before
	closing     atomic.Bool
}

// New checks c. The error joins every mistake, one a line.
func New(c Config) (*Server, error) {
	log := cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	s := &Server{
		base:      c.Base,
		malformed: c.Malformed,
		pending:   newPendingConns(log),
		presences: newPresences(c.HalfClosed),
		log:       log,
	}
	s.http = &http.Server{
		Handler:           s.handle(c.Handler),
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: headerTimeout,
		// ReadTimeout, when it passes, ends the request's context as a client that went away does: it must not pass before the
		// request is through. It is there for requests with a body; Exchange.Stream has deadlines of its own.
		ReadTimeout:                  headerTimeout + c.RequestTimeout + answerTimeout,
		WriteTimeout:                 c.RequestTimeout + answerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true, // OPTIONS * is refused like any other
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return c.Base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, trackedConnOf(c))
		},
		ConnState: s.connState,
	}
	s.http.Protocols.SetHTTP1(true) // an HTTP/2 connection cannot be taken over
	if c.CertFile == "" && c.KeyFile == "" {
		return s, nil
	}
	pair, err := certificate.New("", c.CertFile, c.KeyFile)
	if err != nil {
		return nil, err
	}
	pair.Warn = func(err error) { log.Warn("the certificate needs care", "error", err) }
	s.certificate = pair
	s.http.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: pair.Get,
	}
	return s, nil
}

// handle has a request's context end when its client is gone.
func (s *Server) handle(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !markHandled(r) {
			panic(http.ErrAbortHandler) // its connection was closed to make room
		}
		r, stop := s.presences.watch(s.base, r)
		defer stop()
		h.ServeHTTP(w, r)
	})
}

// Serve accepts connections from l until StopAccepting or Close, which make it return nil, or until l fails. It closes l. It is
// called once.
func (s *Server) Serve(l net.Listener) error {
	s.listener.Store(&l)
	if s.closing.Load() {
		l.Close()
		return nil
	}
	tracking := newListener(l, s.log, s.pending)
	var err error
	if s.certificate != nil {
		watching, stop := context.WithCancel(s.base)
		defer stop()
		go s.certificate.Watch(watching)
		err = s.http.ServeTLS(tracking, "", "")
	} else {
		err = s.http.Serve(tracking)
	}
	if s.closing.Load() {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

// StopAccepting closes the listener. Requests that are there go on.
func (s *Server) StopAccepting() {
	s.closing.Store(true)
	if l := s.listener.Load(); l != nil {
		(*l).Close()
	}
	s.http.SetKeepAlivesEnabled(false)
}

// Close closes every connection that was not hijacked.
func (s *Server) Close() {
	s.StopAccepting()
	s.http.Close()
}

// listener tracks the connections it accepts, and reports those that it could not accept, once a second: net/http only retries, as
// often as every 5 ms.
type listener struct {
	net.Listener
	log     *slog.Logger
	report  rate.Sometimes
	pending *pendingConns
}

func newListener(l net.Listener, log *slog.Logger, p *pendingConns) *listener {
	return &listener{l, log, rate.Sometimes{Interval: time.Second}, p}
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			l.report.Do(func() { l.log.Error("accept", "error", err) })
		}
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return l.pending.add(tcp), nil
	}
	return c, nil
}
