package auth

import (
	"context"
	"time"
)

// An observed verifier tells how long each of its calls took, and how it ended.
type observed struct {
	verifier
	observe func(took time.Duration, err error)
}

func (o *observed) verify(ctx context.Context, c Credential) (Decision, error) {
	began := time.Now()
	d, err := o.verifier.verify(ctx, c)
	o.observe(time.Since(began), err)
	return d, err
}
