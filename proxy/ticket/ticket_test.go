package ticket

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	alice = Owner{netip.MustParsePrefix("192.0.2.1/32"), "alice"}
	bob   = Owner{netip.MustParsePrefix("2001:db8::/64"), "bob"}
)

func newStore(t testing.TB, c Config) *Store[string] {
	t.Helper()
	if c.TTL == 0 {
		c.TTL = 30 * time.Second
	}
	if c.Total == 0 {
		c.Total, c.PerOwner = 100, 100
	}
	s := New[string](c)
	t.Cleanup(s.Close)
	return s
}

func issue(t testing.TB, s *Store[string], o Owner, v string) string {
	t.Helper()
	ticket, _, err := s.Issue(o, v)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func TestRedeem(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config Config
		redeem func(s *Store[string], ticket string) (string, bool)
		want   bool
	}{
		{"at once", Config{BindAddress: true}, func(s *Store[string], ticket string) (string, bool) {
			return s.Redeem(ticket, alice.Address)
		}, true},
		{"just before it is over", Config{}, func(s *Store[string], ticket string) (string, bool) {
			<-time.After(30*time.Second - 1)
			return s.Redeem(ticket, alice.Address)
		}, true},
		{"when it is over", Config{}, func(s *Store[string], ticket string) (string, bool) {
			<-time.After(30 * time.Second)
			return s.Redeem(ticket, alice.Address)
		}, false},
		{"replayed", Config{}, func(s *Store[string], ticket string) (string, bool) {
			s.Redeem(ticket, alice.Address)
			return s.Redeem(ticket, alice.Address)
		}, false},
		{"from another address", Config{BindAddress: true}, func(s *Store[string], ticket string) (string, bool) {
			return s.Redeem(ticket, bob.Address)
		}, false},
		{"from another address before its own", Config{BindAddress: true}, func(s *Store[string], ticket string) (string, bool) {
			s.Redeem(ticket, bob.Address)
			return s.Redeem(ticket, alice.Address)
		}, false},
		{"from another address, not bound", Config{}, func(s *Store[string], ticket string) (string, bool) {
			return s.Redeem(ticket, bob.Address)
		}, true},
		{"made up", Config{}, func(s *Store[string], ticket string) (string, bool) {
			return s.Redeem(base64.RawURLEncoding.EncodeToString(make([]byte, 32)), alice.Address)
		}, false},
		{"empty", Config{}, func(s *Store[string], ticket string) (string, bool) { return s.Redeem("", alice.Address) }, false},
		{"after Close", Config{}, func(s *Store[string], ticket string) (string, bool) {
			s.Close()
			return s.Redeem(ticket, alice.Address)
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(t, tt.config)
				value, ok := tt.redeem(s, issue(t, s, alice, "secret"))
				if want := map[bool]string{true: "secret"}[tt.want]; ok != tt.want || value != want {
					t.Errorf("got %q, %t; want %q, %t", value, ok, want, tt.want)
				}
			})
		})
	}
}

func TestTicketIsFitForAQuery(t *testing.T) {
	s := newStore(t, Config{})
	seen := make(map[string]bool)
	for range 100 {
		ticket := issue(t, s, alice, "")
		if b, err := base64.RawURLEncoding.DecodeString(ticket); err != nil || len(b) != 32 || seen[ticket] {
			t.Fatalf("%q: got %d bytes, %v; want 32 new ones", ticket, len(b), err)
		}
		seen[ticket] = true
	}
}

func TestRacingUsesOfOneTicket(t *testing.T) {
	s := newStore(t, Config{})
	for range 100 {
		ticket := issue(t, s, alice, "secret")
		var won atomic.Int32
		var running sync.WaitGroup
		for range 8 {
			running.Go(func() {
				if _, ok := s.Redeem(ticket, alice.Address); ok {
					won.Add(1)
				}
			})
		}
		running.Wait()
		if won.Load() != 1 {
			t.Fatalf("redeemed %d times, want once", won.Load())
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	carol := Owner{netip.MustParsePrefix("192.0.2.3/32"), "carol"}
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{Total: 5, PerOwner: 2})
		wantError := func(what string, o Owner, want error) {
			t.Helper()
			if ticket, _, err := s.Issue(o, ""); !errors.Is(err, want) || ticket != "" {
				t.Errorf("%s: got %q, %v; want %v", what, ticket, err, want)
			}
		}
		first := issue(t, s, alice, "")
		issue(t, s, alice, "")
		wantError("a third of one owner", alice, ErrOwner)
		wantError("of another subject at its address", Owner{alice.Address, "other"}, ErrOwner)
		wantError("of another address of its subject", Owner{carol.Address, "alice"}, ErrOwner)

		<-time.After(10 * time.Second)
		issue(t, s, bob, "")
		issue(t, s, bob, "")
		issue(t, s, carol, "")
		wantError("a sixth", carol, ErrTotal)

		s.Redeem(first, alice.Address)
		issue(t, s, alice, "")

		<-time.After(20 * time.Second)
		synctest.Wait()
		if got := s.Len(); got != 4 {
			t.Errorf("tickets left when the first owner's other is over: got %d, want 4", got)
		}
		<-time.After(10 * time.Second)
		synctest.Wait()
		if s.Len() != 0 || len(s.tickets) != 0 || len(s.addresses) != 0 || len(s.subjects) != 0 {
			t.Errorf("left when all are over: %d, %d tickets, %d addresses, %d subjects", s.Len(), len(s.tickets), len(s.addresses), len(s.subjects))
		}
	})
}

func FuzzRedeem(f *testing.F) {
	s := newStore(f, Config{})
	ticket := issue(f, s, alice, "secret")
	for _, seed := range []string{"", ticket[1:], ticket + "=", ticket[:42] + "\n", "\r" + ticket[:42], ticket[:42] + "_", ticket} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := newStore(t, Config{})
		ticket := issue(t, s, alice, "secret")
		if _, ok := s.Redeem(text, alice.Address); ok {
			t.Errorf("%q redeems %q", text, ticket)
		}
		// Another spelling of the ticket's own bytes is no ticket either.
		for i, c := range []byte(text) {
			spelled := []byte(ticket)
			if spelled[i%len(spelled)] == c {
				continue
			}
			spelled[i%len(spelled)] = c
			if _, ok := s.Redeem(string(spelled), alice.Address); ok {
				t.Errorf("%q redeems %q", spelled, ticket)
			}
		}
		if _, ok := s.Redeem(ticket, alice.Address); !ok {
			t.Error("the ticket itself does not redeem")
		}
	})
}

// BenchmarkIssueAndRedeem is one ticket's life beside many others, without HTTP and without what verifies the token.
func BenchmarkIssueAndRedeem(b *testing.B) {
	const others = 10_000
	s := newStore(b, Config{BindAddress: true, Total: others + 1, PerOwner: others + 1, TTL: time.Hour})
	for range others {
		issue(b, s, bob, "secret")
	}
	b.ReportAllocs()
	for b.Loop() {
		ticket, _, err := s.Issue(alice, "secret")
		if _, ok := s.Redeem(ticket, alice.Address); err != nil || !ok {
			b.Fatal(err)
		}
	}
}

// BenchmarkRedeemMadeUp is a guess.
func BenchmarkRedeemMadeUp(b *testing.B) {
	s := newStore(b, Config{})
	guess := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := s.Redeem(guess, alice.Address); ok {
			b.Fatal("it was good")
		}
	}
}
