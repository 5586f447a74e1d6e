package gate

import (
	"net"
	"net/http"
	"runtime/debug"

	"portcullis/proxy/auth"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
	"portcullis/upstream"
)

// upgrade is a request on its way to a session: what each step finds out, for those after it.
type upgrade struct {
	*Request
	validHandshake bool            // checkHandshake found nothing wrong
	route          *route          // from chooseRoute on
	grant          auth.Grant      // from authenticate on
	unasked        bool            // from checkRates on: about its rates the fleet has not been asked
	groups         []string        // from findGroups on
	resumption     bool            // from takeResumption on: the client offers to come back when its connection is lost
	back           *session.Return // it does come back; nil: it opens a session
	plain          bool            // from serveHTTP on: it asks for no upgrade
	done           bool            // its session has it, or a plain request its answer
	held
}

// held is what an upgrade has to give back, unless a session owns it.
type held struct {
	slot     *ratelimit.Slot // from before the dial
	upstream *upstream.Conn
	socket   *socket // nil: the client has a request and no answer yet
}

// socket is a client's connection that was hijacked and belongs to no session yet.
type socket struct {
	conn       net.Conn
	buffered   []byte    // what the client sent behind its handshake
	id         string    // of the session
	switched   bool      // the client has its 101, so that a refusal is a Close frame
	refuseOnly bool      // the 101 is there for the refusal alone
	pending    semaphore // in which it has a place while it belongs to no session; nil: it has none
}

// Serve takes a request through the steps to a session, or refuses it. Cheap checks come before costly ones, and nothing is
// dialled before everything else has passed.
func (g *Gate) Serve(r *Request) {
	u := &upgrade{Request: r}
	defer g.finish(u)
	for _, step := range [...]func(*Gate, *upgrade) *refusal.Refusal{
		(*Gate).chooseRoute,      // not served 404; suspicious 400
		(*Gate).serveHTTP,        // not an upgrade: by the steps of http.go, unless HTTP_MODE is off
		(*Gate).checkHandshake,   // not GET 405; not an upgrade, or of another version 426; malformed 400
		(*Gate).takeResumption,   // two returns 400
		(*Gate).checkOrigin,      // 403
		(*Gate).checkLoop,        // has been here before 508
		(*Gate).resume,           // back in its session 101; too late 409; its session unknown 401
		(*Gate).checkRates,       // by address 429; global 503
		(*Gate).checkSessionCaps, // by address 429; in total 503
		(*Gate).authenticate,     // no good token 401; not enough 403; two 400; too many failures 429; nobody could tell 503
		(*Gate).findGroups,       // not usable 403; chosen by the client 400
		(*Gate).takeSlot,         // kept out 403; by address and subject 429; in total 503
		(*Gate).connect,          // no connection 502; no answer 504; the upstream's own refusal
		(*Gate).switchProtocols,  // 101; the session is the relay's
	} {
		if no := step(g, u); no != nil {
			g.refuse(u, no)
			return
		}
		if u.done {
			return
		}
	}
}

// finish is deferred. It releases what the request holds, however it ends, and answers for a panic.
func (g *Gate) finish(u *upgrade) {
	failure := recover()
	defer u.release()
	g.answerPanic(failure, func() { g.refuse(u, &refusal.Refusal{Reason: refusal.Internal}) })
}

// answerPanic logs a panic and has it answered. One that only closes the connection goes on.
func (g *Gate) answerPanic(failure any, refuse func()) {
	switch failure {
	case nil:
	case http.ErrAbortHandler:
		panic(failure)
	default:
		g.Log.Error("panic", "value", failure, "stack", string(debug.Stack()))
		refuse()
	}
}

// releaseSlot releases the upstream and the session's slot. A second call changes nothing.
func (h *held) releaseSlot() {
	if h.slot != nil {
		h.slot.Release()
		h.slot = nil
	}
	if h.upstream != nil {
		h.upstream.Close()
		h.upstream = nil
	}
}

// release releases everything. A second call changes nothing.
func (h *held) release() {
	h.releaseSlot()
	if h.socket != nil {
		h.socket.conn.Close()
		h.socket.leavePending()
		h.socket = nil
	}
}

// leavePending gives the place of a socket without a session back.
func (s *socket) leavePending() {
	if s.pending != nil {
		s.pending.release()
		s.pending = nil
	}
}

// switched reports whether the client has its 101 and no session: a refusal is then a Close frame.
func (h *held) switched() bool { return h.socket != nil && h.socket.switched }

// Answer has handle answer a request to one of the gate's own paths, and answers for its panic.
func (g *Gate) Answer(r *Request, handle func(*Request)) {
	defer func() {
		g.answerPanic(recover(), func() { g.Refuse(r, &refusal.Refusal{Reason: refusal.Internal}) })
	}()
	handle(r)
}
