// Package proxy puts the rooms of the gate together: [New] checks and compiles a [Config], Serve and Drain are a [Proxy]'s life in
// a process. What each room keeps true stands in its own package comment.
//
// # The life of a connection
//
//	Serve                           front         accept; HTTP/1.1 alone, TLS; every wait and every size bounded
//	└ ServeHTTP, serve              proxy.go      one request a connection, but for plain ones; none while draining
//	  ├ present                     generation.go what the settings come to now, for the whole of the request
//	  ├ api.Handler                 api           the gate's own paths: ticket, renewal, token
//	  └ gate.Serve                  gate          the steps, cheap before costly; the first refusal ends it
//	    ├ chooseRoute               route.go      ROUTE_*, PATHS; path.go: forms that servers read differently
//	    ├ serveHTTP                 http.go       HTTP_MODE: what asks for no upgrade goes through a list of its own, and ends here
//	    │ └ pass                    upstream      httputil.ReverseProxy, over a connection to a target that is kept
//	    ├ checkHandshake            handshake.go  RFC 6455 section 4.2.1
//	    ├ checkOrigin               origin        which page sent it
//	    ├ checkLoop                 loop.go       has it been here before
//	    ├ checkRates                ratelimit     by address and global; failed authentications
//	    ├ checkSessionCaps          ratelimit     is there a slot at all
//	    ├ authenticate              auth          where the token is, and who verifies it
//	    │ ├ attempt                 ratelimit     no more credentials under way than may still fail
//	    │ ├ receiveToken            frame         101, and the token as the first message
//	    │ └ redeem                  ticket        or what a ticket stands for
//	    ├ findGroups                session       SESSION_GROUPS: of claims, of the verifier's answer, of the query
//	    ├ takeSlot                  ratelimit     not kicked; by subject; from here on the session counts
//	    ├ connect                   upstream      dial and handshake, with headers made by upstreamRequest
//	    ├ switchProtocols           switch.go     hijack, 101, both connections to a session
//	    │ └ session.Start           session       found by id; verified again in time, and ended with its credential (lease)
//	    │   └ relay.Start           relay         frames, until either side, a limit, the lease or Drain ends it
//	    │     └ session.ended       session       lease and slot released, counted, one line in the log
//	    └ refuse                    refusal       any step's refusal: released, reported, answered; nowhere else
//
//	checkRates, takeSlot, redeem    fleet         where there are other instances: rates, caps and tickets in Redis
//	Instances                       api           what is asked of all instances, and what all are to do, over the bus
//
//	Reload                          reload.go     another Config: another generation, checked whole before any request goes by it
//	└ drainTargets                  relay         the sessions of a target that is gone, where its route says so
//
//	Operator                        api           /api of the operator's listener: who shows ADMIN_TOKEN lists, kicks, sends
//	└ session.List, Kick, Send      session       finds sessions; the relay tells each to go, or queues the push, where its state is
//
// # The house
//
// Imports point down, and a test over the import graph keeps it so:
//
//		config → proxy → front api gate session → relay lease auth ticket clientip origin upstream ratelimit … → frame header certificate
//
//	  - front, where connections come in, knows nothing of gates: it hands a request and its Exchange to an http.Handler.
//	  - gate takes a request to a session or a refusal. Its steps know no http.ResponseWriter: a front door of another kind implements
//	    gate.Client and uses the same steps.
//	  - api answers the gate's own paths, with the gate's checks, and /api of the operator's listener, by ADMIN_TOKEN.
//	  - session keeps the live ones; the relay knows nothing of tokens and the lease nothing of sockets.
//	  - upstream has the targets of a route; Servers is what is known of those behind all of them.
//	  - refusal is the one place that says why not. It is a leaf, for front, gate and api need the value and none may own it.
//	  - config, above this package, is the environment: every room's settings, and what only all of them together can get wrong.
//	  - operate is what an operator does from a shell; it asks /api and knows no room.
//	  - check, above config, has each room ask once what its settings name, before a gate serves. [Check] finds the mistakes alone.
//	  - The leaves know their own field, and neither their neighbours nor whoever uses them, but for frame and header. Both
//	    listeners, front and admin, use certificate.
//
// A new reason to refuse goes to refusal/reason.go; another place for tokens to auth/place.go; who answers a path to api.go; what ends
// a session at expiry is session/credential.go's leaseEndings; where a session is looked up by id is session/registry.go; how long a connection may say nothing is front/server.go's headerTimeout.
//
// # Invariants of the whole
//
//   - A connection carries plain requests, or none, and then one upgrade, refused or not.
//   - What a request needs of the settings is one generation, which does not change. What outlives a reload (sessions, counts, the health of
//     servers) is not in it.
//   - A path of a route that needs no credential is none that any server may take for a path of one that does.
//   - httputil.ReverseProxy never sees a request for an upgrade, nor an answer to one.
//   - Each refusal has one [refusal.Reason], is counted once and logged once; beyond 100 lines a second, one line tells how many.
//   - What the client says of itself in headers that are the gate's to write goes no further, in any spelling.
//   - No token and no query string is in any log line, metric, error text or answer.
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
