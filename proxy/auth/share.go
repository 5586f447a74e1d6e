package auth

import (
	"context"
	"sync"

	"golang.org/x/sync/singleflight"
)

// A share makes one call for all who ask about the same token at the same time:
// when a server restarts, every tab of a user comes back at once. The call goes
// on while anyone waits for it, and is cancelled when the last has gone.
type share struct {
	verifier
	hash  tokenHash
	group singleflight.Group

	mu    sync.Mutex
	calls map[string]*sharedCall // guarded by mu; those that someone waits for
}

// sharedCall is the context of one call, and how many wait for it.
type sharedCall struct {
	ctx     context.Context
	cancel  context.CancelFunc
	waiters int // guarded by share.mu
}

func newShare(v verifier, hash tokenHash) *share {
	return &share{verifier: v, hash: hash, calls: map[string]*sharedCall{}}
}

func (s *share) verify(ctx context.Context, c Credential) (Decision, error) {
	if ctx.Err() != nil {
		return Decision{}, aborted(ctx)
	}
	sum := s.hash.sum(c.Token)
	key := string(sum[:])
	call, result := s.join(key, c)
	defer s.leave(key, call)
	select {
	case r := <-result:
		d, _ := r.Val.(Decision)
		return d, r.Err
	case <-ctx.Done():
		return Decision{}, aborted(ctx)
	}
}

// join joins the call about c, and starts it if there is none.
func (s *share) join(key string, c Credential) (*sharedCall, <-chan singleflight.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := s.calls[key]
	if call == nil {
		call = &sharedCall{}
		call.ctx, call.cancel = context.WithCancel(context.Background())
		s.calls[key] = call
	}
	call.waiters++
	// Under the lock, so that nobody joins a call that the last one to leave
	// has just cancelled.
	return call, s.group.DoChan(key, func() (any, error) { return s.verifier.verify(call.ctx, c) })
}

func (s *share) leave(key string, call *sharedCall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if call.waiters--; call.waiters == 0 {
		call.cancel()
		delete(s.calls, key)
		s.group.Forget(key)
	}
}
