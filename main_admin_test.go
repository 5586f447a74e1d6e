package main

import (
	"strings"
	"testing"
)

func TestOperatorsListener(t *testing.T) {
	p := startProgram(t)
	p.mainJob()
	if _, resp, _ := p.dial("ws://" + p.front + "/?token=rogers"); resp == nil {
		t.Fatal("no answer")
	}
	p.await(`"reason":"client_close"`)
	for page, want := range map[string]string{"/healthz": "ok", "/readyz": "ready"} {
		if resp, body := ask(t, "GET", "http://"+p.admin+page); resp.StatusCode != 200 || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %q, want 200 %q", page, resp.StatusCode, body, want)
		}
	}
	_, metrics := ask(t, "GET", "http://"+p.admin+"/metrics")
	for _, want := range []string{
		`portcullis_upgrades_total{reason="",result="accepted"} 1`,
		`portcullis_upgrades_total{reason="token_refused",result="refused"} 1`,
		`portcullis_sessions_ended_total{code="1000",reason="client_close"} 1`,
		`portcullis_sessions_live 0`,
		`portcullis_messages_total{direction="from_client"} 1`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

func TestNoOperatorsListener(t *testing.T) {
	p := startProgram(t, "ADMIN_ADDR=")
	if p.admin != "" {
		t.Errorf("the operator's listener is at %s, want none", p.admin)
	}
	p.mainJob()
}
