package gate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"portcullis/proxy/frame"
)

// script gives a tokenReader's whole account of some bytes, shown to it in pieces of some sizes.
func script(b []byte, most int64, size func() int) string {
	r := newTokenReader(most)
	var shown []byte
	left := b
	for {
		used, no := r.consume(shown)
		shown = shown[used:]
		if no != nil {
			return fmt.Sprintf("%s %d %q pongs %q", no.Reason, no.CloseCode, no.Detail, r.pongs)
		}
		if r.done {
			return fmt.Sprintf("%q, behind it %q, pongs %q", r.message, append(shown, left...), r.pongs)
		}
		if len(left) == 0 {
			return fmt.Sprintf("unfinished, %q left, pongs %q", shown, r.pongs)
		}
		n := min(max(size(), 1), len(left))
		shown = append(slices.Clone(shown), left[:n]...)
		left = left[n:]
	}
}

// FuzzTokenReader: how the bytes are cut on the way makes no difference, and what is held of them is bounded.
func FuzzTokenReader(f *testing.F) {
	for _, seed := range []string{
		text("good"), text("good") + "\x82", masked(false, frame.Text, "go") + masked(true, frame.Ping, "?") + masked(true, frame.Continuation, "od"),
		masked(true, frame.Close, "\x03\xe8"), masked(true, frame.Binary, "x"), served(frame.Text, "x"), text(strings.Repeat("x", 200)),
		strings.Repeat(masked(true, frame.Ping, ""), maxControls+1), "\x81\xff\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		f.Add([]byte(seed), []byte{1, 3})
	}
	const most = 100
	f.Fuzz(func(t *testing.T, b, sizes []byte) {
		whole := script(b, most, func() int { return len(b) })
		i := 0
		pieces := script(b, most, func() int {
			i++
			if len(sizes) == 0 {
				return 1
			}
			return int(sizes[i%len(sizes)])
		})
		if pieces != whole {
			t.Errorf("in pieces: %s\nat once:   %s", pieces, whole)
		}
		r := newTokenReader(most)
		used, no := r.consume(b)
		switch {
		case len(r.message) > most || len(r.pongs) > maxControls*frame.MaxControl:
			t.Errorf("it holds %d bytes and %d of pongs", len(r.message), len(r.pongs))
		case !r.done && no == nil && len(b)-used >= frame.MaxControl:
			t.Errorf("it leaves %d bytes, more than there is room for", len(b)-used)
		}
	})
}

// FuzzFragments: a message comes out as it went in, however it is fragmented, and nothing behind it is touched.
func FuzzFragments(f *testing.F) {
	f.Add("good", []byte{1, 0, 2}, "\x82")
	f.Add("", []byte{}, "")
	f.Add(strings.Repeat("x", 300), []byte{255, 3}, text("more"))
	f.Fuzz(func(t *testing.T, message string, sizes []byte, behind string) {
		most := int64(len(message) + 300)
		message = strings.ToValidUTF8(message, "")
		sizes = sizes[:min(len(sizes), 200)]
		var wire strings.Builder
		op, rest := frame.Text, message
		for i, size := range sizes {
			n := min(int(size), len(rest))
			wire.WriteString(masked(false, op, rest[:n]))
			op, rest = frame.Continuation, rest[n:]
			if i < maxControls {
				wire.WriteString(masked(true, frame.Ping, "?"))
			}
		}
		wire.WriteString(masked(true, op, rest))
		b := []byte(wire.String() + behind)
		r := newTokenReader(most)
		used, no := r.consume(b)
		if no != nil || !r.done || string(r.message) != message || string(b[used:]) != behind {
			t.Errorf("got %q (%t), behind it %q, %+v; want %q and %q", r.message, r.done, b[used:], no, message, behind)
		}
	})
}

// masked is a frame as a client sends it.
func masked(fin bool, op frame.Opcode, payload string) string {
	h := frame.Header{Fin: fin, Opcode: op, Masked: true, Key: [4]byte{1, 2, 3, 250}, Length: int64(len(payload))}
	b := h.Append(nil)
	start := len(b)
	b = append(b, payload...)
	frame.Mask(h.Key, 0, b[start:])
	return string(b)
}

func text(payload string) string { return masked(true, frame.Text, payload) }

// served is a frame as a server sends it.
func served(op frame.Opcode, payload string) string {
	return string(frame.Header{Fin: true, Opcode: op, Length: int64(len(payload))}.Append(nil)) + payload
}
