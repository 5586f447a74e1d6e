// Package probe checks whether a running Portcullis, or any WebSocket server, works, and prints in a few lines what
// happened. It is the image's health check, and what a person tries first when clients complain.
//
// With a URL it does what a client does: connect, ping, wait for the pong, close with 1000, wait for the Close answer.
//
//	GET ws://127.0.0.1:3000/?…
//	101 Switching Protocols after 1.27ms
//	pong after 210µs
//	Close 1000
//
// Without one it asks /readyz of the operator's listener, which needs no token:
//
//	GET http://127.0.0.1:9090/readyz
//	200 OK after 480µs: ready
//
// What is printed ends up in the logs of orchestrators, and the server may be hostile. So the query of the URL, where tokens
// are, is never printed, not even if the server repeats it. A server's text is cut to one line of 200 characters. Characters
// that do not print, which could control a terminal, are left out.
package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/gorilla/websocket"
)

// Config says what to ask.
type Config struct {
	// URL is a WebSocket server's: ws, wss, http (as ws) or https (as wss), without user information and fragment.
	// Certificates are checked against the system's roots. Empty: ask AdminAddr.
	URL string

	// AdminAddr is the host:port of the operator's listener, as in ADMIN_ADDR; a host that stands for every interface is
	// asked on loopback.
	AdminAddr string

	// AdminTLS is how AdminAddr is spoken to. Nil: without TLS.
	AdminTLS *tls.Config

	// Out gets one line for each thing that happened.
	Out io.Writer

	roots *x509.CertPool // of tests; nil: the system's
}

// timeout is how long a probe takes at most: longer than all time-outs of an upgrade together have by default (3 s for the
// token, 5 s and 10 s for the upstream), so that the answer to a slow one is still seen.
const timeout = 30 * time.Second

// Run does the probe, within ctx and half a minute. Its error is nil if all went well, and otherwise says in one line what
// failed. It wraps ctx's error if time ran out.
func Run(ctx context.Context, c Config) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if c.URL == "" {
		return askReady(ctx, c)
	}
	return askWebSocket(ctx, c)
}

// explain turns an error of a connection into one bounded line. It returns ctx's error if that is the cause.
func explain(ctx context.Context, err error) error {
	var lost *websocket.CloseError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // the socket's deadline is ctx's, and can come first
		return context.DeadlineExceeded
	case ctx.Err() != nil:
		return ctx.Err()
	case isEOF(err), errors.As(err, &lost):
		return errors.New("the connection ended")
	}
	return errors.New(shorten(err.Error()))
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// status names an HTTP status by its number alone: the phrase of an answer is the server's free text.
func status(code int) string {
	if phrase := http.StatusText(code); phrase != "" {
		return fmt.Sprintf("%d %s", code, phrase)
	}
	return strconv.Itoa(code)
}

// since is the time from start, rounded for reading.
func since(start time.Time) time.Duration { return time.Since(start).Round(10 * time.Microsecond) }
