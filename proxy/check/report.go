package check

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// Report is what was found. It is what -json prints.
type Report struct {
	Exit     int       `json:"exit"`     // the exit code
	Mistakes []string  `json:"mistakes"` // with any of them nothing was asked
	Routes   []Route   `json:"routes"`
	Findings []Finding `json:"findings"`
	Settings []Setting `json:"settings"`
}

// Route is where upgrades of some paths go.
type Route struct {
	Name    string   `json:"name"` // empty: that of UPSTREAM_URL
	Paths   []string `json:"paths"`
	Rules   string   `json:"rules"`   // as the keys of ROUTE_<NAME>
	Targets []Target `json:"targets"` // one for each address
}

// Target is one address of one target.
type Target struct {
	URL         string     `json:"url"` // without its query
	Address     string     `json:"address"`
	OK          bool       `json:"ok"`
	Connected   float64    `json:"connect_seconds"`             // with TLS
	TLS         string     `json:"tls,omitempty"`               // the version
	Until       *time.Time `json:"certificate_until,omitempty"` // the end of its certificate
	ExpiresSoon bool       `json:"certificate_expires_soon,omitempty"`
	Health      bool       `json:"health_check_passed,omitempty"`
	Problem     string     `json:"problem,omitempty"`
	Want        string     `json:"want,omitempty"`
}

// Level says how good or bad a Finding is.
type Level string

// The values of Level.
const (
	OK      Level = "ok"
	Warning Level = "warning" // it works, but not for long, or for everybody
	Fault   Level = "fault"
)

// Finding is what was found of one thing.
type Finding struct {
	Level   Level  `json:"level"`
	Setting string `json:"setting"` // that names the thing
	Found   string `json:"found"`
	Want    string `json:"want,omitempty"` // what to do
}

// Setting is what a setting came to.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"` // in force; *** for a secret
	From   string `json:"from"`  // default, environment or ENV_FILE
	Secret bool   `json:"secret,omitempty"`
}

// judge sets the exit code.
func (r *Report) judge() {
	if faults, _ := r.count(); faults > 0 {
		r.Exit = Faulty
	}
}

func (r *Report) count() (faults, warnings int) {
	for _, f := range r.Findings {
		switch f.Level {
		case Fault:
			faults++
		case Warning:
			warnings++
		}
	}
	for _, route := range r.Routes {
		for _, t := range route.Targets {
			switch {
			case !t.OK:
				faults++
			case t.ExpiresSoon:
				warnings++
			}
		}
	}
	return faults, warnings
}

// print prints a report for people: what is long first, what is to be done last.
func (r *Report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(cells ...string) {
		for i, cell := range cells {
			cells[i] = printable(cmp.Or(cell, "-"))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	row("SETTING", "VALUE", "FROM")
	for _, s := range r.Settings {
		row(s.Name, s.Value, s.From)
	}
	w.Flush()
	fmt.Fprintln(out)

	var wrong []string
	row("ROUTE", "PATHS", "RULES", "TARGET", "ADDRESS", "CONNECT", "TLS", "HEALTH", "STATE")
	for _, route := range r.Routes {
		for _, t := range route.Targets {
			connect, health, state := "", "", "ok"
			if t.Connected > 0 && t.OK {
				connect = duration(t.Connected)
			}
			if t.Health {
				health = "passed"
			}
			switch {
			case !t.OK:
				state = string(Fault)
				wrong = append(wrong, fmt.Sprintf("fault: %s at %s: %s; want %s", t.URL, t.Address, t.Problem, t.Want))
			case t.ExpiresSoon:
				state = string(Warning)
				wrong = append(wrong, fmt.Sprintf("warning: %s at %s: its certificate expires soon, at %s; want it renewed", t.URL, t.Address, t.Until.Format(time.RFC3339)))
			}
			row(route.Name, strings.Join(route.Paths, ","), route.Rules, t.URL, t.Address, connect, t.TLS, health, state)
		}
	}
	w.Flush()
	fmt.Fprintln(out)

	for _, f := range r.Findings {
		if f.Level != OK {
			line := fmt.Sprintf("%s: %s: %s", f.Level, f.Setting, f.Found)
			if f.Want != "" {
				line += "; want " + f.Want
			}
			wrong = append(wrong, line)
			continue
		}
		fmt.Fprintln(out, printable(fmt.Sprintf("ok: %s: %s", f.Setting, f.Found)))
	}
	for _, line := range wrong {
		fmt.Fprintln(out, printable(line))
	}
	faults, warnings := r.count()
	fmt.Fprintf(out, "%s, %s\n", count(faults, "fault"), count(warnings, "warning"))
}

// duration is a number of seconds, rounded for reading.
func duration(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(10 * time.Microsecond).String()
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// printable is text, some of which others chose, so that nothing in it drives a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, text)
}
