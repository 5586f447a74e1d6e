package gate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unicode/utf8"

	"portcullis/proxy/auth"
	"portcullis/proxy/frame"
	"portcullis/proxy/refusal"
)

const (
	// jsonRoom is what a first message in JSON may have beside its token, in bytes: names, a type, an id, escapes.
	jsonRoom = 1 << 10
	// maxControls bounds the control frames before the token. A browser sends none, a library one ping or two.
	maxControls = 16
	// readAhead is how many bytes are read at once. What net/http has read ahead fits.
	readAhead = 4 << 10

	codeUnsupported = 1003 // binary where text is wanted; RFC 6455 section 7.4.1
)

// firstMessage is AUTH_FIRST_MESSAGE compiled: a client may show its token as its first message.
type firstMessage struct {
	token   pointer // where in the message it is; nil: it is the message
	most    int64   // payload bytes of the message
	timeout time.Duration
	pending semaphore
}

// newFirstMessage compiles the part of c that concerns the first message; nil where it is off. The error joins every mistake.
func newFirstMessage(c *Config) (*firstMessage, error) {
	if !c.FirstMessage {
		return nil, nil
	}
	f := &firstMessage{most: auth.MaxTokenBytes, timeout: c.FirstMessageTimeout}
	var mistakes []error
	if format := cmp.Or(c.FirstMessageFormat, "raw"); format != "raw" {
		var ok bool
		if f.token, ok = parsePointer(format); !ok {
			mistakes = append(mistakes, fmt.Errorf("AUTH_FIRST_MESSAGE_FORMAT: %q is no format; want raw or a JSON pointer such as /token", format))
		}
		f.most += jsonRoom
	}
	if c.FirstMessageTimeout <= 0 {
		mistakes = append(mistakes, fmt.Errorf("AUTH_FIRST_MESSAGE_TIMEOUT: %q leaves no time to send a token; want more than 0s", c.FirstMessageTimeout))
	}
	if c.FirstMessageMax > 0 {
		f.pending = newSemaphore(c.FirstMessageMax)
	} else {
		mistakes = append(mistakes, fmt.Errorf("AUTH_FIRST_MESSAGE_MAX: \"%d\" leaves no room to wait for a token; want 1 or more", c.FirstMessageMax))
	}
	return f, errors.Join(mistakes...)
}

// receiveToken answers 101 to a client that has shown no token, and waits for its first message, which holds it. That
// message is the gate's; what came behind it is the upstream's. The token's form is not checked here.
func (g *Gate) receiveToken(u *upgrade) (token string, no *refusal.Refusal) {
	if g.closing() {
		return "", &refusal.Refusal{Reason: refusal.Draining}
	}
	pending := u.route.first.pending
	if !pending.tryAcquire() {
		return "", &refusal.Refusal{Reason: refusal.FirstMessageFull}
	}
	if no := g.hijackAndSwitch(u, socket{pending: pending}); no != nil {
		return "", no
	}
	message, no := g.readFirst(u)
	if no != nil || u.route.first.token == nil {
		return string(message), no
	}
	token, err := u.route.first.token.find(message)
	switch {
	case err != nil:
		return "", &refusal.Refusal{Reason: refusal.FirstMessage, Detail: err.Error()}
	case token == "":
		return "", &refusal.Refusal{Reason: refusal.TokenMissing}
	}
	return token, nil
}

// readFirst reads the first message, within AUTH_FIRST_MESSAGE_TIMEOUT and until the gate closes.
func (g *Gate) readFirst(u *upgrade) ([]byte, *refusal.Refusal) {
	conn := u.socket.conn
	conn.SetDeadline(time.Now().Add(u.route.first.timeout))
	deadlineSet := make(chan struct{})
	stop := context.AfterFunc(g.Accepting, func() {
		conn.SetDeadline(time.Unix(1, 0))
		close(deadlineSet)
	})
	defer func() {
		if !stop() {
			<-deadlineSet // so that no deadline is set after the one below
		}
		conn.SetDeadline(time.Time{})
	}()

	t := newTokenReader(u.route.first.most)
	buf := make([]byte, max(readAhead, len(u.socket.buffered)))
	have := copy(buf, u.socket.buffered)
	for {
		used, no := t.consume(buf[:have])
		have = copy(buf, buf[used:have])
		if no != nil {
			return nil, no
		}
		if len(t.pongs) > 0 {
			if _, err := conn.Write(t.pongs); err != nil {
				return nil, g.readRefusal(err)
			}
			t.pongs = t.pongs[:0]
		}
		if t.done {
			u.socket.buffered = buf[:have]
			return t.message, nil
		}
		n, err := conn.Read(buf[have:]) // there is room: what consume leaves is less than a control frame
		if n == 0 && err != nil {
			return nil, g.readRefusal(err)
		}
		have += n
	}
}

// readRefusal is the refusal of a client whose socket failed before its token was there.
func (g *Gate) readRefusal(err error) *refusal.Refusal {
	switch {
	case g.Accepting.Err() != nil:
		return &refusal.Refusal{Reason: refusal.Draining}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &refusal.Refusal{Reason: refusal.FirstMessageTimeout}
	}
	return &refusal.Refusal{Reason: refusal.ClientGone, Err: err}
}

// tokenReader puts the first message of a client together. It does no I/O: like the scanner it is shown what has arrived.
type tokenReader struct {
	rules   frame.Rules
	scanner frame.Scanner
	message []byte
	pongs   []byte // to be written, and then emptied, by whoever shows it the bytes
	done    bool   // the message is whole

	key       [4]byte // of the data frame under way
	at        int64   // how many of its payload bytes are in message
	fragments int64
	controls  int
}

// newTokenReader returns a reader of a message of at most most bytes.
func newTokenReader(most int64) *tokenReader {
	return &tokenReader{rules: frame.Rules{From: frame.Client, MaxMessage: most}}
}

// consume takes the frames at the start of b, up to the end of the message, and reports how many bytes they have. Unused bytes
// must be passed again, followed by more. A refusal is final.
func (t *tokenReader) consume(b []byte) (used int, no *refusal.Refusal) {
	for !t.done {
		part, err := t.scanner.Next(b[used:], &t.rules)
		switch {
		case err == frame.ErrTooBig:
			return used, badFirstMessage(frame.CodeTooBig, err.Error())
		case err != nil:
			return used, badFirstMessage(frame.CodeProtocol, err.Error())
		case part.Size == 0:
			return used, nil
		}
		wire := b[used : used+part.Size]
		used += part.Size
		if part.Control {
			no = t.control(part, wire)
		} else {
			no = t.data(part, wire)
		}
		if no != nil {
			return used, no
		}
	}
	return used, nil
}

func (t *tokenReader) control(part frame.Part, wire []byte) *refusal.Refusal {
	if t.controls++; t.controls > maxControls {
		return badFirstMessage(frame.CodePolicy, "too many control frames before it")
	}
	payload := part.ControlPayload(nil, wire)
	switch part.Header.Opcode {
	case frame.Ping:
		t.pongs = frame.AppendControl(t.pongs, frame.Server, frame.Pong, payload)
	case frame.Close:
		code, _, err := frame.ParseClose(payload)
		if err != nil {
			return badFirstMessage(frame.CodeProtocol, err.Error())
		}
		return &refusal.Refusal{Reason: refusal.ClientGone, CloseCode: code}
	}
	return nil
}

func (t *tokenReader) data(part frame.Part, wire []byte) *refusal.Refusal {
	if part.Starts {
		if part.Header.Opcode == frame.Binary {
			return badFirstMessage(codeUnsupported, "it is not text")
		}
		// As many as the message may have bytes: any fragmentation but one that goes on with empty frames for ever.
		if t.fragments++; t.fragments > t.rules.MaxMessage {
			return badFirstMessage(frame.CodePolicy, "too many fragments")
		}
		t.key, t.at = part.Header.Key, 0
	}
	start := len(t.message)
	t.message = append(t.message, wire[part.Size-part.Payload:]...)
	frame.Mask(t.key, t.at, t.message[start:])
	t.at += int64(part.Payload)
	if t.done = part.Message; t.done && !utf8.Valid(t.message) {
		return badFirstMessage(frame.CodeInvalid, "it is not UTF-8")
	}
	return nil
}

// badFirstMessage refuses a first message that violates the protocol or cannot hold a token.
func badFirstMessage(code int, detail string) *refusal.Refusal {
	return &refusal.Refusal{Reason: refusal.FirstMessage, CloseCode: code, Detail: detail}
}
