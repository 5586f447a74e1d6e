package proxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Pages stay what they are while sessions open and end: none comes twice, none that stays is left out.
func TestOperatorPagesUnderChange(t *testing.T) {
	o := newOperator(t, nil)
	conns := make(map[string]*websocket.Conn)
	open := func() (id string) {
		t.Helper()
		conn := o.gate.connect(t, "/?token=wonder", nil)
		all := o.call("GET", "/api/sessions?limit=1000", "").json["sessions"].([]any)
		id = all[len(all)-1].(map[string]any)["id"].(string) // the newest is the last
		conns[id] = conn
		return id
	}
	end := func(id string) {
		t.Helper()
		conns[id].Close()
		for began := time.Now(); o.call("GET", "/api/sessions/"+id, "").StatusCode != 404; time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > patience {
				t.Fatalf("%s does not end", id)
			}
		}
	}
	var ids []string
	for range 6 {
		ids = append(ids, open())
	}
	var listed []string
	cursor := ""
	page := func() (more bool) {
		t.Helper()
		a := o.call("GET", "/api/sessions?limit=2&subject=Alice"+cursor, "")
		for _, s := range a.json["sessions"].([]any) {
			listed = append(listed, s.(map[string]any)["id"].(string))
		}
		next, more := a.json["next"].(string)
		cursor = "&cursor=" + next
		return more
	}
	page()
	end(ids[0]) // was listed
	end(ids[1]) // the place of the cursor
	end(ids[3]) // was not
	newest := open()
	for page() {
	}
	want := []string{ids[0], ids[1], ids[2], ids[4], ids[5], newest}
	if fmt.Sprint(listed) != fmt.Sprint(want) {
		t.Errorf("listed %q\nwant   %q", listed, want)
	}
}
