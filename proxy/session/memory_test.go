package session

import (
	"fmt"
	"runtime"
	"testing"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/lease"
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

func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
