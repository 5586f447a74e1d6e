//go:build linux

package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// results are the figures of all targets: by row of the table, then target, one per round. A round without a
// figure is NaN.
type results map[string]map[string][]float64

func (r results) add(row, target string, round int, figure float64) {
	if r[row] == nil {
		r[row] = make(map[string][]float64)
	}
	for len(r[row][target]) <= round {
		r[row][target] = append(r[row][target], math.NaN())
	}
	r[row][target][round] = figure
}

func (r results) median(row, target string) float64 { return median(r[row][target]) }

// ratio is the median of the ratios within each round: whatever else the machine did in a round affected both.
func (r results) ratio(row, a, b string) float64 {
	var ratios []float64
	over := r[row][b]
	for i, figure := range r[row][a] {
		if i < len(over) {
			ratios = append(ratios, figure/over[i])
		}
	}
	return median(ratios)
}

// median ignores NaN; the median of nothing is NaN.
func median(figures []float64) float64 {
	sorted := slices.DeleteFunc(slices.Clone(figures), math.IsNaN)
	if len(sorted) == 0 {
		return math.NaN()
	}
	slices.Sort(sorted)
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// quantile is the smallest element that at least the share q of them does not exceed.
func quantile[T cmp.Ordered](sorted []T, q float64) T {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// goal is a limit that the loop engine should not exceed.
type goal struct {
	row   string
	over  string // the target it is compared with, "": none
	limit float64
}

var goals = []goal{
	{rowMessage(64, 8), "nginx", 1},
	{rowMessage(64, 64), "nginx", 1},
	{rowMessage(64, 512), "nginx", 1},
	{rowStream, "haproxy", 0.7},
	{rowUpgrade, "nginx", 1},
	{rowIdle, "", 2},
	{rowIdle, "haproxy", 0.5},
	{rowP99, "nginx", 1.1},
}

// report prints the tables, in Markdown.
type report struct {
	out     io.Writer
	results results
	setting []string // the machine, the versions, the scale
	rows    []string // that were measured, in order
	columns []target // that were measured, in order
}

func (r report) print() {
	fmt.Fprintf(r.out, "Measured on %s.\n\n", strings.Join(r.setting, ", "))
	r.figures()
	r.ratios()
	r.goals()
	fmt.Fprint(r.out, leftOut)
}

func (r report) figures() {
	columns := slices.DeleteFunc(slices.Clone(r.columns), func(c target) bool { return c.only != "" })
	heads := []string{"Medians"}
	for _, c := range columns {
		heads = append(heads, c.title)
	}
	t := table{heads: heads}
	for _, row := range r.rows {
		cells := []string{row}
		for _, c := range columns {
			mark := ""
			if row == rowUpgrade && !c.auth {
				mark = " *"
			}
			cells = append(cells, figure(r.results.median(row, c.name), mark))
		}
		t.rows = append(t.rows, cells)
	}
	t.print(r.out)

	// Targets of one measure get a line, not a column.
	for _, c := range r.columns {
		for _, row := range r.rows {
			if value := r.results.median(row, c.name); c.only != "" && !math.IsNaN(value) {
				fmt.Fprintf(r.out, "%s, %s: %s.\n", row, c.title, figure(value, ""))
			}
		}
	}
	if slices.Contains(r.rows, rowUpgrade) {
		fmt.Fprint(r.out, "\\* not authenticated: it has no means to ask a token endpoint.\n")
	}
	fmt.Fprintln(r.out)
}

// ratios compares each engine with nginx and HAProxy, the usual choices.
func (r report) ratios() {
	type pair struct{ a, b target }
	var pairs []pair
	for _, a := range r.columns {
		for _, b := range r.columns {
			if a.only == "" && a.isPortcullis() && (b.name == "nginx" || b.name == "haproxy") {
				pairs = append(pairs, pair{a, b})
			}
		}
	}
	if len(pairs) == 0 {
		return
	}
	t := table{heads: []string{"Ratios"}}
	for _, p := range pairs {
		t.heads = append(t.heads, p.a.name+" / "+p.b.title)
	}
	for _, row := range r.rows {
		cells := []string{row}
		for _, p := range pairs {
			mark := ""
			if row == rowUpgrade && p.a.auth != p.b.auth {
				mark = " *"
			}
			cells = append(cells, figure(r.results.ratio(row, p.a.name, p.b.name), mark))
		}
		t.rows = append(t.rows, cells)
	}
	t.print(r.out)
}

func (r report) goals() {
	t := table{heads: []string{"Goals of the loop engine", "at most", "measured", "reached"}}
	for _, g := range goals {
		name, value := g.row, r.results.median(g.row, "loop")
		if g.over != "" {
			name, value = g.row+", ratio to "+g.over, r.results.ratio(g.row, "loop", g.over)
		}
		if math.IsNaN(value) {
			continue
		}
		reached := "yes"
		if value > g.limit {
			reached = "no"
		}
		t.rows = append(t.rows, []string{name, figure(g.limit, ""), figure(value, ""), reached})
	}
	if len(t.rows) > 0 {
		t.print(r.out)
	}
}

const leftOut = `CPU is that of the whole proxy, all processes and threads, in user and kernel mode, divided by the messages echoed; a
message passes the proxy twice, a MiB too. Memory is the proportional set size of all processes, grown from the fresh
process to the idle sessions, each of which has echoed one message. Ratios are taken within each round; less is better.

Left out: TLS, compression, HTTP/2; networks and their losses (everything is on the loopback, where the kernel charges the
delivery of a packet to its sender); the kernel's memory for sockets, about the same for all; throughput, as client and backend
share the cores and have one thread each; latency at low load (every connection has one message under way at all times, so
waiting for the others is part of it); Close handshakes (sessions end with a reset); what nginx sets aside at start for
connections to come, except in its fresh process; what auth_request adds to its idle session, as it authenticates only where
the upgrade is measured.
`

// table is a Markdown table. Its columns are aligned, so that it is readable as plain text.
type table struct {
	heads []string
	rows  [][]string
}

func (t table) print(out io.Writer) {
	rule := make([]string, len(t.heads))
	widths := make([]int, len(t.heads))
	for i := range t.heads {
		for _, row := range append(t.rows, t.heads) {
			widths[i] = max(widths[i], len([]rune(row[i])), 2)
		}
		rule[i] = strings.Repeat("-", widths[i]-1) + ":"
	}
	rule[0] = strings.Repeat("-", widths[0])
	for _, row := range append([][]string{t.heads, rule}, t.rows...) {
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i == 0 {
				fmt.Fprint(out, "| ", cell, pad)
			} else {
				fmt.Fprint(out, " | ", pad, cell)
			}
		}
		fmt.Fprintln(out, " |")
	}
	fmt.Fprintln(out)
}

// figure formats v with three digits, or with all digits before the point.
func figure(v float64, mark string) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case math.Abs(v) < 10:
		return fmt.Sprintf("%.2f%s", v, mark)
	case math.Abs(v) < 100:
		return fmt.Sprintf("%.1f%s", v, mark)
	default:
		return fmt.Sprintf("%.0f%s", v, mark)
	}
}
