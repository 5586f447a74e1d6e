package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"
)

// A hangup has the file of settings and those of secrets read again. Sessions go on, what cannot change is named, and a mistake changes
// nothing.
func TestHangupReloads(t *testing.T) {
	old, renewed := adminToken, "another-admin-token"
	shown.Token(old)
	shown.Token(renewed)
	secret := filepath.Join(t.TempDir(), "token")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(secret, old+"\n")
	first, second := newBackend(t), newBackend(t)
	file := writeEnvFile(t, "ROUTE_CHAT=/chat "+first.wsURL()+"\n")
	accept := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "1") }
	p := startProgram(t, "ENV_FILE="+file, "AUTH_URL="+newTokenEndpoint(t, accept), "ADMIN_TOKEN_FILE="+secret)
	const token = "?token=sesame"
	conn := p.open("/chat" + token)
	lives := func() {
		t.Helper()
		if err := conn.WriteMessage(websocket.TextMessage, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	lives()

	write(secret, renewed+"\n")
	write(file, "ROUTE_CHAT='/chat "+second.wsURL()+" message_max_bytes=10'\nROUTE_NEWS='/news "+second.wsURL()+" auth=none'\nLISTEN_ADDR=127.0.0.1:1\nLOG_LEVEL=info\nRESUME=1m\n")
	p.signal(syscall.SIGHUP)
	line := p.await(`"msg":"reloaded"`)
	for _, want := range []string{`"ROUTE_CHAT"`, `"ROUTE_NEWS"`, `"ADMIN_TOKEN"`} {
		if !strings.Contains(line, want) {
			t.Errorf("%s\nlacks %s", line, want)
		}
	}
	if line := p.await("settings that cannot change"); !strings.Contains(line, `["RESUME"]`) { // the environment has LISTEN_ADDR, and wins
		t.Errorf("kept: %s", line)
	}
	lives()
	p.open("/news")
	p.open("/chat" + token)
	for want, token := range map[int]string{http.StatusOK: renewed, http.StatusUnauthorized: old} {
		if got := p.askAPI(token); got != want {
			t.Errorf("/api: got %d, want %d", got, want)
		}
	}

	write(file, "ROUTE_CHAT=/chat\nPATHS=/$HOME\n")
	p.signal(syscall.SIGHUP)
	line = p.await(`"msg":"the settings were not reloaded`)
	for _, want := range []string{`line 2, PATHS: `, `ROUTE_CHAT: `} {
		if !strings.Contains(line, want) {
			t.Errorf("%s\nlacks %s", line, want)
		}
	}
	lives()
	p.open("/news")
	p.metrics = ""
	p.readMetrics()
	if !strings.Contains(p.metrics, "\nportcullis_config_last_reload_successful 0\n") {
		t.Error("the metrics do not tell that the last reload failed")
	}
}

func (p *process) askAPI(token string) int {
	p.t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+p.admin+"/api/sessions", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
