package auth

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// MaxTokenBytes is the longest token that is asked about. JSON Web Tokens with
// many claims stay below it, and so does the header limit of common servers.
const MaxTokenBytes = 8192

// Credential is everything that a verifier is shown. It holds no reference to
// the request, so that a session can keep it and ask again; in mode forward it
// holds a copy of the request's head. Printing and encoding it hide the token.
type Credential struct {
	// Token is 1 to [MaxTokenBytes] bytes of visible ASCII.
	Token string
	// Subprotocol is what the 101 must name when the upstream names none,
	// because a browser that offered protocols fails the handshake when none is
	// chosen. Empty: none. It is never the token.
	Subprotocol string

	head        *requestHead      // what mode forward shows; nil in the others
	certificate *shownCertificate // of mode certificate; nil in the others
}

// pseudonymInput is the text that stands for a client whom nobody names: its token,
// else what is most likely to authenticate it instead. A client can vary the
// latter at will.
func (c Credential) pseudonymInput() string {
	if c.Token != "" || c.head == nil {
		return c.Token
	}
	h := c.head.header
	return strings.Join(slices.Concat(h["Authorization"], h["Cookie"]), "\x00")
}

const hidden = "[credential]"

// Format implements [fmt.Formatter]: whatever the verb, the token stays hidden.
func (c Credential) Format(s fmt.State, _ rune) { io.WriteString(s, hidden) }

// MarshalText implements [encoding.TextMarshaler], by which encoding/json and
// log/slog print the hidden form as well.
func (c Credential) MarshalText() ([]byte, error) { return []byte(hidden), nil }

var (
	// ErrMissing says that no configured place shows a token.
	ErrMissing = errors.New("no credential")
	// ErrConflict says that two different tokens were shown. Whichever of them
	// were verified, the upstream might act on the other.
	ErrConflict = errors.New("two different credentials")
)

// MalformedError says that a credential has the wrong form, so that nobody was
// asked about it.
type MalformedError struct {
	// Request says that the request around the credential breaks the rules
	// too. The client gets 400, otherwise 401.
	Request bool
	// Reason has no byte of the credential in it and may be shown.
	Reason string
}

func (e *MalformedError) Error() string { return "malformed credential: " + e.Reason }

var (
	errEmpty   = &MalformedError{Reason: "the token is empty"}
	errLong    = &MalformedError{Reason: fmt.Sprintf("the token is longer than %d bytes", MaxTokenBytes)}
	errBytes   = &MalformedError{Reason: "the token has characters other than visible ASCII"}
	errEscapes = &MalformedError{Reason: "the token is not percent-encoded properly"}
)

// CheckToken checks the form of one bare token: 1 to [MaxTokenBytes] bytes of
// visible ASCII (0x21 to 0x7e). That is wider than the b64token of RFC 6750
// section 2.1, for endpoints invent their own, and still narrow enough that a
// token can break no header or log line. Its error is a [*MalformedError].
func CheckToken(token string) error {
	switch {
	case token == "":
		return errEmpty
	case len(token) > MaxTokenBytes:
		return errLong
	}
	for i := range len(token) {
		if token[i] < 0x21 || token[i] > 0x7e {
			return errBytes
		}
	}
	return nil
}

// withToken returns c with a token that was found added to it. An empty token
// changes nothing: forms and log-outs leave empty parameters and cookies behind.
func (c Credential) withToken(token string) (Credential, error) {
	if token == "" {
		return c, nil
	}
	if err := CheckToken(token); err != nil {
		return c, err
	}
	if c.Token != "" && c.Token != token {
		return c, ErrConflict
	}
	c.Token = token
	return c, nil
}
