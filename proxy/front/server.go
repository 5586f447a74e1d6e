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
	// ClientCAFile is a PEM file of authorities, read again when it changes: each client has to show a certificate of one of them. Empty:
	// none is asked for.
	ClientCAFile string `env:"TLS_CLIENT_CA_FILE" guard:"true" needs:"TLS_CERT_FILE"`
	// ProxyProtocol has a connection of a trusted peer, or to a unix socket, begin with a PROXY head, before TLS. One without it is closed.
	ProxyProtocol bool `env:"PROXY_PROTOCOL" envDefault:"false"`

	// Handler gets each request, whose context ends with Base or when its client is gone.
	Handler http.Handler `env:"-"`
	// Base is of every request; its end ends them all.
	Base context.Context `env:"-"`
	// RequestTimeout is how long the handler may take for a request.
	RequestTimeout time.Duration `env:"-"`
	// HalfClosed is how long a client that has shut its direction is waited for while its request waits.
	HalfClosed time.Duration `env:"-"`
	// Malformed is called with a client whose request net/http refused by itself, so that Handler never saw it.
	// The address is zero for one on a unix socket.
	Malformed func(client netip.Addr) `env:"-"`
	// Trusts reports whether a peer may send a PROXY head. It is needed with ProxyProtocol.
	Trusts func(peer netip.Addr) bool `env:"-"`
	// HeadRefused is called with a peer, zero on a unix socket, that should have sent a PROXY head, and with what it did instead.
	HeadRefused func(peer netip.Addr, err error) `env:"-"`
	// Logger gets what an operator should know. Nil: nothing is logged.
	Logger *slog.Logger `env:"-"`
}

// Server accepts connections and reads their requests.
type Server struct {
	http        *http.Server
	certificate *certificate.Reloader // nil: no TLS
	base        context.Context
	malformed   func(netip.Addr)
	trusts      func(peer netip.Addr) bool // nil: there are no PROXY heads
	headRefused func(netip.Addr, error)
	pending     *pendingConns
	presences   *presences
	log         *slog.Logger
	listeners   atomic.Pointer[[]net.Listener] // Serve's; nil before
	closing     atomic.Bool
}

// New checks c. The error joins every mistake, one a line.
func New(c Config) (*Server, error) {
	log := cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	s := &Server{
		base:        c.Base,
		malformed:   c.Malformed,
		headRefused: c.HeadRefused,
		pending:     newPendingConns(log),
		presences:   newPresences(c.HalfClosed),
		log:         log,
	}
	if c.ProxyProtocol {
		s.trusts = c.Trusts
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
	pair, pairErr := certificate.New("", c.CertFile, c.KeyFile)
	authorities, authoritiesErr := newAuthorities(c.ClientCAFile)
	if err := errors.Join(pairErr, authoritiesErr); err != nil {
		return nil, err
	}
	pair.Warn = func(err error) { log.Warn("the certificate needs care", "error", err) }
	s.certificate = pair
	s.http.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: pair.Get,
	}
	if authorities != nil {
		authorities.Warn = func(err error) { log.Warn("the authorities of clients need care", "error", err) }
		requireCertificates(s.http.TLSConfig, authorities)
	}
	return s, nil
}

// newAuthorities returns nil without a file.
func newAuthorities(file string) (*certificate.Authorities, error) {
	if file == "" {
		return nil, nil
	}
	return certificate.NewAuthorities("TLS_CLIENT_CA_FILE", file)
}

// requireCertificates has each handshake verify a certificate of the client by the authorities as they are then. So no session of TLS is
// resumed: its certificate would not be verified again.
func requireCertificates(c *tls.Config, authorities *certificate.Authorities) {
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, authorities.Pool()
	c.SessionTicketsDisabled = true
	base := c.Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := base.Clone()
		now.ClientCAs = authorities.Pool()
		return now, nil
	}
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

// Serve accepts connections from listeners until StopAccepting or Close, which make it return nil, or until one of them fails. It closes
// them all. It is called once.
func (s *Server) Serve(listeners ...net.Listener) error {
	s.listeners.Store(&listeners)
	if s.closing.Load() {
		closeAll(listeners)
		return nil
	}
	if s.certificate != nil {
		watching, stop := context.WithCancel(s.base)
		defer stop()
		go s.certificate.Watch(watching)
	}
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- s.serve(&listener{l, s, rate.Sometimes{Interval: time.Second}}) }()
	}
	var first error
	for range listeners {
		err := <-ended
		first = cmp.Or(first, err)
		closeAll(listeners)
	}
	if s.closing.Load() {
		return nil
	}
	return fmt.Errorf("serve: %w", first)
}

// serve accepts connections from one listener until it closes.
func (s *Server) serve(l net.Listener) error {
	if s.certificate != nil {
		return s.http.ServeTLS(l, "", "")
	}
	return s.http.Serve(l)
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// StopAccepting closes the listeners. Requests that are there go on.
func (s *Server) StopAccepting() {
	s.closing.Store(true)
	if all := s.listeners.Load(); all != nil {
		closeAll(*all)
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
	server *Server
	report rate.Sometimes
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			l.report.Do(func() { l.server.log.Error("accept", "error", err) })
		}
		return nil, err
	}
	if s, ok := plain(c); ok {
		return l.server.track(s), nil
	}
	return c, nil
}

// track has a connection that has just been accepted wait for its request, and before that for its PROXY head, if its peer is one that
// sends them. Another's is not read, and so no request: it could name any address.
func (s *Server) track(c socket) *trackedConn {
	_, isUnix := c.(*net.UnixConn)
	if s.trusts == nil || !isUnix && !s.trusts(addrOf(c.RemoteAddr())) {
		return s.pending.add(c, nil)
	}
	head := &proxyHead{within: s.http.ReadHeaderTimeout}
	tracked := s.pending.add(c, head)
	head.refused = func(err error) { s.headRefused(addrOf(tracked.peer()), err) }
	return tracked
}
