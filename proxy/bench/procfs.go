//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage measures what a process and its children have used: nginx, for example, is a master and its workers.
type usage []int // process ids

// atRest returns the usage of a program once its number of processes and its memory have stopped growing: nginx serves as
// soon as its first worker runs, before the others have set up their tables.
func atRest(ctx context.Context, pid int) (usage, error) {
	const (
		still = 100 * time.Millisecond
		slack = 128 << 10 // bytes: the memory of the Go runtime always moves a little
	)
	var count int
	var last int64
	for range 100 {
		u, err := usageOf(pid)
		if err != nil {
			return nil, err
		}
		now, err := u.memory()
		if err != nil {
			return nil, err
		}
		if len(u) == count && now < last+slack {
			return u, nil
		}
		count, last = len(u), now
		if err := wait(ctx, still); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%d processes, %d bytes, and still growing", count, last)
}

// usageOf returns the usage of a process and of the children it has now.
func usageOf(pid int) (usage, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := make(map[int][]int)
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // ended meanwhile
		}
		// The command's name, in parentheses, may hold anything; the state and the parent's id follow it (proc(5)).
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		child, err1 := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		parent, err2 := strconv.Atoi(string(fields[1]))
		if err1 == nil && err2 == nil {
			children[parent] = append(children[parent], child)
		}
	}
	all := usage{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// cpu is the time that all threads of the processes, ended ones too, have spent on a processor, in user and kernel
// mode. Their CPU-time clocks count nanoseconds, where utime and stime of /proc count ticks.
func (u usage) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range u {
		// A process's clock is named by its id as in clock_getcpuclockid(3); 2 is the kernel's CPUCLOCK_SCHED.
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
			return 0, fmt.Errorf("read the CPU-time clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// wait waits for d. If ctx ends earlier, it returns ctx's error.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// memory is the proportional set size of the processes in bytes: a page that several share counts as its fraction.
func (u usage) memory() (int64, error) {
	var sum int64
	for _, pid := range u {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		_, rest, ok := strings.Cut(string(rollup), "\nPss:")
		line, _, _ := strings.Cut(rest, " kB")
		kib, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if !ok || err != nil {
			return 0, fmt.Errorf("no Pss in smaps_rollup of process %d", pid)
		}
		sum += kib << 10
	}
	return sum, nil
}
