package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDockerfile reads the Dockerfile as far as it can be checked without an engine, and runs the build line that it contains.
func TestDockerfile(t *testing.T) {
	type instruction struct{ name, rest string }
	var stages [][]instruction
	for line := range strings.Lines(readFile(t, "Dockerfile")) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name == "" || strings.HasPrefix(name, "#"):
			continue
		case name == "FROM":
			stages = append(stages, nil)
		case len(stages) == 0:
			t.Fatalf("%s before the first FROM", name)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{name, rest})
	}
	if len(stages) != 2 {
		t.Fatalf("%d stages, want 2", len(stages))
	}
	find := func(stage int, name string) string {
		t.Helper()
		for _, i := range stages[stage] {
			if i.name == name && (name != "RUN" || strings.Contains(i.rest, "go build")) {
				return i.rest
			}
		}
		t.Fatalf("stage %d has no %s", stage+1, name)
		return ""
	}
	for _, want := range []struct {
		stage      int
		name, rest string
	}{
		{0, "FROM", `golang:1\.26 AS build`}, {1, "FROM", `scratch`}, {1, "USER", `[1-9]\d*:[1-9]\d*`}, {1, "EXPOSE", `3000`},
		{1, "HEALTHCHECK", `(--\S+ )*CMD \["/portcullis", "probe"\]`}, {1, "ENTRYPOINT", `\["/portcullis"\]`},
	} {
		if got := find(want.stage, want.name); !regexp.MustCompile("^" + want.rest + "$").MatchString(got) {
			t.Errorf("%s %s, want %s", want.name, got, want.rest)
		}
	}
	for _, i := range stages[1] {
		if i.name == "RUN" || i.name == "SHELL" || i.name == "CMD" && !strings.HasPrefix(i.rest, "[") {
			t.Errorf("%s %s needs a shell, and the image has none", i.name, i.rest)
		}
	}

	// The build line runs in a copy of what COPY . . would copy.
	dir := t.TempDir()
	if err := copySources(dir); err != nil {
		t.Fatal(err)
	}
	built := filepath.Join(dir, "image", "portcullis")
	line := strings.ReplaceAll(find(0, "RUN"), "-o /portcullis ", "-o "+built+" ")
	build := exec.Command("sh", "-c", line)
	build.Dir = dir
	// The image is built without the flags of this test run: -race needs cgo.
	build.Env = append(os.Environ(), "VERSION=v9.8.7", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	program, err := elf.Open(built)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if libraries, err := program.ImportedLibraries(); err != nil || len(libraries) > 0 || program.Section(".interp") != nil {
		t.Errorf("the binary is not static: it needs %q (%v)", libraries, err)
	}
	out, err := exec.Command(built, "version").CombinedOutput()
	if got := string(out); err != nil || got != "portcullis v9.8.7\n" {
		t.Errorf("version: %q (%v)", got, err)
	}
}

// copySources copies the files that .dockerignore lets through.
func copySources(dir string) error {
	return filepath.WalkDir(".", func(path string, entry os.DirEntry, err error) error {
		top, _, _ := strings.Cut(path, "/")
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			if path != "." && !slices.Contains([]string{"proxy", "ratelimit", "upstream", "docs"}, top) {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, path), 0o755)
		case strings.HasSuffix(path, "_test.go"), !strings.HasSuffix(path, ".go") && !slices.Contains([]string{"go.mod", "go.sum", "docs/openapi.json"}, path):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), text, 0o644)
	})
}
