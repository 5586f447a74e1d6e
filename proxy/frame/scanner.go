package frame

// Error is a way in which a peer broke the framing. Its text names nothing of
// the peer's own and may be sent as the reason of a Close frame.
type Error string

func (e Error) Error() string { return string(e) }

// The violations that Parse, ParseClose and Scanner find.
const (
	ErrLength       = Error("payload length has its top bit set")       // RFC 6455, section 5.2
	ErrLengthForm   = Error("payload length not in its shortest form")  // section 5.2
	ErrOpcode       = Error("reserved opcode")                          // section 5.2
	ErrRSV          = Error("reserved bit set without an extension")    // section 5.2
	ErrMask         = Error("frame masked wrongly")                     // section 5.1
	ErrControl      = Error("control frame fragmented or too long")     // section 5.5
	ErrContinuation = Error("continuation frame without a message")     // section 5.4
	ErrInterleaved  = Error("new message inside a fragmented one")      // section 5.4
	ErrClose        = Error("malformed close frame")                    // sections 5.5.1 and 7.4
	ErrTooBig       = Error("message exceeds the largest one accepted") // not a violation but a limit: Close code 1009
)

// Rules are what one direction of a connection must obey.
type Rules struct {
	// From is the end that sends: a client's frames are masked, a server's are not.
	From Role
	// MessageRSV are the reserved bits that may be set on the first frame of
	// a message. permessage-deflate claims RSV1 there (RFC 7692, section 6).
	MessageRSV uint8
	// FrameRSV are the reserved bits that may be set on any frame: those of
	// extensions that are not known here. Both zero: no extension was negotiated.
	FrameRSV uint8
	// MaxMessage is the largest message over all its fragments, in payload
	// bytes as on the wire. 0: no limit.
	MaxMessage int64
}

// Scanner follows the frames of one direction. It holds no bytes and does no
// I/O: the caller passes it what has arrived. Bytes that Next could not use yet
// must be passed again, followed by more. The zero value is for the start of a
// connection.
type Scanner struct {
	left int64 // payload bytes of the current data frame that are still to come
	size int64 // payload bytes of the current message, announced by its headers so far
	open bool  // a message is under way: its final frame has not begun
	last bool  // the current data frame is the final one of its message
}

// Part is what Next found at the start of its input.
type Part struct {
	// Size is how many bytes of the input the part has. 0: the input ends
	// inside a header or a control frame; pass it again, followed by more.
	Size int
	// Payload is how many of them, at the end, are payload.
	Payload int
	// Header is that of a control frame, or of the data frame that begins
	// with this part. Starts says that a data frame begins: if it and Control
	// are false, the part is payload only.
	Header Header
	Starts bool
	// Control: the part is one whole control frame.
	Control bool
	// Message: the part ends a message.
	Message bool
}

// Next looks at the first part of b, and steps over it: a whole control
// frame, or as much of one data frame as b holds. An error is of type Error
// and final: after it the boundaries of frames are unknown.
func (s *Scanner) Next(b []byte, rules *Rules) (Part, error) {
	if s.left > 0 {
		return s.payload(Part{}, 0, len(b)), nil
	}
	h, size, err := Parse(b)
	if err != nil || size == 0 {
		return Part{}, err
	}
	if h.Masked != (rules.From == Client) {
		return Part{}, ErrMask
	}
	if h.Opcode.reserved() {
		return Part{}, ErrOpcode
	}
	if h.Opcode.Control() {
		return s.control(h, size, b, rules)
	}

	allowed := rules.FrameRSV
	if h.Opcode == Continuation {
		if !s.open {
			return Part{}, ErrContinuation
		}
	} else {
		if s.open {
			return Part{}, ErrInterleaved
		}
		allowed |= rules.MessageRSV
		s.size = 0
	}
	if h.RSV&^allowed != 0 {
		return Part{}, ErrRSV
	}
	// Compared this way round the sum cannot overflow (CVE-2020-27813).
	if rules.MaxMessage > 0 && h.Length > rules.MaxMessage-s.size {
		return Part{}, ErrTooBig
	}
	if rules.MaxMessage > 0 {
		s.size += h.Length
	}
	s.open = !h.Fin
	s.last = h.Fin
	s.left = h.Length
	return s.payload(Part{Header: h, Starts: true}, size, len(b)), nil
}

// payload extends a part that has header bytes so far by what the input of
// length n holds of the frame's payload.
func (s *Scanner) payload(p Part, header, n int) Part {
	p.Payload = int(min(int64(n-header), s.left))
	p.Size = header + p.Payload
	s.left -= int64(p.Payload)
	p.Message = s.left == 0 && s.last
	return p
}

func (s *Scanner) control(h Header, size int, b []byte, rules *Rules) (Part, error) {
	if !h.Fin || h.Length > MaxControlPayload {
		return Part{}, ErrControl
	}
	if h.RSV&^rules.FrameRSV != 0 {
		return Part{}, ErrRSV
	}
	if len(b) < size+int(h.Length) {
		return Part{}, nil
	}
	return Part{Size: size + int(h.Length), Payload: int(h.Length), Header: h, Control: true}, nil
}

// Inside reports whether the scanner is inside a data frame. If it is not, a
// frame may be inserted: between the fragments of a message a control frame only.
func (s *Scanner) Inside() bool { return s.left > 0 }

// InMessage reports whether a message is under way: begun, and not ended.
func (s *Scanner) InMessage() bool { return s.left > 0 || s.open }

// ControlPayload appends the payload of the control frame that is part p of
// the bytes wire, unmasked.
func (p Part) ControlPayload(b, wire []byte) []byte {
	start := len(b)
	b = append(b, wire[p.Size-p.Payload:p.Size]...)
	if p.Header.Masked {
		Mask(p.Header.Key, 0, b[start:])
	}
	return b
}
