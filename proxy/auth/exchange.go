package auth

import "net/http"

// A gate may let a client exchange its token for something else: for a ticket
// that opens a session, or for more time in one. The functions of this file find
// the credential of such an exchange. AUTH_TOKEN_FROM does not apply to them.

// ByToken reports whether the verifier judges the token alone, so that its answer
// holds for every request that the client makes with it. It does not in mode
// forward, whose answer holds for one request only, nor in modes certificate and none.
func (c *Config) ByToken() bool { return c.TakesToken() && c.Mode != modeForward }

// Bearer returns the token that r shows as Authorization: Bearer. Its errors
// are those of [Auth.Find].
func Bearer(r *http.Request) (Credential, error) {
	c, err := headerPlace("Authorization").find(r, Credential{})
	if err == nil && c.Token == "" {
		err = ErrMissing
	}
	return c, err
}

// FindParam returns a secret of the form of a token in the query parameter of
// that name, found as a token is in query:NAME; "" for none. Its errors are
// those of [Auth.Find], without ErrMissing.
func FindParam(r *http.Request, name string) (string, error) {
	c, err := queryPlace(name).find(r, Credential{})
	if err != nil {
		return "", err
	}
	return c.Token, nil
}

// StripParam returns rawQuery without what [FindParam] finds.
func StripParam(rawQuery, name string) string {
	return queryPlace(name).strip(rawQuery, nil)
}

// CookieValue is the value of a cookie; "" for none, or for several that
// differ.
func CookieValue(r *http.Request, name string) string {
	c, err := cookiePlace(name).find(r, Credential{})
	if err != nil {
		return ""
	}
	return c.Token
}

// StripCookie takes a cookie out of a header, and leaves the others as they are.
func StripCookie(h http.Header, name string) { cookiePlace(name).strip("", h) }
