package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"portcullis/proxy/certificate"
)

// Config says where the operator's listener is.
type Config struct {
	// Addr is its host:port. An empty host is every interface, port 0 any free one. Empty: no listener.
	Addr string `env:"ADMIN_ADDR" envDefault:"127.0.0.1:9090" empty:"off"`

	// CertFile and KeyFile are PEM files, read again when they change. Both empty: no TLS.
	CertFile string `env:"ADMIN_TLS_CERT_FILE" guard:"true" needs:"ADMIN_ADDR"`
	KeyFile  string `env:"ADMIN_TLS_KEY_FILE" guard:"true" needs:"ADMIN_ADDR"`

	// API answers /api. Nil: there is none.
	API http.Handler `env:"-"`
	// Ready says why the program is not ready although it serves. It must be quick and hold nothing secret. Nil: it is.
	Ready func() error `env:"-"`
	// Logger gets what goes wrong in serving. Nil: nothing is logged.
	Logger *slog.Logger `env:"-"`
}

const wantAddr = "want host:port, for example 127.0.0.1:9090, or empty for no listener"

// Server answers the operator. It is not ready until [Server.SetReady] says so.
type Server struct {
	addr  string
	ready atomic.Bool
	check func() error          // nil: nothing else decides
	api   http.Handler          // nil: there is none
	pair  *certificate.Reloader // nil: no TLS
	stop  context.CancelFunc    // of watching it
	pages map[string]http.HandlerFunc
	http  *http.Server

	// Set by Start.
	listener net.Listener
	served   chan struct{} // closed when serving has ended
	err      error         // why it did, if not by Close; read after served
}

// New checks c; it opens nothing yet.
func New(c Config, m *Metrics) (*Server, error) {
	var pair *certificate.Reloader
	var pairErr error
	if c.CertFile != "" || c.KeyFile != "" {
		pair, pairErr = certificate.New("ADMIN_", c.CertFile, c.KeyFile)
	}
	if err := errors.Join(checkAddr(c.Addr), pairErr); err != nil {
		return nil, err
	}
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	errorLog := slog.NewLogLogger(log.Handler(), slog.LevelWarn)

	s := &Server{addr: c.Addr, check: c.Ready, api: c.API, pair: pair}
	metrics := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:          errorLog,
		EnableOpenMetrics: true,
		// Each scrape in progress holds its whole answer: a few scrapers are usual, hundreds are a mistake.
		MaxRequestsInFlight: 8,
	})
	s.pages = map[string]http.HandlerFunc{
		"/healthz": func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") },
		"/readyz":  s.readyz,
		"/metrics": metrics.ServeHTTP,
	}
	s.http = &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true, // net/http would answer OPTIONS * with 200
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  10 * time.Second,
		WriteTimeout:                 30 * time.Second,
		IdleTimeout:                  2 * time.Minute, // over the usual scrape interval of one minute
		MaxHeaderBytes:               16 << 10,
		ErrorLog:                     errorLog,
	}
	if pair != nil {
		pair.Warn = func(err error) { log.Warn("the operator's certificate needs care", "error", err) }
		s.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.Get}
		s.http.Protocols = new(http.Protocols)
		s.http.Protocols.SetHTTP1(true)
	}
	return s, nil
}

// checkAddr tells a mistake in the setting from an address that is merely taken, which only listening can tell.
func checkAddr(addr string) error {
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		var mistake *net.AddrError
		if errors.As(err, &mistake) {
			return fmt.Errorf("ADMIN_ADDR: %q has %s; %s", addr, mistake.Err, wantAddr)
		}
		return fmt.Errorf("ADMIN_ADDR: %q is not an address; %s", addr, wantAddr)
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == '/' || r == '@' || r == 0x7f }) {
		return fmt.Errorf("ADMIN_ADDR: %q has no host name or address before its port; %s", addr, wantAddr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("ADMIN_ADDR: %q has a port that is not a number from 0 to 65535; %s", addr, wantAddr)
	}
	return nil
}

// ServeHTTP answers one request; see the package comment.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	page, ok := s.pages[r.URL.Path]
	switch {
	case s.api != nil && strings.HasPrefix(r.URL.Path, "/api/"):
		s.api.ServeHTTP(w, r)
	case !ok:
		answer(w, http.StatusNotFound, "not found; see /healthz, /readyz and /metrics")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		answer(w, http.StatusMethodNotAllowed, "method not allowed")
	default:
		page(w, r)
	}
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if !s.ready.Load() {
		answer(w, http.StatusServiceUnavailable, "not ready")
		return
	}
	if s.check != nil {
		if err := s.check(); err != nil {
			answer(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
	}
	answer(w, http.StatusOK, "ready")
}

func answer(w http.ResponseWriter, status int, line string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store") // a cached health answer is a wrong one
	w.WriteHeader(status)
	io.WriteString(w, line+"\n")
}

// SetReady sets what /readyz answers from now on.
func (s *Server) SetReady(ready bool) { s.ready.Store(ready) }

// Start listens and serves until Close. With an empty ADMIN_ADDR it does nothing. Call it once at most,
// before Addr and Close.
func (s *Server) Start() error {
	if s.addr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("ADMIN_ADDR: %q: %w", s.addr, err)
	}
	s.listener, s.served = listener, make(chan struct{})
	watching, stop := context.WithCancel(context.Background())
	s.stop = stop
	if s.pair != nil {
		go s.pair.Watch(watching)
	}
	go s.serve()
	return nil
}

func (s *Server) serve() {
	defer close(s.served)
	serve := s.http.Serve
	if s.pair != nil {
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	if err := serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		s.err = fmt.Errorf("serve on ADMIN_ADDR: %w", err)
		s.http.ErrorLog.Print(s.err)
	}
}

// Addr is where Start listens: with the port it got, if 0 was asked for. Nil without a listener.
func (s *Server) Addr() net.Addr {
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Close stops listening and lets answers in progress finish until ctx ends, then cuts them. It returns ctx's error if it
// had to, and the error that had ended serving earlier, if one did. Closing again, or without a listener, does nothing.
func (s *Server) Close(ctx context.Context) error {
	if s.listener == nil {
		return nil
	}
	s.stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	<-s.served
	return errors.Join(err, s.err)
}
