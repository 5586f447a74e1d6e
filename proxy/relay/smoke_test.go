package relay

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pairOf(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestSmoke(t *testing.T) {
	for _, mode := range []string{"loop", "stream", "terminate"} {
		t.Run(mode, func(t *testing.T) {
			cfg := Config{Mode: "passthrough", Engine: mode, CloseTimeout: time.Second, LimitAction: "close"}
			if mode == "terminate" {
				cfg.Mode, cfg.Engine = mode, "auto"
			}
			r, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				c, err := (&websocket.Upgrader{}).Upgrade(w, q, nil)
				if err != nil {
					return
				}
				defer c.Close()
				for {
					k, m, err := c.ReadMessage()
					if err != nil {
						t.Log("backend:", err)
						return
					}
					c.WriteMessage(k, m)
				}
			}))
			defer back.Close()
			ends := make(chan End, 1)
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				up, err := net.Dial("tcp", back.Listener.Addr().String())
				if err != nil {
					t.Error(err)
				}
				q.Write(up)
				br := bufio.NewReader(up)
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Error(err)
				}
				c, _, _ := w.(http.Hijacker).Hijack()
				resp.Write(c)
				r.Start(Handover{Client: c, Upstream: up, Ended: func(e End) { ends <- e }})
			}))
			defer front.Close()
			c, _, err := websocket.DefaultDialer.Dial("ws"+front.URL[4:], nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			pongs := 0
			c.SetPongHandler(func(string) error { pongs++; return nil })
			c.WriteControl(websocket.PingMessage, []byte("x"), time.Now().Add(time.Second))
			for range 100 {
				c.WriteMessage(1, make([]byte, 5000))
				_, m, err := c.ReadMessage()
				if err != nil || len(m) != 5000 {
					t.Fatal(err)
				}
			}
			c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4001, "bye"), time.Now().Add(time.Second))
			_, _, err = c.ReadMessage()
			t.Log(err, pongs)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			t.Log(r.Wait(ctx))
			t.Log(<-ends)
		})
	}
}
