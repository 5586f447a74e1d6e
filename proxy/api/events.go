package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	// eventTimeout is for a reader to take one event.
	eventTimeout = 10 * time.Second
	// eventInterval is how often something is written where there is nothing to tell, so that either side notices the other's end.
	eventInterval = 15 * time.Second
)

// events is GET /api/events: what happens from now on, as server-sent events, until the reader leaves or is too slow.
func (o *Operator) events(w http.ResponseWriter, c *call) *reply {
	s := o.sessions.Subscribe()
	if s == nil {
		return problem(http.StatusServiceUnavailable, "too many read events already")
	}
	defer s.Close()
	out := http.NewResponseController(w)
	out.SetReadDeadline(time.Time{}) // the listener's is for a request
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	write := func(format string, a ...any) bool {
		out.SetWriteDeadline(time.Now().Add(eventTimeout))
		_, err := fmt.Fprintf(w, format, a...)
		return err == nil && out.Flush() == nil
	}
	told := 0
	end := func() *reply { return &reply{status: http.StatusOK, attrs: []any{"events", told}} }
	if !write(": from now on\n\n") {
		return end()
	}
	tick := time.NewTicker(eventInterval)
	defer tick.Stop()
	for {
		select {
		case <-c.Context().Done():
			return end()
		case <-tick.C:
			if !write(":\n\n") {
				return end()
			}
		case e, open := <-s.Events():
			if !open {
				if s.Lost() {
					write("event: gap\ndata: {}\n\n")
				}
				return end()
			}
			data, _ := json.Marshal(e)
			if !write("event: %s\ndata: %s\n\n", e.Type, data) {
				return end()
			}
			told++
		}
	}
}
