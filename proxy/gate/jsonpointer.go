package gate

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// A pointer is a JSON pointer (RFC 6901) taken apart into its reference tokens, unescaped. It has at least one.
type pointer []string

// parsePointer reports whether s is a JSON pointer, other than the empty one, which points to the whole text.
func parsePointer(s string) (pointer, bool) {
	if !strings.HasPrefix(s, "/") {
		return nil, false
	}
	p := pointer(strings.Split(s[1:], "/"))
	for i, name := range p {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(name), "~") {
			return nil, false
		}
		p[i] = strings.NewReplacer("~0", "~", "~1", "/").Replace(name)
	}
	return p, true
}

var (
	errNotJSON = errors.New("it is not JSON")
	// Which of two members counts is left to the reader (RFC 8259 section 4): whoever reads the other sees another token.
	errTwice = errors.New("a member occurs twice")
)

// find returns the string that p points to in text, or "" where there is no such thing. The error says what is wrong with the
// text, in words that echo nothing of it. It takes memory and stack by the length of p and not by how deep the text is nested.
func (p pointer) find(text []byte) (string, error) {
	if !json.Valid(text) {
		return "", errNotJSON // also: anything behind it
	}
	return p.read(json.NewDecoder(bytes.NewReader(text)))
}

// read reads one value of a valid text, and finds what p points to in it.
func (p pointer) read(d *json.Decoder) (string, error) {
	if len(p) == 0 {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return "", errNotJSON
		}
		var s string
		if raw[0] == '"' {
			json.Unmarshal(raw, &s)
		}
		return s, nil
	}
	open, err := d.Token()
	if err != nil {
		return "", errNotJSON
	}
	delim, _ := open.(json.Delim)
	if delim == 0 {
		return "", nil // neither object nor array: nothing is in it
	}
	var found string
	seen := false
	for i := 0; d.More(); i++ {
		name := strconv.Itoa(i) // RFC 6901 section 4: without leading zeros
		if delim == '{' {
			t, err := d.Token()
			if err != nil {
				return "", errNotJSON
			}
			name = t.(string)
		}
		if name != p[0] {
			var skipped json.RawMessage
			if err := d.Decode(&skipped); err != nil {
				return "", errNotJSON
			}
			continue
		}
		if seen {
			return "", errTwice
		}
		seen = true
		if found, err = p[1:].read(d); err != nil {
			return "", err
		}
	}
	d.Token() // the end of it
	return found, nil
}
