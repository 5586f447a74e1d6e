package refusal

import (
	"log/slog"
	"maps"
	"slices"
	"time"
)

// Reason says why a request was refused: the label of the metric, the key in the log, a row of the table in the documents.
type Reason string

// The reasons, in the order of the steps.
const (
	Malformed           Reason = "malformed" // net/http refused it; our handler never saw it
	Draining            Reason = "draining"
	PathSuspicious      Reason = "path_suspicious"
	Path                Reason = "path"
	Method              Reason = "method"
	NotWebSocket        Reason = "not_websocket"
	Version             Reason = "version"
	Handshake           Reason = "handshake"
	Request             Reason = "request"
	Origin              Reason = "origin"
	Loop                Reason = "loop"
	ResumeStale         Reason = "resume_stale"
	SessionUnknown      Reason = "session_unknown"
	RateAddress         Reason = "rate_address"
	RateRequests        Reason = "rate_requests"
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
	Groups              Reason = "groups"
	Kicked              Reason = "kicked"
	RateSubject         Reason = "rate_subject"
	SessionsSubject     Reason = "sessions_subject"
	Overload            Reason = "overload"
	Tickets             Reason = "tickets"
	TicketsTotal        Reason = "tickets_total"
	TicketPath          Reason = "ticket_path"
	FleetUnavailable    Reason = "fleet_unavailable"
	UpstreamNone        Reason = "upstream_none"
	UpstreamBusy        Reason = "upstream_busy"
	UpstreamDial        Reason = "upstream_dial"
	UpstreamTimeout     Reason = "upstream_timeout"
	UpstreamHandshake   Reason = "upstream_handshake"
	UpstreamAnswer      Reason = "upstream_answer"
	UpstreamRefused     Reason = "upstream_refused"
	RequestBody         Reason = "request_body"
	Expired             Reason = "expired"
	ClientGone          Reason = "client_gone"
	Internal            Reason = "internal"
)

// answers are the status and the line that a refused client gets. Status 0: the client is not to be answered.
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
	Request:             {400, "malformed request"},
	Origin:              {403, "this origin is not allowed"},
	Loop:                {508, "this request goes around in a loop"},
	ResumeStale:         {409, "stale"},           // these two words are the protocol's: a client tells by them what to do
	SessionUnknown:      {401, "session unknown"}, //
	RateAddress:         {429, "too many connection attempts from your address"},
	RateRequests:        {429, "too many requests from your address"},
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
	Groups:              {403, "the groups of this session cannot be used"}, // 400 where the client chose them
	Kicked:              {403, "you are kept out for now"},
	RateSubject:         {429, "too many connection attempts of yours"},
	SessionsSubject:     {429, "too many open connections of yours"},
	Overload:            {503, "this server is overloaded"},
	Tickets:             {429, "too many unused tickets of yours"},
	TicketsTotal:        {503, "too many unused tickets"},
	TicketPath:          {400, "for which path the ticket is cannot be said"},
	FleetUnavailable:    {503, "the other instances cannot be asked at the moment"},
	UpstreamNone:        {503, "no server is up at the moment"},
	UpstreamBusy:        {503, "too many connections are being opened"},
	UpstreamDial:        {502, "the upstream cannot be reached"},
	UpstreamTimeout:     {504, "the upstream does not answer"},
	UpstreamHandshake:   {502, "the upstream's answer is not a WebSocket handshake"},
	UpstreamAnswer:      {502, "the upstream's answer cannot be used"},
	RequestBody:         {400, "the body of the request is broken"}, // 408 where it does not come
	Expired:             {401, "the token has expired"},
	UpstreamRefused:     {0, ""}, // with the upstream's own
	ClientGone:          {0, ""}, // nobody is there
	Internal:            {500, "internal error"},
}

// Status is that of the HTTP answer, unless the refusal has another. 0: the client is not to be answered.
func (r Reason) Status() int { return answers[r].status }

// Text is what a refused client is told, in one line without its end.
func (r Reason) Text() string { return answers[r].text }

// retryAfter is how long a refused client should stay away, where no limiter knows it better. 0: that is not said.
func (r Reason) retryAfter() time.Duration {
	switch r {
	case UpstreamBusy:
		return time.Second // a place is taken for a handshake
	case UpstreamNone:
		return 5 * time.Second // as long as a server takes to come up
	case Draining:
		return time.Second // another instance takes over
	case FleetUnavailable:
		return time.Second // what they share is looked for again by then
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

// ChargesFailure reports whether the refusal is about the credential that was shown, which is charged to the address's budget
// of failed authentications.
func (r Reason) ChargesFailure() bool {
	switch r {
	case TokenMalformed, TokenConflict, TokenRefused, TokenDenied:
		return true
	}
	return false
}

// Level is that of the line in the log: louder where an operator has something to do.
func (r Reason) Level() slog.Level {
	switch r {
	case AuthUnavailable, Overload, UpstreamNone, UpstreamDial, UpstreamTimeout, UpstreamHandshake, UpstreamAnswer:
		return slog.LevelWarn
	case Internal:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Reasons are all of them, sorted.
func Reasons() []string {
	var all []string
	for _, r := range slices.Sorted(maps.Keys(answers)) {
		all = append(all, string(r))
	}
	return all
}
