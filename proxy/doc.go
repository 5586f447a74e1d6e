// Package proxy is the front door: it refuses an upgrade request or turns it into a session.
//
// # The life of a connection
//
//	Serve                           http.Server, HTTP/1.1 alone, TLS; every wait and every size bounded
//	└ ServeHTTP                     the steps, cheap before costly; the first no ends it
//	  ├ watch                       presence.go   from here to the session, is the client still there
//	  ├ checkPath                   path.go       PATHS; forms that servers read differently
//	  ├ checkHandshake              handshake.go  RFC 6455 section 4.2.1
//	  ├ findClient                  clientip      who is it, behind trusted proxies
//	  ├ checkOrigin                 origin        which page sent it
//	  ├ checkLoop                   via.go        is this gate its own upstream
//	  ├ checkRates, checkRoom       ratelimit     by address and global; failed authentications; session caps
//	  ├ authenticate                auth          where the token is, and who verifies it
//	  │ ├ attempt                   ratelimit     no more credentials under way than may still fail
//	  │ ├ receiveToken              frame         101, and the token as the first message (firstmessage.go, pointer.go)
//	  │ ├ verify                    auth          identity, and until when it holds
//	  │ └ redeem                    ticket        or what a ticket stands for (ticket.go)
//	  ├ takeSlot                    ratelimit     by subject; from here on the session counts
//	  ├ connect                     upstream      dial and handshake, with headers made by upstreamRequest (forward.go)
//	  ├ switchProtocols             session.go    hijack, 101, both connections to the relay
//	  │ └ session.start             lease         asked about again in time; ended when the credential is (lease.go)
//	  │   └ relay.Start             relay         frames, until either side, a limit, the lease or Drain ends it
//	  │     └ session.ended                       lease and slot released, counted, one line in the log
//	  ├ refuse                      refusal.go    any step's no: counted, logged, answered; nowhere else
//	  │ ├ openToRefuse              refuseclose.go 101 for a no that a browser's script can see
//	  │ └ dismiss                                 the no as a Close frame, and the wait for it to be read
//	  └ leave                       proxy.go      lets go of what was held, also in a panic
//
// The token endpoint (token.go) takes the same way as far as it concerns it, and so do the gate's own endpoints (endpoint.go),
// where a token is traded for a ticket (ticket.go) or for more time in a session (renewal.go).
//
// # Invariants
//
//   - Until the hijack every no is an ordinary HTTP answer. After it Close frames take its place, the gate's own until there
//     is a session, and then the relay's.
//   - A client that is reset while it waits lets go of its slot, its dial and its call of the verifier at once; one that has
//     sent FIN is answered, for CLOSE_TIMEOUT.
//   - Sockets that are open and no session's are bounded in number, time and bytes, and hold no slot while they are refused.
//   - What lacks on this side, a descriptor, memory or a port, is Overload: neither the upstream nor the verifier is blamed.
//   - Connections that have not asked for anything are bounded in time, and in number by a quarter of the descriptors.
//   - A connection carries one request.
//   - Nothing is dialled before everything else has said yes. A request that is not authenticated holds no slot.
//   - A slot is released exactly once: by leave before relay.Start, by session.ended after it.
//   - A session whose credential ends is held by a lease before the relay has it, and released once, by session.ended.
//   - No path that a server may take for one below /.portcullis/ goes upstream.
//   - A request comes through a gate once.
//   - A tunnel exists only after both handshakes were right to the letter.
//   - Each refusal has one [Reason], is counted once and logged once; beyond 100 lines a second, one line tells how many.
//   - What the client says of itself in headers that are ours to write goes no further, in any spelling.
//   - No token and no query string is in any log line, metric, error text or answer.
//   - While a session lives the gate keeps one small struct of it, and of its request the credential where that is to be asked
//     about again, and nothing else.
//   - Once Drain or Cut has closed the gate, requests are only refused; so those in progress can be waited for, and after
//     them the sessions.
//
// # What may stand in front
//
// A proxy or load balancer in front
//
//   - MUST be in TRUSTED_PROXIES for its X-Forwarded-For, -Proto and -Host to be believed, and then MUST append to or
//     replace X-Forwarded-For, and MUST NOT let other X-Forwarded headers of its clients through;
//   - MUST NOT share one connection among clients once it has sent an upgrade over it;
//   - MUST pass on Upgrade, Connection, Sec-WebSocket-* and the headers or the query that hold the token, unchanged;
//   - MUST speak HTTP/1.1 to this side;
//   - SHOULD keep idle connections for longer than PING_INTERVAL;
//   - SHOULD take an instance out at /readyz, with DRAIN_DELAY as long as that takes;
//   - SHOULD NOT log queries if tokens come in them.
//
// # What may stand behind
//
// An upstream
//
//   - MUST be reachable through this gate alone, or else not believe the headers that the gate sets;
//   - MUST take identity from the headers of AUTH_FORWARD only, and for a request without them assume nobody;
//   - MUST NOT read Forwarded, which is removed: X-Forwarded-For is the verified list, X-Real-IP its first entry;
//   - SHOULD check Origin itself where it also answers plain HTTP.
package proxy
