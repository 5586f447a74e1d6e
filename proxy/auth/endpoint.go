package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
)

// maxAnswerBytes bounds the body of an answer. An acceptance is one byte; the rest
// is room for the error texts that some endpoints send with a refusal.
const maxAnswerBytes = 4 << 10

// An endpoint verifies a token by GET AUTH_URL?token=<token>, or by a POST of
// that form.
type endpoint struct {
	*client
	byPost   bool // AUTH_METHOD=POST
	byStatus bool // AUTH_ACCEPT=2xx
	log      *slog.Logger
	hint     sync.Once // that AUTH_ACCEPT may be meant to be 2xx
}

// checkAcceptAndMethod checks AUTH_ACCEPT and AUTH_METHOD.
func (c *Config) checkAcceptAndMethod() error {
	var acceptErr, methodErr error
	switch c.Accept {
	case "", "one", "2xx":
	default:
		acceptErr = mistake("AUTH_ACCEPT", c.Accept, "is no way to accept; want one or 2xx")
	}
	switch c.Method {
	case "", http.MethodGet, http.MethodPost:
	default:
		methodErr = mistake("AUTH_METHOD", c.Method, "is no method to ask by; want GET or POST")
	}
	return errors.Join(acceptErr, methodErr)
}

// newEndpoint returns an error of one line for each mistake.
func newEndpoint(c *Config) (*endpoint, error) {
	caller, err := newClient(c)
	if err := errors.Join(err, c.checkAcceptAndMethod()); err != nil {
		return nil, err
	}
	e := &endpoint{client: caller, byPost: c.Method == http.MethodPost, byStatus: c.Accept == "2xx", log: c.Logger}
	if !e.byStatus {
		e.maxBody = maxAnswerBytes
	}
	return e, nil
}

func (e *endpoint) verify(ctx context.Context, c Credential) (Decision, error) {
	if err := CheckToken(c.Token); err != nil {
		return Decision{}, err
	}
	a, err := e.call(ctx, e.request(c.Token))
	if err != nil {
		return Decision{}, err
	}
	refused := func(format string, args ...any) (Decision, error) {
		return Decision{}, &RefusedError{Cause: fmt.Errorf(format, args...), noStore: !storable(a.header, a.asked)}
	}
	switch {
	case a.status == http.StatusBadRequest, a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		return refused("status %d", a.status)
	case e.byStatus && a.status/100 == 2:
	case e.byStatus || a.status != http.StatusOK:
		return Decision{}, a.unavailable()
	case string(bytes.Trim(a.body, " \t\r\n")) != "1":
		if bytes.HasPrefix(bytes.TrimLeft(a.body, " \t\r\n"), []byte("{")) { // 0 and false are JSON too, and refusals
			e.hint.Do(func() {
				e.log.Warn("the token endpoint answers 200 with JSON, which accepts nobody: only the body 1 does. " +
					"If its 200 always means yes, set AUTH_ACCEPT=2xx, with which the status alone decides")
			})
		}
		return refused("status 200 with a body other than 1")
	}
	return e.accept(a)
}

// request asks about token.
func (e *endpoint) request(token string) *http.Request {
	form := "token=" + url.QueryEscape(token)
	if e.byPost {
		return e.post(form)
	}
	r := e.get()
	if r.URL.RawQuery != "" {
		r.URL.RawQuery += "&"
	}
	r.URL.RawQuery += form
	return r
}
