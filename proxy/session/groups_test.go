package session

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"portcullis/proxy/auth"
)

func TestGroupPlaces(t *testing.T) {
	for _, tt := range []struct {
		list []string
		want string
	}{
		{[]string{"claim:groups", "auth:x-groups", "query:room"}, ""},
		{[]string{"groups"}, `SESSION_GROUPS: "groups" is no place of groups; want claim:NAME, auth:HEADER or query:NAME`},
		{[]string{"claim:"}, `SESSION_GROUPS: "claim:" is no place of groups; want claim:NAME, auth:HEADER or query:NAME`},
		{[]string{"header:X-Room"}, `SESSION_GROUPS: "header:X-Room" is no place of groups; want claim:NAME, auth:HEADER or query:NAME`},
		{[]string{"query:room", "query:room"}, `SESSION_GROUPS: "query:room" is there twice; want it once`},
	} {
		_, err := ParseGroups(tt.list)
		if got := fmt.Sprint(err); tt.want == "" && err != nil || tt.want != "" && got != tt.want {
			t.Errorf("%q: got %v, want %s", tt.list, err, tt.want)
		}
	}
}

func TestGroups(t *testing.T) {
	long := strings.Repeat("x", maxGroupBytes)
	many := make([]string, maxGroups)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for _, tt := range []struct {
		name    string
		claim   []string
		query   string
		want    []string
		wrong   string
		byQuery bool
	}{
		{name: "none"},
		{name: "of both places", claim: []string{"admins", "staff"}, query: "a=b&room=lobby&room=caf%C3%A9+1",
			want: []string{"claim:groups:admins", "claim:groups:staff", "query:room:lobby", "query:room:café 1"}},
		{name: "twice", claim: []string{"a", "a"}, query: "room=a", want: []string{"claim:groups:a", "query:room:a"}},
		{name: "a client that calls itself into another's", query: "room=claim%3Agroups%3Aadmins", want: []string{"query:room:claim:groups:admins"}},
		{name: "as long as may be", claim: []string{long}, want: []string{"claim:groups:" + long}},
		{name: "too long", claim: []string{long + "x"}, wrong: "claim:groups: a group of more than 128 bytes"},
		{name: "too long, of the query", query: "room=" + long + "x", wrong: "query:room: a group of more than 128 bytes", byQuery: true},
		{name: "too many", claim: append(many, "16"), wrong: "claim:groups: more than 16 groups"},
		{name: "too many, with that of the query", claim: many, query: "room=16", wrong: "query:room: more than 16 groups", byQuery: true},
		{name: "empty", query: "room=", wrong: "query:room: an empty group", byQuery: true},
		{name: "a control character", query: "room=a%00", wrong: "query:room: a group with characters that no log line may have", byQuery: true},
		{name: "a line's end", claim: []string{"a\nb"}, wrong: "claim:groups: a group with characters that no log line may have"},
		{name: "another direction", query: "room=%E2%80%AEa", wrong: "query:room: a group with characters that no log line may have", byQuery: true},
		{name: "no UTF-8", query: "room=%ff", wrong: "query:room: a group with characters that no log line may have", byQuery: true},
		{name: "not to be decoded", query: "room=%zz", wrong: "query:room: a value that cannot be decoded", byQuery: true},
		{name: "another parameter that cannot be decoded", query: "other=%zz&room=a", want: []string{"query:room:a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			places, _ := ParseGroups([]string{"claim:groups", "query:room"})
			m := &Manager{}
			m.SetGroups(places)
			got, err := m.Groups(auth.Decision{Groups: map[string][]string{"claim:groups": tt.claim}}, tt.query)
			wrong, isWrong := errors.AsType[*GroupsError](err)
			switch {
			case !isWrong && tt.wrong != "", isWrong && (wrong.Error() != tt.wrong || wrong.Query != tt.byQuery):
				t.Errorf("got %v, want %q", err, tt.wrong)
			case !slices.Equal(got, tt.want):
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What is read of a query is what any other server reads of it, and where the gate takes its own parameter out nothing is left to read.
func FuzzQueryValues(f *testing.F) {
	for _, query := range []string{
		"", "room=a", "room=a&room=b", "a=1&room=caf%C3%A9+1", "%72oom=a", "room", "room=%zz", "%zz=a&room=b", "&&room==&room=a=b", "ROOM=a", "room=a;room=b",
		"portcullis_last_push=", "portcullis_last_push=x-1&%70ortcullis_last_push=y-2", "portcullis%5Flast%5Fpush=1",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		for _, name := range []string{"room", LastPushParam} {
			got, err := queryValues(query, name)
			want, wantErr := url.ParseQuery(query)
			switch {
			case wantErr == nil && (err != nil || !slices.Equal(got, want[name])):
				t.Errorf("%q: got %q, %v, want %q", query, got, err, want[name])
			case len(got) > strings.Count(query, "&")+1:
				t.Errorf("%q: got %q", query, got)
			}
			if left, err := queryValues(auth.StripParam(query, name), name); err == nil && len(left) > 0 {
				t.Errorf("%q: %q is left of what was taken out", query, left)
			}
		}
	})
}
