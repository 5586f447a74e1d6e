package api

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"portcullis/proxy/fleet"
)

const (
	// replyLifetime is how long an answer is kept for whoever asks again by the same Idempotency-Key.
	replyLifetime = 10 * time.Minute
	maxReplies    = 10_000
	maxKey        = 255 // bytes of an Idempotency-Key
)

// replies are the answers to calls that have an Idempotency-Key, so that a call which is sent again has its effect once.
type replies struct {
	fleet *fleet.Fleet // which keeps them for all instances; nil: this one is alone

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

func newReplies(f *fleet.Fleet) *replies {
	return &replies{fleet: f, byKey: make(map[string]*keptReply)}
}

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
	begin := r.begin
	if r.fleet != nil {
		begin = r.beginInFleet
	}
	finish, answer := begin(c.Context(), key, c.digest())
	if answer != nil {
		return answer
	}
	defer func() { finish(answer) }() // nil after a panic
	answer = do()
	return answer
}

// digest tells calls apart.
func (c *call) digest() [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(c.Method + " " + c.URL.RequestURI() + "\n" + c.Header.Get("Content-Type") + "\n"))
	h.Write(c.body)
	return [sha256.Size]byte(h.Sum(nil))
}

// again is the answer to a call whose key has been used: for the same call or another, which has been answered or not.
func again(same bool, kept *reply) *reply {
	switch {
	case !same:
		return problem(http.StatusUnprocessableEntity, "Idempotency-Key: it was used for another call")
	case kept == nil:
		return problem(http.StatusConflict, "Idempotency-Key: the call is still running")
	}
	again := *kept
	again.header = http.Header{"Idempotency-Replayed": {"true"}}
	again.attrs = append(again.attrs[:len(again.attrs):len(again.attrs)], "replayed", true)
	return &again
}

// keeps reports whether an answer is kept: not one after which the same call may have another soon, unless it is final, and none after a
// panic.
func keeps(answer *reply) bool {
	return answer != nil && (answer.final || answer.status < http.StatusInternalServerError)
}

// begin enters a call, or returns the answer where it is not to be done. finish has to follow.
func (r *replies) begin(_ context.Context, key string, call [sha256.Size]byte) (finish func(*reply), answer *reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(time.Now())
	if kept := r.byKey[key]; kept != nil {
		return nil, again(kept.call == call, kept.reply)
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
	return func(answer *reply) { r.finish(kept, answer) }, nil
}

func (r *replies) finish(kept *keptReply, answer *reply) {
	if !keeps(answer) {
		r.forget(kept)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept.reply, kept.at = answer, time.Now()
	r.done.PushBack(kept)
}

// sharedReply is an answer as the instances of a fleet keep it.
type sharedReply struct {
	Status int             `json:"status"`
	Body   json.RawMessage `json:"body"`
}

// beginInFleet is begin for all instances.
func (r *replies) beginInFleet(ctx context.Context, key string, call [sha256.Size]byte) (finish func(*reply), answer *reply) {
	name := hex.EncodeToString(call[:])
	earlier, text, err := r.fleet.BeginReply(ctx, key, name)
	if err != nil {
		return nil, away("whether the call was made before cannot be looked up at the moment; it was not made now")
	}
	if earlier != "" {
		var kept *reply
		var shared sharedReply
		if json.Unmarshal([]byte(text), &shared) == nil {
			kept = &reply{status: shared.Status, body: shared.Body}
		}
		return nil, again(earlier == name, kept)
	}
	return func(answer *reply) {
		text := ""
		if keeps(answer) {
			encoded, _ := json.Marshal(sharedReply{answer.status, answer.body}) // its body is JSON
			text = string(encoded)
		}
		r.fleet.FinishReply(key, name, text, replyLifetime)
	}, nil
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
