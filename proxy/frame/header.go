// Package frame is the framing of RFC 6455, section 5, without I/O: frame
// headers, masks, control frames, and a Scanner that follows one direction of
// a connection through chunks of any size and always knows where it stands.
//
// Nothing here copies, buffers or decodes a payload. So a relay can pass messages
// of any size through, still masked and still compressed, and yet know every
// boundary at which it may insert a frame of its own.
package frame

import (
	"encoding/binary"
	"math/bits"
)

// Opcode says what a frame is; RFC 6455, section 5.2.
type Opcode uint8

// The opcodes that RFC 6455 defines. All others are reserved.
const (
	Continuation Opcode = 0x0
	Text         Opcode = 0x1
	Binary       Opcode = 0x2
	Close        Opcode = 0x8
	Ping         Opcode = 0x9
	Pong         Opcode = 0xA
)

// Control reports whether the opcode is that of a control frame.
func (o Opcode) Control() bool { return o&0x8 != 0 }

func (o Opcode) reserved() bool { return o > Pong || o > Binary && o < Close }

const (
	// MaxHeader is the size in bytes of the largest header: two bytes, a
	// length of eight and a mask of four.
	MaxHeader = 14
	// MaxControlPayload is the largest payload of a control frame, in bytes;
	// RFC 6455, section 5.5.
	MaxControlPayload = 125
	// MaxControl is the size of the largest control frame on the wire, masked.
	MaxControl = 2 + 4 + MaxControlPayload
)

// The reserved bits, as they stand in Header.RSV.
const (
	RSV1 = 0x40
	RSV2 = 0x20
	RSV3 = 0x10
)

// Header is a frame header.
type Header struct {
	Fin    bool
	RSV    uint8 // RSV1, RSV2 and RSV3
	Opcode Opcode
	Masked bool
	Key    [4]byte // the masking key; meaningful when Masked
	Length int64   // of the payload, in bytes
}

// Parse reads the header at the start of b and returns its size in bytes: 0 if
// b ends before the header does. The errors are ErrLength and ErrLengthForm;
// everything else that can be wrong with a header depends on what came before
// it, or on who sent it, so the Scanner checks it.
func Parse(b []byte) (h Header, size int, err error) {
	if len(b) < 2 {
		return Header{}, 0, nil
	}
	h.Fin = b[0]&0x80 != 0
	h.RSV = b[0] & (RSV1 | RSV2 | RSV3)
	h.Opcode = Opcode(b[0] & 0x0f)
	h.Masked = b[1]&0x80 != 0
	h.Length = int64(b[1] & 0x7f)

	size = 2
	switch h.Length {
	case 126:
		if size = 4; len(b) < size {
			return Header{}, 0, nil
		}
		h.Length = int64(binary.BigEndian.Uint16(b[2:]))
		if h.Length < 126 {
			return Header{}, 0, ErrLengthForm
		}
	case 127:
		if size = 10; len(b) < size {
			return Header{}, 0, nil
		}
		length := binary.BigEndian.Uint64(b[2:])
		if length>>63 != 0 {
			return Header{}, 0, ErrLength
		}
		if length < 1<<16 {
			return Header{}, 0, ErrLengthForm
		}
		h.Length = int64(length)
	}
	if h.Masked {
		if len(b) < size+4 {
			return Header{}, 0, nil
		}
		h.Key = [4]byte(b[size:])
		size += 4
	}
	return h, size, nil
}

// Append appends the header in its shortest form.
func (h Header) Append(b []byte) []byte {
	first := h.RSV | byte(h.Opcode)
	if h.Fin {
		first |= 0x80
	}
	var mask byte
	if h.Masked {
		mask = 0x80
	}
	switch {
	case h.Length < 126:
		b = append(b, first, mask|byte(h.Length))
	case h.Length < 1<<16:
		b = append(b, first, mask|126)
		b = binary.BigEndian.AppendUint16(b, uint16(h.Length))
	default:
		b = append(b, first, mask|127)
		b = binary.BigEndian.AppendUint64(b, uint64(h.Length))
	}
	if h.Masked {
		b = append(b, h.Key[:]...)
	}
	return b
}

// Mask masks or unmasks b in place; RFC 6455, section 5.3. b begins at offset in
// the payload.
func Mask(key [4]byte, offset int64, b []byte) {
	k := binary.LittleEndian.Uint32(key[:])
	k = bits.RotateLeft32(k, -8*int(offset&3))
	wide := uint64(k)<<32 | uint64(k)
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(k)
		k = bits.RotateLeft32(k, -8)
	}
}
