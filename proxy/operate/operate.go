// Package operate is what an operator does from a shell with the sessions of a running Portcullis: list them, end some, send to
// some. It asks /api of the operator's listener, with ADMIN_TOKEN.
//
//	portcullis sessions -subject alice
//	portcullis kick -subject alice -for 15m
//	portcullis send -group query:room:lobby 'back in five minutes'
//
// People get a table or a sentence, programs get JSON with -json.
package operate

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Commands are what Run knows.
var Commands = []string{"sessions", "kick", "send"}

// Config says whom to ask.
type Config struct {
	// Addr is the host:port of the operator's listener.
	Addr string
	// TLS is how it is spoken to. Nil: without TLS.
	TLS *tls.Config
	// Token is ADMIN_TOKEN.
	Token string

	// In is the message to send where the command line has none.
	In io.Reader
	// Out gets what was found, or done.
	Out io.Writer
}

// UsageError says that a command was not given as it should be, or that a setting is missing.
type UsageError struct{ text string }

func (e *UsageError) Error() string { return e.text }

func usageError(format string, a ...any) error { return &UsageError{fmt.Sprintf(format, a...)} }

// limit is how long one call may take.
const limit = 30 * time.Second

// Run does one of Commands. The error is a [*UsageError] where nothing was asked, and flag.ErrHelp where only that was.
func Run(ctx context.Context, c Config, command string, args []string) error {
	switch command {
	case "sessions":
		return c.sessions(ctx, args)
	case "kick":
		return c.kick(ctx, args)
	case "send":
		return c.send(ctx, args)
	}
	return usageError("unknown command %q", command)
}

// choice are the flags by which sessions are chosen.
type choice struct {
	*flag.FlagSet
	json  bool
	query url.Values
}

// choose makes the flags of a command. Each of filters is a query parameter too.
func (c *Config) choose(command, usage string, filters ...string) *choice {
	f := &choice{FlagSet: flag.NewFlagSet(command, flag.ContinueOnError), query: make(url.Values)}
	f.SetOutput(io.Discard)
	f.BoolVar(&f.json, "json", false, "print JSON")
	for _, name := range filters {
		f.Func(name, "as the API's parameter "+name, func(value string) error {
			f.query.Set(name, value)
			return nil
		})
	}
	f.Usage = func() {
		f.SetOutput(c.Out)
		fmt.Fprintf(c.Out, "usage: portcullis %s %s\n", command, usage)
		f.PrintDefaults()
		f.SetOutput(io.Discard)
	}
	return f
}

func (f *choice) parse(args []string) error {
	err := f.Parse(args)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		return usageError("%v", err)
	}
	return err
}

// problem is what the API says is wrong.
type problem struct {
	Error string `json:"error"`
}

// call asks the API, and reads its answer into v.
func (c *Config) call(ctx context.Context, method, path string, query url.Values, contentType string, body io.Reader, v any) error {
	if c.Token == "" {
		return usageError("ADMIN_TOKEN: %q opens nothing; want that of the instance at ADMIN_ADDR", "")
	}
	scheme := "http"
	if c.TLS != nil {
		scheme = "https"
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	target := url.URL{Scheme: scheme, Host: c.Addr, Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return usageError("ADMIN_ADDR: %q is no address to ask", c.Addr)
	}
	r.Header.Set("Authorization", "Bearer "+c.Token)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	// A transport of its own: without the environment's proxy, and with nothing left open afterwards.
	transport := &http.Transport{TLSClientConfig: c.TLS, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return fmt.Errorf("ask %s (ADMIN_ADDR): %w", c.Addr, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
			return fmt.Errorf("the answer of %s cannot be read: %w", c.Addr, err)
		}
		return nil
	}
	var wrong problem
	if json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&wrong) != nil || wrong.Error == "" {
		if resp.StatusCode == http.StatusNotFound {
			return errors.New("the instance has no API; it is there with ADMIN_TOKEN")
		}
		return fmt.Errorf("%s answers %s", c.Addr, resp.Status)
	}
	return fmt.Errorf("%s (%d)", wrong.Error, resp.StatusCode)
}

// printJSON prints what an answer says, as it says it.
func (c *Config) printJSON(v any) error {
	text, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintf(c.Out, "%s\n", text)
	}
	return err
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// printable is text that a client or a verifier chose, as it can be shown on a terminal: nothing in it drives one.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, text)
	if text == "" {
		return "-"
	}
	return text
}
