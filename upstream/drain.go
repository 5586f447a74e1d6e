package upstream

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Drain is what becomes of the sessions of a target that a reload takes out: they get Close with Code, spread over Over. The zero value
// leaves them alone. In text it reads 1012:60s.
type Drain struct {
	Code int
	Over time.Duration
}

// String is the text that UnmarshalText reads as d; empty for the zero value.
func (d Drain) String() string {
	if d == (Drain{}) {
		return ""
	}
	return strconv.Itoa(d.Code) + ":" + d.Over.String()
}

const wantDrain = "want a close code (1001, 1012, 1013 or 3000 to 4999) and over how long, such as 1012:60s"

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Drain) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Drain{}
		return nil
	}
	codeText, overText, _ := strings.Cut(string(text), ":")
	code, codeErr := strconv.Atoi(codeText)
	over, overErr := time.ParseDuration(overText)
	usable := code == 1001 || code == 1012 || code == 1013 || code >= 3000 && code <= 4999
	if codeErr != nil || overErr != nil || over < 0 || !usable {
		return fmt.Errorf("%q is no way to end sessions; %s", text, wantDrain)
	}
	*d = Drain{code, over}
	return nil
}
