package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/joho/godotenv"
)

// maxFile bounds ENV_FILE, in bytes.
const maxFile = 1 << 20

// Environ returns environ with what its ENV_FILE says beneath it: a variable of environ wins, unless it is empty and so counts as not
// set. The file is read anew by each call. The error joins every mistake in the file, one a line, and shows no value of it. With an
// error the map still has every variable, for whoever looks for further mistakes; it is nil where it would lack some.
func Environ(environ map[string]string) (map[string]string, error) {
	path := environ["ENV_FILE"]
	if path == "" {
		return environ, nil
	}
	all, err := readFile(path)
	if all == nil {
		return nil, err
	}
	list := List(nil)
	for name, value := range environ {
		if _, inFile := all[name]; !inFile || value != "" || list.TakesEmpty(name) {
			all[name] = value
		}
	}
	return all, err
}

// readFile reads the variables of a file, as Environ says.
func readFile(path string) (map[string]string, error) {
	text, err := fileText(path)
	if err != nil {
		return nil, fmt.Errorf("ENV_FILE: %q %w; want the path of a file with a NAME=value in each line", path, err)
	}
	s := scan(text)
	// The library is given only what it reads as it is written.
	all, err := godotenv.Unmarshal(strings.Join(s.sound, "\n"))
	switch {
	case err != nil: // which quotes values
		s.note(0, "", "cannot be parsed; want a NAME=value in each line")
	case s.lines == nil && s.mistakes == nil:
		// A file that was cut off while it was written would otherwise be all defaults: the bundled backend, and a token that everybody knows.
		s.note(0, "", "sets nothing; want a NAME=value in it, or ENV_FILE unset")
	}
	if err != nil || s.broken {
		all = nil
	} else {
		maps.Copy(all, s.unsound)
	}
	for i, m := range s.mistakes {
		s.mistakes[i] = fmt.Errorf("ENV_FILE: %q%w", path, m)
	}
	return all, errors.Join(s.mistakes...)
}

// fileText returns what is in a file. The error leaves out its path.
func fileText(path string) (string, error) {
	info, err := os.Stat(path)
	var text []byte
	switch {
	case err != nil:
	case info.IsDir():
		return "", errors.New("is a directory")
	case !info.Mode().IsRegular(): // a pipe may have no end, and there is nothing in it when it is read again
		return "", errors.New("is no regular file")
	default:
		text, err = readAtMost(path, maxFile+1)
	}
	if wrapped, ok := errors.AsType[*fs.PathError](err); ok {
		err = wrapped.Err
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("cannot be read: %w", err)
	case len(text) > maxFile:
		return "", fmt.Errorf("has more than %d bytes", maxFile)
	}
	return strings.TrimPrefix(string(text), "\uFEFF"), nil // editors of Windows begin a file with this mark
}

func readAtMost(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// A scanned file is what a reading of our own finds in it, because the library's errors have no line and quote values. The library takes
// more than is safe, too: it expands variables, joins lines for want of a quote, and loses quotes.
type scanned struct {
	lines    map[string]int    // where each variable is set; nil: none is
	sound    []string          // the lines that the library may read
	unsound  map[string]string // the variables of the others, nearly as they are meant
	broken   bool              // there may be more variables than were found
	mistakes []error           // each begins behind the path
}

func (s *scanned) note(line int, name, wrong string) {
	where := ""
	if line > 0 {
		where = fmt.Sprintf(" line %d", line)
	}
	if name != "" {
		where += ", " + name + ":"
	}
	s.mistakes = append(s.mistakes, errors.New(where+" "+wrong))
}

const wantQuotes = `; want the value in single quotes, where $ is itself, or \$ in double quotes`

func scan(text string) *scanned {
	s := &scanned{unsound: make(map[string]string)}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		switch trimmed := strings.Trim(line, blanks); {
		case !utf8.ValidString(line):
			s.note(number, "", "is not UTF-8; want a text file")
			s.broken = true
		case strings.ContainsFunc(line, isControl):
			s.note(number, "", "has a control character; want a text file")
			s.broken = true
		case trimmed != "" && trimmed[0] != '#':
			if open := s.assignment(number, trimmed); open {
				s.broken = true
				return s // what follows may be the rest of a secret
			}
		}
	}
	return s
}

const blanks = " \t"

func isControl(r rune) bool { return unicode.IsControl(r) && r != '\t' }

// assignment reads one line. It reports whether a quote is left open.
func (s *scanned) assignment(number int, line string) (open bool) {
	if rest, ok := strings.CutPrefix(line, "export"); ok && rest != strings.TrimLeft(rest, blanks) {
		line = strings.TrimLeft(rest, blanks)
	}
	name, value, ok := strings.Cut(line, "=")
	name, value = strings.TrimRight(name, blanks), strings.TrimLeft(value, blanks)
	if !ok || !isName(name) {
		s.note(number, "", "is no NAME=value; want one, or a # before it")
		s.broken = true
		return false
	}
	read := readUnquoted
	if value != "" && (value[0] == '\'' || value[0] == '"') {
		read = readQuoted
	}
	value, nearly, wrong := read(value)
	if first, twice := s.lines[name]; twice {
		s.note(number, name, fmt.Sprintf("is set in line %d already; want it once", first))
		return wrong == openQuote
	}
	if s.lines == nil {
		s.lines = make(map[string]int)
	}
	s.lines[name] = number
	switch {
	case name == "ENV_FILE":
		s.note(number, name, "names a further file, which is not read; want it in the environment alone")
	case wrong != "":
		s.note(number, name, wrong)
		s.unsound[name] = nearly
	default:
		s.sound = append(s.sound, name+"="+value)
	}
	return wrong == openQuote
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// readUnquoted returns a value without the comment behind it; and, where it is wrong, nearly what is meant and why.
func readUnquoted(text string) (value, nearly, wrong string) {
	value = text
	for i := 1; i < len(text); i++ {
		if text[i] == '#' && strings.IndexByte(blanks, text[i-1]) >= 0 {
			value = text[:i]
			break
		}
	}
	value = strings.TrimRight(value, blanks)
	switch {
	case strings.HasPrefix(value, "#"):
		return "", "", "begins with #, which may be a comment; want the value in quotes, or no comment"
	case strings.Contains(value, "$"):
		return "", value, "has a $ without quotes, as if it stood for another variable" + wantQuotes
	}
	return value, "", ""
}

const openQuote = `has no closing quote in its line; want one, and \n in double quotes for a line break`

// readQuoted returns a value with its quotes, and without the comment behind it; where it is wrong as readUnquoted.
func readQuoted(text string) (value, nearly, wrong string) {
	quote, end := text[0], 1
	for ; end < len(text) && (text[end] != quote || text[end-1] == '\\'); end++ {
	}
	if end == len(text) {
		return "", "", openQuote
	}
	inner := text[1:end]
	escaped := `\` + string(quote)
	switch behind := strings.Trim(text[end+1:], blanks); {
	case behind != "" && behind[0] != '#':
		return "", inner, "has text behind its closing quote; want quotes around the whole value"
	case strings.HasPrefix(inner, escaped), strings.HasSuffix(inner, escaped): // the library trims those with the quotes around them
		return "", inner, "has an escaped quote at its begin or end; want the other quotes around it"
	case quote == '"' && expands(inner):
		return "", inner, "has a $ in double quotes, which stands for another variable" + wantQuotes
	}
	return text[:end+1], "", ""
}

// expands reports whether a value in double quotes has a $ that is not escaped. Behind two backslashes, of which one escapes the other,
// the library gets it wrong.
func expands(inner string) bool {
	backslashes := 0
	for i := range len(inner) {
		switch {
		case inner[i] == '\\':
			backslashes++
			continue
		case inner[i] == '$' && backslashes != 1:
			return true
		}
		backslashes = 0
	}
	return false
}
