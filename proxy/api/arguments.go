package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"portcullis/proxy/session"
)

// maxArgument bounds a query parameter, in bytes. A subject has 256 at most, a group less.
const maxArgument = 1024

// filterArgs are the query parameters that choose sessions.
var filterArgs = []string{"session", "subject", "group", "path", "address", "all", "except"}

// parse reads the query. A parameter that a call does not know is a mistake: if it were ignored, a misspelt filter would choose more
// than was meant.
func (c *call) parse(rt *route) (wrong *reply) {
	query, err := url.ParseQuery(c.URL.RawQuery)
	if err != nil {
		return problem(http.StatusBadRequest, "the query cannot be decoded")
	}
	known := strings.Fields(rt.args)
	c.args = make(map[string]string)
	for name, values := range query {
		switch value := values[0]; {
		case !slices.Contains(known, name):
			return problem(http.StatusBadRequest, "%s: there is no such parameter here; want one of: %s", printable(name), strings.Join(known, ", "))
		case len(values) > 1:
			return problem(http.StatusBadRequest, "%s: it is there twice; want it once", name)
		case value == "":
			return problem(http.StatusBadRequest, "%s: it is empty; want a value, or leave it out", name)
		case len(value) > maxArgument:
			return problem(http.StatusBadRequest, "%s: it has more than %d bytes", name, maxArgument)
		case !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
			return problem(http.StatusBadRequest, "%s: it has control characters, or is not UTF-8", name)
		case name == "all" && value != "true":
			return problem(http.StatusBadRequest, "all: want true, or another filter")
		default:
			c.args[name] = value
		}
	}
	return nil
}

// printable is what an answer quotes of a name that the caller made up.
func printable(name string) string {
	if len(name) > 40 || !isVisible(name) {
		return "a parameter"
	}
	return name
}

// filter is what the query chooses.
func (c *call) filter() session.Filter {
	id := c.id
	if id == "" {
		id = c.args["session"]
	}
	return session.Filter{
		Session: id, Subject: c.args["subject"], Group: c.args["group"], Path: c.args["path"],
		Address: c.args["address"], Except: c.args["except"],
	}
}

// target is the filter of a call that has an effect. No filter is a mistake there, never everybody.
func (c *call) target() (f session.Filter, wrong *reply) {
	f = c.filter()
	switch all := c.args["all"] != ""; {
	case all && !f.Everybody():
		return f, problem(http.StatusBadRequest, "all: it cannot stand beside another filter; want one or the other")
	case !all && f.Everybody():
		return f, problem(http.StatusBadRequest, "there is no filter; want one, or all=true for every session")
	}
	return f, nil
}
