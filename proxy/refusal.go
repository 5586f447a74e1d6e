package proxy

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"portcullis/proxy/admin"
	"portcullis/proxy/relay"
)

// Reason says why a request was refused: the label of the metric, the key in the log, a row of the README's table.
type Reason string

// The reasons, in the order of the steps.
const (
	Malformed           Reason = "malformed" // net/http's own no: this package's handler never saw the request
	Draining            Reason = "draining"
	PathSuspicious      Reason = "path_suspicious"
	Path                Reason = "path"
	Method              Reason = "method"
	NotWebSocket        Reason = "not_websocket"
	Version             Reason = "version"
	Handshake           Reason = "handshake"
	Origin              Reason = "origin"
	Loop                Reason = "loop"
	RateAddress         Reason = "rate_address"
	AuthFailures        Reason = "auth_failures"
	RateGlobal          Reason = "rate_global"
	SessionsAddress     Reason = "sessions_address"
	SessionsTotal       Reason = "sessions_total"
	TokenMissing        Reason = "token_missing"
	FirstMessageFull    Reason = "first_message_full"
	FirstMessageTimeout Reason = "first_message_timeout"
	FirstMessage        Reason = "first_message"
	TokenMalformed      Reason = "token_malformed"
	TokenConflict       Reason = "token_conflict"
	TokenRefused        Reason = "token_refused"
	TokenDenied         Reason = "token_denied"
	AuthUnavailable     Reason = "auth_unavailable"
	RateSubject         Reason = "rate_subject"
	SessionsSubject     Reason = "sessions_subject"
	Overload            Reason = "overload"
	Tickets             Reason = "tickets"
	TicketsTotal        Reason = "tickets_total"
	UpstreamDial        Reason = "upstream_dial"
	UpstreamTimeout     Reason = "upstream_timeout"
	UpstreamHandshake   Reason = "upstream_handshake"
	UpstreamRefused     Reason = "upstream_refused"
	ClientGone          Reason = "client_gone"
	Internal            Reason = "internal"
)

// answers are the status and the line that a refused client gets. Status 0: not for us to answer.
var answers = map[Reason]struct {
	status int
	text   string
}{
	Malformed:           {0, ""}, // net/http has answered
	Draining:            {503, "this server is shutting down"},
	PathSuspicious:      {400, "suspicious path"},
	Path:                {404, "no WebSocket is served at this path"},
	Method:              {405, "the method is not allowed; a WebSocket handshake is a GET request"},
	NotWebSocket:        {426, "only WebSocket connections are served here"},
	Version:             {426, "only WebSocket version 13 is served here"},
	Handshake:           {400, "malformed WebSocket handshake"},
	Origin:              {403, "this origin is not allowed"},
	Loop:                {508, "this request goes around in a loop"},
	RateAddress:         {429, "too many connection attempts from your address"},
	AuthFailures:        {429, "too many failed authentications from your address"},
	RateGlobal:          {503, "too many connection attempts"},
	SessionsAddress:     {429, "too many open connections from your address"},
	SessionsTotal:       {503, "too many open connections"},
	TokenMissing:        {401, "a token is required"},
	FirstMessageFull:    {503, "too many connections wait to send their token"},
	FirstMessageTimeout: {401, "no token came in time"},
	FirstMessage:        {400, "the first message carries no token"},
	TokenMalformed:      {401, "the token is malformed"},
	TokenConflict:       {400, "the request carries two different tokens"},
	TokenRefused:        {401, "the token is not accepted"},
	TokenDenied:         {403, "the token does not allow this"},
	AuthUnavailable:     {503, "authentication is not available at the moment"},
	RateSubject:         {429, "too many connection attempts of yours"},
	SessionsSubject:     {429, "too many open connections of yours"},
	Overload:            {503, "this server is overloaded"},
	Tickets:             {429, "too many unused tickets of yours"},
	TicketsTotal:        {503, "too many unused tickets"},
	UpstreamDial:        {502, "the upstream cannot be reached"},
	UpstreamTimeout:     {504, "the upstream does not answer"},
	UpstreamHandshake:   {502, "the upstream's answer is not a WebSocket handshake"},
	UpstreamRefused:     {0, ""}, // with the upstream's own
	ClientGone:          {0, ""}, // nobody is there
	Internal:            {500, "internal error"},
}

// retry is when a refused client may come back, where no limiter knows it better. 0: that is not said.
func (r Reason) retry() time.Duration {
	switch r {
	case Draining:
		return time.Second // another instance has its place by then
	case FirstMessageFull:
		return time.Second // a place is taken for a few at most
	case Overload:
		return 5 * time.Second // what is lacking is free when sessions end, as with the next
	case SessionsAddress, SessionsSubject, SessionsTotal, Tickets, TicketsTotal:
		return 5 * time.Second // when a session will end, nobody knows
	case AuthUnavailable:
		return 5 * time.Second // an endpoint that is down comes up sooner if it is not asked by all at once
	}
	return 0
}

// aboutCredential reports whether it is a no to the credential that was shown, which is charged to the address.
func (r Reason) aboutCredential() bool {
	switch r {
	case TokenMalformed, TokenConflict, TokenRefused, TokenDenied:
		return true
	}
	return false
}

// level is that of the line in the log: louder where an operator has something to do.
func (r Reason) level() slog.Level {
	switch r {
	case AuthUnavailable, Overload, UpstreamDial, UpstreamTimeout, UpstreamHandshake:
		return slog.LevelWarn
	case Internal:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// KnownReasons are the label values that Config.Metrics must be made for.
func KnownReasons() admin.Known {
	known := admin.Known{EndReasons: make(map[string][]int)}
	for _, r := range slices.Sorted(maps.Keys(answers)) {
		known.RefusalReasons = append(known.RefusalReasons, string(r))
	}
	for r, codes := range relay.Reasons() {
		known.EndReasons[string(r)] = codes
	}
	return known
}

// refusal is a step's no. A step only returns it; refuse counts, logs and writes it.
type refusal struct {
	reason Reason
	status int           // 0: the reason's
	text   string        // for the client, in place of the reason's; "": that
	detail string        // what is wrong, for the client too: never anything of the request
	err    error         // what is wrong, for the log alone
	wait   time.Duration // until when to stay away; 0: the reason's
	header http.Header   // to add to the answer
	code   int           // of the Close frame, where a frame is the answer; 0: as the status says
	body   []byte        // of UpstreamRefused: the upstream's
}

// refuse is the one place where a no is counted, logged and written.
func (p *Proxy) refuse(u *upgrade, no *refusal) {
	u.letGo() // the client may take its time to be refused
	p.openToRefuse(u, no)
	p.record(u, no)
	switch {
	case u.toldByClose():
		p.dismiss(u, no)
	case u.hijacked != nil: // too late for an answer
	case no.answerStatus() == 0:
		panic(http.ErrAbortHandler) // closes the connection; to return would be a 200
	default:
		no.write(u.w, u.r)
	}
}

// record counts a no and logs it.
func (p *Proxy) record(u *upgrade, no *refusal) {
	p.findClient(u) // where the no came before that step
	attrs := []slog.Attr{
		slog.Int("status", no.answerStatus()),
		slog.String("client", u.client.Addr.String()),
		slog.String("path", brief(u.path)),
	}
	if code := no.closeCode(); code != 0 && u.toldByClose() {
		attrs = append(attrs, slog.Int("code", code))
	}
	if u.decision.Subject != "" {
		attrs = append(attrs, slog.String("subject", u.decision.Subject))
	}
	if no.detail != "" {
		attrs = append(attrs, slog.String("detail", no.detail))
	}
	if no.err != nil {
		attrs = append(attrs, slog.Any("error", no.err))
	}
	p.count(no.reason, attrs...)
}

// count counts a refusal and logs it in one line, if there is room for it.
func (p *Proxy) count(why Reason, attrs ...slog.Attr) {
	p.metrics.Refused(string(why))
	ok, first := p.lines.allow(why, time.Now())
	if first {
		time.AfterFunc(time.Second, p.tellDropped) // even if no refusal comes after this one
	}
	if ok {
		attrs = slices.Insert(attrs, 0, slog.String("reason", string(why)))
		p.log.LogAttrs(context.Background(), why.level(), "refused", attrs...)
	}
}

// tellDropped logs how many refusals have had no line.
func (p *Proxy) tellDropped() {
	if n := p.lines.take(); n > 0 {
		p.log.Info("refusals not logged", "count", n)
	}
}

// lineLimit lets 100 lines a second through, lest refusing an attack fills the disk, and counts the others. Of an overload it is
// one a second: it is nobody's fault but ours, so that a second line tells nothing new.
type lineLimit struct {
	bucket   *rate.Limiter
	overload *rate.Limiter
	dropped  atomic.Int64
}

func newLineLimit() *lineLimit {
	return &lineLimit{bucket: rate.NewLimiter(100, 100), overload: rate.NewLimiter(1, 1)}
}

// allow reports whether a line may be written at now, and if not, whether it is the first dropped since take.
func (l *lineLimit) allow(why Reason, now time.Time) (ok, first bool) {
	if (why != Overload || l.overload.AllowN(now, 1)) && l.bucket.AllowN(now, 1) {
		return true, false
	}
	return false, l.dropped.Add(1) == 1
}

// take returns how many lines were dropped since it was last called.
func (l *lineLimit) take() int64 { return l.dropped.Swap(0) }

// brief bounds what a log line keeps of a path, in bytes.
func brief(path string) string {
	const most = 256
	if len(path) > most {
		return path[:most] + "…"
	}
	return path
}

func (no *refusal) answerStatus() int { return cmp.Or(no.status, answers[no.reason].status) }

// write answers with the refusal.
func (no *refusal) write(w http.ResponseWriter, r *http.Request) {
	status, body, h := no.answerStatus(), no.body, w.Header()
	for name, values := range no.header {
		if name == "Connection" {
			values = append(h[name], values...) // behind close: net/http looks at the first alone
		}
		h[name] = values
	}
	if no.reason != UpstreamRefused {
		body = no.line()
		h["Content-Type"] = []string{"text/plain; charset=utf-8"}
		h["X-Content-Type-Options"] = []string{"nosniff"}
		h["Cache-Control"] = []string{"no-store"}
	}
	if wait := cmp.Or(no.wait, no.reason.retry()); wait > 0 {
		h["Retry-After"] = []string{strconv.Itoa(jitter(wait))}
	}
	if status != http.StatusNoContent && status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	deliver(w, r, status, body)
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

func (no *refusal) line() []byte {
	text := cmp.Or(no.text, answers[no.reason].text)
	if no.detail != "" {
		text += ": " + no.detail
	}
	return []byte(text + "\n")
}

// jitter turns a wait into whole seconds, at least 1: rounded up, and spread over half as long again and two seconds more, so
// that clients refused together do not return together.
func jitter(wait time.Duration) int {
	return seconds(wait + rand.N(wait/2+2*time.Second))
}

func seconds(d time.Duration) int {
	return max(1, int((d+time.Second-1)/time.Second))
}
