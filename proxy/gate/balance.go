package gate

import (
	"strconv"

	"portcullis/proxy/auth"
	"portcullis/upstream"
)

// stickyCookie names the target of a client, with UPSTREAM_BALANCE=sticky. It is the gate's own and does not go upstream.
const stickyCookie = "portcullis_target"

// aim tells by what the target is chosen.
func (u *upgrade) aim(r *upstream.Request) {
	if u.route.balance.Sticky() {
		r.StickyID = u.stuckTo()
		return
	}
	switch place, name := u.route.balance.Key(); place {
	case "subject":
		r.Key = u.grant.Subject
	case "address":
		r.Key = u.From.Addr.String()
	case "cookie":
		r.Key = auth.CookieValue(u.HTTP, name)
	case "query":
		r.Key, _ = auth.FindParam(u.HTTP, name) // one that is there twice has no meaning
	}
}

// stuckTo is what the client's cookie says; 0: nothing, or what no gate has put there.
func (u *upgrade) stuckTo() uint64 {
	id, err := strconv.ParseUint(auth.CookieValue(u.HTTP, stickyCookie), 16, 64)
	if err != nil {
		return 0
	}
	return id
}

// stick is the cookie that has a client come back to a target; "" where it has one that does.
func (u *upgrade) stick(target uint64) string {
	if !u.route.balance.Sticky() || u.stuckTo() == target {
		return ""
	}
	cookie := stickyCookie + "=" + strconv.FormatUint(target, 16) + "; Path=/; HttpOnly; SameSite=Lax"
	if u.Forwarded.Scheme == "https" {
		cookie += "; Secure"
	}
	return cookie
}
