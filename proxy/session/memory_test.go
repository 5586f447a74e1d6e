package session

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/lease"
	"portcullis/proxy/relay"
	"portcullis/ratelimit"
)

// A session that can be found costs at most 200 bytes more than one that cannot, even if no other has its subject.
func TestMemoryOfAListedSession(t *testing.T) {
	const sessions = 50_000
	infos := make([]Info, sessions)
	for i := range infos {
		infos[i] = info(fmt.Sprintf("%026d", i), fmt.Sprint("user ", i))
	}
	each := func(listed bool) float64 {
		m, err := New(Config{Listed: listed, Lease: lease.Config{Timeout: 1}, Metrics: admin.NewMetrics(admin.Known{})})
		if err != nil {
			t.Fatal(err)
		}
		kept := make([]*Session, sessions)
		before := heap()
		for i := range kept {
			kept[i], err = m.Open(Opening{Info: infos[i], Grant: auth.Grant{Decision: auth.Decision{Subject: infos[i].Subject}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		after := heap()
		for _, s := range kept {
			s.Release()
		}
		m.leases.Close()
		runtime.KeepAlive(m)
		return float64(after-before) / sessions
	}
	plain, listed := each(false), each(true)
	t.Logf("%.0f bytes, and %.0f where it can be found", plain, listed)
	if more := listed - plain; more > 200 {
		t.Errorf("a session that can be found costs %.0f bytes more, want at most 200", more)
	}
}

// An idle session that may be resumed costs at most 512 bytes more than another.
func TestMemoryOfAResumableSession(t *testing.T) {
	const sessions = 2000
	infos := make([]Info, sessions)
	for i := range infos {
		infos[i] = info(fmt.Sprintf("%026d", i), fmt.Sprint("user ", i))
	}
	each := func(resumption *Resumption) float64 {
		r, err := relay.New(relay.Config{Mode: "passthrough", Engine: "stream", LimitAction: "close", CloseTimeout: time.Second,
			Resume: time.Minute, MessageMaxBytes: 1 << 10, ResumeBuffer: 1 << 10, ResumeTotal: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		m, err := New(Config{Relay: r, Lease: lease.Config{Timeout: 1}, Metrics: admin.NewMetrics(admin.Known{})})
		if err != nil {
			t.Fatal(err)
		}
		slots, err := ratelimit.New(ratelimit.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var conns [sessions][4]net.Conn
		open := func(i int) {
			c := &conns[i]
			c[0], c[1] = net.Pipe()
			c[2], c[3] = net.Pipe()
			slot, _ := slots.AcquireSlot(netip.Prefix{}, "")
			s, err := m.Open(Opening{Info: infos[i], Slot: slot, Resumption: resumption})
			if err != nil {
				t.Fatal(err)
			}
			s.Start(relay.Handover{Client: c[0], Upstream: c[2]}, nil)
		}
		open(0)
		before := heap()
		for i := 1; i < sessions; i++ {
			open(i)
		}
		after := heap()
		m.Close(t.Context())
		runtime.KeepAlive(&conns)
		return float64(after-before) / sessions
	}
	each(nil) // goroutines, which Go keeps
	plain, resumable := each(nil), each(&Resumption{Answer: "portcullis.resume.v1"})
	t.Logf("%.0f bytes, and %.0f where it may be resumed", plain, resumable)
	if more := resumable - plain; more > 512 {
		t.Errorf("a session that may be resumed costs %.0f bytes more, want at most 512", more)
	}
}

func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
