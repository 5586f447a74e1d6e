package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caarlos0/env/v11"
	"github.com/gorilla/websocket"

	"portcullis/proxy"
	"portcullis/proxy/config"
	"portcullis/proxy/settings"
)

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The pages that these tests compare with the program.
const (
	firstPage    = "README.md"
	settingsPage = "docs/settings.md"
	reasonsPage  = "docs/responses.md"
	modesPage    = "docs/authentication.md"
	examplePage  = "config.example.env"
)

var exampleLine = regexp.MustCompile(`(?m)^#([A-Z][A-Z0-9_]*)=(.*)$`)

// TestSettingsAreDescribed keeps the settings, the example file and the table of settings in agreement.
func TestSettingsAreDescribed(t *testing.T) {
	want := map[string]string{} // name to default
	for _, s := range list {
		if _, twice := want[s.Name]; twice {
			t.Errorf("two fields read %s", s.Name)
		}
		want[s.Name] = s.Default
	}
	compare := func(where string, got map[string]string) {
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if value, ok := got[name]; !ok || value != want[name] {
				t.Errorf("%s: %s is %q (there: %t), want %q", where, name, value, ok, want[name])
			}
		}
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if _, ok := want[name]; !ok {
				t.Errorf("%s: %s is no setting", where, name)
			}
		}
	}
	example := map[string]string{}
	for _, m := range exampleLine.FindAllStringSubmatch(readFile(t, examplePage), -1) {
		example[m[1]] = m[2]
	}
	compare(examplePage, example)

	table := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z][A-Z0-9_]*)` \\| (?:`([^`]*)`)? *\\| [^|]+ \\|$").FindAllStringSubmatch(readFile(t, settingsPage), -1) {
		table[m[1]] = m[2]
	}
	compare(settingsPage, table)

	if _, _, err := config.Read(example); err != nil {
		t.Errorf("%s with every line in force: %v", examplePage, err)
	}
	for _, name := range config.Reserved {
		if _, ok := want[name]; ok {
			t.Errorf("%s is a setting and reserved for a later version", name)
		}
	}
}

// TestExamplesOfModes starts the program as each example of a mode says. Every mode needs an example.
func TestExamplesOfModes(t *testing.T) {
	_, section, _ := strings.Cut(readFile(t, modesPage), "## Choosing how to authenticate\n")
	section, _, _ = strings.Cut(section, "\n## ")
	missing := []string{"endpoint", "jwt", "introspect", "forward", "none"}
	for _, block := range regexp.MustCompile("(?s)```(?:console|yaml)\n(.*?)```").FindAllStringSubmatch(section, -1) {
		var environ []string
		for _, m := range regexp.MustCompile(`(?m)^\$ export (.*)$`).FindAllStringSubmatch(block[1], -1) {
			environ = append(environ, strings.Fields(m[1])...)
		}
		_, service, _ := strings.Cut(block[1], "\n  portcullis:\n")
		for _, m := range regexp.MustCompile(`(?m)^ +([A-Z_]+): (.*)$`).FindAllStringSubmatch(service, -1) {
			environ = append(environ, m[1]+"="+m[2])
		}
		if environ == nil {
			continue // it shows something else
		}
		mode := cmp.Or(env.ToMap(environ)["AUTH_MODE"], "endpoint")
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == mode })
		t.Run(mode, func(t *testing.T) { startProgram(t, environ...) })
	}
	if len(missing) > 0 {
		t.Errorf("%s has no example of %q", modesPage, missing)
	}
}

// TestReasonsAreDescribed keeps the tables of refusals and ends in agreement with the program.
func TestReasonsAreDescribed(t *testing.T) {
	page := readFile(t, reasonsPage)
	known := proxy.KnownReasons()
	for heading, want := range map[string][]string{"## Refusals\n": known.RefusalReasons, "## How sessions end\n": slices.Collect(maps.Keys(known.EndReasons))} {
		_, section, _ := strings.Cut(page, heading)
		section, _, _ = strings.Cut(section, "\n## ")
		var got []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(section, -1) {
			got = append(got, m[1])
		}
		slices.Sort(got)
		if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
			t.Errorf("%s, %s: it has\n%q, the program\n%q", reasonsPage, strings.TrimSpace(heading), got, want)
		}
	}
}

// TestFirstScreen does what the first screen of the README shows, and compares what comes of it.
func TestFirstScreen(t *testing.T) {
	p := startProgram(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	readme := readFile(t, firstPage)
	sessions := regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(readme, 2)
	if len(sessions) < 2 || !strings.HasPrefix(sessions[0][1], "$ go run .\n") {
		t.Fatal("the first screen does not begin with go run .")
	}
	here := strings.NewReplacer("localhost:3000", p.front, "[::]:3000", p.front, "127.0.0.1:9090", p.admin, "localhost:9090", p.admin)
	greeting := strings.Split(here.Replace(sessions[0][1]), "\n")[1:]
	for _, line := range greeting {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "{") {
			p.await(strings.ReplaceAll(line, "go run .", path))
		}
	}
	for _, part := range strings.Split(here.Replace(sessions[1][1]), "$ ")[1:] {
		line, want, _ := strings.Cut(part, "\n")
		target := regexp.MustCompile(`'(.*)'`).FindStringSubmatch(line)
		if target == nil {
			t.Fatalf("no URL in %q", line)
		}
		var got string
		switch {
		case strings.HasPrefix(line, "go run . probe "):
			stdout, stderr, _ := execute(t, nil, "probe", target[1])
			got = stdout + stderr
		case strings.HasPrefix(line, "curl "):
			resp, body := ask(t, "GET", "http://"+target[1])
			var header strings.Builder
			resp.Header.Write(&header)
			got = resp.Proto + " " + resp.Status + "\n" + header.String() + body
		case strings.HasPrefix(line, "npx wscat -c "):
			conn := p.open(strings.TrimPrefix(target[1], "ws://"+p.front))
			got = "Connected (press CTRL+C to quit)\n" // wscat's own words
			for said := range strings.Lines(want) {
				if message, ok := strings.CutPrefix(strings.TrimSpace(said), "> "); ok {
					conn.WriteMessage(websocket.TextMessage, []byte(message))
					_, answer, _ := conn.ReadMessage()
					got += fmt.Sprintf("> %s\n< %s\n", message, answer)
				}
			}
		default:
			t.Fatalf("%q: not known to this test", line)
		}
		durations := regexp.MustCompile(`[0-9.]+(ms|µs|s)\b`)
		for shown := range strings.Lines(want) {
			shown = durations.ReplaceAllString(strings.TrimSpace(shown), "0s")
			if !strings.Contains(durations.ReplaceAllString(got, "0s"), shown) {
				t.Errorf("%s: the README shows %q, but it says\n%s", line, shown, got)
			}
		}
	}
}

// TestLinks follows every link between the documents, to its heading where it names one, and wants every page to be linked from
// the first.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	linked := map[string]bool{}
	for _, page := range append(pages, firstPage) {
		for _, m := range regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(readFile(t, page), -1) {
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			if page == firstPage {
				linked[target] = true
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			} else if m[2] != "" && !slices.Contains(anchors(readFile(t, target)), m[2]) {
				t.Errorf("%s links to %s, which has no heading %q", page, target, m[2])
			}
		}
	}
	for _, page := range pages {
		if !linked[page] {
			t.Errorf("%s is not linked from %s", page, firstPage)
		}
	}
}

// anchors are those that GitHub gives to the headings of a page.
func anchors(page string) (all []string) {
	code := regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(page, "")
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(code, -1) {
		anchor := strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")
		all = append(all, regexp.MustCompile(`[^\p{L}\p{N}_-]`).ReplaceAllString(anchor, ""))
	}
	return all
}

// The page on reloading names every setting that needs a restart, and no other.
func TestReloadPageNamesWhatNeedsARestart(t *testing.T) {
	_, text, _ := strings.Cut(readFile(t, "docs/reload.md"), "## What needs a restart")
	text, _, _ = strings.Cut(text, "\n\nThat there is")
	var got, want []string
	for _, m := range regexp.MustCompile("`([A-Z][A-Z0-9_]*)`").FindAllStringSubmatch(text, -1) {
		got = append(got, m[1])
	}
	for _, s := range list {
		secret := strings.TrimSuffix(s.Name, "_FILE")
		ofSecret := slices.ContainsFunc(list, func(other settings.Setting) bool { return other.Name == secret && other.Secret })
		if s.Fixed && (!ofSecret || s.Secret) { // the name of a secret's file goes with the secret
			want = append(want, s.Name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
