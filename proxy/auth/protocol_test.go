package auth

import (
	"errors"
	"strings"
	"testing"
)

var protocolTests = []placeTest{
	{name: "bearer alone", lines: offers("bearer, secret"), want: "secret"},
	{name: "bearer first", lines: offers("bearer, secret, chat"), want: "secret", rest: offers("chat")},
	{name: "bearer among protocols", lines: offers("v2.chat,bearer,secret , v1.chat"), want: "secret", rest: offers("v2.chat, v1.chat")},
	{name: "bearer over several lines", lines: offers("chat, bearer", "secret", "mqtt"), want: "secret", rest: offers("chat, mqtt")},
	{name: "bearer with empty entries between", lines: offers("bearer,,", " ,secret"), want: "secret"},
	{name: "bearer twice, one token", lines: offers("bearer, secret, bearer, secret"), want: "secret"},
	{name: "bearer twice, two tokens", lines: offers("bearer, secret, chat, bearer, other"), err: ErrConflict, rest: offers("chat")},
	{name: "the token is the word bearer", lines: offers("bearer, bearer, chat"), want: "bearer", rest: offers("chat")},
	{name: "bearer pair with a missing half", lines: offers("chat, bearer"), err: errHalfPair, rest: offers("chat")},
	{name: "bearer and nothing", lines: offers("bearer"), err: errHalfPair},
	{name: "bearer after its pair", lines: offers("bearer, secret, bearer"), err: errHalfPair},
	{name: "bearer in capitals is a protocol", lines: offers("Bearer, secret"), err: ErrMissing, rest: offers("Bearer, secret")},
	{name: "bearer and a token of 1 MiB", lines: offers("bearer, " + tooLong), err: errLong},
	{name: "bearer and a control character", lines: offers("bearer, sec\x1bret"), err: errBytes},
	{name: "protocols without a token stay as they came", lines: offers("a,b ,", "c"), err: ErrMissing, rest: offers("a,b ,", "c")},

	{name: "kubernetes", lines: offers(kubernetes + ", v4.channel.k8s.io"), want: "secret", rest: offers("v4.channel.k8s.io")},
	{name: "kubernetes last, over several lines", lines: offers("v4.channel.k8s.io", kubernetes), want: "secret", rest: offers("v4.channel.k8s.io")},
	{name: "kubernetes with padding", lines: offers("base64url.bearer.authorization.k8s.io.c2VjcmV0Cg==, chat"), err: errEncoding, rest: offers("chat")},
	{name: "kubernetes in the other base64", lines: offers("base64url.bearer.authorization.k8s.io.a+b/, chat"), err: errEncoding, rest: offers("chat")},
	{name: "kubernetes with stray bits", lines: offers("base64url.bearer.authorization.k8s.io.YR, chat"), err: errEncoding, rest: offers("chat")},
	{name: "kubernetes without a token", lines: offers("base64url.bearer.authorization.k8s.io., chat"), err: errEmpty, rest: offers("chat")},
	{name: "kubernetes' name alone is a protocol", lines: offers("base64url.bearer.authorization.k8s.io"), err: ErrMissing, rest: offers("base64url.bearer.authorization.k8s.io")},
	{name: "kubernetes twice", lines: offers(kubernetes + ", chat, " + kubernetes), err: errTwice, rest: offers("chat")},
	{name: "kubernetes twice, another token", lines: offers(kubernetes, "chat, base64url.bearer.authorization.k8s.io.YQ"), err: errTwice, rest: offers("chat")},
	{name: "kubernetes alone", lines: offers(kubernetes), err: errAlone},
	{name: "kubernetes with a newline inside", lines: offers("base64url.bearer.authorization.k8s.io.c2VjcmV0Cg, chat"), err: errBytes, rest: offers("chat")},
	{name: "kubernetes and a token of 1 MiB", lines: offers("base64url.bearer.authorization.k8s.io." + tooLong + ", chat"), err: errLong, rest: offers("chat")},
	{name: "both forms, one token", lines: offers("bearer, secret, " + kubernetes + ", chat"), want: "secret", rest: offers("chat")},
	{name: "bearer before kubernetes takes it for its token", lines: offers("bearer, " + kubernetes + ", chat"), err: ErrConflict, rest: offers("chat")},
}

// offers are the lines of a subprotocol offer.
func offers(values ...string) (lines []string) {
	for _, value := range values {
		lines = append(lines, "Sec-WebSocket-Protocol: "+value)
	}
	return lines
}

// A browser fails the handshake unless the 101 names a protocol that it offered;
// the token must never be the one.
func TestAnswerNamesBearerOnlyAfterItsPair(t *testing.T) {
	a := newAuth(t, everyPlace...)
	tests := []struct {
		name   string
		offers string
		query  string
		want   string
	}{
		{"bearer", "bearer, secret", "", "bearer"},
		{"bearer beside the query", "bearer, secret", "token=secret", "bearer"},
		{"kubernetes", kubernetes + ", chat", "", ""},
		{"query", "chat", "token=secret", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := a.Find(upgrade(test.query, offers(test.offers)...))
			if err != nil || c.Subprotocol != test.want {
				t.Errorf("got %q, %v; want %q", c.Subprotocol, err, test.want)
			}
		})
	}
}

// The caller answers 400 where the request is wrong and 401 where the token is.
func TestMalformedTellsRequestFromCredential(t *testing.T) {
	tests := []struct {
		name   string
		offers string
		want   bool
	}{
		{"no other protocol", kubernetes, true},
		{"two tokens", kubernetes + ", chat, " + kubernetes, true},
		{"padding", "base64url.bearer.authorization.k8s.io.YQ==, chat", false},
		{"half a pair", "bearer", false},
		{"too long", "bearer, " + strings.Repeat("x", MaxTokenBytes+1), false},
	}
	a := newAuth(t, everyPlace...)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := a.Find(upgrade("", offers(test.offers)...))
			malformed, ok := errors.AsType[*MalformedError](err)
			if !ok || malformed.Request != test.want {
				t.Errorf("got %#v; want a MalformedError with Request %t", err, test.want)
			}
		})
	}
}
