package relay

import (
	"unicode/utf8"

	"portcullis/proxy/frame"
)

// errEncoding ends a session whose messages are taken apart here (RFC 6455,
// section 8.1). In passthrough they are for the peers to judge.
const errEncoding = frame.Error("text is not UTF-8")

// text follows the message that one side is sending: if it is text it must be
// UTF-8, over all its fragments. A character may be cut anywhere.
type text struct {
	open bool // it is text
	key  [4]byte
	at   int64                 // bytes of the current frame's payload so far
	cut  [utf8.UTFMax - 1]byte // the beginning of a character
	n    int                   // bytes of it
}

// check looks at the next part. After an error it stands where it stood before.
func (t *text) check(p frame.Part, payload []byte) error {
	if p.Control {
		return nil
	}
	next := *t
	if p.Starts {
		if p.Header.Opcode != frame.Continuation {
			next = text{open: p.Header.Opcode == frame.Text}
		}
		next.key, next.at = p.Header.Key, 0
	}
	if next.open && !(next.take(payload) && (!p.Message || next.n == 0)) {
		return errEncoding
	}
	*t = next
	return nil
}

// take reports whether the payload goes on as UTF-8.
func (t *text) take(payload []byte) bool {
	var buf [1 << 10]byte
	for len(payload) > 0 {
		n := copy(buf[:], t.cut[:t.n])
		m := copy(buf[n:], payload)
		frame.Mask(t.key, t.at, buf[n:n+m])
		t.at += int64(m)
		payload = payload[m:]
		b := buf[:n+m]
		whole := len(b) - cutOff(b)
		if !utf8.Valid(b[:whole]) {
			return false
		}
		t.n = copy(t.cut[:], b[whole:])
	}
	return true
}

// cutOff is how many bytes at the end of b may be the beginning of a character.
func cutOff(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if end := b[len(b)-n:]; utf8.RuneStart(end[0]) {
			if !utf8.FullRune(end) {
				return n
			}
			break
		}
	}
	return 0
}
