package frame

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// unhex reads hexadecimal digits with spaces between them.
func unhex(t testing.TB, digits string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var testKey = [4]byte{0x37, 0xfa, 0x21, 0x3d} // of the examples in RFC 6455, section 5.7

// parseTests also seed the fuzz tests. Where err is nil, wire is one header from end to end.
var parseTests = []struct {
	name string
	wire string
	want Header
	err  error
}{
	{"RFC 5.7, unmasked text", "81 05", Header{Fin: true, Opcode: Text, Length: 5}, nil},
	{"RFC 5.7, masked text", "81 85 37fa213d", Header{Fin: true, Opcode: Text, Masked: true, Key: testKey, Length: 5}, nil},
	{"RFC 5.7, first fragment", "01 03", Header{Opcode: Text, Length: 3}, nil},
	{"RFC 5.7, last fragment", "80 02", Header{Fin: true, Length: 2}, nil},
	{"RFC 5.7, unmasked ping", "89 05", Header{Fin: true, Opcode: Ping, Length: 5}, nil},
	{"RFC 5.7, masked pong", "8a 85 37fa213d", Header{Fin: true, Opcode: Pong, Masked: true, Key: testKey, Length: 5}, nil},
	{"RFC 5.7, 256 bytes of binary", "82 7e 0100", Header{Fin: true, Opcode: Binary, Length: 256}, nil},
	{"RFC 5.7, 64 KiB of binary", "82 7f 0000000000010000", Header{Fin: true, Opcode: Binary, Length: 65536}, nil},

	{"empty", "81 00", Header{Fin: true, Opcode: Text}, nil},
	{"empty and masked", "81 80 37fa213d", Header{Fin: true, Opcode: Text, Masked: true, Key: testKey}, nil},
	{"key of zeros", "81 80 00000000", Header{Fin: true, Opcode: Text, Masked: true}, nil},
	{"largest in 7 bits", "82 7d", Header{Fin: true, Opcode: Binary, Length: 125}, nil},
	{"smallest in 16 bits", "82 7e 007e", Header{Fin: true, Opcode: Binary, Length: 126}, nil},
	{"largest in 16 bits", "82 7e ffff", Header{Fin: true, Opcode: Binary, Length: 65535}, nil},
	{"largest in 16 bits, masked", "82 fe ffff 37fa213d", Header{Fin: true, Opcode: Binary, Masked: true, Key: testKey, Length: 65535}, nil},
	{"2 GiB", "82 7f 0000000080000000", Header{Fin: true, Opcode: Binary, Length: 1 << 31}, nil},
	{"largest of all", "82 7f 7fffffffffffffff", Header{Fin: true, Opcode: Binary, Length: math.MaxInt64}, nil},
	{"largest of all, masked", "82 ff 7fffffffffffffff 37fa213d", Header{Fin: true, Opcode: Binary, Masked: true, Key: testKey, Length: math.MaxInt64}, nil},
	{"top bit of the length", "82 7f 8000000000000000", Header{}, ErrLength},
	{"length -1", "82 7f ffffffffffffffff", Header{}, ErrLength},
	{"top bit of the length, masked", "82 ff 8000000000000000 37fa213d", Header{}, ErrLength},

	{"0 in 16 bits", "82 7e 0000", Header{}, ErrLengthForm},
	{"largest of 7 bits in 16", "82 7e 007d", Header{}, ErrLengthForm},
	{"largest of 7 bits in 16, key to come", "82 fe 007d", Header{}, ErrLengthForm},
	{"0 in 64 bits", "82 7f 0000000000000000", Header{}, ErrLengthForm},
	{"largest of 7 bits in 64", "82 7f 000000000000007d", Header{}, ErrLengthForm},
	{"smallest of 16 bits in 64", "82 7f 000000000000007e", Header{}, ErrLengthForm},
	{"largest of 16 bits in 64, masked", "82 ff 000000000000ffff 37fa213d", Header{}, ErrLengthForm},
	{"control frame, 1 in 16 bits", "89 7e 0001", Header{}, ErrLengthForm},
	{"continuation, 0 in 64 bits", "00 7f 0000000000000000", Header{}, ErrLengthForm},

	{"RSV1", "c1 01", Header{Fin: true, RSV: RSV1, Opcode: Text, Length: 1}, nil},
	{"RSV2", "a1 01", Header{Fin: true, RSV: RSV2, Opcode: Text, Length: 1}, nil},
	{"RSV3", "91 01", Header{Fin: true, RSV: RSV3, Opcode: Text, Length: 1}, nil},
	{"all bits", "ff ff 7fffffffffffffff ffffffff", Header{Fin: true, RSV: RSV1 | RSV2 | RSV3, Opcode: 0xf, Masked: true,
		Key: [4]byte{0xff, 0xff, 0xff, 0xff}, Length: math.MaxInt64}, nil},
	{"no bits", "00 00", Header{}, nil},
	{"HTTP", "47 45", Header{RSV: RSV1, Opcode: 0x7, Length: 0x45}, nil}, // "GE"
}

func TestParse(t *testing.T) {
	for _, tt := range parseTests {
		t.Run(tt.name, func(t *testing.T) {
			wire := unhex(t, tt.wire)
			h, size, err := Parse(wire)
			if err != tt.err {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if h != tt.want {
				t.Errorf("got %+v, want %+v", h, tt.want)
			}
			if err == nil && size != len(wire) {
				t.Errorf("size %d, want %d", size, len(wire))
			}
		})
	}
}

// A header that has not come whole is not judged: whatever is wrong with it, it says so only to the last byte of its length.
func TestParseWaitsForTheWholeHeader(t *testing.T) {
	for _, tt := range parseTests {
		if tt.err != nil {
			continue
		}
		wire := unhex(t, tt.wire)
		for n := range wire {
			if h, size, err := Parse(wire[:n]); h != (Header{}) || size != 0 || err != nil {
				t.Errorf("%s: %d of %d bytes give %+v, %d, %v", tt.name, n, len(wire), h, size, err)
			}
		}
	}
}

func TestAppend(t *testing.T) {
	for _, tt := range parseTests {
		if tt.err != nil {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, "abcd "+tt.wire)
			got := tt.want.Append(unhex(t, "abcd"))
			if !bytes.Equal(got, want) {
				t.Errorf("got %x, want %x", got, want)
			}
		})
	}
}

func TestMaxHeader(t *testing.T) {
	h := Header{Masked: true, Length: math.MaxInt64}
	if n := len(h.Append(nil)); n != MaxHeader {
		t.Errorf("the largest header has %d bytes, MaxHeader is %d", n, MaxHeader)
	}
}

// TestOpcode goes through all sixteen; RFC 6455, section 11.8.
func TestOpcode(t *testing.T) {
	for o := range Opcode(16) {
		wantReserved := !slices.Contains([]Opcode{0, 1, 2, 8, 9, 10}, o)
		if o.reserved() != wantReserved {
			t.Errorf("%#x: reserved is %v", o, o.reserved())
		}
		if o.Control() != (o >= 8) {
			t.Errorf("%#x: control is %v", o, o.Control())
		}
	}
}

// maskByByte is RFC 6455, section 5.3, word for word: transformed-octet-i = original-octet-i XOR key[i MOD 4].
func maskByByte(key [4]byte, at int64, b []byte) {
	for i := range b {
		b[i] ^= key[(at+int64(i))%4]
	}
}

func TestMask(t *testing.T) {
	b := []byte("Hello")
	Mask(testKey, 0, b)
	if want := unhex(t, "7f 9f 4d 51 58"); !bytes.Equal(b, want) { // RFC 6455, section 5.7
		t.Errorf("got %x, want %x", b, want)
	}
}

// TestMaskEverywhere compares with the specification at every alignment in memory, every offset in the payload and every
// length up to some words, and that not a byte beside b is touched.
func TestMaskEverywhere(t *testing.T) {
	const around = 8
	source := make([]byte, around+80+around)
	rand.NewChaCha8([32]byte{1}).Read(source)
	for _, at := range []int64{0, 1, 2, 3, 4, 5, 6, 7, 1<<32 - 1, 1 << 32, math.MaxInt64 - 3, math.MaxInt64} {
		for align := range around {
			for n := range 66 {
				got, want := slices.Clone(source), slices.Clone(source)
				Mask(testKey, at, got[align:align+n])
				for i := range n { // at+i may overflow
					want[align+i] ^= testKey[(at%4+int64(i))%4]
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("at %d, alignment %d, %d bytes: got %x, want %x", at, align, n, got, want)
				}
			}
		}
	}
}

// FuzzMask checks the reference, that masking twice is none, and that a payload may be masked in two pieces.
func FuzzMask(f *testing.F) {
	f.Add(uint32(0x3d21fa37), uint8(0), uint8(3), []byte("Hello, world. Hello, world."))
	f.Fuzz(func(t *testing.T, k uint32, at, cut uint8, b []byte) {
		key := [4]byte{byte(k), byte(k >> 8), byte(k >> 16), byte(k >> 24)}
		got, want := slices.Clone(b), slices.Clone(b)
		Mask(key, int64(at), got)
		maskByByte(key, int64(at), want)
		if !bytes.Equal(got, want) {
			t.Fatalf("got %x, want %x", got, want)
		}
		pieces, n := slices.Clone(b), min(int(cut), len(b))
		Mask(key, int64(at), pieces[:n])
		Mask(key, int64(at)+int64(n), pieces[n:])
		if !bytes.Equal(pieces, want) {
			t.Errorf("in pieces of %d and %d: got %x, want %x", n, len(b)-n, pieces, want)
		}
		Mask(key, int64(at), got)
		if !bytes.Equal(got, b) {
			t.Errorf("masked twice: got %x, want %x", got, b)
		}
	})
}

// FuzzParse compares with a second parser, and checks that a header which was read comes out the same when written and
// read again, in no more bytes, and that neither less nor more input than the header's own changes anything.
func FuzzParse(f *testing.F) {
	for _, tt := range parseTests {
		f.Add(unhex(f, tt.wire))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, size, err := Parse(b)
		if want := refParse(b); h != want.header || size != want.size || err != want.err {
			t.Fatalf("got %+v, %d, %v; the reference says %+v", h, size, err, want)
		}
		if size < 0 || size > MaxHeader || size > len(b) {
			t.Fatalf("size %d of %d", size, len(b))
		}
		if size == 0 {
			return
		}
		for n := range size {
			if got, size, err := Parse(b[:n]); got != (Header{}) || size != 0 || err != nil {
				t.Errorf("%d bytes give %+v, %d, %v", n, got, size, err)
			}
		}
		wire := h.Append(nil)
		if again, n, err := Parse(append(slices.Clone(wire), 0xff)); again != h || n != len(wire) || n != size || err != nil {
			t.Errorf("%+v, written as %x, is read as %+v, %d, %v", h, wire, again, n, err)
		}
	})
}

// refHeader is what refParse found. Size 0: the input ends too early, or err.
type refHeader struct {
	header Header
	size   int
	err    error
}

// refParse is the figure in RFC 6455, section 5.2, read bit by bit.
func refParse(b []byte) refHeader {
	at := 0 // in bits
	short := false
	take := func(n int) (v uint64) {
		for range n {
			if at/8 >= len(b) {
				short = true
				return 0
			}
			v = v<<1 | uint64(b[at/8]>>(7-at%8)&1)
			at++
		}
		return v
	}
	var h Header
	h.Fin = take(1) == 1
	h.RSV = uint8(take(3) << 4)
	h.Opcode = Opcode(take(4))
	h.Masked = take(1) == 1
	length, least := take(7), uint64(0)
	switch length {
	case 126:
		length, least = take(16), 126
	case 127:
		length, least = take(64), 65536
	}
	switch {
	case short:
		return refHeader{}
	case length > math.MaxInt64:
		return refHeader{err: ErrLength}
	case length < least:
		return refHeader{err: ErrLengthForm}
	}
	h.Length = int64(length)
	if h.Masked {
		for i := range h.Key {
			h.Key[i] = byte(take(8))
		}
	}
	if short {
		return refHeader{}
	}
	return refHeader{header: h, size: at / 8}
}

func BenchmarkMask(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			payload := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				Mask(testKey, 1, payload)
			}
		})
	}
}
