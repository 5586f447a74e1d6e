package session

import (
	"fmt"
	"slices"
	"testing"
)

func TestFilter(t *testing.T) {
	m := newManager(t, Config{})
	open(t, m, opening("1", "alice", "claim:groups:admins"))
	open(t, m, opening("2", "alice", "query:room:lobby"))
	third := opening("3", "bob", "claim:groups:admins", "query:room:lobby")
	third.Path, third.Client = "/other", "2001:db8::1"
	open(t, m, third)
	opened(t, m, opening("4", "carol")) // found as soon as it has an id
	for _, tt := range []struct {
		filter Filter
		want   []string
	}{
		{Filter{}, []string{"1", "2", "3", "4"}},
		{Filter{Except: "2"}, []string{"1", "3", "4"}},
		{Filter{Session: "2"}, []string{"2"}},
		{Filter{Session: "2", Except: "2"}, nil},
		{Filter{Session: "5"}, nil},
		{Filter{Subject: "alice"}, []string{"1", "2"}},
		{Filter{Subject: "alice", Group: "query:room:lobby"}, []string{"2"}},
		{Filter{Subject: "a*"}, nil},
		{Filter{Group: "claim:groups:admins"}, []string{"1", "3"}},
		{Filter{Group: "admins"}, nil},
		{Filter{Path: "/other"}, []string{"3"}},
		{Filter{Path: "/", Subject: "bob"}, nil},
		{Filter{Address: "2001:db8::1"}, []string{"3"}},
		{Filter{Address: "2001:db8::"}, nil},
	} {
		page, next := m.List(tt.filter, 10, 0)
		var got []string
		for _, s := range page {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, tt.want) || next != 0 {
			t.Errorf("%+v: got %q, and more from %d on; want %q", tt.filter, got, next, tt.want)
		}
	}
	m.find("4").Release()
}

// Pages are complete and have nothing twice, while sessions open and end between them.
func TestPages(t *testing.T) {
	m := newManager(t, Config{})
	var all []*peer
	for i := range 20 {
		all = append(all, opened(t, m, opening(fmt.Sprint(i), "alice")))
	}
	var got []string
	for after := int64(0); ; {
		page, next := m.List(Filter{Subject: "alice"}, 3, after)
		for _, s := range page {
			got = append(got, s.ID)
		}
		if next == 0 {
			break
		}
		after = next
		switch len(got) {
		case 3:
			all[2].Release() // the last of this page
			all[3].Release() // the first of the next
			all[4].Release()
		case 9:
			all = append(all, opened(t, m, opening("new", "alice")))
		}
	}
	want := []string{"0", "1", "2", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "new"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, p := range all {
		p.Release()
		p.Release() // changes nothing
	}
	r := m.registry
	if r.all != (ring{}) || len(r.bySubject)+len(r.byPath)+len(r.byGroup)+len(r.byID) != 0 {
		t.Errorf("something is left: %+v", r)
	}
}

func TestRegroup(t *testing.T) {
	places, err := ParseGroups([]string{"claim:groups", "query:room"})
	if err != nil {
		t.Fatal(err)
	}
	m := newManager(t, Config{})
	m.SetGroups(places)
	p := opened(t, m, opening("1", "alice", "claim:groups:old", "query:room:lobby"))
	g := grant("alice")
	g.Groups = map[string][]string{"claim:groups": {"new", "newer"}}
	if err := m.regroup(p.Session, g.Decision); err != nil {
		t.Fatal(err)
	}
	want := []string{"claim:groups:new", "claim:groups:newer", "query:room:lobby"}
	if page, _ := m.List(Filter{Group: "claim:groups:newer"}, 1, 0); len(page) != 1 || !slices.Equal(page[0].Groups, want) {
		t.Errorf("got %+v, want the groups %q", page, want)
	}
	if page, _ := m.List(Filter{Group: "claim:groups:old"}, 1, 0); len(page) != 0 {
		t.Errorf("it is still in a group that it has left")
	}
	g.Groups["claim:groups"] = slices.Repeat([]string{"x"}, 1)
	for i := range maxGroups - 1 {
		g.Groups["claim:groups"] = append(g.Groups["claim:groups"], fmt.Sprint(i))
	}
	if err := m.regroup(p.Session, g.Decision); err == nil {
		t.Error("it has more groups than a session may have, with those of its query")
	}
	if page, _ := m.List(Filter{Session: "1"}, 1, 0); !slices.Equal(page[0].Groups, want) {
		t.Errorf("after that it has %q, want %q", page[0].Groups, want)
	}
	p.Release()
}
