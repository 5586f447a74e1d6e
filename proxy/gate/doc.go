// Package gate takes one request from its path to its 101, or to the refusal on the way.
//
// The steps are one list, in [Gate.Serve], and of plain requests another, in serveHTTP, cheap before costly. A step takes the request's value and returns a refusal or nil; it
// does not know who reads the request or writes the answer. One place answers: refuse.go.
//
//	request.go        the request as every step sees it; who the client is
//	path.go           PATHS; forms that servers read differently
//	handshake.go      RFC 6455 section 4.2.1
//	loop.go           Portcullis-Via
//	limits.go         origin, rates, session caps, the slot
//	authenticate.go   where the token is, who verifies it, what a refused one costs
//	firstmessage.go   the token as the first message
//	ticket.go         or a ticket in its place
//	connect.go        dial and handshake upstream, with the request made by forward.go
//	http.go           the steps of a plain request, which asks for no upgrade; pass.go sends it upstream and its answer back
//	switch.go         the 101; both connections become a session's
//	refuse.go         every refusal: released, reported, answered by HTTP or by a Close frame (closeframe.go)
//
// # Invariants
//
//   - Until the hijack every refusal is an ordinary HTTP answer. After it a refusal is a Close frame: the gate's own until there is
//     a session, the relay's afterwards.
//   - Sockets that are open without a session are limited in number, time and bytes, and hold no slot while they are refused.
//   - Nothing is dialled before every check has passed. A request that is not authenticated holds no slot.
//   - What a request holds is released in one place, held.release, unless a session owns it by then.
//   - No path below /.portcullis/ goes upstream.
package gate
