package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

// claims are the members of a JWT's payload or of an introspection's answer, as
// encoding/json has them with UseNumber. A registered claim (RFC 7519 section
// 4.1) of a wrong type is an error, not absent.
type claims map[string]any

var errClaimType = errors.New("a registered claim has a wrong type")

// maxSeconds is the last NumericDate that is taken: the year 9999.
const maxSeconds = 253402300799

// date returns nil when there is no such claim.
func (c claims) date(name string) (*jwt.NumericDate, error) {
	value, ok := c[name]
	if !ok {
		return nil, nil
	}
	number, _ := value.(json.Number)
	n, err := number.Float64() // fractions are allowed, section 2
	if err != nil || n < 0 || n > maxSeconds {
		return nil, errClaimType
	}
	return jwt.NewNumericDate(time.Unix(int64(n), 0)), nil
}

// text returns "" when there is no such claim.
func (c claims) text(name string) (string, error) {
	value, ok := c[name]
	text, isText := value.(string)
	if ok && !isText {
		return "", errClaimType
	}
	return text, nil
}

func (c claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.date("exp") }
func (c claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.date("iat") }
func (c claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.date("nbf") }
func (c claims) GetIssuer() (string, error)                   { return c.text("iss") }
func (c claims) GetSubject() (string, error)                  { return c.text(subjectClaim) }

func (c claims) GetAudience() (jwt.ClaimStrings, error) {
	list, isList := c["aud"].([]any)
	if !isList {
		text, err := c.text("aud")
		return jwt.ClaimStrings{text}, err
	}
	var audience jwt.ClaimStrings
	for _, element := range list {
		text, ok := element.(string)
		if !ok {
			return nil, errClaimType
		}
		audience = append(audience, text)
	}
	return audience, nil
}

// claimRules say what claims must contain and which of them are kept.
type claimRules struct {
	require []requirement
	keep    []string // names, for AUTH_FORWARD
	groups  []string // names, for SESSION_GROUPS
}

// newClaimRules returns an error of one line for each mistake. Mistakes in
// AUTH_FORWARD are reported by [Auth.compileHeaders].
func newClaimRules(c *Config) (claimRules, error) {
	rules := claimRules{groups: c.GroupClaims}
	var mistakes []error
	for _, entry := range c.Require {
		r, err := parseRequirement(entry)
		rules.require, mistakes = append(rules.require, r), append(mistakes, err)
	}
	for _, entry := range c.Forward {
		if h, err := parseForward(entry); err == nil && h.claim != subjectClaim {
			rules.keep = append(rules.keep, h.claim)
		}
	}
	return rules, errors.Join(mistakes...)
}

// audience is AUTH_AUDIENCE, checked. It is no option if any audience is
// accepted.
func (c *Config) audience() ([]jwt.ParserOption, error) {
	switch {
	case len(c.Audience) == 0 || len(c.Audience) == 1 && c.Audience[0] == "*":
		return nil, nil
	case slices.Contains(c.Audience, "*"), slices.Contains(c.Audience, ""):
		return nil, mistake("AUTH_AUDIENCE", strings.Join(c.Audience, ","), "mixes names with * or nothing; want the names alone, or * alone for any")
	}
	return []jwt.ParserOption{jwt.WithAudience(c.Audience...)}, nil
}

// decide returns the Decision of claims that a [jwt.Validator] has passed.
func (r *claimRules) decide(c claims) (Decision, error) {
	subject, err := c.GetSubject()
	if err == nil {
		err = checkSubject(subject)
	}
	if err != nil {
		return Decision{}, &RefusedError{Cause: err}
	}
	for _, required := range r.require {
		if !required.met(c) {
			return Decision{}, required.denied()
		}
	}
	d := Decision{Subject: subject, Groups: c.groups(r.groups)}
	if exp, _ := c.GetExpirationTime(); exp != nil {
		d.Expires = exp.Time
	}
	for _, name := range r.keep {
		if value, ok := headerValue(c[name]); ok {
			if d.Claims == nil {
				d.Claims = make(map[string]string, len(r.keep))
			}
			d.Claims[name] = value
		}
	}
	return d, nil
}

// maxClaimBytes bounds what one claim adds to the request that goes upstream.
const maxClaimBytes = 4 << 10

// headerValue returns a claim as the value of a header: strings, numbers and
// booleans, and lists of them joined by commas. A claim that the upstream could
// misread is left out whole, because an incomplete account of what a client may
// do is worse than none: an object, white space at the ends, a control
// character, and in a list an element that has a comma itself.
func headerValue(claim any) (string, bool) {
	list, isList := claim.([]any)
	if !isList {
		text, ok := scalar(claim)
		return text, ok && text != "" && len(text) <= maxClaimBytes && fitsHeader(text)
	}
	texts := make([]string, len(list))
	for i, element := range list {
		text, ok := scalar(element)
		if !ok || text == "" || strings.Contains(text, ",") || !fitsHeader(text) {
			return "", false
		}
		texts[i] = text
	}
	joined := strings.Join(texts, ",")
	return joined, joined != "" && len(joined) <= maxClaimBytes
}

// scalar returns a claim that is a string, a number or a boolean.
func scalar(claim any) (string, bool) {
	switch v := claim.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true // as it was written: an ID may have more digits than a float64
	case bool:
		return fmt.Sprint(v), true
	}
	return "", false
}

// A requirement is one entry of AUTH_REQUIRE.
type requirement struct {
	claim, value string // claim "": value is a scope
}

func parseRequirement(entry string) (requirement, error) {
	if scope, ok := strings.CutPrefix(entry, "scope:"); ok && visible(scope) && !strings.ContainsAny(scope, `"\`) {
		return requirement{value: scope}, nil // a scope-token of RFC 6749 section 3.3
	}
	if claim, value, _ := strings.Cut(entry, "="); claim != "" && value != "" && !strings.HasPrefix(entry, "scope:") {
		return requirement{claim, value}, nil
	}
	return requirement{}, mistake("AUTH_REQUIRE", entry, "demands nothing; want scope:NAME or claim=value")
}

// met reports whether c has the scope, or the value or a list that contains it.
// A scope is a word of the claim scope (RFC 8693 section 4.2), or of scp, as
// some servers name it.
func (r requirement) met(c claims) bool {
	if r.claim != "" {
		return contains(c[r.claim], r.value, false)
	}
	return contains(c["scope"], r.value, true) || contains(c["scp"], r.value, true)
}

// contains reports whether claim is value or a list that contains it. With words,
// a string is a list of words too.
func contains(claim any, value string, words bool) bool {
	if list, ok := claim.([]any); ok {
		return slices.ContainsFunc(list, func(element any) bool {
			text, ok := scalar(element)
			return ok && text == value
		})
	}
	text, ok := scalar(claim)
	if words {
		return ok && slices.Contains(strings.Split(text, " "), value)
	}
	return ok && text == value
}

// denied is the error of a requirement that is not met, with the challenge of
// RFC 6750 section 3.1.
func (r requirement) denied() error {
	challenge := `Bearer realm="portcullis", error="insufficient_scope"`
	wanted := fmt.Sprintf("%s=%s", r.claim, r.value)
	if r.claim == "" {
		challenge += `, scope="` + r.value + `"`
		wanted = "scope:" + r.value
	}
	return &DeniedError{Cause: fmt.Errorf("AUTH_REQUIRE: the token lacks %s", wanted), Challenge: []string{challenge}}
}

// maxDepth bounds how deep objects and lists may be nested; claims of common
// servers stay below 5.
const maxDepth = 16

var (
	errNoObject   = errors.New("it is not a JSON object")
	errDuplicate  = errors.New("a member of a JSON object stands there twice")
	errTooDeep    = errors.New("its JSON is nested too deep")
	errTrailing   = errors.New("something stands after its JSON object")
	errNotUnicode = errors.New("its JSON is not UTF-8")
)

// checkObject returns an error unless b is one JSON object in which, at any
// depth, no object has two members of one name: of two, one server reads the
// first and another the last (RFC 8725 section 2.4 asks to have none). No error
// quotes b.
func checkObject(b []byte) error {
	if !utf8.Valid(b) { // encoding/json would read broken bytes as one character
		return errNotUnicode
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber() // no number is too large
	if first, err := d.Token(); err != nil || first != json.Delim('{') {
		return errNoObject
	}
	if err := checkMembers(d, 1); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errTrailing
	}
	return nil
}

// checkMembers reads the rest of an object whose brace has been read.
func checkMembers(d *json.Decoder, depth int) error {
	seen := map[string]struct{}{}
	for d.More() {
		name, err := d.Token()
		text, ok := name.(string)
		if err != nil || !ok {
			return errNoObject
		}
		if _, twice := seen[text]; twice {
			return errDuplicate
		}
		seen[text] = struct{}{}
		if err := checkValue(d, depth); err != nil {
			return err
		}
	}
	return readEnd(d)
}

func checkValue(d *json.Decoder, depth int) error {
	value, err := d.Token()
	if err != nil {
		return errNoObject
	}
	if _, nested := value.(json.Delim); nested && depth == maxDepth {
		return errTooDeep
	}
	switch value {
	case json.Delim('{'):
		return checkMembers(d, depth+1)
	case json.Delim('['):
		for d.More() {
			if err := checkValue(d, depth+1); err != nil {
				return err
			}
		}
		return readEnd(d)
	}
	return nil
}

// readEnd reads the closing brace or bracket.
func readEnd(d *json.Decoder) error {
	if _, err := d.Token(); err != nil {
		return errNoObject
	}
	return nil
}

// parseClaims reads a JSON object. No error quotes b.
func parseClaims(b []byte) (claims, error) {
	if err := checkObject(b); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var c claims
	if err := d.Decode(&c); err != nil {
		return nil, errNoObject
	}
	return c, nil
}
