//go:build unix

package fleet

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis/ratelimit"
)

// BenchmarkUpgrade is what a fleet adds to an upgrade with every limit, on a Redis of the same machine: two calls and the end of the
// session, or one where nobody is asked about the client.
func BenchmarkUpgrade(b *testing.B) {
	s := newServer(b)
	rate := ratelimit.Rate{N: 1_000_000, Per: time.Second}
	f, _ := s.newInstance("a", ratelimit.Config{
		Upgrades: rate, UpgradesPerIP: rate, UpgradesPerSubject: rate, AuthFailuresPerIP: rate,
		Sessions: 1_000_000, SessionsPerIP: 1_000_000, SessionsPerSubject: 1_000_000,
	})
	for _, calls := range []int{2, 1} {
		b.Run(map[int]string{1: "one", 2: "two"}[calls], func(b *testing.B) {
			b.ReportAllocs()
			own, redis := ownCPU(b), s.cpu(b)
			defer func() {
				b.ReportMetric(float64((ownCPU(b)-own).Microseconds())/float64(b.N), "own-cpu-us/op")
				b.ReportMetric(float64((s.cpu(b)-redis).Microseconds())/float64(b.N), "redis-cpu-us/op")
			}()
			for b.Loop() {
				if calls == 2 {
					if v := f.Admit(b.Context(), here); v.Scope != "" {
						b.Fatalf("%+v", v)
					}
				}
				p, v := f.Enter(b.Context(), Entry{Address: here, Subject: "Alice", Admit: calls == 1})
				if v.Scope != "" {
					b.Fatalf("%+v", v)
				}
				p.Release()
			}
		})
	}
}

// ownCPU is the time of processors that this process has used.
func ownCPU(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// cpu is what Redis has used.
func (s *server) cpu(b *testing.B) (used time.Duration) {
	info := s.Info(context.Background(), "cpu").Val()
	for _, name := range []string{"used_cpu_sys:", "used_cpu_user:"} {
		_, rest, _ := strings.Cut(info, name)
		text, _, _ := strings.Cut(rest, "\r")
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			b.Fatal(err)
		}
		used += time.Duration(seconds * float64(time.Second))
	}
	return used
}

// BenchmarkCommand is a message to three instances, until all have answered.
func BenchmarkCommand(b *testing.B) {
	for name, edit := range map[string]func(*Config){
		"bus":     func(*Config) {},
		"history": func(c *Config) { c.HistoryPushes, c.HistoryAge = 1000, time.Hour },
	} {
		b.Run(name, func(b *testing.B) {
			s := newServer(b)
			var all []*member
			for _, name := range []string{"a", "b", "c"} {
				all = append(all, s.newMember(name, "", edit))
			}
			b.ReportAllocs()
			for b.Loop() {
				if answers, silent, err := all[0].Command(context.Background(), push("hello")); err != nil || silent != nil || len(answers) != 3 {
					b.Fatalf("%s, %s, %v", answers, silent, err)
				}
			}
		})
	}
}
