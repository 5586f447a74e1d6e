package operate

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// status is a session as the API tells it.
type status struct {
	ID           string     `json:"id"`
	Subject      string     `json:"subject"`
	Groups       []string   `json:"groups"`
	Address      string     `json:"address"`
	Path         string     `json:"path"`
	Upstream     string     `json:"upstream"`
	Instance     string     `json:"instance"`
	Since        time.Time  `json:"since"`
	Expires      *time.Time `json:"expires"`
	Detached     *time.Time `json:"detached"`
	FromClient   traffic    `json:"from_client"`
	FromUpstream traffic    `json:"from_upstream"`
}

type traffic struct {
	Messages int64 `json:"messages"`
	Bytes    int64 `json:"bytes"`
}

// maxPage is how many sessions one call asks for.
const maxPage = 1000

// sessions is portcullis sessions.
func (c *Config) sessions(ctx context.Context, args []string) error {
	f := c.choose("sessions", "[flags] [ID]", "subject", "group", "path", "address")
	most := f.Int("limit", 0, "list at most so many; 0: all")
	if err := f.parse(args); err != nil {
		return err
	}
	if f.NArg() > 1 || *most < 0 || f.NArg() == 1 && len(f.query) > 0 {
		return usageError("want one session's ID, or flags")
	}
	var all []status
	var silent []string
	if f.NArg() == 1 {
		var one status
		if err := c.call(ctx, http.MethodGet, "/api/sessions/"+f.Arg(0), nil, "", nil, &one); err != nil {
			return err
		}
		all = []status{one}
	}
	for more := f.NArg() == 0; more; {
		page := maxPage
		if left := *most - len(all); *most > 0 {
			page = min(page, left)
		}
		f.query.Set("limit", strconv.Itoa(page))
		var list struct {
			Sessions []status `json:"sessions"`
			Next     string   `json:"next"`

			Unanswered []string `json:"unanswered"`
		}
		if err := c.call(ctx, http.MethodGet, "/api/sessions", f.query, "", nil, &list); err != nil {
			return err
		}
		all = append(all, list.Sessions...)
		silent = append(silent, list.Unanswered...)
		f.query.Set("cursor", list.Next)
		more = list.Next != "" && (*most == 0 || len(all) < *most)
	}
	if f.json {
		for _, s := range all {
			if err := c.printJSON(s); err != nil {
				return err
			}
		}
		return unanswered(silent)
	}
	if err := c.printTable(all); err != nil {
		return err
	}
	return unanswered(silent)
}

// unanswered is the error where instances of a fleet did not say in time what they have, or did; nil: all have.
func unanswered(instances []string) error {
	if len(instances) == 0 {
		return nil
	}
	slices.Sort(instances)
	return fmt.Errorf("not answered in time have: %s", printable(strings.Join(slices.Compact(instances), ", ")))
}

func (c *Config) printTable(all []status) error {
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSUBJECT\tADDRESS\tPATH\tOPEN FOR\tSENT\tGOT\tINSTANCE\tGROUPS")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%v\t%d\t%d\t%s\t%s\n", printable(s.ID), printable(s.Subject), printable(s.Address), printable(s.Path),
			time.Since(s.Since).Round(time.Second), s.FromClient.Messages, s.FromUpstream.Messages, printable(s.Instance), printable(strings.Join(s.Groups, " ")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.Out, count(len(all), "session"))
	return err
}

// kick is portcullis kick.
func (c *Config) kick(ctx context.Context, args []string) error {
	f := c.choose("kick", "[flags] [ID]", "subject", "group", "path", "address", "code", "reason", "for")
	all := f.Bool("all", false, "end every session")
	if err := f.parse(args); err != nil {
		return err
	}
	path, err := f.target(*all)
	if err != nil {
		return err
	}
	var done struct {
		Reached    int      `json:"reached"`
		Ending     int      `json:"ending"`
		Unanswered []string `json:"unanswered,omitempty"`
	}
	if err := c.call(ctx, http.MethodDelete, path, f.query, "", nil, &done); err != nil {
		return err
	}
	if f.json {
		err = c.printJSON(done)
	} else {
		_, err = fmt.Fprintf(c.Out, "%s told to go, %d on their way out already\n", count(done.Reached, "session"), done.Ending)
	}
	return cmp.Or(err, unanswered(done.Unanswered))
}

// target is the path for one session, or for those that flags choose.
func (f *choice) target(all bool) (path string, err error) {
	if all {
		f.query.Set("all", "true")
	}
	switch {
	case f.NArg() > 1:
		return "", usageError("unexpected argument %q", f.Arg(1))
	case f.NArg() == 1 && (all || f.filtered()):
		return "", usageError("want one session's ID, or flags that choose")
	case f.NArg() == 1:
		return "/api/sessions/" + url.PathEscape(f.Arg(0)), nil
	case !all && !f.filtered():
		return "", usageError("want one session's ID, a flag that chooses, or -all")
	}
	return "/api/sessions", nil
}

// filtered reports whether a flag chooses sessions.
func (f *choice) filtered() bool {
	for _, name := range []string{"session", "subject", "group", "path", "address"} {
		if f.query.Has(name) {
			return true
		}
	}
	return false
}

// send is portcullis send.
func (c *Config) send(ctx context.Context, args []string) error {
	f := c.choose("send", "[flags] [MESSAGE]; without MESSAGE it is read from the standard input", "session", "subject", "group", "path", "except")
	all := f.Bool("all", false, "send to every session")
	binary := f.Bool("binary", false, "send a binary message, not text")
	if err := f.parse(args); err != nil {
		return err
	}
	if *all {
		f.query.Set("all", "true")
	}
	switch {
	case f.NArg() > 1:
		return usageError("unexpected argument %q; want the message as one", f.Arg(1))
	case !*all && !f.filtered():
		return usageError("want a flag that chooses, or -all")
	}
	message := f.Arg(0)
	if f.NArg() == 0 {
		text, err := io.ReadAll(c.In)
		if err != nil {
			return fmt.Errorf("read the message: %w", err)
		}
		message = string(text)
	}
	kind := "text/plain; charset=utf-8"
	if *binary {
		kind = "application/octet-stream"
	} else if !utf8.ValidString(message) {
		return usageError("the message is not UTF-8; want text, or -binary")
	}
	var done struct {
		ID         string   `json:"id,omitempty"`
		Reached    int      `json:"reached"`
		Ending     int      `json:"ending"`
		TooSlow    int      `json:"too_slow"`
		Extension  int      `json:"extension"`
		Full       int      `json:"full"`
		Unanswered []string `json:"unanswered,omitempty"`
	}
	if err := c.call(ctx, http.MethodPost, "/api/messages", f.query, kind, strings.NewReader(message), &done); err != nil {
		return err
	}
	if f.json {
		return cmp.Or(c.printJSON(done), unanswered(done.Unanswered))
	}
	_, err := fmt.Fprintf(c.Out, "sent to %s", count(done.Reached, "session"))
	if missed := done.Ending + done.TooSlow + done.Extension + done.Full; missed > 0 {
		fmt.Fprintf(c.Out, ", not to %d: %d on their way out, %d too slow, %d with an extension that the gate does not know, %d with a full buffer",
			missed, done.Ending, done.TooSlow, done.Extension, done.Full)
	}
	fmt.Fprintln(c.Out)
	return cmp.Or(err, unanswered(done.Unanswered))
}
