package gate

import (
	"strings"

	"golang.org/x/time/rate"

	"portcullis/proxy/header"
	"portcullis/proxy/refusal"
)

// viaHeader lists the gates that a request has come through, the nearest last, each by an id that it has made up at its start.
// A gate that finds its own id is its own upstream, directly or by others: without that one request would come in again and
// again, until no descriptor is left (the attack of RFC 8586, whose CDN-Loop this is for gates). It is the one header of ours
// that goes upstream, and it says nothing but how many gates there are.
const viaHeader = "Portcullis-Via"

const (
	maxVia   = 16 // gates in a row; more are instances that send to one another, each of which has an id of its own
	maxViaID = 64 // bytes; ours have 26
)

// loopDetector knows the gate's own id.
type loopDetector struct {
	id   string
	warn rate.Sometimes
}

// checkLoop refuses what has been here before. A list that no gate writes is refused too: it was to pass for one.
func (g *Gate) checkLoop(u *upgrade) *refusal.Refusal {
	gates := 0
	for id := range header.Elements(u.HTTP.Header[viaHeader]) {
		if gates++; gates > maxVia {
			break
		}
		switch {
		case id == g.loops.id:
			g.loops.warn.Do(func() {
				g.Log.Warn("UPSTREAM_URL leads back to this gate: what is sent there comes in here again", "upstream", u.route.targets)
			})
			return &refusal.Refusal{Reason: refusal.Loop}
		case len(id) > maxViaID || !header.IsToken(id):
			return malformed("Portcullis-Via is not a list of gates' ids")
		}
	}
	if gates >= maxVia {
		return &refusal.Refusal{Reason: refusal.Loop, Detail: "it has come through 16 gates"} // our id would be one more
	}
	return nil
}

// via is the list for the upstream: what has come, and this gate.
func (g *Gate) via(u *upgrade) string {
	list := g.loops.id
	if came := u.HTTP.Header[viaHeader]; len(came) > 0 {
		list = strings.Join(came, ", ") + ", " + list
	}
	return list
}
