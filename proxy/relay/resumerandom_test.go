package relay

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/proxy/frame"
)

// randomClient is the client of a random session: what it has sent and got, and what it has to send again.
type randomClient struct {
	s        *resumeScript
	sent     int // numbered messages, from 0
	received int // of the upstream's
	resend   int // the next to be sent on this connection
	attempt  uint64
	token    Token
}

// reads takes what the client has got, which must be the next in the order.
func (c *randomClient) reads() {
	c.s.t.Helper()
	p := &c.s.peers[client]
	for _, line := range p.seen {
		text, isText := strings.CutPrefix(line, "text ")
		first, isFirst := strings.CutPrefix(text, libraryPrefix+"first ")
		switch {
		case isFirst:
			c.resend, _ = strconv.Atoi(strings.Fields(first)[1])
			c.token = c.s.tokens[len(c.s.tokens)-1]
			c.attempt = 0
		case strings.HasPrefix(text, libraryPrefix), !isText:
		case text != fmt.Sprint("d", c.received):
			c.s.t.Fatalf("the client got %q, want d%d", text, c.received)
		default:
			c.received++
		}
	}
	p.seen = nil
}

// pieces cuts a message of a side's into up to three frames.
func pieces(r *rand.Rand, from side, m string) []byte {
	first, second := r.IntN(len(m)+1), r.IntN(len(m)+1)
	if second < first {
		first, second = second, first
	}
	switch r.IntN(3) {
	case 0:
		return from.text(m)
	case 1:
		return append(from.frame(frame.Header{Opcode: frame.Text}, m[:first]), from.frame(frame.Header{Fin: true}, m[first:])...)
	}
	b := append(from.frame(frame.Header{Opcode: frame.Text}, m[:first]), from.ping("between")...)
	b = append(b, from.frame(frame.Header{}, m[first:second])...)
	return append(b, from.frame(frame.Header{Fin: true}, m[second:])...)
}

// Whatever happens to the connection of the client, within its window: what either side sends arrives, once and in order.
func TestRandomResumption(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 12))
			s := newResumeScript(t, resumeConfig())
			c := &randomClient{s: s, token: s.tokens[0]}
			down, up := 0, 0
			attached := true
			upstreamReads := func() {
				t.Helper()
				p := &s.peers[upstream]
				for _, line := range p.seen {
					if !strings.HasPrefix(line, "text ") {
						continue
					}
					if want := fmt.Sprint("text u", up); line != want {
						t.Fatalf("the upstream got %q, want %q", line, want)
					}
					up++
				}
				p.seen = nil
			}
			back := func() {
				t.Helper()
				c.reads() // it has left the old connection, and counts
				c.attempt++
				if v := s.comeBack(c.token, uint64(c.received), c.attempt); v != Accepted {
					t.Fatalf("verdict %d for a return with %d, attempt %d", v, c.received, c.attempt)
				}
				attached = true
				if r.IntN(4) == 0 { // its first message is lost
					s.peers[client] = scriptPeer{}
					s.reset(client)
					s.peers[client].seen = nil
					s.tokens = s.tokens[:len(s.tokens)-1]
					attached = false
					return
				}
				c.reads()
				if r.IntN(4) > 0 {
					s.ack(uint64(c.received))
				}
			}
			sends := func() {
				if c.resend < c.sent {
					s.send(client, pieces(r, client, fmt.Sprint("u", c.resend)))
					c.resend++
				} else {
					s.send(client, pieces(r, client, fmt.Sprint("u", c.sent)))
					c.sent++
					c.resend = c.sent
				}
			}
			for range 200 {
				c.reads()
				upstreamReads()
				switch n := r.IntN(20); {
				case n < 6:
					if s.policy.held(upstream) {
						continue
					}
					s.send(upstream, pieces(r, upstream, fmt.Sprint("d", down)))
					down++
				case !attached && n < 14:
					back()
				case !attached:
				case n < 11:
					if !s.policy.held(client) {
						sends()
					}
				case n == 11:
					s.block(client)
				case n == 12:
					s.unblock(client)
				case n == 13:
					s.block(upstream)
				case n == 14:
					s.unblock(upstream)
				case n == 15:
					s.ack(uint64(c.received))
				case n == 16:
					s.send(client, client.text("cut off")[:1+r.IntN(10)])
					fallthrough
				case n == 17:
					s.reset(client)
					c.reads()
					s.peers[client].seen, attached = nil, false
				case n == 18:
					back() // a takeover
				default:
					s.wait(time.Second * time.Duration(r.IntN(3)))
					attached = !s.policy.detached()
				}
				s.wantLive()
			}
			s.unblock(upstream)
			for tries := 0; !attached && tries < 100; tries++ {
				back()
			}
			s.unblock(client)
			c.reads()
			s.ack(uint64(c.received))
			for c.resend < c.sent {
				sends()
			}
			c.reads()
			upstreamReads()
			if up != c.sent || c.received != down {
				t.Fatalf("%d of %d messages went up, and %d of %d down", up, c.sent, c.received, down)
			}
			s.ack(uint64(c.received))
			s.end(Kicked, Closing{3003, ""})
			s.wait(time.Minute)
			if held := s.policy.budget.bytes.Load(); held != 0 {
				t.Errorf("%d bytes are counted after the end", held)
			}
		})
	}
}
