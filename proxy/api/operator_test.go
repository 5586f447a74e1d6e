package api

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"portcullis/proxy/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A cursor is read by who made it, for the same filter, and in no other form.
func FuzzCursor(f *testing.F) {
	o := &Operator{}
	o.SetToken(rand.Text())
	stranger := &Operator{}
	stranger.SetToken(rand.Text())
	mine := session.Filter{Subject: "alice"}
	made := o.cursor(place{1764180000000000001, "a"}, &mine)
	for _, text := range []string{made, made[1:], made + "=", strings.ToUpper(made), "", "AAAA", strings.Repeat("A", len(made)), stranger.cursor(place{1, "a"}, &mine)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		place, ok := o.readCursor(text, &mine)
		if ok && o.cursor(place, &mine) != text {
			t.Errorf("%q is read as %+v", text, place)
		}
		for _, other := range []session.Filter{{}, {Group: "alice"}, {Subject: "alice", Path: "/"}, {Subject: "alic"}} {
			if _, ok := o.readCursor(text, &other); ok && text == made {
				t.Errorf("%q is read for %+v", text, other)
			}
		}
	})
}

// call is one to a made-up route.
func callOf(key, body string) *call {
	r := httptest.NewRequest(http.MethodPost, "/api/messages?all=true", nil)
	r.Header.Set("Idempotency-Key", key)
	return &call{Request: r, body: []byte(body)}
}

// Answers are kept for ten minutes, ten thousand at most, and the oldest goes first.
func TestRepliesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplies(nil)
		done := 0
		do := func() *reply { done++; return &reply{status: http.StatusOK} }
		for i := range maxReplies + 1 {
			r.once(callOf(fmt.Sprint(i), ""), do)
		}
		if len(r.byKey) != maxReplies || r.done.Len() != maxReplies {
			t.Errorf("%d answers are kept, want %d", len(r.byKey), maxReplies)
		}
		r.once(callOf("1", ""), do)
		r.once(callOf(fmt.Sprint(maxReplies), ""), do)
		if done != maxReplies+1 {
			t.Errorf("%d calls were done, want %d: the answers are kept", done, maxReplies+1)
		}
		if r.once(callOf("0", ""), do); done != maxReplies+2 {
			t.Error("the oldest is kept")
		}
		time.Sleep(replyLifetime)
		if r.once(callOf("2", "another"), do); done != maxReplies+3 || len(r.byKey) != 1 {
			t.Errorf("after %v %d are left", replyLifetime, len(r.byKey))
		}
	})
}

// What failed on our side, or broke off, is done when it is asked for again.
func TestFailuresAreNotKept(t *testing.T) {
	r := newReplies(nil)
	status := http.StatusServiceUnavailable
	do := func() *reply { return &reply{status: status} }
	r.once(callOf("key", ""), do)
	status = http.StatusOK
	if got := r.once(callOf("key", ""), do); got.status != http.StatusOK {
		t.Errorf("again: %d", got.status)
	}
	func() {
		defer func() { recover() }()
		r.once(callOf("another", ""), func() *reply { panic("a fault") })
	}()
	if got := r.once(callOf("another", ""), do); got.status != http.StatusOK {
		t.Errorf("after a panic: %d", got.status)
	}
}
