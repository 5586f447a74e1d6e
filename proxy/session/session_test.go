package session

import (
	"slices"
	"testing"
	"time"

	"portcullis/proxy/admin"
	"portcullis/proxy/auth"
	"portcullis/proxy/lease"
	"portcullis/proxy/relay"
)

// What is kept of a request for as long as the session lasts.
func TestCredentialIsKeptOnlyToVerifyAgain(t *testing.T) {
	ends := auth.Decision{Subject: "Alice", Until: time.Now().Add(time.Hour)}
	final := auth.Decision{Subject: "Alice", Until: ends.Until, Expires: ends.Until, Final: true}
	for _, tt := range []struct {
		name             string
		recheck, renewal bool
		decision         auth.Decision
		held, token      bool
	}{
		{"open-ended", false, false, auth.Decision{}, false, false},
		{"open-ended, rechecked", true, false, auth.Decision{}, true, true},
		{"ends", false, false, ends, true, true},
		{"ends for good", true, false, final, true, false},
		{"open-ended, may be renewed", false, true, auth.Decision{}, true, true},
		{"open-ended, of nobody", false, true, auth.Decision{Subject: "a hash", Pseudonym: true}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Config{Renewal: tt.renewal, Lease: lease.Config{Timeout: time.Second}, Metrics: admin.NewMetrics(admin.Known{})}
			if tt.recheck {
				c.Lease.Recheck = time.Hour
			}
			m, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			s, err := m.Open(Opening{Info: Info{ID: "x"}, Grant: auth.Grant{Credential: auth.Credential{Token: "secret"}, Decision: tt.decision}})
			if err != nil {
				t.Fatal(err)
			}
			leased := s.control != nil && s.control.credential != nil
			if leased != tt.held {
				t.Fatalf("held: got %t, want %t", leased, tt.held)
			}
			if tt.held && (s.control.credential.grant.Token != "") != tt.token {
				t.Errorf("token: got %q, want one: %t", s.control.credential.grant.Token, tt.token)
			}
			s.Release()
			if leases, renewable := m.Held(); leases != 0 || renewable != 0 {
				t.Errorf("%d leases and %d renewable sessions are left", leases, renewable)
			}
			m.leases.Close()
		})
	}
}

// closed is a session that notes how it is closed.
type closed struct {
	relay.Session
	reasons []relay.Reason
}

func (c *closed) Close(r relay.Reason, _ relay.Closing) { c.reasons = append(c.reasons, r) }

// A lease may end before the relay has its session.
func TestLeaseThatEndsFirst(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*Session, relay.Session)
		want []relay.Reason
	}{
		{"before", func(n *Session, s relay.Session) { (*holder)(n).LeaseEnded(lease.Revoked); n.started(s) }, []relay.Reason{relay.Revoked}},
		{"after", func(n *Session, s relay.Session) { n.started(s); (*holder)(n).LeaseEnded(lease.Expired) }, []relay.Reason{relay.Expired}},
		{"never", func(n *Session, s relay.Session) { n.started(s) }, nil},
		{"the session comes to nothing", func(n *Session, s relay.Session) { (*holder)(n).LeaseEnded(lease.Expired) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &closed{}
			opened := &Session{manager: new(Manager), control: new(control)}
			tt.do(opened, s)
			if !slices.Equal(s.reasons, tt.want) {
				t.Errorf("closed for %q, want %q", s.reasons, tt.want)
			}
		})
	}
}
