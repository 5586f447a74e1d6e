package main

import (
	"fmt"
	"slices"
	"strings"
)

// A name that is none of ours is ignored, as the environment is everyone's: one that was meant for us would be ignored with
// it. So each is compared with ours, and where one was probably meant, that is said.

// foreign matches names that are never meant for this program: those of OpenSSL and Docker, and what Kubernetes and Docker
// links make up for services, which may be called auth. PATH is a letter from PATHS.
var foreign = []string{"SSL_*", "DOCKER_*", "*_SERVICE_*", "*_PORT", "*_PORT_*", "PATH"}

// guards match the settings without which something is open: clear text is served, everyone is let in, nothing is limited.
// A name that was meant for one is a mistake, unless that one is set too, so that the guard is up.
var guards = []string{"TLS_*", "AUTH_*", "LIMIT_*", "RATE_*", "ORIGINS"}

// ours match the names that are warned about even though nothing tells which setting was meant.
var ours = []string{"AUTH_*", "DRAIN_*", "LIMIT_*", "MESSAGE_*", "ORIGIN*", "PING_*", "PONG_*", "RATE_*", "RELAY_*", "TICKET*",
	"TLS_*", "TRUSTED_*", "UPSTREAM_*"}

// slip is a name that looks like a setting and is none.
type slip struct {
	name  string
	meant string // the setting that was probably meant; empty: nothing tells which
	error bool   // it leaves a guard down
}

// Error leaves the value out, which may be a secret.
func (s slip) Error() string {
	return fmt.Sprintf("%s: is no setting; want %s, which was probably meant, or %[1]s unset", s.name, s.meant)
}

// slips finds the slips among names, which are set and not empty, in order. known are the names of all settings.
func slips(names, known []string) (found []slip) {
	for _, name := range names {
		if slices.Contains(known, name) || matches(foreign, strings.ToUpper(name)) {
			continue
		}
		if meant := nearest(name, known); meant != "" {
			found = append(found, slip{name, meant, matches(guards, meant) && !slices.Contains(names, meant)})
		} else if matches(ours, name) {
			found = append(found, slip{name: name})
		}
	}
	return found
}

// nearest returns the one of known that a name other than these was probably meant for, "" for none.
func nearest(name string, known []string) string {
	folded := strings.ToUpper(name)
	best, least := "", maxEdits+1
	for _, k := range known {
		if d := edits(folded, k); d < least && d <= tolerance(k) {
			best, least = k, d
		}
	}
	if best != "" {
		return best
	}
	for _, k := range known {
		if sameWords(folded, k) && (best == "" || len(k) < len(best)) {
			best = k
		}
	}
	return best
}

const maxEdits = 2

// tolerance is how many edits a setting's name bears. Two make of a short one any other word: AUTH_URL is two letters from
// AUTH_SQL, PATHS two from MATCH.
func tolerance(known string) int { return min(len(known)/5, maxEdits) }

// sameWords reports whether two names, in capitals, say the same word for word as far as the shorter one goes, like TLS_CERT and
// TLS_CERT_FILE, or LISTEN_ADDRESS and LISTEN_ADDR. One word is anybody's (LOG, SESSION), unless a guard is named so.
func sameWords(name, known string) bool {
	a, b := strings.Split(name, "_"), strings.Split(known, "_")
	n := min(len(a), len(b))
	if a[0] != b[0] || n < 2 && !(len(a) == 1 && len(b) > 1 && matches(guards, known)) {
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

// edits counts what has to be done to a to make b of it: letters added, left out, replaced, or swapped with their neighbour
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
