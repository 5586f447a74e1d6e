package settings

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Misspelling is a variable that looks like a setting but is none. Nobody reads it, as the environment belongs to every program.
type Misspelling struct {
	Name  string
	Meant string // the setting that was probably meant; empty: nothing tells which
	Guard bool   // that setting is a guard, and not set either
}

// Error says what is wrong with a misspelling of a guard. It leaves the value out, which may be a secret.
func (m Misspelling) Error() string {
	return fmt.Sprintf("%s: is no setting; want %s, which was probably meant, or %[1]s unset", m.Name, m.Meant)
}

// foreign has patterns of names that are never meant for the program: those of OpenSSL and Docker, and those that Kubernetes and
// Docker links make up for services, which may be called like a setting. PATH is here for its likeness to PATHS.
var foreign = []string{"SSL_*", "DOCKER_*", "*_SERVICE_*", "*_PORT", "*_PORT_*", "PATH"}

// Misspelt finds the variables of environ that look like settings of l but are none, in order of their names. Values do not
// matter, but that an empty variable counts as not set. A name that begins like one of families looks like a setting, even if
// nothing tells which.
func (l List) Misspelt(environ map[string]string, families []string) (found []Misspelling) {
	isSet := func(name string) bool { return environ[name] != "" }
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if !isSet(name) || l.has(name) || isForeign(name) {
			continue
		}
		meant := l.nearest(name)
		if meant.Name != "" || slices.ContainsFunc(families, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			found = append(found, Misspelling{name, meant.Name, meant.Guard && !isSet(meant.Name)})
		}
	}
	return found
}

func (l List) has(name string) bool {
	return slices.ContainsFunc(l, func(s Setting) bool { return s.Name == name })
}

func isForeign(name string) bool {
	return slices.ContainsFunc(foreign, func(pattern string) bool {
		ok, _ := path.Match(pattern, strings.ToUpper(name))
		return ok
	})
}

// nearest returns the setting that a name was probably meant for. The zero Setting: none.
func (l List) nearest(name string) (best Setting) {
	folded := strings.ToUpper(name)
	least := maxEdits + 1
	for _, s := range l {
		if d := edits(folded, s.Name); d < least && d <= tolerance(s.Name) {
			best, least = s, d
		}
	}
	if best.Name != "" {
		return best
	}
	for _, s := range l {
		if s.sameWords(folded) && (best.Name == "" || len(s.Name) < len(best.Name)) {
			best = s
		}
	}
	return best
}

const maxEdits = 2

// tolerance is the number of edits after which a name is still taken for the setting. Two edits turn a short name into any other
// word: AUTH_URL is two letters from AUTH_SQL, PATHS two from MATCH.
func tolerance(setting string) int { return min(len(setting)/5, maxEdits) }

// sameWords reports whether name, in capitals, and that of the setting are the same word for word as far as the shorter one goes,
// like TLS_CERT and TLS_CERT_FILE, or LISTEN_ADDRESS and LISTEN_ADDR. A single word (LOG, SESSION) may be anybody's, so it has to
// be the first word of a guard.
func (s Setting) sameWords(name string) bool {
	a, b := strings.Split(name, "_"), strings.Split(s.Name, "_")
	n := min(len(a), len(b))
	if a[0] != b[0] || n < 2 && !(len(a) == 1 && len(b) > 1 && s.Guard) {
		return false
	}
	for i := 1; i < n; i++ {
		if !abbreviates(a[i], b[i]) && !abbreviates(b[i], a[i]) {
			return false
		}
	}
	return true
}

// abbreviates reports whether word begins with short, which is long enough to be an abbreviation.
func abbreviates(short, word string) bool {
	return short == word || len(short) >= 3 && strings.HasPrefix(word, short)
}

// edits counts the edits that turn a into b: letters added, left out, replaced or swapped with their neighbour
// (optimal string alignment). Beyond maxEdits the count may be any number above it.
func edits(a, b string) int {
	if max(len(a)-len(b), len(b)-len(a)) > maxEdits {
		return maxEdits + 1
	}
	// Three rows of the table whose entry i, j is the distance between a[:i] and b[:j].
	n := len(b) + 1
	rows := make([]int, 3*n)
	before, last, row := rows[:n], rows[n:2*n], rows[2*n:]
	for i := range len(a) + 1 {
		before, last, row = last, row, before
		for j := range row {
			switch {
			case i == 0 || j == 0:
				row[j] = i + j
				continue
			case a[i-1] == b[j-1]:
				row[j] = last[j-1]
			default:
				row[j] = 1 + min(last[j-1], last[j], row[j-1])
			}
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
