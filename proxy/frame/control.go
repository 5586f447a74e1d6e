package frame

import (
	"crypto/rand"
	"encoding/binary"
	"unicode/utf8"
)

// Role is the end of the connection that sends: it decides who masks.
type Role uint8

// A client masks every frame and a server masks none; RFC 6455, section 5.1.
const (
	Server Role = iota
	Client
)

// AppendMessage appends a message in one frame of its own, as a server sends it: unmasked (RFC 6455, section 5.1).
func AppendMessage(b []byte, op Opcode, payload []byte) []byte {
	return append(Header{Fin: true, Opcode: op, Length: int64(len(payload))}.Append(b), payload...)
}

// AppendMasked appends a message in one frame of its own, as a client sends it: masked, with a fresh key (RFC 6455, sections 5.1
// and 10.3).
func AppendMasked(b []byte, op Opcode, payload []byte) []byte {
	h := Header{Fin: true, Opcode: op, Masked: true, Length: int64(len(payload))}
	rand.Read(h.Key[:])
	b = h.Append(b)
	start := len(b)
	b = append(b, payload...)
	Mask(h.Key, 0, b[start:])
	return b
}

// AppendControl appends a whole control frame as role sends it, with a fresh
// masking key from crypto/rand where one is due: a predictable key would let a
// peer choose the bytes on the wire (RFC 6455, section 10.3). A payload beyond
// MaxControlPayload is a mistake of the caller, and panics.
func AppendControl(b []byte, role Role, op Opcode, payload []byte) []byte {
	if len(payload) > MaxControlPayload {
		panic("frame: control payload too long")
	}
	h := Header{Fin: true, Opcode: op, Length: int64(len(payload))}
	if role == Client {
		h.Masked = true
		rand.Read(h.Key[:])
	}
	b = h.Append(b)
	start := len(b)
	b = append(b, payload...)
	if h.Masked {
		Mask(h.Key, 0, b[start:])
	}
	return b
}

// Close codes with a meaning of their own here; RFC 6455, section 7.4.1, and
// the IANA WebSocket Close Code Number Registry.
const (
	CodeNormal       = 1000
	CodeGoingAway    = 1001
	CodeProtocol     = 1002
	CodeNoStatus     = 1005 // stands for a Close frame without a code; never on the wire
	CodeAbnormal     = 1006 // stands for the lack of a Close frame; never on the wire
	CodeInvalid      = 1007
	CodePolicy       = 1008
	CodeTooBig       = 1009
	CodeInternal     = 1011
	CodeRestart      = 1012
	CodeTryAgain     = 1013
	CodeTLS          = 1015 // stands for a failed TLS handshake; never on the wire
	CodeUnauthorized = 3000
	CodeForbidden    = 3003
	CodeTimeout      = 3008
)

// MaxReason is the largest reason of a Close frame, in bytes: what the code
// leaves of a control frame's payload.
const MaxReason = MaxControlPayload - 2

// ClosePayload returns the payload of a Close frame. CodeNoStatus gives an
// empty one; a reason is cut to MaxReason bytes at a character's end.
func ClosePayload(code int, reason string) []byte {
	if code == CodeNoStatus {
		return nil
	}
	if len(reason) > MaxReason {
		end := MaxReason
		for end > 0 && !utf8.RuneStart(reason[end]) {
			end--
		}
		reason = reason[:end]
	}
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reason)), uint16(code))
	return append(b, reason...)
}

// ParseClose reads the payload of a Close frame; an empty one has the code
// CodeNoStatus. It returns ErrClose if the code is incomplete or may not be sent,
// or if the reason is not UTF-8. Unassigned codes pass: the registry grows.
func ParseClose(payload []byte) (code int, reason string, err error) {
	switch len(payload) {
	case 0:
		return CodeNoStatus, "", nil
	case 1:
		return 0, "", ErrClose
	}
	code = int(binary.BigEndian.Uint16(payload))
	switch {
	case code < 1000, code >= 5000,
		code == 1004, code == CodeNoStatus, code == CodeAbnormal, code == CodeTLS:
		return 0, "", ErrClose
	case !utf8.Valid(payload[2:]):
		return 0, "", ErrClose
	}
	return code, string(payload[2:]), nil
}
