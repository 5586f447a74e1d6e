package gate

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParsePointer(t *testing.T) {
	for _, tt := range []struct {
		s    string
		want pointer
		ok   bool
	}{
		{"/token", pointer{"token"}, true},
		{"/a/b", pointer{"a", "b"}, true},
		{"/", pointer{""}, true},
		{"/a~1b/m~0n", pointer{"a/b", "m~n"}, true},
		{"/~01", pointer{"~1"}, true}, // RFC 6901 section 4: not a slash
		{"/0", pointer{"0"}, true},
		{"", nil, false},
		{"token", nil, false},
		{"#/token", nil, false},
		{"/~", nil, false},
		{"/~2", nil, false},
		{"/~~01", nil, false},
	} {
		t.Run(tt.s, func(t *testing.T) {
			if got, ok := parsePointer(tt.s); ok != tt.ok || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %t; want %q, %t", got, ok, tt.want, tt.ok)
			}
		})
	}
}

var pointed = []struct {
	pointer, text string
	want          string
	err           error
}{
	{"/token", `{"token":"abc"}`, "abc", nil},
	{"/token", ` {"a":{"token":"no"},"token":"abc","z":[1,2]} `, "abc", nil},
	{"/token", `{"t\u006fken":"\u0061bc"}`, "abc", nil},
	{"/a/b", `{"b":"no","a":{"c":1,"b":"abc"}}`, "abc", nil},
	{"/a/1/b", `{"a":["no",{"b":"abc"},{"b":"no"}]}`, "abc", nil},
	{"/a/01", `{"a":["no","no"]}`, "", nil},
	{"/a/-", `{"a":["no"]}`, "", nil},
	{"/1", `["no","abc"]`, "abc", nil},
	{"/", `{"":"abc"}`, "abc", nil},
	{"/a~1b", `{"a/b":"abc"}`, "abc", nil},
	{"/token", `{"Token":"no"}`, "", nil},
	{"/token", `{"token":{"token":"no"}}`, "", nil},
	{"/token", `{"token":null}`, "", nil},
	{"/token/x", `{"token":"no"}`, "", nil},
	{"/token", `"no"`, "", nil},
	{"/token", `{}`, "", nil},
	{"/token", ``, "", errNotJSON},
	{"/token", `{"token":"no"`, "", errNotJSON},
	{"/token", `{"token":"no"} x`, "", errNotJSON},
	{"/token", `{'token':'no'}`, "", errNotJSON},
	{"/token", `{"token":"no","token":"no"}`, "", errTwice},
	{"/token", `{"token":1,"token":"no"}`, "", errTwice},
	{"/a/b", `{"a":{"b":"no"},"a":{}}`, "", errTwice},
	{"/token", `{"x":1,"x":2,"token":"abc"}`, "abc", nil}, // nothing depends on it
}

func TestPointer(t *testing.T) {
	for _, tt := range pointed {
		t.Run(tt.pointer+" "+tt.text, func(t *testing.T) {
			p, _ := parsePointer(tt.pointer)
			if got, err := p.find([]byte(tt.text)); got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

// FuzzPointer compares with what encoding/json makes of the whole text.
func FuzzPointer(f *testing.F) {
	for _, tt := range pointed {
		f.Add(tt.pointer, tt.text)
	}
	f.Fuzz(func(t *testing.T, s, text string) {
		p, ok := parsePointer(s)
		if !ok || len(text) > 9<<10 {
			return
		}
		got, err := p.find([]byte(text))
		var value any
		if invalid := json.Unmarshal([]byte(text), &value) != nil; invalid || err != nil {
			if invalid != (err == errNotJSON) || got != "" {
				t.Errorf("got %q, %v; not JSON: %t", got, err, invalid)
			}
			return
		}
		for _, name := range p {
			switch v := value.(type) {
			case map[string]any:
				value = v[name]
			case []any:
				value = nil
				if i, err := strconv.Atoi(name); err == nil && 0 <= i && i < len(v) && strconv.Itoa(i) == name {
					value = v[i]
				}
			default:
				value = nil
			}
		}
		if want, _ := value.(string); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if strings.Count(s, "/") != len(p) {
			t.Errorf("%q has %d names", s, len(p))
		}
	})
}
