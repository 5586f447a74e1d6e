package api

import (
	"container/list"
	"crypto/sha256"
	"net/http"
	"sync"
	"time"
)

const (
	// replyLifetime is how long an answer is kept for whoever asks again by the same Idempotency-Key.
	replyLifetime = 10 * time.Minute
	maxReplies    = 10_000
	maxKey        = 255 // bytes of an Idempotency-Key
)

// replies are the answers to calls that have an Idempotency-Key, so that a call which is sent again has its effect once.
type replies struct {
	mu    sync.Mutex // guards what follows
	byKey map[string]*keptReply
	done  list.List // of *keptReply that have an answer, the oldest first
}

type keptReply struct {
	key    string
	call   [sha256.Size]byte // which call it answers
	*reply                   // nil: it is running
	at     time.Time         // when it was answered
}

func newReplies() *replies { return &replies{byKey: make(map[string]*keptReply)} }

// once has do answer a call, unless one with the same key has been answered.
func (r *replies) once(c *call, do func() *reply) *reply {
	keys := c.Header["Idempotency-Key"]
	if len(keys) == 0 {
		return do()
	}
	key := keys[0]
	if len(keys) > 1 || key == "" || len(key) > maxKey || !isVisible(key) {
		return problem(http.StatusBadRequest, "Idempotency-Key: want 1 to %d visible ASCII characters, once", maxKey)
	}
	kept, answer := r.begin(key, c.digest())
	if answer != nil {
		return answer
	}
	finished := false
	defer func() {
		if !finished {
			r.forget(kept) // a panic is no answer
		}
	}()
	answer = do()
	finished = true
	r.finish(kept, answer)
	return answer
}

// digest tells calls apart.
func (c *call) digest() [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(c.Method + " " + c.URL.RequestURI() + "\n" + c.Header.Get("Content-Type") + "\n"))
	h.Write(c.body)
	return [sha256.Size]byte(h.Sum(nil))
}

// begin enters a call, or returns the answer where it is not to be done.
func (r *replies) begin(key string, call [sha256.Size]byte) (*keptReply, *reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(time.Now())
	if kept := r.byKey[key]; kept != nil {
		switch {
		case kept.call != call:
			return nil, problem(http.StatusUnprocessableEntity, "Idempotency-Key: it was used for another call")
		case kept.reply == nil:
			return nil, problem(http.StatusConflict, "Idempotency-Key: the call is still running")
		}
		again := *kept.reply
		again.header = http.Header{"Idempotency-Replayed": {"true"}}
		again.attrs = append(again.attrs[:len(again.attrs):len(again.attrs)], "replayed", true)
		return nil, &again
	}
	if len(r.byKey) >= maxReplies {
		oldest := r.done.Front()
		if oldest == nil {
			return nil, problem(http.StatusServiceUnavailable, "too many calls are running")
		}
		r.drop(oldest)
	}
	kept := &keptReply{key: key, call: call}
	r.byKey[key] = kept
	return kept, nil
}

// finish keeps an answer, unless the same call may have another soon.
func (r *replies) finish(kept *keptReply, answer *reply) {
	if answer.status >= http.StatusInternalServerError {
		r.forget(kept)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept.reply, kept.at = answer, time.Now()
	r.done.PushBack(kept)
}

func (r *replies) forget(kept *keptReply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byKey, kept.key)
}

// expire forgets answers that are too old. The caller holds mu.
func (r *replies) expire(now time.Time) {
	for e := r.done.Front(); e != nil && now.Sub(e.Value.(*keptReply).at) >= replyLifetime; e = r.done.Front() {
		r.drop(e)
	}
}

func (r *replies) drop(e *list.Element) {
	delete(r.byKey, r.done.Remove(e).(*keptReply).key)
}
