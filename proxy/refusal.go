package proxy

import (
	"log/slog"
	"net/http"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/refusal"
	"portcullis/proxy/relay"
)

// KnownReasons are the label values that Config.Metrics must be made for.
func KnownReasons() admin.Known {
	known := admin.Known{RefusalReasons: refusal.Reasons(), EndReasons: make(map[string][]int)}
	for r, codes := range relay.Reasons() {
		known.EndReasons[string(r)] = codes
	}
	return known
}

// refuse is the one place where a refusal is reported and answered.
func (p *Proxy) refuse(u *upgrade, no *refusal.Refusal) {
	u.letGo() // the client may take its time to be refused
	p.openToRefuse(u, no)
	p.record(u, no)
	switch {
	case u.toldByClose():
		p.dismiss(u, no)
	case u.hijacked != nil: // too late for an answer
	case no.StatusCode() == 0:
		panic(http.ErrAbortHandler) // closes the connection; to return would be a 200
	default:
		status, header, body := no.Response()
		h := u.w.Header()
		for name, values := range header {
			if name == "Connection" {
				values = append(h[name], values...) // behind close: net/http looks at the first alone
			}
			h[name] = values
		}
		deliver(u.w, u.r, status, body)
	}
}

// record reports a refusal with what is known of the request.
func (p *Proxy) record(u *upgrade, no *refusal.Refusal) {
	p.findClient(u) // where the refusal came before that step
	attrs := []slog.Attr{
		slog.Int("status", no.StatusCode()),
		slog.String("client", u.client.Addr.String()),
		slog.String("path", brief(u.path)),
	}
	if code, _ := no.CloseFrame(); code != 0 && u.toldByClose() {
		attrs = append(attrs, slog.Int("code", code))
	}
	if u.decision.Subject != "" {
		attrs = append(attrs, slog.String("subject", u.decision.Subject))
	}
	p.report.Report(no, attrs...)
}

// brief is what a log line keeps of a path.
func brief(path string) string {
	const most = 256 // bytes
	if len(path) > most {
		return path[:most] + "…"
	}
	return path
}

// deliver writes an answer, its headers apart, and has it sent.
func deliver(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	rc := http.NewResponseController(w)
	if r.ContentLength != 0 {
		// net/http reads on for the body before it closes, lest a reset overtake this answer. Not for long.
		rc.SetReadDeadline(time.Now().Add(time.Second))
	}
	w.WriteHeader(status)
	w.Write(body)
	rc.Flush() // now, not after the handler: by then Drain may have closed what is left
	if m, _ := r.Context().Value(connKey{}).(*markedConn); m != nil {
		m.waiting.put(m) // net/http lingers before it closes
	}
}
