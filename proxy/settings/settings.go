// Package settings reads a struct from environment variables. The tags of its fields say all that is to be known of each:
//
//	env:"NAME"         the variable of the field; "-": the field has none
//	envDefault:"30s"   the value when the variable is not set or empty
//	empty:"no limit"   an empty variable does not mean the default, but this
//	secret:"true"      a string that is never shown, and that may be in the file which NAME_FILE names
//	size:"true"        an int64 that is a number of bytes, and may be written as 256KiB, 1MiB or 1GiB
//	guard:"true"       without the setting something is open, so a misspelt name of it is a mistake
//	needs:"A|B"        the setting has an effect only if A or B is neither zero nor empty
//	fixed:"true"       the setting cannot change while the program runs
//	below:"A"          the setting, an integer or a duration, has no effect above A, unless A is 0
//
// A struct without an env tag is read field by field, and its guard and fixed tags hold for every setting in it. A tag that makes no
// sense panics.
//
// The values are parsed by github.com/caarlos0/env, so a type of one's own needs UnmarshalText, and no more than that.
package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
)

// Setting is one variable, as it was read.
type Setting struct {
	Name    string
	Default string
	Value   string // in force, as it is written; *** for a secret
	Changed bool   // whether the value asks for something, and for something else than the default
	Secret  bool
	Guard   bool
	Fixed   bool

	field        reflect.Value // not valid: the variable names the file of a secret
	emptyIsValue bool
	size         bool
	needs, below string
}

// List has the settings of a struct in the order of its fields. The variable that names the file of a secret follows the secret.
type List []Setting

// Read reads the struct that target points to from environ. The error joins every mistake, one a line. A field whose variable has
// a mistake gets its default, so that whoever checks the struct further has no second complaint about it.
func Read(target any, environ map[string]string) (List, error) {
	list := collect(nil, reflect.ValueOf(target).Elem(), Setting{})
	var mistakes []error
	for i := range list {
		mistakes = append(mistakes, list[i].read(environ))
	}
	for _, s := range list {
		mistakes = append(mistakes, list.withoutEffect(s))
	}
	return list, errors.Join(mistakes...)
}

// collect appends the settings of a struct to list, each of which is what around says.
func collect(list List, of reflect.Value, around Setting) List {
	for i := range of.NumField() {
		field, tag := of.Field(i), of.Type().Field(i).Tag
		name, hasName := tag.Lookup("env")
		guard, fixed := around.Guard || tag.Get("guard") == "true", around.Fixed || tag.Get("fixed") == "true"
		if !hasName && field.Kind() == reflect.Struct {
			list = collect(list, field, Setting{Guard: guard, Fixed: fixed})
		}
		if !hasName || name == "-" {
			continue
		}
		s := Setting{Name: name, Default: tag.Get("envDefault"), Secret: tag.Get("secret") == "true", Guard: guard, Fixed: fixed,
			field: field, needs: tag.Get("needs"), below: tag.Get("below")}
		_, s.emptyIsValue = tag.Lookup("empty")
		s.size = tag.Get("size") == "true"
		list = append(list, s)
		if s.Secret {
			if field.Kind() != reflect.String {
				panic("settings: " + name + " is a secret, but not a string") // its parser's errors would show it
			}
			list = append(list, Setting{Name: fileVar(name), Guard: guard, Fixed: fixed})
		}
	}
	return list
}

// fileVar is the name of the variable that names the file of a secret.
func fileVar(secret string) string { return secret + "_FILE" }

// read sets the field of s, if it has one, from environ.
func (s *Setting) read(environ map[string]string) error {
	value, isSet := environ[s.Name]
	if !s.field.IsValid() {
		s.Value, s.Changed = value, value != ""
		return nil
	}
	var mistakes []error
	if s.Secret {
		var err error
		value, err = readSecret(environ, s.Name)
		mistakes = append(mistakes, err)
	}
	if value == "" && !(isSet && s.emptyIsValue) {
		value = s.Default
	}
	if err := s.parse(value); err != nil {
		mistakes = append(mistakes, fmt.Errorf("%s: %w", s.Name, err))
		value = s.Default
		_ = s.parse(value) // a default that is a mistake is reported wherever it holds
	}
	switch value {
	case s.Default, "", "0", "0s":
	default:
		s.Changed = true
	}
	s.Value = value
	if s.Secret && value != "" {
		s.Value = "***"
	}
	return errors.Join(mistakes...)
}

// readSecret returns the value of a secret, from the variable itself or from its file.
func readSecret(environ map[string]string, name string) (string, error) {
	file := environ[fileVar(name)]
	switch {
	case file == "":
		return environ[name], nil
	case environ[name] != "":
		return environ[name], fmt.Errorf("%s: %q is set beside %s; want one of the two", fileVar(name), file, name)
	}
	text, err := os.ReadFile(file)
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err // without the path, which the line has already
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if err == nil && secret == "" {
		err = errors.New("the file is empty")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %q cannot be used: %w; want the path of a file that holds the secret", fileVar(name), file, err)
	}
	return secret, nil
}

// Get returns the setting of a name. It panics if there is none.
func (l List) Get(name string) Setting {
	for _, s := range l {
		if s.Name == name {
			return s
		}
	}
	panic("settings: there is no " + name)
}

// Keep gives the fixed settings of l, in the struct that was read, the values that they have in before, a list of the same struct. It
// returns the names of those that would have changed.
func (l List) Keep(before List) (kept []string) {
	for i, s := range l {
		if s.Fixed && s.differs(before[i]) {
			s.field.Set(before[i].field)
			kept = append(kept, s.Name)
		}
	}
	return kept
}

// Changed are the names of the settings that have another value than in before, a list of the same struct.
func (l List) Changed(before List) (names []string) {
	for i, s := range l {
		if s.differs(before[i]) {
			names = append(names, s.Name)
		}
	}
	return names
}

func (s Setting) differs(before Setting) bool {
	return s.field.IsValid() && !reflect.DeepEqual(s.field.Interface(), before.field.Interface())
}

// TakesEmpty reports whether an empty variable of a name says something, and so does not count as not set.
func (l List) TakesEmpty(name string) bool {
	return slices.ContainsFunc(l, func(s Setting) bool { return s.Name == name && s.emptyIsValue })
}

// withoutEffect returns the mistake of a setting that another one takes the effect from: whoever sets it relies on something
// that does not happen.
func (l List) withoutEffect(s Setting) error {
	if s.needs != "" {
		names := strings.Split(s.needs, "|")
		wants, met := make([]string, len(names)), false
		for i, name := range names {
			needed := l.Get(name)
			met = met || !needed.field.IsZero()
			switch needed.field.Kind() {
			case reflect.Bool:
				wants[i] = name + "=true"
			case reflect.Int, reflect.Int64:
				wants[i] = name + " above 0"
			default:
				wants[i] = name + " set"
			}
		}
		if !met && s.Changed {
			return fmt.Errorf("%s: %q has no effect without %s; want it unset, or %s",
				s.Name, s.Value, strings.Join(names, " or "), strings.Join(wants, " or "))
		}
	}
	if s.below != "" {
		limit := l.Get(s.below)
		if most := limit.field.Int(); most > 0 && s.field.Int() > most && s.Changed {
			return fmt.Errorf("%s: %q is never reached with %s=%s; want it below that, or unset", s.Name, s.Value, limit.Name, limit.Value)
		}
	}
	return nil
}
