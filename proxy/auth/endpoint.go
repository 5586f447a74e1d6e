package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// maxAnswerBytes bounds the body of an answer. A yes is one byte; the rest
	// is room for the error texts that some endpoints send with a no.
	maxAnswerBytes = 4 << 10
	// maxAnswerHeader bounds the header of an answer, in bytes.
	maxAnswerHeader = 16 << 10
	// maxIdle bounds the connections kept open between calls: as many as calls
	// are in flight in a reconnect storm, few enough for a small endpoint.
	maxIdle = 64
	// idleTimeout is below the 60 s after which common load balancers close idle
	// connections, so that it is us who close. Where an endpoint closes sooner,
	// net/http asks again on a new connection.
	idleTimeout = 55 * time.Second
)

// subjectKey is the header in which an endpoint may name the client.
const subjectKey = "X-Auth-Subject"

// An endpoint verifies a token by GET AUTH_URL?token=<token>.
type endpoint struct {
	request   *http.Request // without the token; only shallow copies are sent
	timeout   time.Duration
	transport *http.Transport
}

// newEndpoint returns an error of one line for each mistake.
func newEndpoint(rawURL string, timeout time.Duration) (*endpoint, error) {
	u, err := parseURL(rawURL)
	if timeout <= 0 {
		err = errors.Join(err, mistake("AUTH_TIMEOUT", timeout.String(), "is not a time to wait; want more than 0s"))
	}
	if err != nil {
		return nil, err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &endpoint{
		request: &http.Request{
			Method: http.MethodGet,
			URL:    u,
			Host:   u.Host,
			Header: http.Header{"User-Agent": {"portcullis"}},
		},
		timeout: timeout,
		// RoundTrip is called directly, not through an http.Client: that would
		// follow redirects with the token, and put the URL in its errors.
		transport: &http.Transport{
			Proxy: nil, // HTTP_PROXY would be handed the tokens
			// The transport goes on dialling after a call has timed out.
			DialContext:            (&net.Dialer{Timeout: timeout}).DialContext,
			TLSHandshakeTimeout:    timeout,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			Protocols:              &protocols,
			DisableCompression:     true, // one byte does not shrink, and a bomb would grow
			MaxResponseHeaderBytes: maxAnswerHeader,
			MaxIdleConns:           maxIdle,
			MaxIdleConnsPerHost:    maxIdle,
			IdleConnTimeout:        idleTimeout,
		},
	}, nil
}

// parseURL checks AUTH_URL.
func parseURL(raw string) (*url.URL, error) {
	const want = "want http://host/path or https://host/path"
	wrong := func(what string) (*url.URL, error) {
		return nil, mistake("AUTH_URL", maskURL(raw), what+"; "+want)
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
	}
	query, err := url.ParseQuery(u.RawQuery)
	switch {
	case err != nil:
		return wrong("has a malformed query")
	case query.Has("token"):
		// Many servers take the first, and so would verify this one for everybody.
		return wrong("has a token parameter of its own")
	}
	return u, nil
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

func (e *endpoint) close() { e.transport.CloseIdleConnections() }

func (e *endpoint) verify(ctx context.Context, c Credential) (Decision, error) {
	if err := CheckToken(c.Token); err != nil {
		return Decision{}, err
	}
	call, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	asked := time.Now()
	answer, err := e.ask(call, c.Token)
	switch {
	case err == nil:
		return answer.decision(asked)
	case ctx.Err() != nil:
		// The client went away. That is not the endpoint's fault.
		return Decision{}, fmt.Errorf("ask the verifier: %w", ctx.Err())
	case call.Err() != nil:
		return Decision{}, &UnavailableError{fmt.Errorf("no answer in %v: %w", e.timeout, call.Err())}
	}
	return Decision{}, &UnavailableError{tokenFree(err)}
}

// An answer is what the endpoint said, its body read and bounded.
type answer struct {
	status int
	header http.Header
	body   []byte // of status 200, at most maxAnswerBytes+1 of it
}

// ask makes one call. Its error may quote the endpoint, and so the token.
func (e *endpoint) ask(ctx context.Context, token string) (answer, error) {
	u := *e.request.URL
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += "token=" + url.QueryEscape(token)
	req := e.request.WithContext(ctx)
	req.URL = &u

	resp, err := e.transport.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	// A body that is read to its end leaves the connection for the next call.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if resp.StatusCode != http.StatusOK {
		body, err = nil, nil // the status says it all
	}
	return answer{resp.StatusCode, resp.Header, body}, err
}

// decision reads the answer to a question asked at that time.
func (a answer) decision(asked time.Time) (Decision, error) {
	switch a.status {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return Decision{}, &RefusedError{fmt.Errorf("status %d", a.status)}
	default:
		return Decision{}, &UnavailableError{fmt.Errorf("status %d", a.status)}
	}
	if len(a.body) > maxAnswerBytes {
		return Decision{}, &UnavailableError{fmt.Errorf("answer longer than %d bytes", maxAnswerBytes)}
	}
	if string(bytes.Trim(a.body, " \t\r\n")) != "1" {
		return Decision{}, &RefusedError{errors.New("status 200 with a body other than 1")}
	}
	subject, err := a.subject()
	if err != nil {
		return Decision{}, &UnavailableError{err}
	}
	return Decision{Subject: subject, Until: holdsUntil(a.header, asked)}, nil
}

// subject returns whom the answer names, "" for nobody. A yes for we cannot tell
// whom is no yes.
func (a answer) subject() (string, error) {
	values := a.header[subjectKey]
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], checkSubject(values[0])
	}
	return "", errors.New("the answer names more than one subject")
}

// tokenFree returns err if its text cannot come from the endpoint, else an error
// that says less: net/http quotes what it cannot parse, and an endpoint that
// echoes the request line would have the token in it.
func tokenFree(err error) error {
	if operation, ok := errors.AsType[*net.OpError](err); ok {
		return operation
	}
	if certificate, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return certificate
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok { // an endpoint without TLS
		return record
	}
	for _, known := range []error{io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, known) {
			return known
		}
	}
	return errors.New("the answer is not valid HTTP, or its header is too long")
}
