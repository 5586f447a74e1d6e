package fleet

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/ratelimit"
)

// A ticket is good once in the fleet, for the address that it is bound to, and its value is in no key of Redis to be read.
func TestTickets(t *testing.T) {
	s := newServer(t)
	fa, _ := s.newInstance("a", ratelimit.Config{})
	fb, _ := s.newInstance("b", ratelimit.Config{})
	a, b := fa.NewTickets(time.Hour, 5, 3), fb.NewTickets(time.Hour, 5, 3)
	ctx := context.Background()
	issue := func(t *testing.T, from *Tickets, o Owner) string {
		t.Helper()
		text, until, err := from.Issue(ctx, o, []byte("hunter2"))
		if err != nil || time.Until(until) < 59*time.Minute {
			t.Fatalf("until %v, %v", until, err)
		}
		return text
	}
	alice := Owner{"192.0.2.1/32", "Alice", true}
	text := issue(t, a, alice)
	for i, want := range []string{"hunter2", ""} {
		if got, err := b.Redeem(ctx, text, alice.Address); string(got) != want || err != nil {
			t.Errorf("use %d: got %q, %v", i+1, got, err)
		}
	}
	text = issue(t, b, alice)
	for _, from := range []string{"192.0.2.2/32", alice.Address} {
		if got, err := a.Redeem(ctx, text, from); got != nil || err != nil {
			t.Errorf("from %s: got %q, %v", from, got, err)
		}
	}
	free := issue(t, a, Owner{"192.0.2.1/32", "Alice", false})
	if got, _ := b.Redeem(ctx, free, "192.0.2.9/32"); string(got) != "hunter2" {
		t.Errorf("not bound: got %q", got)
	}
	for _, bad := range []string{"", "x", text[1:], text + "=", strings.Repeat("A", 43), strings.Repeat("A", 10_000)} {
		if got, err := a.Redeem(ctx, bad, alice.Address); got != nil || err != nil {
			t.Errorf("%.50q: got %q, %v", bad, got, err)
		}
	}
	text = issue(t, a, alice)
	var won atomic.Int64
	var racing sync.WaitGroup
	for i := range 16 {
		racing.Go(func() {
			if got, _ := []*Tickets{a, b}[i%2].Redeem(ctx, text, alice.Address); got != nil {
				won.Add(1)
			}
		})
	}
	racing.Wait()
	if won.Load() != 1 {
		t.Errorf("used %d times at once", won.Load())
	}
	for range 3 {
		issue(t, a, alice)
	}
	for _, o := range []Owner{{"192.0.2.1/32", "Bob", true}, {"192.0.2.7/32", "Alice", true}} {
		if _, _, err := b.Issue(ctx, o, nil); err != ErrTicketsOwner {
			t.Errorf("%+v: %v", o, err)
		}
	}
	issue(t, b, Owner{"192.0.2.3/32", "Carol", true})
	issue(t, b, Owner{"192.0.2.4/32", "Dora", true})
	if _, _, err := a.Issue(ctx, Owner{"192.0.2.5/32", "Eve", true}, nil); err != ErrTicketsTotal {
		t.Errorf("a sixth: %v", err)
	}
	for _, key := range s.Keys(ctx, "*").Val() {
		if dump := s.Dump(ctx, key).Val(); strings.Contains(key+dump, "hunter2") || strings.Contains(key+dump, text) {
			t.Errorf("%q can be read", key)
		}
		if ttl := s.PTTL(ctx, key).Val(); strings.Contains(key, "ticket") && (ttl <= 0 || ttl > time.Hour) {
			t.Errorf("%q is there for %v", key, ttl)
		}
	}
	s.Kill()
	if _, err := a.Redeem(ctx, text, alice.Address); err != ErrAway {
		t.Errorf("without Redis: %v", err)
	}
	if _, _, err := a.Issue(ctx, alice, nil); err != ErrAway {
		t.Errorf("without Redis: %v", err)
	}
}

func TestReplies(t *testing.T) {
	s := newServer(t)
	a, _ := s.newInstance("a", ratelimit.Config{})
	b, _ := s.newInstance("b", ratelimit.Config{})
	ctx := context.Background()
	want := func(f *Fleet, call, earlier, answer string) {
		t.Helper()
		if gotEarlier, gotAnswer, err := f.BeginReply(ctx, "key", call); gotEarlier != earlier || gotAnswer != answer || err != nil {
			t.Errorf("got %q, %q, %v; want %q, %q", gotEarlier, gotAnswer, err, earlier, answer)
		}
	}
	want(a, "1", "", "")
	want(b, "1", "1", "")
	want(b, "2", "1", "")
	b.FinishReply("key", "2", "", time.Minute) // which is not its own
	want(b, "1", "1", "")
	a.FinishReply("key", "1", "done", time.Minute)
	want(b, "1", "1", "done")
	want(b, "2", "1", "done")
	a.FinishReply("key", "1", "", time.Minute)
	want(b, "2", "", "")
	s.Kill()
	if _, _, err := a.BeginReply(ctx, "key", "1"); err != ErrAway {
		t.Errorf("without Redis: %v", err)
	}
}

func TestKeptOut(t *testing.T) {
	s := newServer(t)
	a, _ := s.newInstance("a", ratelimit.Config{})
	ctx := context.Background()
	all := func() map[string]time.Duration {
		all, err := a.keptOut(ctx)
		if err != nil {
			t.Error(err)
		}
		return all
	}
	a.KeepOut("Alice", time.Hour)
	a.KeepOut("Alice", time.Minute) // which is shorter
	a.KeepOut("Bob", time.Millisecond)
	s.until("Bob is back", func() bool { return len(all()) == 1 })
	if d := all()["Alice"]; d < 59*time.Minute || d > time.Hour {
		t.Errorf("Alice is kept out for %v", d)
	}
}
