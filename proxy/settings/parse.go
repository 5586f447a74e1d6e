package settings

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// parse sets the field of s to what value says. The error quotes the value and says what is allowed.
func (s *Setting) parse(value string) error {
	if quoted(value) && !s.Secret {
		return fmt.Errorf("%q has quotes, which are part of it where no shell takes them away; want it without", value)
	}
	if s.size {
		return s.parseSize(value)
	}
	// A struct of this one field, since the library parses whole structs.
	one := reflect.New(reflect.StructOf([]reflect.StructField{{Name: "Value", Type: s.field.Type(), Tag: `env:"VALUE"`}}))
	err := env.ParseWithOptions(one.Interface(), env.Options{
		Environment: map[string]string{"VALUE": value},
		FuncMap:     map[reflect.Type]env.ParserFunc{reflect.TypeFor[[]string](): parseList},
	})
	if err != nil {
		return explain(err, s.field.Type(), value)
	}
	s.field.Set(one.Elem().Field(0))
	return nil
}

// units are what may stand behind the number of a size.
var units = []struct {
	name  string
	shift uint
}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"", 0}}

// parseSize sets an int64 to a number of bytes.
func (s *Setting) parseSize(value string) error {
	n, err := ParseSize(value)
	if err == nil {
		s.field.SetInt(n)
	}
	return err
}

// ParseSize reads a number of bytes, such as 1000000, 256KiB or 1MiB. The error quotes the value and says what is allowed.
func ParseSize(value string) (int64, error) {
	for _, unit := range units {
		digits, ok := strings.CutSuffix(value, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if errors.Is(err, strconv.ErrRange) || err == nil && n != n<<unit.shift>>unit.shift {
			return 0, fmt.Errorf("%q is too large; want a number that fits into 64 bits", value)
		}
		if err == nil {
			return n << unit.shift, nil
		}
	}
	return 0, fmt.Errorf("%q is no size; want a number of bytes such as 1000000, 256KiB or 1MiB", value)
}

// quoted reports whether a value is in quotes, as a shell would have taken away.
func quoted(s string) bool {
	return len(s) >= 2 && strings.ContainsRune(`"'`, rune(s[0])) && s[0] == s[len(s)-1]
}

// parseList splits a list at its commas. White space around an entry is no part of it.
func parseList(s string) (any, error) {
	list := strings.Split(s, ",")
	for i, entry := range list {
		if list[i] = strings.TrimSpace(entry); list[i] == "" {
			return nil, fmt.Errorf("%q has an empty entry; want entries separated by one comma each", s)
		}
	}
	return list, nil
}

// explain says in an operator's words why the library could not parse a value.
func explain(err error, typ reflect.Type, value string) error {
	var parse env.ParseError
	if !errors.As(err, &parse) {
		return err
	}
	var wrong string
	switch kind := typ.Kind(); {
	case typ == reflect.TypeFor[time.Duration]():
		wrong = "is no duration; want a number with its unit, such as 500ms, 30s or 5m"
	case typ == reflect.TypeFor[slog.Level]():
		wrong = "is no log level; want debug, info, warn or error"
	case kind == reflect.Bool:
		wrong = "is neither true nor false; want true or false"
	case kind == reflect.Int && errors.Is(parse.Err, strconv.ErrRange):
		wrong = "is too large; want a number that fits into 32 bits"
	case errors.Is(parse.Err, strconv.ErrRange):
		wrong = "is too large; want a number that fits into 64 bits"
	case kind == reflect.Int, kind == reflect.Int64:
		wrong = "is no whole number; want digits alone, such as 1000"
	default: // a list or a type with UnmarshalText, whose errors are complete
		return parse.Err
	}
	return fmt.Errorf("%q %s", value, wrong)
}
