package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
)

// tokenHash is an HMAC key. It turns tokens into pseudonyms and into the keys of
// tables. Each process makes its own and keeps it, so neither a pseudonym in a log
// nor the memory of a table can be used to try out tokens; those of a fleet have
// one together.
type tokenHash [sha256.Size]byte

func newTokenHash(secret string) (h tokenHash) {
	if secret != "" {
		return sha256.Sum256([]byte(secret))
	}
	rand.Read(h[:]) // never fails (Go 1.24)
	return h
}

// sum returns the HMAC-SHA256 of token.
func (h *tokenHash) sum(token string) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, h[:])
	mac.Write([]byte(token))
	mac.Sum(sum[:0])
	return sum
}

// pseudonym returns the subject of a client that nobody names. Half of the sum
// is kept: 128 bits do not collide, and the subject is in every log line.
func (h *tokenHash) pseudonym(token string) string {
	sum := h.sum(token)
	return "hmac-" + base64.RawURLEncoding.EncodeToString(sum[:16])
}
