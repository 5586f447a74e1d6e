package auth

import (
	"errors"
	"strings"

	"portcullis/proxy/header"
)

// checkGroups returns a line for each place of groups that the mode does not have.
func (c *Config) checkGroups() error {
	var mistakes []error
	note := func(kind, name, wrong string) {
		mistakes = append(mistakes, mistake("SESSION_GROUPS", kind+":"+name, wrong))
	}
	for _, name := range c.GroupClaims {
		if c.Mode != modeJWT && c.Mode != modeIntrospect {
			note("claim", name, "needs AUTH_MODE=jwt or introspect, whose tokens have claims; want auth:HEADER or query:NAME, or another mode")
		}
	}
	for _, name := range c.GroupHeaders {
		switch {
		case c.Mode != modeEndpoint && c.Mode != modeForward && c.Mode != modeIntrospect:
			note("auth", name, "needs AUTH_MODE=endpoint, introspect or forward, which have an answer with headers; want another place, or another mode")
		case !header.IsToken(name):
			note("auth", name, "is not the name of a header; want one, as auth:X-Groups")
		}
	}
	return errors.Join(mistakes...)
}

// groups returns the values of the named claims, each a scalar or a list of scalars. A claim that is or contains anything else
// is left out whole, because an incomplete account of who may hear what is worse than none.
func (c claims) groups(names []string) map[string][]string {
	var found map[string][]string
	for _, name := range names {
		if values := texts(c[name]); len(values) > 0 {
			if found == nil {
				found = make(map[string][]string)
			}
			found["claim:"+name] = values
		}
	}
	return found
}

// texts returns a claim that is a string, a number, or a list of them; nil for any other.
func texts(claim any) []string {
	list, isList := claim.([]any)
	if !isList {
		list = []any{claim}
	}
	values := make([]string, 0, len(list))
	for _, element := range list {
		text, ok := scalar(element)
		if !ok {
			return nil
		}
		values = append(values, text)
	}
	return values
}

// groupsOf returns the values of the headers that SESSION_GROUPS names: lists, divided by commas.
func (c *client) groupsOf(a answer) map[string][]string {
	var found map[string][]string
	for _, name := range c.groupHeaders {
		var values []string
		for _, line := range a.header[name] {
			for value := range strings.SplitSeq(line, ",") {
				if value = strings.Trim(value, " \t"); value != "" {
					values = append(values, value)
				}
			}
		}
		if len(values) > 0 {
			if found == nil {
				found = make(map[string][]string)
			}
			found["auth:"+name] = values
		}
	}
	return found
}
