package session

import (
	"cmp"
	"iter"
	"slices"
	"sync"
	"time"
)

// Filter chooses sessions. Each field that is not empty must match exactly; nothing is a pattern.
type Filter struct {
	Session string // an id
	Subject string
	Group   string // its full name, such as claim:groups:admins
	Path    string
	Address string // the client's, as it is logged
	Except  string // an id that is left out
}

// Everybody reports whether f leaves nobody out, but Except.
func (f *Filter) Everybody() bool {
	return *f == Filter{Except: f.Except}
}

// matches reports whether a session is chosen. The caller holds the registry's mu.
func (f *Filter) matches(s *Session) bool {
	return (f.Session == "" || f.Session == s.ID) &&
		(f.Subject == "" || f.Subject == s.Subject) &&
		(f.Group == "" || slices.Contains(s.entry.groups, f.Group)) &&
		(f.Path == "" || f.Path == s.Path) &&
		(f.Address == "" || f.Address == s.Address()) &&
		(f.Except == "" || f.Except != s.ID)
}

// entry is a session's place in the registry, whose mu guards all of it.
type entry struct {
	order                    int64 // when it was opened, in nanoseconds since 1970, and its place among the others; unique
	groups                   []string
	inAll, inSubject, inPath link
}

// registry finds the live sessions. Its lock is taken when a session opens, ends or changes its groups, and by who looks for
// sessions; no message passes by it.
type registry struct {
	mu        sync.Mutex // guards what follows
	last      int64      // the order of the newest session
	byID      map[string]*Session
	all       ring
	bySubject map[string]ring
	byPath    map[string]ring
	byGroup   map[string]map[*Session]struct{}
}

func newRegistry() *registry {
	return &registry{
		byID:      make(map[string]*Session),
		bySubject: make(map[string]ring),
		byPath:    make(map[string]ring),
		byGroup:   make(map[string]map[*Session]struct{}),
	}
}

// add enters a session and gives it its place in the order. The caller holds mu.
func (r *registry) add(s *Session) {
	r.last = max(time.Now().UnixNano(), r.last+1)
	s.entry.order = r.last
	r.byID[s.ID] = s
	r.all = r.all.push(s, inAll)
	r.bySubject[s.Subject] = r.bySubject[s.Subject].push(s, inSubject)
	r.byPath[s.Path] = r.byPath[s.Path].push(s, inPath)
	r.join(s)
}

// remove takes a session out. A second call changes nothing.
func (r *registry) remove(s *Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[s.ID] != s {
		return
	}
	delete(r.byID, s.ID)
	r.all = r.all.remove(s, inAll)
	replace(r.bySubject, s.Subject, r.bySubject[s.Subject].remove(s, inSubject))
	replace(r.byPath, s.Path, r.byPath[s.Path].remove(s, inPath))
	r.leave(s)
}

func replace[K comparable](m map[K]ring, key K, r ring) {
	if r.first == nil {
		delete(m, key)
	} else {
		m[key] = r
	}
}

// setGroups replaces a session's groups, unless it has ended.
func (r *registry) setGroups(s *Session, groups []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[s.ID] != s || slices.Equal(s.entry.groups, groups) {
		return
	}
	r.leave(s)
	s.entry.groups = groups
	r.join(s)
}

// join enters a session into its groups. The caller holds mu.
func (r *registry) join(s *Session) {
	for _, g := range s.entry.groups {
		if r.byGroup[g] == nil {
			r.byGroup[g] = make(map[*Session]struct{})
		}
		r.byGroup[g][s] = struct{}{}
	}
}

// leave takes a session out of its groups. The caller holds mu.
func (r *registry) leave(s *Session) {
	for _, g := range s.entry.groups {
		delete(r.byGroup[g], s)
		if len(r.byGroup[g]) == 0 {
			delete(r.byGroup, g)
		}
	}
}

// find returns the sessions that f chooses and that come behind the place after, in their order. The caller holds mu for as long
// as it reads them.
func (r *registry) find(f *Filter, after int64) iter.Seq[*Session] {
	candidates := r.candidates(f)
	return func(yield func(*Session) bool) {
		for s := range candidates {
			if s.entry.order > after && f.matches(s) && !yield(s) {
				return
			}
		}
	}
}

// candidates are the sessions that the narrowest index has for f.
func (r *registry) candidates(f *Filter) iter.Seq[*Session] {
	switch {
	case f.Session != "":
		return func(yield func(*Session) bool) {
			if s := r.byID[f.Session]; s != nil {
				yield(s)
			}
		}
	case f.Subject != "":
		return r.bySubject[f.Subject].each(inSubject)
	case f.Group != "":
		members := make([]*Session, 0, len(r.byGroup[f.Group]))
		for s := range r.byGroup[f.Group] {
			members = append(members, s)
		}
		slices.SortFunc(members, func(a, b *Session) int { return cmp.Compare(a.entry.order, b.entry.order) })
		return slices.Values(members)
	case f.Path != "":
		return r.byPath[f.Path].each(inPath)
	}
	return r.all.each(inAll)
}

// ring is a list of sessions in their order, linked through the sessions themselves.
type ring struct{ first, last *Session }

// link is a session's place in one ring.
type link struct{ next, previous *Session }

func inAll(s *Session) *link     { return &s.entry.inAll }
func inSubject(s *Session) *link { return &s.entry.inSubject }
func inPath(s *Session) *link    { return &s.entry.inPath }

func (r ring) push(s *Session, at func(*Session) *link) ring {
	*at(s) = link{previous: r.last}
	if r.last == nil {
		return ring{s, s}
	}
	at(r.last).next = s
	return ring{r.first, s}
}

func (r ring) remove(s *Session, at func(*Session) *link) ring {
	l := *at(s)
	if l.previous == nil {
		r.first = l.next
	} else {
		at(l.previous).next = l.next
	}
	if l.next == nil {
		r.last = l.previous
	} else {
		at(l.next).previous = l.previous
	}
	*at(s) = link{}
	return r
}

// each goes through the ring.
func (r ring) each(at func(*Session) *link) iter.Seq[*Session] {
	return func(yield func(*Session) bool) {
		for s := r.first; s != nil; s = at(s).next {
			if !yield(s) {
				return
			}
		}
	}
}
