package main

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkKernelMemory is what the kernel holds for an idle session beside the memory of the process: two TCP sockets, with their
// descriptors, watched by epoll, over which messages have gone. A pair of sockets on the loopback interface has as many of them as a gate's
// session, whose other ends are elsewhere. It is the growth of all slabs of the machine, so nothing else should run.
func BenchmarkKernelMemory(b *testing.B) {
	const sessions = 4000
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var total int
	for b.Loop() {
		before := slabs(b)
		var conns []net.Conn
		message := make([]byte, 1000)
		for range sessions {
			dialed, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			accepted, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, dialed, accepted)
			for _, way := range [][2]net.Conn{{dialed, accepted}, {accepted, dialed}} {
				way[0].Write(message)
				if _, err := way[1].Read(message); err != nil {
					b.Fatal(err)
				}
			}
		}
		total += slabs(b) - before
		for _, conn := range conns {
			conn.Close()
		}
	}
	b.ReportMetric(float64(total)/float64(b.N)/sessions/1024, "KiB/session")
}

// slabs is the kernel's memory for its objects, in bytes.
func slabs(b *testing.B) int {
	b.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nSlab:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return kib << 10
}
