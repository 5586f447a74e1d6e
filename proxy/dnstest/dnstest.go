// Package dnstest is a DNS server whose every name has the same addresses, which may change. Only tests use it.
package dnstest

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// Zone is what the server tells.
type Zone struct {
	addresses atomic.Pointer[[]string]
	server    string // host:port
}

// Start starts a server until the end of the test. Every name has these addresses, of IPv4.
func Start(t testing.TB, addresses ...string) *Zone {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &Zone{server: conn.LocalAddr().String()}
	z.Set(addresses...)
	started, served := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(z.answer), NotifyStartedFunc: func() { close(started) }}
	go func() { served <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		server.Shutdown()
		<-served
	})
	return z
}

func (z *Zone) answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	if q.Question[0].Qtype == dns.TypeA {
		for _, address := range *z.addresses.Load() {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(address)})
		}
	}
	w.WriteMsg(m)
}

// Set changes the addresses.
func (z *Zone) Set(addresses ...string) { z.addresses.Store(&addresses) }

// Resolver asks the server.
func (z *Zone) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", z.server)
	}}
}
