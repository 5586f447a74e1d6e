package frame

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAppendControl(t *testing.T) {
	for _, tt := range []struct {
		name    string
		op      Opcode
		payload string
		want    string // as a server sends it
	}{
		{"empty ping", Ping, "", "89 00"},
		{"RFC 5.7, ping", Ping, "Hello", "89 05 48656c6c6f"},
		{"RFC 5.7, pong", Pong, "Hello", "8a 05 48656c6c6f"},
		{"close without a code", Close, "", "88 00"},
		{"close 1000", Close, "\x03\xe8", "88 02 03e8"},
		{"largest", Ping, strings.Repeat("\xaa", 125), "89 7d" + strings.Repeat("aa", 125)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, tt.want)
			got := AppendControl([]byte("before"), Server, tt.op, []byte(tt.payload))
			if !bytes.Equal(got, append([]byte("before"), want...)) {
				t.Errorf("server: got %x, want %x", got, want)
			}

			got = AppendControl(nil, Client, tt.op, []byte(tt.payload))
			var s Scanner
			part, err := s.Next(got, &Rules{From: Client})
			if err != nil || !part.Control || part.Size != len(got) || part.Header.Opcode != tt.op || len(got) > MaxControl {
				t.Fatalf("client: %x is %+v, %v", got, part, err)
			}
			if payload := part.ControlPayload([]byte("before "), got); string(payload) != "before "+tt.payload {
				t.Errorf("client: payload %q, want %q", payload, tt.payload)
			}
		})
	}
}

// A key that a peer could foresee would let it choose the bytes on the wire; RFC 6455, section 10.3.
func TestAppendControlKeysAreFresh(t *testing.T) {
	seen := make(map[[4]byte]bool)
	for range 64 {
		h, _, _ := Parse(AppendControl(nil, Client, Ping, nil))
		seen[h.Key] = true
	}
	if len(seen) < 60 { // 64 keys of 32 bits: two alike once in two million runs
		t.Errorf("%d different keys in 64 frames", len(seen))
	}
}

func TestAppendControlLeavesThePayloadAlone(t *testing.T) {
	payload := []byte("Hello")
	AppendControl(nil, Client, Ping, payload)
	if string(payload) != "Hello" {
		t.Errorf("it became %q", payload)
	}
}

func TestAppendControlTooLong(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("126 bytes do not panic")
		}
	}()
	AppendControl(nil, Server, Ping, make([]byte, MaxControlPayload+1))
}

func TestClosePayload(t *testing.T) {
	long := strings.Repeat("x", 122)
	for _, tt := range []struct {
		name   string
		code   int
		reason string
		want   string
	}{
		{"code alone", CodeNormal, "", "\x03\xe8"},
		{"code and reason", CodeGoingAway, "going away", "\x03\xe9going away"},
		{"no code", CodeNoStatus, "", ""},
		{"no code takes no reason", CodeNoStatus, "ignored", ""},
		{"application's code", 4999, "bye", "\x13\x87bye"},
		{"longest", CodeNormal, long + "y", "\x03\xe8" + long + "y"},
		{"too long", CodeNormal, long + "yz", "\x03\xe8" + long + "y"},
		{"cut before a character of two bytes", CodeNormal, long + "é", "\x03\xe8" + long},
		{"cut before a character of four bytes", CodeNormal, long[:120] + "😀", "\x03\xe8" + long[:120]},
		{"character of four bytes just fits", CodeNormal, long[:119] + "😀z", "\x03\xe8" + long[:119] + "😀"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ClosePayload(tt.code, tt.reason)
			if string(got) != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if len(got) > MaxControlPayload {
				t.Errorf("%d bytes", len(got))
			}
		})
	}
}

// parseCloseTests also seed FuzzParseClose.
var parseCloseTests = []struct {
	name    string
	payload string
	code    int
	reason  string
	err     error
}{
	{"empty", "", CodeNoStatus, "", nil},
	{"1000", "\x03\xe8", 1000, "", nil},
	{"with a reason", "\x03\xe8bye", 1000, "bye", nil},
	{"reason in UTF-8", "\x03\xe8até já", 1000, "até já", nil},
	{"longest reason", "\x03\xe8" + strings.Repeat("x", 123), 1000, strings.Repeat("x", 123), nil},
	{"1001", "\x03\xe9", 1001, "", nil},
	{"1003", "\x03\xeb", 1003, "", nil},
	{"1007", "\x03\xef", 1007, "", nil},
	{"1011", "\x03\xf3", 1011, "", nil},
	{"1014, registered later", "\x03\xf6", 1014, "", nil},
	{"1016, not yet registered", "\x03\xf8", 1016, "", nil},
	{"2999, for extensions", "\x0b\xb7", 2999, "", nil},
	{"3000, for libraries", "\x0b\xb8", 3000, "", nil},
	{"4999, for applications", "\x13\x87", 4999, "", nil},

	{"half a code", "\x03", 0, "", ErrClose},
	{"0", "\x00\x00", 0, "", ErrClose},
	{"999", "\x03\xe7", 0, "", ErrClose},
	{"1004, reserved", "\x03\xec", 0, "", ErrClose},
	{"1005, never on the wire", "\x03\xed", 0, "", ErrClose},
	{"1006, never on the wire", "\x03\xee", 0, "", ErrClose},
	{"1015, never on the wire", "\x03\xf7", 0, "", ErrClose},
	{"5000", "\x13\x88", 0, "", ErrClose},
	{"65535", "\xff\xff", 0, "", ErrClose},
	{"reason not UTF-8", "\x03\xe8\xff", 0, "", ErrClose},
	{"reason cut inside a character", "\x03\xe8\xc3", 0, "", ErrClose},
	{"surrogate in the reason", "\x03\xe8\xed\xa0\x80", 0, "", ErrClose},
}

func TestParseClose(t *testing.T) {
	for _, tt := range parseCloseTests {
		t.Run(tt.name, func(t *testing.T) {
			code, reason, err := ParseClose([]byte(tt.payload))
			if code != tt.code || reason != tt.reason || err != tt.err {
				t.Errorf("got %d, %q, %v; want %d, %q, %v", code, reason, err, tt.code, tt.reason, tt.err)
			}
		})
	}
}

// FuzzParseClose checks that what is accepted may be sent on as it is: ClosePayload makes the same payload of it, and
// no code gets through that must not be on the wire.
func FuzzParseClose(f *testing.F) {
	for _, tt := range parseCloseTests {
		f.Add([]byte(tt.payload))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) > MaxControlPayload {
			return
		}
		code, reason, err := ParseClose(payload)
		if err != nil {
			if err != ErrClose || code != 0 || reason != "" {
				t.Fatalf("%d, %q with error %v", code, reason, err)
			}
			return
		}
		if got := ClosePayload(code, reason); !bytes.Equal(got, payload) {
			t.Errorf("%q is %d, %q, which is sent as %q", payload, code, reason, got)
		}
		if !utf8.ValidString(reason) {
			t.Errorf("reason %q", reason)
		}
		if slices.Contains([]int{1004, CodeAbnormal, CodeTLS}, code) || code == CodeNoStatus && len(payload) > 0 || code < 1000 || code > 4999 {
			t.Errorf("code %d", code)
		}
	})
}
