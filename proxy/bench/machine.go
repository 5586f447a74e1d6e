//go:build linux

package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine describes the hardware and software of the measurement.
func machine() []string {
	var uname unix.Utsname
	kernel := "unknown"
	if unix.Uname(&uname) == nil {
		kernel = unix.ByteSliceToString(uname.Release[:])
	}
	return []string{
		fmt.Sprintf("%d cores of %s", runtime.NumCPU(), field("/proc/cpuinfo", "model name", ":")),
		"Linux " + kernel,
		strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`),
		strings.Replace(runtime.Version(), "go", "Go ", 1),
	}
}

// field returns the first value of a name in a file of names and values.
func field(file, name, separator string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(line, separator)
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// version asks a target's program for its version; "" for those that have none.
func (c target) version() string {
	path, err := find(c.name)
	if err != nil {
		return ""
	}
	out, err := exec.Command(path, "-v").CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	switch c.name {
	case "nginx": // nginx version: nginx/1.22.1
		_, version, _ := strings.Cut(line, "nginx/")
		return c.title + " " + version
	case "haproxy": // HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/
		_, version, _ := strings.Cut(line, "version ")
		version, _, _ = strings.Cut(version, " ")
		return c.title + " " + version
	}
	return ""
}

// revision is the commit that a Go program was built from; "" if that was not recorded (GOFLAGS=-buildvcs=false).
func revision(program string) string {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return ""
	}
	commit, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = "Portcullis " + s.Value[:min(len(s.Value), 10)]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = " with changes"
		}
	}
	return commit + changed
}

// descriptorLimit is how many files a process may open: programs raise their soft limit to the hard one, as Go does.
func descriptorLimit() int {
	const most = 20000 // no measure needs more
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Max, most))
}
