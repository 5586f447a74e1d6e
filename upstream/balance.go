package upstream

import (
	"fmt"
	"strings"

	"portcullis/proxy/header"
)

// Balance is how a target is chosen for a session. In text it reads least, sticky, hash:subject, hash:address, hash:cookie:NAME or
// hash:query:NAME.
type Balance struct {
	kind  balanceKind
	place string // of the key of hash: subject, address, cookie or query
	name  string // of the cookie or the parameter
}

type balanceKind int

const (
	balanceLeast  balanceKind = iota // the fewest live sessions
	balanceHash                      // always the same for a key (rendezvous hashing)
	balanceSticky                    // the one that a cookie names
)

// Sticky reports whether a cookie names the target.
func (b Balance) Sticky() bool { return b.kind == balanceSticky }

// Key is where the key of a hash is: "subject", "address", or "cookie" or "query" with a name; "": nowhere.
func (b Balance) Key() (place, name string) {
	if b.kind != balanceHash {
		return "", ""
	}
	return b.place, b.name
}

const wantBalance = "want least, sticky, hash:subject, hash:address, hash:cookie:NAME or hash:query:NAME"

// String is the text that UnmarshalText reads as b.
func (b Balance) String() string {
	switch {
	case b.kind == balanceSticky:
		return "sticky"
	case b.kind == balanceHash && b.name != "":
		return "hash:" + b.place + ":" + b.name
	case b.kind == balanceHash:
		return "hash:" + b.place
	}
	return "least"
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *Balance) UnmarshalText(text []byte) error {
	kind, place, _ := strings.Cut(string(text), ":")
	place, name, named := strings.Cut(place, ":")
	switch {
	case string(text) == "least":
		*b = Balance{}
	case string(text) == "sticky":
		*b = Balance{kind: balanceSticky}
	case kind == "hash" && !named && (place == "subject" || place == "address"),
		kind == "hash" && named && (place == "cookie" && header.IsToken(name) || place == "query" && name != "" && sendable(name) && !strings.ContainsAny(name, "&=%+")):
		*b = Balance{balanceHash, place, name}
	default:
		return fmt.Errorf("%q is no way to choose a target; %s", text, wantBalance)
	}
	return nil
}
