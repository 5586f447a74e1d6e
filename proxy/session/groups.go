package session

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"portcullis/proxy/auth"
)

const (
	maxGroups     = 16
	maxGroupBytes = 128
)

// groupPlace is where groups come from. A group's name begins with it, so that no client can call itself into a group that a
// verifier gives.
type groupPlace struct {
	kind string // claim, auth or query
	name string
}

func (p groupPlace) String() string { return p.kind + ":" + p.name }

// Groups are the places from which sessions have their groups.
type Groups []groupPlace

// SetGroups has sessions that are opened or verified again from now on have their groups from those places.
func (m *Manager) SetGroups(places Groups) { m.groups.Store(&places) }

// ParseGroups reads SESSION_GROUPS. The error joins every mistake, one a line.
func ParseGroups(list []string) (places Groups, err error) {
	var mistakes []error
	for _, entry := range list {
		kind, name, _ := strings.Cut(entry, ":")
		if !slices.Contains([]string{"claim", "auth", "query"}, kind) || name == "" {
			mistakes = append(mistakes, fmt.Errorf("SESSION_GROUPS: %q is no place of groups; want claim:NAME, auth:HEADER or query:NAME", entry))
			continue
		}
		if kind == "auth" {
			name = http.CanonicalHeaderKey(name)
		}
		p := groupPlace{kind, name}
		if slices.Contains(places, p) {
			mistakes = append(mistakes, fmt.Errorf("SESSION_GROUPS: %q is there twice; want it once", entry))
		}
		places = append(places, p)
	}
	return places, errors.Join(mistakes...)
}

// GroupPlaces are the claims and the headers of a verifier's answer that SESSION_GROUPS names.
func (c *Config) GroupPlaces() (claims, headers []string) {
	places, _ := ParseGroups(c.Groups)
	for _, p := range places {
		switch p.kind {
		case "claim":
			claims = append(claims, p.name)
		case "auth":
			headers = append(headers, p.name)
		}
	}
	return claims, headers
}

// GroupsError says that a session's groups cannot be used.
type GroupsError struct {
	Place string
	Query bool // the client chose them, not the verifier
	Wrong string
}

func (e *GroupsError) Error() string { return e.Place + ": " + e.Wrong }

// Groups are those of a session with that decision and request. The error is a [*GroupsError] or nil.
func (m *Manager) Groups(d auth.Decision, query string) (groups []string, err error) {
	for _, p := range *m.groups.Load() {
		values := d.Groups[p.String()]
		if p.kind == "query" {
			if values, err = queryValues(query, p.name); err != nil {
				return nil, &GroupsError{p.String(), true, err.Error()}
			}
		}
		for _, value := range values {
			wrong := checkGroup(value)
			if name := p.String() + ":" + value; wrong == "" && !slices.Contains(groups, name) {
				groups = append(groups, name)
			}
			if len(groups) > maxGroups {
				wrong = fmt.Sprintf("more than %d groups", maxGroups)
			}
			if wrong != "" {
				return nil, &GroupsError{p.String(), p.kind == "query", wrong}
			}
		}
	}
	return slices.Clip(groups), nil
}

// checkGroup says what is wrong with a group's value.
func checkGroup(value string) string {
	switch {
	case value == "":
		return "an empty group"
	case len(value) > maxGroupBytes:
		return fmt.Sprintf("a group of more than %d bytes", maxGroupBytes)
	case !utf8.ValidString(value) || strings.ContainsFunc(value, func(c rune) bool {
		return unicode.IsControl(c) || unicode.In(c, unicode.Bidi_Control, unicode.Zl, unicode.Zp)
	}):
		return "a group with characters that no log line may have"
	}
	return ""
}

// queryValues are the values of a parameter, in their order.
func queryValues(query, name string) (values []string, err error) {
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if decoded, err := url.QueryUnescape(key); err != nil || decoded != name {
			continue
		}
		decoded, err := url.QueryUnescape(value)
		if err != nil {
			return nil, errors.New("a value that cannot be decoded")
		}
		values = append(values, decoded)
	}
	return values, nil
}

// regroup replaces the groups that a verifier gave a session; those of its query stay. The error is a [*GroupsError]: the session
// keeps all it had.
func (m *Manager) regroup(s *Session, d auth.Decision) error {
	if len(*m.groups.Load()) == 0 || m.registry == nil {
		return nil
	}
	groups, err := m.Groups(d, "")
	if err != nil {
		return err
	}
	m.registry.mu.Lock()
	for _, g := range s.entry.groups {
		if strings.HasPrefix(g, "query:") {
			groups = append(groups, g)
		}
	}
	m.registry.mu.Unlock()
	if len(groups) > maxGroups {
		return &GroupsError{Wrong: fmt.Sprintf("more than %d groups, with those of the query", maxGroups)}
	}
	m.registry.setGroups(s, slices.Clip(groups))
	return nil
}
