package fleet

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// issue keeps a ticket. KEYS: the ticket, those of its address, of its subject, and all. ARGV: its time in ms, most of an owner, most of
// all, what it stands for, the address that may use it. It returns 0, or which limit is reached: 1 an owner's, 2 that of all.
var issue = redis.NewScript(scriptHead + `
for i = 2, 4 do
	redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
	if redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[i == 4 and 3 or 2]) then return i == 4 and 2 or 1 end
end
for i = 2, 4 do
	redis.call('ZADD', KEYS[i], now + ARGV[1], KEYS[1])
	redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
redis.call('HSET', KEYS[1], 'v', ARGV[4], 'from', ARGV[5], 'address', KEYS[2], 'subject', KEYS[3])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0
`)

// redeem uses a ticket up. KEYS: the ticket, all. ARGV: the address that shows it. It returns what it stands for, or nothing.
var redeem = redis.NewScript(`
local t = redis.call('HMGET', KEYS[1], 'v', 'from', 'address', 'subject')
if not t[1] then return '' end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], KEYS[1])
if t[3] then redis.call('ZREM', t[3], KEYS[1]) end
if t[4] then redis.call('ZREM', t[4], KEYS[1]) end
if t[2] ~= '' and t[2] ~= ARGV[1] then return '' end
return t[1]
`)

// Tickets are good once in the whole fleet. What one stands for is sealed with the ticket itself, of which Redis has a hash: whoever
// reads it there can neither use nor read any. It is safe for concurrent use.
type Tickets struct {
	fleet           *Fleet
	ttl             time.Duration
	total, perOwner int
}

// NewTickets returns tickets that hold for ttl, up to so many of all, and of one address or subject.
func (f *Fleet) NewTickets(ttl time.Duration, total, perOwner int) *Tickets {
	return &Tickets{f, ttl, total, perOwner}
}

// Owner says to whom a ticket is issued.
type Owner struct {
	Address, Subject string
	Bound            bool // only that address may use it
}

// The errors of Issue and Redeem.
var (
	ErrTicketsOwner = errors.New("too many unused tickets of this owner")
	ErrTicketsTotal = errors.New("too many unused tickets")
	ErrAway         = errors.New("the Redis of the fleet does not answer")
)

var ticketText = base64.RawURLEncoding.Strict()

// Issue returns a new ticket for value, and until when it can be used. The error is ErrTicketsOwner, ErrTicketsTotal or ErrAway.
func (t *Tickets) Issue(ctx context.Context, o Owner, value []byte) (ticket string, until time.Time, err error) {
	secret := make([]byte, sha256.Size)
	rand.Read(secret) // never fails (Go 1.24)
	key, seal := ticketKey(secret)
	from := ""
	if o.Bound {
		from = o.Address
	}
	f := t.fleet
	until = time.Now().Add(t.ttl)
	answer, err := f.ask(ctx, issue,
		[]string{f.key("ticket", key), f.key("tickets", "a", o.Address), f.key("tickets", "s", subjectKey(o.Subject)), f.key("tickets", "all")},
		t.ttl.Milliseconds(), t.perOwner, t.total, seal.Seal(nil, make([]byte, seal.NonceSize()), value, nil), from)
	switch {
	case err != nil:
		return "", until, ErrAway
	case answer == int64(1):
		return "", until, ErrTicketsOwner
	case answer == int64(2):
		return "", until, ErrTicketsTotal
	}
	return ticketText.EncodeToString(secret), until, nil
}

// Redeem returns what a ticket stands for, to one caller and once. Nil: it stands for nothing, or not for this address. The error is
// ErrAway: nobody knows.
func (t *Tickets) Redeem(ctx context.Context, ticket, address string) ([]byte, error) {
	secret, err := ticketText.DecodeString(ticket)
	if err != nil || len(secret) != sha256.Size {
		return nil, nil
	}
	key, seal := ticketKey(secret)
	f := t.fleet
	answer, err := f.ask(ctx, redeem, []string{f.key("ticket", key), f.key("tickets", "all")}, address)
	if err != nil {
		return nil, ErrAway
	}
	sealed, _ := answer.(string)
	value, err := seal.Open(nil, make([]byte, seal.NonceSize()), []byte(sealed), nil)
	if err != nil {
		return nil, nil
	}
	return value, nil
}

// ticketKey is the name of a ticket in Redis, and what its value is sealed with: once, so that a nonce is of no use.
func ticketKey(secret []byte) (name string, seal cipher.AEAD) {
	hash := sha256.Sum256(append([]byte("name"), secret...))
	key := sha256.Sum256(append([]byte("seal"), secret...))
	block, err := aes.NewCipher(key[:])
	if err == nil {
		seal, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic(err) // a key of that length is one
	}
	return hex.EncodeToString(hash[:16]), seal
}
