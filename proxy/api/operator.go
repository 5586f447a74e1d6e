package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
)

// Operator answers /api on the operator's listener: sessions are listed (sessions.go), ended, sent to (messages.go) and watched
// (events.go). It is safe for concurrent use.
type Operator struct {
	secrets   atomic.Pointer[secrets]
	sessions  *session.Manager
	instances *Instances
	pushMax   int64
	openAPI   []byte
	failures  *ratelimit.Limits // of addresses that show wrong tokens
	replies   *replies
	log       *slog.Logger
	denials   rate.Sometimes // of the line in the log about wrong tokens
}

const (
	minAdminToken = 16 // characters
	// failuresPerMinute is how often an address may show a wrong token.
	failuresPerMinute = 10
)

// checkOperator returns a line for each mistake in what an Operator needs.
func (c *Config) checkOperator() (mistakes []error) {
	if c.AdminToken != "" && (len(c.AdminToken) < minAdminToken || !isVisible(c.AdminToken)) {
		mistakes = append(mistakes, fmt.Errorf("ADMIN_TOKEN: %q has not %d or more visible ASCII characters, and no others; want such a secret, as of openssl rand -hex 16",
			"***", minAdminToken))
	}
	if c.PushMaxBytes <= 0 {
		mistakes = append(mistakes, fmt.Errorf("PUSH_MAX_BYTES: \"%d\" lets no message be pushed; want a size above zero such as 1MiB", c.PushMaxBytes))
	}
	return mistakes
}

// isVisible reports whether s is of visible ASCII characters alone.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// NewOperator returns what answers /api; nil without ADMIN_TOKEN.
func NewOperator(c Config, sessions *session.Manager, all *Instances) *Operator {
	if c.AdminToken == "" {
		return nil
	}
	perMinute := ratelimit.Rate{N: failuresPerMinute, Per: time.Minute}
	failures, err := ratelimit.New(ratelimit.Config{AuthFailuresPerIP: perMinute, AuthFailuresPerIPBurst: failuresPerMinute})
	if err != nil {
		panic(err) // constants
	}
	o := &Operator{
		sessions:  sessions,
		instances: all,
		pushMax:   c.PushMaxBytes,
		openAPI:   c.OpenAPI,
		failures:  failures,
		replies:   newReplies(all.fleet),
		log:       c.Logger,
		denials:   rate.Sometimes{First: 10, Interval: time.Second},
	}
	o.SetToken(c.AdminToken)
	return o
}

// secrets are what ADMIN_TOKEN comes to.
type secrets struct {
	token     [sha256.Size]byte // hashes have one length, and comparing them tells nothing
	cursorKey []byte            // which all instances have
}

// SetToken has another ADMIN_TOKEN open the API from now on. Cursors of lists that were given out before are good no more.
func (o *Operator) SetToken(token string) {
	o.secrets.Store(&secrets{sha256.Sum256([]byte(token)), []byte("cursor " + token)})
}

// call is one request to the API.
type call struct {
	*http.Request
	id   string // of the session in the path
	args map[string]string
	body []byte
}

// reply is the answer to a call.
type reply struct {
	status int
	header http.Header // nil: nothing but what every answer has
	body   []byte      // JSON, without its end
	attrs  []any       // for the line in the log
	final  bool        // the same call, sent again, gets the same answer, whatever its status
}

// problem is a reply that says what is wrong with a call.
func problem(status int, format string, a ...any) *reply {
	return jsonReply(status, struct {
		Error string `json:"error"`
	}{fmt.Sprintf(format, a...)})
}

func jsonReply(status int, v any) *reply {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers
	}
	return &reply{status: status, body: body}
}

// route is one thing that a call can ask for. Every method but GET has an effect, so that an Idempotency-Key counts; POST has a body.
type route struct {
	method, path string
	args         string // the query parameters that it knows, with blanks between them
	handle       func(*Operator, *call) *reply
	stream       func(*Operator, http.ResponseWriter, *call) *reply // in place of handle: it writes by itself
}

const (
	sessionID    = "{id}"
	maxSessionID = 128 // bytes
)

// routes are all of them, as docs/openapi.json has them.
var routes = []route{
	{method: "GET", path: "/api/sessions", args: "subject group path address limit cursor", handle: (*Operator).list},
	{method: "DELETE", path: "/api/sessions", args: "subject group path address all code reason for", handle: (*Operator).kick},
	{method: "GET", path: "/api/sessions/" + sessionID, handle: (*Operator).get},
	{method: "DELETE", path: "/api/sessions/" + sessionID, args: "code reason", handle: (*Operator).kick},
	{method: "POST", path: "/api/messages", args: "session subject group path all except", handle: (*Operator).send},
	{method: "GET", path: "/api/events", stream: (*Operator).events},
	{method: "GET", path: "/api/openapi.json", handle: (*Operator).describe},
}

// Calls are all that can be asked for, as "GET /api/sessions address,cursor": the method, the path and the query parameters, sorted.
func Calls() (all []string) {
	for _, rt := range routes {
		all = append(all, rt.method+" "+rt.path+" "+strings.Join(slices.Sorted(slices.Values(strings.Fields(rt.args))), ","))
	}
	return all
}

// ServeHTTP answers one call, and logs it in one line.
func (o *Operator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	client, _ := netip.ParseAddrPort(r.RemoteAddr)
	address := client.Addr().Unmap()
	if denied := o.authorize(r, address); denied != nil {
		o.write(w, denied)
		o.denials.Do(func() {
			o.log.Info("api", "call", r.Method+" "+pathOf(r), "client", address.String(), "status", denied.status)
		})
		return
	}
	c := &call{Request: r}
	rt, answer := findRoute(c)
	if answer == nil {
		answer = o.serve(w, rt, c)
	}
	if answer.body != nil {
		o.write(w, answer)
	}
	attrs := []any{"call", r.Method + " " + pathOf(r), "client", address.String(), "status", answer.status}
	for _, name := range filterArgs {
		if value := c.args[name]; value != "" {
			attrs = append(attrs, "by_"+name, value)
		}
	}
	o.log.Info("api", append(attrs, answer.attrs...)...)
}

// pathOf is what a line in the log has of a call's path.
func pathOf(r *http.Request) string {
	if len(r.URL.Path) > 128 {
		return r.URL.Path[:128] + "…"
	}
	return r.URL.Path
}

// authorize returns nil for a call that shows the token. An address that has shown too many wrong ones is not listened to for a
// while, whatever it shows.
func (o *Operator) authorize(r *http.Request, address netip.Addr) *reply {
	attempt, err := o.failures.Attempt(r.Context(), ratelimit.AddressKey(address))
	if err != nil {
		wait := time.Minute / failuresPerMinute
		if spent, ok := errors.AsType[*ratelimit.BudgetError](err); ok {
			wait = spent.Wait
		}
		denied := problem(http.StatusTooManyRequests, "too many wrong tokens from your address")
		denied.header = http.Header{"Retry-After": {strconv.Itoa(refusal.Seconds(wait))}}
		return denied
	}
	defer attempt.Release()
	token, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	shown := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(shown[:], o.secrets.Load().token[:]) == 1 && isBearer && len(r.Header["Authorization"]) == 1 {
		return nil
	}
	challenge := "Bearer"
	text := "want Authorization: Bearer with ADMIN_TOKEN"
	if r.Header.Get("Authorization") != "" {
		attempt.Charge()
		challenge, text = `Bearer error="invalid_token"`, "the token is not ADMIN_TOKEN"
	}
	denied := problem(http.StatusUnauthorized, "%s", text)
	denied.header = http.Header{"WWW-Authenticate": {challenge}}
	return denied
}

// findRoute finds what a call asks for, or what is wrong with it.
func findRoute(c *call) (found *route, wrong *reply) {
	path := c.URL.Path
	id, isSession := strings.CutPrefix(path, "/api/sessions/")
	if isSession && id != "" && !strings.Contains(id, "/") {
		if len(id) > maxSessionID || !isVisible(id) {
			return nil, noSession()
		}
		c.id, path = id, "/api/sessions/"+sessionID
	}
	var allowed []string
	for i := range routes {
		if rt := &routes[i]; rt.path == path {
			if rt.method == c.Method {
				return rt, c.parse(rt)
			}
			allowed = append(allowed, rt.method)
		}
	}
	if allowed == nil {
		return nil, problem(http.StatusNotFound, "there is no such path; see /api/openapi.json")
	}
	wrong = problem(http.StatusMethodNotAllowed, "the method is not allowed")
	wrong.header = http.Header{"Allow": {strings.Join(allowed, ", ")}}
	return nil, wrong
}

// serve answers a call that has found its route.
func (o *Operator) serve(w http.ResponseWriter, rt *route, c *call) *reply {
	if rt.stream != nil {
		return rt.stream(o, w, c)
	}
	if rt.method == http.MethodPost {
		body, err := io.ReadAll(io.LimitReader(c.Body, o.pushMax+1))
		switch {
		case int64(len(body)) > o.pushMax:
			too := problem(http.StatusRequestEntityTooLarge, "the message has more than %d bytes (PUSH_MAX_BYTES)", o.pushMax)
			too.header = http.Header{"Connection": {"close"}} // the rest is not read
			return too
		case err != nil:
			return problem(http.StatusBadRequest, "the body does not come to its end")
		}
		c.body = body
	}
	if rt.method == http.MethodGet {
		return rt.handle(o, c)
	}
	return o.replies.once(c, func() *reply { return rt.handle(o, c) })
}

// write is the one place where answers are written.
func (o *Operator) write(w http.ResponseWriter, a *reply) {
	h := w.Header()
	for name, values := range a.header {
		h[name] = values
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(a.body)+1))
	w.WriteHeader(a.status)
	w.Write(append(a.body[:len(a.body):len(a.body)], '\n'))
}

// describe is GET /api/openapi.json.
func (o *Operator) describe(*call) *reply { return &reply{status: http.StatusOK, body: o.openAPI} }
