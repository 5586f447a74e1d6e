// Package leaktest finds secrets in what a program says. Only tests use it: those that run the whole gate tell it every
// credential and every query that they send, and show it every log line, metric and answer that comes of it.
package leaktest

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Secrets are what must not come out. The zero value has none. It is safe for concurrent use.
type Secrets struct {
	// Public are tokens that are none, such as a word that the program itself uses.
	Public []string

	mu    sync.Mutex
	texts map[string]bool // each form of each secret; true: only the beginning of it. Guarded by mu
}

const (
	// shortest is what a secret must have in bytes to be looked for: less is in any text.
	shortest = 3
	// beginning is how much of a long secret is looked for, in bytes, since logs cut what is long. A multiple of 3, so that its
	// base64 is the beginning of the whole one's.
	beginning = 30
)

// Token adds tokens, as they are and as they look when percent-encoded, quoted, or in base64.
func (s *Secrets) Token(tokens ...string) {
	for _, token := range tokens {
		if slices.Contains(s.Public, token) {
			continue
		}
		part := len(token) > beginning
		token = token[:min(len(token), beginning)]
		s.add(part, token, url.QueryEscape(token), url.PathEscape(token), strings.Trim(strconv.Quote(token), `"`),
			base64.RawURLEncoding.EncodeToString([]byte(token)), base64.RawStdEncoding.EncodeToString([]byte(token)))
	}
}

// Request adds what is private in a request with this target and these headers: the parameters of its query as written, and
// the credentials in the places where a gate is told to look for them.
func (s *Secrets) Request(target string, h http.Header) {
	_, query, _ := strings.Cut(target, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if value == "" {
			continue
		}
		s.add(len(parameter) > beginning, parameter[:min(len(parameter), beginning)])
		if name, _ := url.QueryUnescape(name); slices.Contains([]string{"token", "ticket", "private"}, name) {
			decoded, _ := url.QueryUnescape(value)
			s.Token(value, decoded)
		}
	}
	for _, line := range h["Authorization"] {
		_, credentials, _ := strings.Cut(line, " ")
		s.Token(strings.TrimSpace(credentials))
	}
	for _, line := range h["Cookie"] {
		for cookie := range strings.SplitSeq(line, ";") {
			_, value, _ := strings.Cut(cookie, "=")
			s.Token(value)
		}
	}
	previous := ""
	for protocol := range strings.SplitSeq(strings.Join(h["Sec-Websocket-Protocol"], ","), ",") {
		protocol = strings.TrimSpace(protocol)
		encoded, _ := strings.CutPrefix(protocol, "base64url.bearer.authorization.k8s.io.")
		if decoded, err := base64.RawURLEncoding.DecodeString(encoded); err == nil && encoded != protocol {
			s.Token(string(decoded))
		}
		if previous == "bearer" {
			s.Token(protocol)
		}
		previous = protocol
	}
}

func (s *Secrets) add(part bool, forms ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.texts == nil {
		s.texts = make(map[string]bool)
	}
	for _, form := range forms {
		if len(form) >= shortest {
			s.texts[form] = s.texts[form] || part
		}
	}
}

// Leaks returns each line of said that has a secret as a word of its own, with the secret in front.
func (s *Secrets) Leaks(said string) []string {
	s.mu.Lock()
	texts := maps.Clone(s.texts)
	s.mu.Unlock()
	var leaks []string
	for line := range strings.Lines(said) {
		for text, part := range texts {
			if has(line, text, part) {
				leaks = append(leaks, strconv.Quote(text)+" in "+strings.TrimSpace(line))
			}
		}
	}
	return leaks
}

// has reports whether line has text with no letter or digit before it, nor, unless it is part of something longer, behind it:
// a word such as good is in others too.
func has(line, text string, part bool) bool {
	for at := 0; ; at++ {
		i := strings.Index(line[at:], text)
		if i < 0 {
			return false
		}
		at += i
		end := at + len(text)
		if (at == 0 || !isWord(line[at-1])) && (part || end == len(line) || !isWord(line[end])) {
			return true
		}
	}
}

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}
