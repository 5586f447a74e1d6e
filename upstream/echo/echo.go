// Package echo is the bundled backend: an echo WebSocket server with its token endpoint, so that Portcullis does its main
// job with nothing else installed. Both listen on one loopback port and speak real TCP, so the bundled case runs the same
// code as any upstream.
//
//	/         WebSocket; a text message msg is answered with: MENSAGEM: Você enviou "msg", a binary one with itself
//	/token    GET ?token=...: 1 with 200 for the right token, else 0 with 400
//
// The backend itself asks for no token and accepts every Origin: checking both is the job of the proxy in front of it.
package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

const (
	maxMessage = 4 << 20 // bytes; a message is held whole, twice while a text is answered. A longer one ends with 1009
	maxHeader  = 64 << 10

	requestTimeout = 5 * time.Second // for a client to send a request, and to send the next
	writeTimeout   = 5 * time.Second // for a client to take an answer
	closeTimeout   = 1 * time.Second // for a client to take our Close, and to answer it
)

// Config is what the bundled backend can be told.
type Config struct {
	// Token is the one that the token endpoint accepts: 1 to 8192 visible ASCII characters. Empty is a mistake.
	Token string `env:"DEMO_TOKEN" envDefault:"token" secret:"true"`

	// OnClose, if not nil, is called at the end of each session with what the client's Close frame said: 1005 for a Close
	// without a code, 1006 for none at all. Sessions end concurrently.
	OnClose func(code int, reason string) `env:"-"`
}

// Server is a running backend.
type Server struct {
	listener     net.Listener
	http         *http.Server
	token        http.Handler
	onClose      func(code int, reason string)
	defaultToken bool           // the accepted token is the default, which everybody knows
	running      sync.WaitGroup // the accept loop and every session, from before its upgrade

	mu       sync.Mutex                   // guards sessions and closing
	sessions map[*websocket.Conn]struct{} // hijacked, so unknown to http
	closing  bool                         // no more upgrades begin
}

// Check finds the mistakes in c.
func (c Config) Check() error {
	if !wellFormed(c.Token) {
		return fmt.Errorf("DEMO_TOKEN: %q is no token; want 1 to %d visible ASCII characters", mask(c.Token), maxToken)
	}
	return nil
}

// Start listens on a free port of 127.0.0.1 and serves until Close.
func Start(c Config) (*Server, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("bundled backend: %w", err)
	}
	s := &Server{
		listener:     listener,
		token:        newTokenHandler(c.Token),
		onClose:      c.OnClose,
		defaultToken: c.Token == "token",
		sessions:     make(map[*websocket.Conn]struct{}),
	}
	if s.onClose == nil {
		s.onClose = func(int, string) {}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", s.serveWebSocket)
	mux.Handle("/token", s.token)
	s.http = &http.Server{
		Handler:        mux,
		ReadTimeout:    requestTimeout, // it and WriteTimeout end with the upgrade
		WriteTimeout:   writeTimeout,
		IdleTimeout:    requestTimeout,
		MaxHeaderBytes: maxHeader,
		// Its remarks on clients that break off would go to the global logger.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	s.running.Go(s.serve)
	return s, nil
}

// serve returns when Close has closed the listener; nothing else ends it.
func (s *Server) serve() { s.http.Serve(s.listener) }

// URL is where the WebSocket server is: ws://127.0.0.1:port/.
func (s *Server) URL() string { return "ws://" + s.listener.Addr().String() + "/" }

// TokenURL is where the token endpoint is: http://127.0.0.1:port/token.
func (s *Server) TokenURL() string { return "http://" + s.listener.Addr().String() + "/token" }

// Token is the token endpoint as a handler for any path, for the proxy's own port.
func (s *Server) Token() http.Handler { return s.token }

// Close stops listening, sends Close 1001 to every session and waits for all to end. A session that does not answer ends a
// second later. Sessions still open when ctx ends are closed at once, and ctx's error is returned. It may be called again.
func (s *Server) Close(ctx context.Context) error {
	deadline := time.Now().Add(closeTimeout) // one for all sessions: waits for stuck writers must not add up
	s.mu.Lock()
	s.closing = true
	for conn := range s.sessions {
		goAway(conn, deadline)
	}
	s.mu.Unlock()

	err := s.http.Shutdown(ctx)
	ended := make(chan struct{})
	go func() {
		s.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return err
	case <-ctx.Done():
	}
	s.http.Close()
	s.mu.Lock()
	for conn := range s.sessions {
		conn.Close()
	}
	s.mu.Unlock()
	<-ended
	return fmt.Errorf("bundled backend: %w", ctx.Err())
}

var upgrader = websocket.Upgrader{
	HandshakeTimeout: writeTimeout,
	CheckOrigin:      func(*http.Request) bool { return true }, // the proxy has checked it
	WriteBufferPool:  &sync.Pool{},                             // so that an idle session holds none
}

func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	if !s.beginUpgrade() {
		http.Error(w, "closing", http.StatusServiceUnavailable)
		return
	}
	defer s.running.Done()
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	s.add(conn)
	defer s.remove(conn)
	code, reason := echo(conn)
	s.onClose(code, reason)
}

// beginUpgrade counts an upgrade that is about to begin; false if the server is closing. It comes before the upgrade, so that
// Close waits for every client that gets a 101.
func (s *Server) beginUpgrade() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.running.Add(1)
	}
	return !s.closing
}

// add registers a session for Close. If the server is closing, it does what Close would have done.
func (s *Server) add(conn *websocket.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[conn] = struct{}{}
	if s.closing {
		goAway(conn, time.Now().Add(closeTimeout))
	}
}

func (s *Server) remove(conn *websocket.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, conn)
}

// goAway sends Close 1001. The session ends with the client's answer to it, or at the deadline.
func goAway(conn *websocket.Conn, deadline time.Time) {
	conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), deadline)
	conn.SetReadDeadline(deadline)
}

// echo answers messages until the session ends, and returns what the client's Close frame said. gorilla/websocket answers
// pings and the Close itself. There is no read deadline: a session may be idle for as long as the proxy lets it, and a
// peer on the same machine does not vanish without its socket being closed.
func echo(conn *websocket.Conn) (code int, reason string) {
	conn.SetReadLimit(maxMessage)
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			return closeOf(err)
		}
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		switch {
		case kind != websocket.TextMessage:
			err = conn.WriteMessage(kind, message)
		case utf8.Valid(message):
			err = conn.WriteMessage(kind, fmt.Appendf(nil, "MENSAGEM: Você enviou \"%s\"", message))
		default: // RFC 6455 section 8.1
			invalid := websocket.FormatCloseMessage(websocket.CloseInvalidFramePayloadData, "text is not UTF-8")
			err = conn.WriteControl(websocket.CloseMessage, invalid, time.Now().Add(closeTimeout))
			conn.SetReadDeadline(time.Now().Add(closeTimeout))
		}
		// After our own Close only the client's is still to be read; what comes before it gets no answer.
		if err != nil && err != websocket.ErrCloseSent {
			return websocket.CloseAbnormalClosure, ""
		}
	}
}

func closeOf(err error) (code int, reason string) {
	if e, ok := errors.AsType[*websocket.CloseError](err); ok && e.Code != websocket.CloseAbnormalClosure {
		return e.Code, e.Text
	}
	return websocket.CloseAbnormalClosure, "" // gorilla's own text says how the connection broke off
}
