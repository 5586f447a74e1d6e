package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	// maxAnswerHeader bounds the header of an answer, in bytes.
	maxAnswerHeader = 16 << 10
	// maxIdle bounds the connections kept open between calls: as many as calls
	// are in flight in a reconnect storm, few enough for a small service.
	maxIdle = 64
	// idleTimeout is below the 60 s after which common load balancers close idle
	// connections, so that this side closes them. If a service closes sooner,
	// net/http asks again on a new connection.
	idleTimeout = 55 * time.Second
)

// A client makes the calls of a verifier to AUTH_URL.
type client struct {
	url       *url.URL
	header    http.Header // of every call
	timeout   time.Duration
	maxBody   int64 // of a 200; 0: only the status is read
	transport *http.Transport

	groupHeaders []string // canonical; of an answer that accepts
}

// newClient returns an error of one line for each mistake.
func newClient(c *Config) (*client, error) {
	u, urlErr := parseURL("AUTH_URL", c.URL)
	header := http.Header{"User-Agent": {userAgent}}
	authorization, clientErr := c.authorization()
	if authorization != "" {
		header["Authorization"] = []string{authorization}
	}
	transport, transportErr := newTransport(c)
	if err := errors.Join(urlErr, c.checkTLSUse("AUTH_URL", u), transportErr, clientErr); err != nil {
		return nil, err
	}
	caller := &client{url: u, header: header, timeout: c.Timeout, transport: transport}
	for _, name := range c.GroupHeaders {
		caller.groupHeaders = append(caller.groupHeaders, http.CanonicalHeaderKey(name))
	}
	return caller, nil
}

const userAgent = "portcullis"

// newTransport returns an error of one line for each mistake. RoundTrip is to
// be called directly, not through an http.Client: that would follow redirects
// with the token, and put the URL in its errors.
func newTransport(c *Config) (*http.Transport, error) {
	config, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy: nil, // HTTP_PROXY would be handed the tokens
		// The transport goes on dialling after a call has timed out.
		DialContext:            (&net.Dialer{Timeout: c.Timeout}).DialContext,
		TLSHandshakeTimeout:    c.Timeout,
		TLSClientConfig:        config,
		Protocols:              &protocols,
		DisableCompression:     true, // a small answer does not shrink, and a bomb would grow
		MaxResponseHeaderBytes: maxAnswerHeader,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTimeout,
	}, nil
}

// checkTLSUse returns a mistake for each setting of TLS that a URL without TLS
// leaves without effect: whoever sets it believes the connection to be
// encrypted. A URL with a mistake of its own is nil.
func (c *Config) checkTLSUse(name string, u *url.URL) error {
	if u == nil || u.Scheme == "https" {
		return nil
	}
	return c.withoutTLS("has no effect without TLS; want it unset, or an https " + name)
}

// withoutTLS returns a mistake for each setting of TLS that is set.
func (c *Config) withoutTLS(wrong string) error {
	var mistakes []error
	for _, file := range []struct{ name, path string }{
		{"AUTH_CA_FILE", c.CAFile}, {"AUTH_CERT_FILE", c.CertFile}, {"AUTH_KEY_FILE", c.KeyFile},
	} {
		if file.path != "" {
			mistakes = append(mistakes, mistake(file.name, file.path, wrong))
		}
	}
	return errors.Join(mistakes...)
}

// tlsConfig reads AUTH_CA_FILE, AUTH_CERT_FILE and AUTH_KEY_FILE.
func (c *Config) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	var mistakes []error
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		config.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			mistakes = append(mistakes, mistake("AUTH_CA_FILE", c.CAFile, fmt.Sprintf("cannot be read (%v); want a PEM file of certificates", errors.Unwrap(err))))
		case !config.RootCAs.AppendCertsFromPEM(text):
			mistakes = append(mistakes, mistake("AUTH_CA_FILE", c.CAFile, "holds no certificate; want a PEM file of certificates"))
		}
	}
	switch {
	case c.CertFile == "" && c.KeyFile == "":
	case c.CertFile == "":
		mistakes = append(mistakes, mistake("AUTH_CERT_FILE", "", "is missing beside AUTH_KEY_FILE; want both or neither"))
	case c.KeyFile == "":
		mistakes = append(mistakes, mistake("AUTH_KEY_FILE", "", "is missing beside AUTH_CERT_FILE; want both or neither"))
	default:
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			mistakes = append(mistakes, mistake("AUTH_CERT_FILE", c.CertFile, fmt.Sprintf("cannot be used with AUTH_KEY_FILE (%v); want PEM files of a certificate and its key", err)))
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, errors.Join(mistakes...)
}

// authorization is the Authorization header of AUTH_CLIENT_ID and
// AUTH_CLIENT_SECRET.
func (c *Config) authorization() (string, error) {
	id, secret := c.ClientID, c.ClientSecret
	switch {
	case id == "" && secret == "":
		return "", nil
	case secret == "":
		return "", mistake("AUTH_CLIENT_ID", id, "has no AUTH_CLIENT_SECRET; want both, or the secret alone for Bearer")
	case id == "":
		if !visible(secret) {
			return "", mistake("AUTH_CLIENT_SECRET", "***", "cannot be sent as Bearer; want visible ASCII characters")
		}
		return "Bearer " + secret, nil
	}
	if c.Mode == modeIntrospect {
		// An OAuth client's are form-encoded first (RFC 6749 section 2.3.1).
		id, secret = url.QueryEscape(id), url.QueryEscape(secret)
	}
	if strings.Contains(id, ":") || !fitsHeader(id) || !fitsHeader(secret) {
		return "", mistake("AUTH_CLIENT_ID", id, "cannot be sent as Basic with its secret; want no colon in it, and control characters in neither")
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret)), nil
}

// parseURL checks a URL to call.
func parseURL(name, raw string) (*url.URL, error) {
	const want = "want http://host/path or https://host/path"
	wrong := func(what string) (*url.URL, error) {
		return nil, mistake(name, maskURL(raw), what+"; "+want)
	}
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return wrong("names no endpoint")
	case err != nil:
		return wrong("is not a URL") // the error quotes it
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return wrong("is not an http or https URL with a host")
	case u.User != nil:
		return wrong("has user information")
	case strings.Contains(raw, "#"):
		return wrong("has a fragment")
	case name != "AUTH_ISSUER" && isDiscovery(u.Path): // checkIssuer tells of that one
		return wrong("is a discovery document, which only says where others are")
	}
	query, err := url.ParseQuery(u.RawQuery)
	switch {
	case err != nil:
		return wrong("has a malformed query")
	case name == "AUTH_URL" && query.Has("token"):
		// Many servers take the first, and so would verify this one for everybody.
		return wrong("has a token parameter of its own")
	}
	return u, nil
}

// isDiscovery reports whether path is where the metadata of an authorization
// server are: OpenID Connect Discovery 1.0 section 4, RFC 8414 section 3.
func isDiscovery(path string) bool {
	return strings.Contains(path, discoveryPath) || strings.Contains(path, "/.well-known/oauth-authorization-server")
}

// maskURL hides what may be secret in a URL that is wrong, and so may not parse:
// user information and query.
func maskURL(raw string) string {
	masked, _, query := strings.Cut(raw, "?")
	if i := strings.LastIndexByte(masked, '@'); i >= 0 {
		masked = "…" + masked[i:]
	}
	if query {
		masked += "?…"
	}
	return masked
}

// warnings are those of [Auth.Warnings].
func (c *Config) warnings() []string {
	var lines []string
	for _, s := range []struct{ name, url, danger string }{
		{"AUTH_URL", c.URL, "shows every token to whoever is on the way"},
		{"AUTH_JWKS_URL", c.JWKSURL, "lets whoever is on the way replace the keys"},
		{"AUTH_ISSUER", c.Issuer, "lets whoever is on the way replace the keys"},
	} {
		u, err := url.Parse(s.url)
		if err != nil || u.Scheme != "http" || isLoopback(u.Hostname()) || s.name == "AUTH_ISSUER" && !c.usesDiscovery() {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: %q is not encrypted and %s; want https", s.name, maskURL(s.url), s.danger))
	}
	if c.Mode == modeIntrospect && c.ClientSecret == "" && c.CertFile == "" {
		lines = append(lines, `AUTH_CLIENT_SECRET: "" asks without a credential of our own, which an introspection endpoint must refuse `+
			"(RFC 7662 section 2.1); want AUTH_CLIENT_ID and AUTH_CLIENT_SECRET, the secret alone for Bearer, or AUTH_CERT_FILE")
	}
	return lines
}

// isLoopback reports whether host is this machine (RFC 6761 section 6.3 for
// names).
func isLoopback(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || net.ParseIP(host).IsLoopback()
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// An answer is what a service said.
type answer struct {
	asked  time.Time // when the call began
	status int
	header http.Header
	body   []byte // of a 200, at most maxBody bytes
}

// get returns a request for [client.call]. All calls share its header, which is
// not to be written to.
func (c *client) get() *http.Request {
	u := *c.url
	return &http.Request{Method: http.MethodGet, URL: &u, Host: u.Host, Header: c.header}
}

// post returns a request that sends form.
func (c *client) post(form string) *http.Request {
	r := c.get()
	r.Header = maps.Clone(c.header)
	r.Method, r.ContentLength = http.MethodPost, int64(len(form))
	r.Header["Content-Type"] = []string{"application/x-www-form-urlencoded"}
	// Says that the call may be repeated when a connection turns out to have
	// been closed; an empty list is not sent (net/http.Transport).
	r.Header["X-Idempotency-Key"] = []string{}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(form)), nil }
	r.Body, _ = r.GetBody()
	return r
}

// call sends r and reads the answer. Its errors are an [*UnavailableError], and
// one that wraps ctx's error when ctx ended first.
func (c *client) call(ctx context.Context, r *http.Request) (answer, error) {
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	asked := time.Now()
	a, err := c.roundTrip(r.WithContext(bounded))
	a.asked = asked
	switch {
	case err == nil:
		return a, nil
	case ctx.Err() != nil:
		// The client went away. That is not the service's fault.
		return answer{}, aborted(ctx)
	case bounded.Err() != nil:
		return answer{}, &UnavailableError{Cause: fmt.Errorf("no answer in %v: %w", c.timeout, bounded.Err())}
	}
	if unavailable, ok := errors.AsType[*UnavailableError](err); ok {
		return answer{}, unavailable
	}
	return answer{}, &UnavailableError{Cause: redact(err)}
}

// aborted is the error of [Auth.Verify] when ctx has ended.
func aborted(ctx context.Context) error { return fmt.Errorf("ask the verifier: %w", ctx.Err()) }

// roundTrip makes one call. Its error may quote the service, and so the token.
func (c *client) roundTrip(r *http.Request) (answer, error) {
	resp, err := c.transport.RoundTrip(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if c.maxBody == 0 || a.status != http.StatusOK {
		// A body that is read to its end leaves the connection for the next call.
		io.Copy(io.Discard, io.LimitReader(resp.Body, maxDrained))
		return a, nil
	}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, c.maxBody+1))
	if err == nil && int64(len(a.body)) > c.maxBody {
		err = badResponse("answer longer than %d bytes", c.maxBody)
	}
	return a, err
}

// maxDrained is how much of a body that does not matter is read: enough for the
// error pages of common servers.
const maxDrained = 4 << 10

// badResponse is the error for an answer that came but cannot be used.
func badResponse(format string, args ...any) error {
	return &UnavailableError{Cause: fmt.Errorf(format, args...), responded: true}
}

// unavailable is the error for an answer whose status neither accepts nor
// refuses.
func (a answer) unavailable() error {
	e := &UnavailableError{Cause: fmt.Errorf("status %d", a.status), responded: true}
	switch a.status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		e.responded = false // the service asks to be left alone, or a proxy answers in its place
		wait, _ := seconds(a.header.Get("Retry-After"))
		e.RetryAfter = min(wait, maxRetryAfter)
	}
	return e
}

// maxRetryAfter bounds the Retry-After that is taken from a service, which may
// recover sooner than it expects.
const maxRetryAfter = time.Minute

// subjectHeader is the header in which an answer may name the client.
const subjectHeader = "X-Auth-Subject"

// accept returns the decision of an answer that accepts. If the answer names more
// than one subject, or one that cannot be used, it is unusable.
func (c *client) accept(a answer) (Decision, error) {
	d := Decision{Groups: c.groupsOf(a), Until: holdsUntil(a.header, a.asked), noStore: !storable(a.header, a.asked)}
	switch values := a.header[subjectHeader]; len(values) {
	case 0:
	case 1:
		d.Subject = values[0]
	default:
		return Decision{}, badResponse("the answer names more than one subject")
	}
	if err := checkSubject(d.Subject); err != nil {
		return Decision{}, badResponse("X-Auth-Subject: %w", err)
	}
	return d, nil
}

// redact returns err if its text cannot come from the service, else an error
// that says less: net/http quotes what it cannot parse, and a service that
// echoes the request line would have the token in it.
func redact(err error) error {
	if operation, ok := errors.AsType[*net.OpError](err); ok {
		return operation
	}
	if certificate, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return certificate
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok { // a service without TLS
		return record
	}
	for _, known := range []error{io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, known) {
			return known
		}
	}
	return errors.New("the answer is not valid HTTP, or its header is too long")
}
