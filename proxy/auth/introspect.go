package auth

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"

	"github.com/golang-jwt/jwt/v5"
)

// maxIntrospectionBytes bounds the body of an answer: a server may list every
// role of a user in it.
const maxIntrospectionBytes = 64 << 10

// An introspection verifies a token by asking an authorization server about it
// (RFC 7662).
type introspection struct {
	*client
	rules     claimRules
	validator *jwt.Validator // of the claims that are a JWT's too
}

// newIntrospection returns an error of one line for each mistake.
func newIntrospection(c *Config) (*introspection, error) {
	caller, err := newClient(c)
	rules, rulesErr := newClaimRules(c)
	audience, audienceErr := c.audience()
	if err := errors.Join(err, rulesErr, audienceErr); err != nil {
		return nil, err
	}
	caller.maxBody = maxIntrospectionBytes
	caller.header["Accept"] = []string{"application/json"}
	return &introspection{caller, rules, jwt.NewValidator(audience...)}, nil
}

func (i *introspection) verify(ctx context.Context, c Credential) (Decision, error) {
	if err := CheckToken(c.Token); err != nil {
		return Decision{}, err
	}
	a, err := i.call(ctx, i.post("token="+url.QueryEscape(c.Token)))
	if err != nil {
		return Decision{}, err
	}
	d, err := i.decide(a)
	noStore := !storable(a.header, a.asked)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		refused.noStore = noStore
	}
	if denied, ok := errors.AsType[*DeniedError](err); ok {
		denied.noStore = noStore
	}
	if err != nil {
		return Decision{}, err
	}
	if groups := i.groupsOf(a); d.Groups == nil {
		d.Groups = groups
	} else {
		maps.Copy(d.Groups, groups)
	}
	d.Until, d.noStore = earlier(d.Expires, holdsUntil(a.header, a.asked)), noStore
	return d, nil
}

// decide reads the body of an answer (section 2.2).
func (i *introspection) decide(a answer) (Decision, error) {
	switch a.status {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden: // about us, not about the token (section 2.3)
		return Decision{}, badResponse("it refuses AUTH_CLIENT_ID and AUTH_CLIENT_SECRET: status %d", a.status)
	default:
		return Decision{}, a.unavailable()
	}
	members, err := parseClaims(a.body)
	if err != nil {
		return Decision{}, badResponse("the answer is not what RFC 7662 wants: %w", err)
	}
	switch active, isBool := members["active"].(bool); {
	case !isBool:
		return Decision{}, badResponse("the answer does not say whether the token is active")
	case !active:
		return Decision{}, &RefusedError{Cause: errors.New("the token is not active")}
	}
	if err := i.validator.Validate(members); err != nil {
		return Decision{}, &RefusedError{Cause: withoutToken(err)}
	}
	return i.rules.decide(members)
}
