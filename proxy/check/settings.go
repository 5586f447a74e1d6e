package check

import (
	"strings"

	"portcullis/proxy/config"
)

// settings are what all settings came to.
func (c *Config) settings() []Setting {
	if c.All == nil {
		return []Setting{}
	}
	list := config.List(c.All)
	all := make([]Setting, len(list))
	for i, s := range list {
		all[i] = Setting{Name: s.Name, Value: mask(s.Value), From: "default", Secret: s.Secret}
		says := func(environ map[string]string) bool {
			value, isSet := environ[s.Name]
			return value != "" || isSet && list.TakesEmpty(s.Name) || s.Secret && environ[s.Name+"_FILE"] != ""
		}
		switch {
		case says(c.Environ):
			all[i].From = "environment"
		case says(c.All):
			all[i].From = "ENV_FILE"
		}
	}
	return all
}

// mask takes out of a value what may be secret in its URLs, right or not: queries and user information.
func mask(value string) string {
	words := strings.Split(value, " ")
	for i, word := range words {
		word, _, has := strings.Cut(word, "?")
		if at := strings.LastIndexByte(word, '@'); at >= 0 && strings.Contains(word, "://") {
			word = word[:strings.Index(word, "://")+len("://")] + "…" + word[at:]
		}
		if has {
			word += "?…"
		}
		words[i] = word
	}
	return strings.Join(words, " ")
}
