package echo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// closed is what OnClose was called with.
type closed struct {
	code   int
	reason string
}

// start runs a backend whose OnClose goes to the channel.
func start(t *testing.T) (*Server, <-chan closed) {
	t.Helper()
	ends := make(chan closed, 10)
	s, err := Start(Config{Token: "token", OnClose: func(code int, reason string) { ends <- closed{code, reason} }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s, ends
}

func dial(t *testing.T, s *Server) *websocket.Conn {
	t.Helper()
	conn, resp, err := websocket.DefaultDialer.Dial(s.URL(), http.Header{"Origin": {"https://anywhere.example"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	t.Cleanup(func() { conn.Close() })
	deadline, _ := t.Deadline()
	if deadline.IsZero() || time.Until(deadline) > 10*time.Second {
		deadline = time.Now().Add(10 * time.Second)
	}
	conn.SetReadDeadline(deadline)
	return conn
}

func wantEnd(t *testing.T, ends <-chan closed, want closed) {
	t.Helper()
	select {
	case got := <-ends:
		if got != want {
			t.Errorf("got end %+v, want %+v", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("got no end, want %+v", want)
	}
}

func TestEcho(t *testing.T) {
	tests := []struct {
		name       string
		kind       int
		send, want string
	}{
		{"text", websocket.TextMessage, "Olá", `MENSAGEM: Você enviou "Olá"`},
		{"empty text", websocket.TextMessage, "", `MENSAGEM: Você enviou ""`},
		{"text with a quote", websocket.TextMessage, `a"%s\n`, `MENSAGEM: Você enviou "a"%s\n"`},
		{"binary", websocket.BinaryMessage, "\x00\xff", "\x00\xff"},
		{"binary of 1 MiB", websocket.BinaryMessage, strings.Repeat("x", 1<<20), strings.Repeat("x", 1<<20)},
	}
	s, ends := start(t)
	conn := dial(t, s)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := conn.WriteMessage(tt.kind, []byte(tt.send)); err != nil {
				t.Fatal(err)
			}
			kind, got, err := conn.ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			if kind != tt.kind || !bytes.Equal(got, []byte(tt.want)) {
				t.Errorf("got type %d, %.50q, want type %d, %.50q", kind, got, tt.kind, tt.want)
			}
		})
	}
	conn.Close()
	wantEnd(t, ends, closed{websocket.CloseAbnormalClosure, ""})
}

func TestCloseIsAnsweredAndSeen(t *testing.T) {
	tests := []struct {
		name   string
		frame  []byte
		answer int
		end    closed
	}{
		{"normal", websocket.FormatCloseMessage(1000, "até logo"), 1000, closed{1000, "até logo"}},
		{"application's", websocket.FormatCloseMessage(4001, ""), 4001, closed{4001, ""}},
		{"without a code", nil, websocket.CloseNoStatusReceived, closed{websocket.CloseNoStatusReceived, ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, ends := start(t)
			conn := dial(t, s)
			if err := conn.WriteMessage(websocket.CloseMessage, tt.frame); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, tt.answer) {
				t.Errorf("got %v, want Close %d", err, tt.answer)
			}
			wantEnd(t, ends, tt.end)
		})
	}
}

func TestMessagesOutOfBoundsEndTheSession(t *testing.T) {
	for name, tt := range map[string]struct {
		message []byte
		code    int
	}{
		"text that is not UTF-8": {[]byte{0xff}, websocket.CloseInvalidFramePayloadData},
		"longer than 4 MiB":      {make([]byte, maxMessage+1), websocket.CloseMessageTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := start(t)
			conn := dial(t, s)
			go conn.WriteMessage(websocket.TextMessage, tt.message) // which the backend need not take whole
			if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, tt.code) {
				t.Errorf("got %v, want Close %d", err, tt.code)
			}
		})
	}
}

func TestOnlyTheRootIsServed(t *testing.T) {
	s, _ := start(t)
	for path, want := range map[string]int{"": http.StatusBadRequest, "x": http.StatusNotFound, "x/": http.StatusNotFound} {
		resp, err := http.Get("http" + strings.TrimPrefix(s.URL(), "ws") + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("/%s: got status %d, want %d", path, resp.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestCloseSaysGoingAway(t *testing.T) {
	s, ends := start(t)
	conn := dial(t, s)
	done := make(chan error, 1)
	go func() { done <- s.Close(t.Context()) }()
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("got %v, want Close 1001", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Close: %v", err)
	}
	wantEnd(t, ends, closed{websocket.CloseGoingAway, ""})
	if c, err := net.Dial("tcp", s.listener.Addr().String()); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
}

func TestCloseCutsSessionsThatStay(t *testing.T) {
	s, ends := start(t)
	dial(t, s) // and never reads
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	wantEnd(t, ends, closed{websocket.CloseAbnormalClosure, ""})
}

func TestToken(t *testing.T) {
	s, _ := start(t)
	tests := []struct {
		name, method, query string
		status              int
		body                string
	}{
		{"right", "GET", "?token=token", 200, "1"},
		{"right, escaped", "GET", "?token=%74oken", 200, "1"},
		{"right among others", "GET", "?a=b&token=token&c", 200, "1"},
		{"right twice", "GET", "?token=token&token=token", 200, "1"},
		{"wrong", "GET", "?token=rogers", 400, "0"},
		{"none", "GET", "", 400, "0"},
		{"empty", "GET", "?token=", 400, "0"},
		{"part", "GET", "?token=toke", 400, "0"},
		{"other case", "GET", "?token=Token", 400, "0"},
		{"name in other case", "GET", "?Token=token", 400, "0"},
		{"right and wrong", "GET", "?token=token&token=rogers", 400, "0"},
		{"malformed query", "GET", "?token=token&%zz", 400, "0"},
		{"long", "GET", "?token=" + strings.Repeat("t", 60<<10), 400, "0"},
		{"preflight", "OPTIONS", "?token=token", 204, ""},
		{"POST", "POST", "?token=token", 405, "method not allowed\n"},
		{"HEAD", "HEAD", "?token=token", 405, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := http.NewRequest(tt.method, s.TokenURL()+tt.query, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || string(body) != tt.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
				t.Errorf("got Access-Control-Allow-Origin %q, want *", got)
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestStartRefusesATokenThatNobodyCanSend(t *testing.T) {
	for _, token := range []string{"", "to ken", "s\u00e9cret", "secret\n", strings.Repeat("t", 8193)} {
		s, err := Start(Config{Token: token})
		if err == nil {
			s.Close(t.Context())
			t.Errorf("token %.10q was accepted", token)
		} else if !strings.HasPrefix(err.Error(), `DEMO_TOKEN: "`) || strings.Contains(err.Error(), "secret") {
			t.Errorf("got error %v", err)
		}
	}
}
