// Package check tells an operator, before a gate serves, whether what its settings name is there and fit: targets, verifier,
// certificates, Redis, bus, descriptors.
//
//	portcullis check
//	portcullis check -json
//
// It listens nowhere, joins nothing and changes nothing. All is asked at the same time, each within its setting's time-out, or 5 s where it
// has none. What it prints has no secret, and of a URL neither query nor user information.
package check

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"sync"

	"portcullis/proxy/config"
	"portcullis/proxy/settings"
)

// Config is what there is to check.
type Config struct {
	// Settings are those that a gate would serve with.
	Settings *config.Config
	// Backend and Tokens say that it would be the bundled ones', which there are not yet.
	Backend, Tokens bool

	// Environ is the environment, All what is in force of it and of ENV_FILE. All is nil where that cannot be read.
	Environ, All map[string]string
	// Mistakes are why it would not start, one a line. Nil: it would.
	Mistakes error
	// Misspelt are variables that look like a setting.
	Misspelt []settings.Misspelling

	// Out gets what was found, and Errors the mistakes, unless JSON is asked for.
	Out, Errors io.Writer
}

// The values that Run returns, which are exit codes.
const (
	Well     = 0 // there may be warnings
	Faulty   = 1 // something that was asked does not do what it is to do
	Mistaken = 2 // a gate would not start
)

// UsageError says that the command was not given as it should be.
type UsageError struct{ text string }

func (e *UsageError) Error() string { return e.text }

const usage = `usage: portcullis check [-json]

Reads the settings as a gate would, asks what they name once, and prints what it found.
Exit code 0: all is well, there may be warnings; 1: something does not do what it is to do;
2: mistakes in the settings, with which no gate starts.

`

// Run checks c and prints what it found. The error is a [*UsageError], or flag.ErrHelp where only that was asked for.
func Run(ctx context.Context, c Config, args []string) (int, error) {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	asJSON := flags.Bool("json", false, "print one JSON document")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(c.Out, usage)
		flags.SetOutput(c.Out)
		flags.PrintDefaults()
		return Well, err
	case err != nil:
		return Mistaken, &UsageError{err.Error()}
	case flags.NArg() > 0:
		return Mistaken, &UsageError{"want no arguments but flags"}
	}
	r := c.report(ctx)
	switch {
	case *asJSON:
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return Faulty, err
		}
		fmt.Fprintf(c.Out, "%s\n", text)
	case r.Exit == Mistaken:
		fmt.Fprintln(c.Errors, c.Mistakes) // as a gate tells them
	default:
		r.print(c.Out)
	}
	return r.Exit, nil
}

// report asks everything.
func (c *Config) report(ctx context.Context) *Report {
	r := &Report{Mistakes: []string{}, Routes: []Route{}, Findings: []Finding{}, Settings: c.settings()}
	if c.Mistakes != nil {
		r.Mistakes, r.Exit = strings.Split(c.Mistakes.Error(), "\n"), Mistaken
		return r // what the settings name is not what is meant
	}
	routes := c.routes()
	r.Routes = make([]Route, len(routes))
	asked := []func(context.Context) []Finding{c.askVerifier, c.askFleet, c.readCertificates, c.countDescriptors, c.lookAtNames}
	findings := make([][]Finding, len(asked))
	var running sync.WaitGroup
	for i, route := range routes {
		running.Go(func() { r.Routes[i] = route.ask(ctx) })
	}
	for i, ask := range asked {
		running.Go(func() { findings[i] = ask(ctx) })
	}
	running.Wait()
	for _, some := range findings {
		r.Findings = append(r.Findings, some...)
	}
	r.judge()
	return r
}
