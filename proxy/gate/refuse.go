package gate

import (
	"log/slog"

	"portcullis/proxy/refusal"
)

// Refuse is the one place where a refusal is reported and answered, for a request that holds nothing.
func (g *Gate) Refuse(r *Request, no *refusal.Refusal) {
	g.refuse(&upgrade{Request: r}, no)
}

// refuse is Refuse for an upgrade.
func (g *Gate) refuse(u *upgrade, no *refusal.Refusal) {
	u.releaseSlot() // the client may take its time to be refused
	g.upgradeToRefuse(u, no)
	g.report(u, no)
	switch {
	case u.switched():
		g.refuseByClose(u, no)
	case u.socket != nil: // too late for an answer
	case no.StatusCode() == 0:
		u.Client.Abort()
	default:
		u.Respond(no.Response())
	}
}

// Report reports a refusal that somebody else has answered.
func (g *Gate) Report(r *Request, no *refusal.Refusal) { g.report(&upgrade{Request: r}, no) }

// report reports a refusal with what is known of the request.
func (g *Gate) report(u *upgrade, no *refusal.Refusal) {
	attrs := []slog.Attr{
		slog.Int("status", no.StatusCode()),
		slog.String("client", u.From.Addr.String()),
		slog.String("path", truncatePath(u.Path)),
	}
	if u.route != nil {
		g.Metrics.RouteRefused(u.route.Name)
		if u.route.Name != "" {
			attrs = append(attrs, slog.String("route", u.route.Name))
		}
	}
	if u.switched() {
		if code, _ := no.CloseFrame(); code != 0 {
			attrs = append(attrs, slog.Int("code", code))
		}
	}
	if u.subject != "" {
		attrs = append(attrs, slog.String("subject", u.subject))
	}
	if u.plain {
		g.Metrics.HTTPRefused(string(no.Reason))
		g.Parts.Report.Log(no, attrs...)
		return
	}
	g.Parts.Report.Report(no, attrs...)
}

// truncatePath is what a log line keeps of a path.
func truncatePath(path string) string {
	const most = 256 // bytes
	if len(path) > most {
		return path[:most] + "…"
	}
	return path
}
