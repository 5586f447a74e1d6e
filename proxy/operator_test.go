package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"portcullis/proxy/api"
	"portcullis/proxy/session"
)

// operator is somebody who asks a gate's API.
type operator struct {
	t    testing.TB
	url  string
	gate *testGate
}

// newOperator starts a gate with an API, on a listener of its own.
func newOperator(t testing.TB, edit func(*Config)) *operator {
	t.Helper()
	g := newGate(t, newEcho(t), func(c *Config) {
		withAPI(c)
		if edit != nil {
			edit(c)
		}
	})
	s := httptest.NewServer(g.Operator())
	t.Cleanup(s.Close)
	return &operator{t, s.URL, g}
}

// response is an answer of the API.
type response struct {
	*http.Response
	text string
	json map[string]any
}

// call asks, with lines "Name: value" for the header in place of the right token.
func (o *operator) call(method, target, body string, header ...string) response {
	o.t.Helper()
	return o.callWith(method, target, strings.NewReader(body), header...)
}

func (o *operator) callWith(method, target string, body io.Reader, header ...string) response {
	o.t.Helper()
	r, err := http.NewRequest(method, o.url+target, body)
	if err != nil {
		o.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Set(name, value)
		if value == "" {
			r.Header.Del(name)
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	a := response{Response: resp, text: strings.TrimSpace(string(text))}
	if err := json.Unmarshal(text, &a.json); err != nil {
		o.t.Errorf("%s %s: %d with %q, want JSON", method, target, resp.StatusCode, text)
	}
	return a
}

// want asks, and fails the test unless the answer has that status and text.
func (o *operator) want(status int, text, method, target, body string, header ...string) {
	o.t.Helper()
	if a := o.call(method, target, body, header...); a.StatusCode != status || a.text != text {
		o.t.Errorf("%s %s: got %d %s\nwant %d %s", method, target, a.StatusCode, a.text, status, text)
	}
}

const asText = "Content-Type: text/plain"

func TestOperatorReachesSessions(t *testing.T) {
	o := newOperator(t, func(c *Config) { c.Session.Groups = []string{"query:room"} })
	alice := o.gate.connect(t, "/chat?token=wonder&room=lobby", nil)
	o.gate.connect(t, "/?token=good", nil)

	list := o.call("GET", "/api/sessions?subject=Alice", "")
	all, _ := list.json["sessions"].([]any)
	if list.StatusCode != 200 || len(all) != 1 || list.json["next"] != nil {
		t.Fatalf("%d %s", list.StatusCode, list.text)
	}
	s := all[0].(map[string]any)
	if s["subject"] != "Alice" || s["path"] != "/chat" || s["address"] != "127.0.0.1" || fmt.Sprint(s["groups"]) != "[query:room:lobby]" || s["expires"] != nil {
		t.Errorf("session %v", s)
	}
	id := s["id"].(string)
	echoes(t, alice, "hello")
	one := o.call("GET", "/api/sessions/"+id, "")
	if got := fmt.Sprint(one.json["from_client"], one.json["from_upstream"]); got != "map[bytes:5 messages:1] map[bytes:5 messages:1]" {
		t.Errorf("traffic: %s", got)
	}

	reached := `{"reached":1,"ending":0,"too_slow":0,"extension":0,"full":0}`
	for target, want := range map[string]string{
		"session=" + id: reached, "subject=Alice": reached, "group=query:room:lobby": reached, "path=/chat&subject=Alice": reached,
		"subject=Bob": `{"reached":0,"ending":0,"too_slow":0,"extension":0,"full":0}`,
		"all=true":    `{"reached":2,"ending":0,"too_slow":0,"extension":0,"full":0}`, "all=true&except=" + id: reached,
	} {
		o.want(200, want, "POST", "/api/messages?"+target, target, asText)
		if want == reached && !strings.Contains(target, "except") || target == "all=true" {
			if kind, got, err := alice.ReadMessage(); err != nil || string(got) != target || kind != websocket.TextMessage {
				t.Errorf("%s: got %q, %v", target, got, err)
			}
		}
	}
	for contentType, kind := range map[string]int{
		"": websocket.BinaryMessage, "application/octet-stream": websocket.BinaryMessage, "image/png": websocket.BinaryMessage,
		"application/json": websocket.TextMessage, "text/html; charset=utf-8": websocket.TextMessage,
	} {
		o.want(200, reached, "POST", "/api/messages?session="+id, "x", "Content-Type: "+contentType)
		if got, _, err := alice.ReadMessage(); err != nil || got != kind {
			t.Errorf("%q: got kind %d, %v, want %d", contentType, got, err, kind)
		}
	}
	o.want(200, reached, "POST", "/api/messages?session="+id, "")
	if _, got, err := alice.ReadMessage(); err != nil || len(got) != 0 {
		t.Errorf("an empty message: got %q, %v", got, err)
	}

	o.want(200, `{"reached":1,"ending":0}`, "DELETE", "/api/sessions?subject=Alice&code=4001&reason=bye&for=1h", "")
	_, _, err := alice.ReadMessage()
	wantClose(t, "client", err, 4001, "bye")
	if _, resp, _ := o.gate.tryConnect("/?token=wonder", nil); resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("she comes back: %v", resp)
	}
	o.gate.connect(t, "/?token=good", nil)
	o.want(404, `{"error":"no session with that id is open"}`, "GET", "/api/sessions/"+strings.Repeat("A", 26), "")
	o.want(404, `{"error":"no session with that id is open"}`, "DELETE", "/api/sessions/"+strings.Repeat("A", 26), "")
	if line := o.gate.journal.count("api"); line == 0 {
		t.Error("no line tells of a call")
	}
	for _, secret := range []string{adminToken, "path=/chat&subject=Alice\""} {
		if strings.Contains(secret, adminToken) && o.gate.journal.contains(secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

func TestOperatorBadInput(t *testing.T) {
	o := newOperator(t, func(c *Config) { c.API.PushMaxBytes = 10 })
	conn := o.gate.connect(t, "/?token=wonder", nil)
	cursor, _ := o.call("GET", "/api/sessions?limit=1", "").json["next"].(string)
	if cursor != "" {
		t.Fatalf("one session makes a next page: %q", cursor)
	}
	long := strings.Repeat("x", 1025)
	for _, tt := range []struct {
		method, target, body string
		status               int
		text                 string
	}{
		{"GET", "/api/nothing", "", 404, "there is no such path; see /api/openapi.json"},
		{"GET", "/api/sessions/", "", 404, "there is no such path; see /api/openapi.json"},
		{"GET", "/api/sessions/a/b", "", 404, "there is no such path; see /api/openapi.json"},
		{"PUT", "/api/sessions", "", 405, "the method is not allowed"},
		{"GET", "/api/messages", "", 405, "the method is not allowed"},
		{"GET", "/api/sessions?sujbect=alice", "", 400, "sujbect: there is no such parameter here; want one of: subject, group, path, address, limit, cursor"},
		{"GET", "/api/sessions?%00=alice", "", 400, "a parameter: there is no such parameter here; want one of: subject, group, path, address, limit, cursor"},
		{"GET", "/api/sessions?subject=a&subject=b", "", 400, "subject: it is there twice; want it once"},
		{"GET", "/api/sessions?subject=", "", 400, "subject: it is empty; want a value, or leave it out"},
		{"GET", "/api/sessions?subject=%zz", "", 400, "the query cannot be decoded"},
		{"GET", "/api/sessions?subject=a;b", "", 400, "the query cannot be decoded"},
		{"GET", "/api/sessions?subject=a%00b", "", 400, "subject: it has control characters, or is not UTF-8"},
		{"GET", "/api/sessions?group=a%0Ab", "", 400, "group: it has control characters, or is not UTF-8"},
		{"GET", "/api/sessions?path=%ff", "", 400, "path: it has control characters, or is not UTF-8"},
		{"GET", "/api/sessions?address=" + long, "", 400, "address: it has more than 1024 bytes"},
		{"GET", "/api/sessions?limit=0", "", 400, "limit: want a number from 1 to 1000"},
		{"GET", "/api/sessions?limit=1001", "", 400, "limit: want a number from 1 to 1000"},
		{"GET", "/api/sessions?limit=x", "", 400, "limit: want a number from 1 to 1000"},
		{"GET", "/api/sessions?cursor=AAAA", "", 400, "cursor: it is of another filter, or none; want next of the page before, or leave it out to begin anew"},
		{"DELETE", "/api/sessions", "", 400, "there is no filter; want one, or all=true for every session"},
		{"DELETE", "/api/sessions?code=3003", "", 400, "there is no filter; want one, or all=true for every session"},
		{"DELETE", "/api/sessions?all=yes", "", 400, "all: want true, or another filter"},
		{"DELETE", "/api/sessions?all=true&subject=a", "", 400, "all: it cannot stand beside another filter; want one or the other"},
		{"DELETE", "/api/sessions?subject=a&for=0s", "", 400, "for: want a duration up to 168h0m0s such as 15m"},
		{"DELETE", "/api/sessions?subject=a&for=169h", "", 400, "for: want a duration up to 168h0m0s such as 15m"},
		{"DELETE", "/api/sessions?subject=a&for=-1m", "", 400, "for: want a duration up to 168h0m0s such as 15m"},
		{"DELETE", "/api/sessions?group=a&for=1m", "", 400, "for: it keeps a subject out; want subject and no other filter"},
		{"DELETE", "/api/sessions?all=true&for=1m", "", 400, "for: it keeps a subject out; want subject and no other filter"},
		{"DELETE", "/api/sessions?subject=a&path=/&for=1m", "", 400, "for: it keeps a subject out; want subject and no other filter"},
		{"DELETE", "/api/sessions?all=true&reason=" + strings.Repeat("x", 124), "", 400, "reason: want at most 123 bytes"},
		{"DELETE", "/api/sessions?all=true&reason=%ff", "", 400, "reason: it has control characters, or is not UTF-8"},
		{"DELETE", "/api/sessions/x?all=true", "", 400, "all: there is no such parameter here; want one of: code, reason"},
		{"POST", "/api/messages", "hello", 400, "there is no filter; want one, or all=true for every session"},
		{"POST", "/api/messages?except=x", "hello", 400, "there is no filter; want one, or all=true for every session"},
		{"POST", "/api/messages?all=true", "12345678901", 413, "the message has more than 10 bytes (PUSH_MAX_BYTES)"},
		{"POST", "/api/messages?all=true", "\xff", 400, "a text message must be UTF-8; send another Content-Type for a binary one"},
	} {
		text, _ := json.Marshal(map[string]string{"error": tt.text})
		o.want(tt.status, string(text), tt.method, tt.target, tt.body, asText)
	}
	for _, code := range []string{"0", "999", "1001", "1002", "1005", "1006", "1011", "1015", "2000", "2999", "5000", "-3003", "3e3", "x"} {
		o.want(400, `{"error":"code: want 1000, 1008, or one from 3000 to 4999 (RFC 6455, section 7.4)"}`, "DELETE", "/api/sessions?all=true&code="+code, "")
	}
	endless := o.callWith("POST", "/api/messages?all=true", io.LimitReader(zeros{}, 1<<30))
	if endless.StatusCode != 413 {
		t.Errorf("an endless body: %d", endless.StatusCode)
	}
	echoes(t, conn, "none of this has reached the session")
}

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return copy(b, make([]byte, len(b))), nil }

// A cursor is good for the filter that it came with, and as it came.
func TestOperatorPages(t *testing.T) {
	o := newOperator(t, nil)
	for range 5 {
		o.gate.connect(t, "/?token=wonder", nil)
	}
	var ids []string
	target := "/api/sessions?limit=2&subject=Alice"
	page := o.call("GET", target, "")
	for {
		for _, s := range page.json["sessions"].([]any) {
			ids = append(ids, s.(map[string]any)["id"].(string))
		}
		next, more := page.json["next"].(string)
		if !more {
			break
		}
		for i, wrong := range []string{"/api/sessions?limit=2&cursor=" + next, target + "&cursor=" + next[1:], target + "&cursor=A" + next[1:] + "A", target + "&cursor=" + next + "A"} {
			if a := o.call("GET", wrong, ""); a.StatusCode != 400 {
				t.Errorf("cursor %d: %d %s", i, a.StatusCode, a.text)
			}
		}
		page = o.call("GET", target+"&cursor="+next, "")
	}
	slices.Sort(ids)
	if len(ids) != 5 || len(slices.Compact(ids)) != 5 {
		t.Errorf("%d sessions, want 5: %v", len(ids), ids)
	}
}

func TestOperatorToken(t *testing.T) {
	o := newOperator(t, nil)
	for name, authorization := range map[string]string{
		"missing": "", "another scheme": "Basic " + adminToken, "no scheme": adminToken, "lower case": "bearer " + adminToken,
		"near": "Bearer " + adminToken[1:] + "0", "longer": "Bearer " + adminToken + "0", "shorter": "Bearer " + adminToken[1:], "a blank": "Bearer  " + adminToken,
		"empty": "Bearer ",
	} {
		a := o.call("GET", "/api/sessions", "", "Authorization: "+authorization)
		if a.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%s: %d %v", name, a.StatusCode, a.Header)
		}
	}
	statuses := make(map[int]int)
	for range 20 {
		statuses[o.call("GET", "/api/sessions", "", "Authorization: Bearer wrong").StatusCode]++
	}
	if statuses[401] > 3 || statuses[429] < 17 {
		t.Errorf("statuses of 20 wrong tokens after 7: %v", statuses)
	}
	if a := o.call("GET", "/api/sessions", ""); a.StatusCode != 429 || a.Header.Get("Retry-After") == "" {
		t.Errorf("the right one after that: %d %v; it would be found as quickly as it can be tried", a.StatusCode, a.Header)
	}
}

func TestOperatorIsOff(t *testing.T) {
	g := newGate(t, newEcho(t), nil)
	if g.Operator() != nil {
		t.Error("there is an API without ADMIN_TOKEN")
	}
	g.connect(t, "/?token=good", nil)
	if _, found := g.sessions.Held(); found != 0 {
		t.Errorf("%d sessions are in an index that nobody uses", found)
	}
}

// A call that is sent again is done once, however often and however quickly.
func TestOperatorIdempotency(t *testing.T) {
	o := newOperator(t, nil)
	conn := o.gate.connect(t, "/?token=wonder", nil)
	const key = "Idempotency-Key: 7f3a"
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := make(map[int]int)
	for range 20 {
		wg.Go(func() {
			a := o.call("POST", "/api/messages?all=true", "once", asText, key)
			mu.Lock()
			defer mu.Unlock()
			statuses[a.StatusCode]++
		})
	}
	wg.Wait()
	if statuses[200] == 0 || statuses[200]+statuses[409] != 20 {
		t.Errorf("statuses %v, want 200 and, while that runs, 409", statuses)
	}
	a := o.call("POST", "/api/messages?all=true", "once", asText, key)
	if a.StatusCode != 200 || a.json["reached"] != 1. || a.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("again: %d %s %v", a.StatusCode, a.text, a.Header)
	}
	another := `{"error":"Idempotency-Key: it was used for another call"}`
	o.want(422, another, "POST", "/api/messages?all=true", "twice", asText, key)
	o.want(422, another, "POST", "/api/messages?subject=Alice", "once", asText, key)
	o.want(422, another, "DELETE", "/api/sessions?all=true", "", key)
	wrong := `{"error":"Idempotency-Key: want 1 to 255 visible ASCII characters, once"}`
	for _, value := range []string{"a b", "é", strings.Repeat("x", 256)} {
		o.want(400, wrong, "POST", "/api/messages?all=true", "once", asText, "Idempotency-Key: "+value)
	}
	o.want(200, `{"reached":1,"ending":0,"too_slow":0,"extension":0,"full":0}`, "POST", "/api/messages?all=true", "end", asText)
	for _, want := range []string{"once", "end"} {
		if _, got, err := conn.ReadMessage(); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

// events reads a stream of events.
func (o *operator) events(ctx context.Context) *bufio.Scanner {
	o.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", o.url+"/api/events", nil)
	if err != nil {
		o.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), ":") {
		o.t.Fatalf("the stream begins with %q", lines.Text())
	}
	return lines
}

// event is one of the stream.
type event struct {
	Session struct {
		ID, Subject string
		FromClient  struct{ Messages int } `json:"from_client"`
	}
	Reason string
	Code   int
}

// next is the next event, and what it says.
func next(t testing.TB, lines *bufio.Scanner) (name string, e event) {
	t.Helper()
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatalf("%q: %v", data, err)
			}
			return name, e
		}
		if event, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			name = event
		}
	}
	return "", e
}

func TestOperatorEvents(t *testing.T) {
	o := newOperator(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	lines := o.events(ctx)
	conn := o.gate.connect(t, "/?token=wonder", nil)
	name, opened := next(t, lines)
	if name != "opened" || opened.Session.Subject != "Alice" {
		t.Errorf("%s: %+v", name, opened)
	}
	echoes(t, conn, "hello")
	conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(patience))
	name, ended := next(t, lines)
	if name != "ended" || ended.Session.ID != opened.Session.ID || ended.Reason != "client_close" || ended.Code != 1000 || ended.Session.FromClient.Messages != 1 {
		t.Errorf("%s: %+v", name, ended)
	}
	o.gate.Cut()
	if name, _ := next(t, lines); name != "" {
		t.Errorf("after the end: %s", name)
	}
}

// The description in docs is what is served: the same calls, with the same parameters, and answers with the same fields.
func TestOpenAPI(t *testing.T) {
	text := readDescription(t)
	o := newOperator(t, func(c *Config) {
		c.API.OpenAPI = text
		c.Session.History = session.HistorySize{Pushes: 10, Age: time.Minute}
	})
	if a := o.call("GET", "/api/openapi.json", ""); a.text != strings.TrimSpace(string(text)) {
		t.Error("another description is served than that in docs")
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name, In string }
			Responses  map[string]struct {
				Content map[string]struct {
					Schema map[string]any
				}
			}
		}
		Components struct {
			Schemas map[string]struct {
				Required   []string
				Properties map[string]any
			}
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var described []string
	for path, methods := range doc.Paths {
		for method, call := range methods {
			var query []string
			for _, p := range call.Parameters {
				if p.In == "query" {
					query = append(query, p.Name)
				}
			}
			slices.Sort(query)
			described = append(described, fmt.Sprintf("%s %s %s", strings.ToUpper(method), path, strings.Join(query, ",")))
		}
	}
	slices.Sort(described)
	if served := servedCalls(); !slices.Equal(described, served) {
		t.Errorf("described %q\nserved    %q", described, served)
	}

	o.gate.connect(t, "/?token=wonder", nil)
	list := o.call("GET", "/api/sessions", "")
	one := list.json["sessions"].([]any)[0].(map[string]any)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := o.events(ctx)
	sent := o.call("POST", "/api/messages?all=true", "hello", asText)
	kicked := o.call("DELETE", "/api/sessions?all=true", "")
	o.gate.Cut()
	var told map[string]any
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			told = nil
			if json.Unmarshal([]byte(data), &told); told["type"] == "ended" { // it may have opened meanwhile
				break
			}
		}
	}
	for schema, got := range map[string]map[string]any{
		"SessionList": list.json, "Session": one, "Traffic": one["from_client"].(map[string]any), "Pushed": sent.json, "Kicked": kicked.json,
		"Event": told, "Error": o.call("GET", "/api/nothing", "").json,
	} {
		described := doc.Components.Schemas[schema]
		want := slices.Sorted(keys(described.Properties))
		fields := slices.Sorted(keys(got))
		absent := func(name string) bool { // without a fleet
			return name == "unanswered" && !slices.Contains(described.Required, name) && !slices.Contains(fields, name)
		}
		if !slices.Equal(fields, slices.DeleteFunc(slices.Clone(want), absent)) {
			t.Errorf("%s: described with %q, served with %q", schema, want, fields)
		}
	}
	if len(doc.Components.Schemas) != 7 {
		t.Errorf("%d schemas, want the 7 that are compared here", len(doc.Components.Schemas))
	}
}

func keys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func readDescription(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile("../docs/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// servedCalls are all calls that the API knows, each with its parameters.
func servedCalls() []string {
	all := api.Calls()
	slices.Sort(all)
	return all
}
