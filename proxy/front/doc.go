// Package front is where connections come in: it accepts them, reads one request head from each within bounds of time and size,
// TLS or not, and hands the request on with its [Exchange], through which it is answered or its connection taken over.
//
//	server.go     net/http's server, HTTP/1.1 alone, and its limits
//	conn.go       a connection that remembers whether its request reached our handler
//	pending.go    connections without a request: limited in number by a quarter of the descriptors, in time by the header's
//	presence.go   whether the client of a request that waits is still there
//	exchange.go   one request and its answer
//	stream.go     an answer of any length, and what becomes of its connection
//
// A connection carries one request, unless its handler keeps it.
package front
