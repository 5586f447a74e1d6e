// Package relay moves the bytes of a session between a client and its
// upstream, after the gate has let it in, and keeps hold of it until it ends.
//
// # The policy and the engines
//
// What a session does is decided in one place, without I/O: policy
// (policy.go, heartbeat.go, delivery.go, closing.go, limits.go, text.go) follows the frames of both
// directions with a scanner of package frame, counts and limits messages, keeps the
// heartbeat, and says which bytes go on, which frames of our own are due and
// when a connection is to be shut or closed. What moves the bytes is an engine, and
// every engine obeys the same policy:
//
//	            loop                            stream                     terminate
//	runs        RELAY_ENGINE=loop, or auto on   auto where the loop        RELAY_MODE=terminate
//	            Linux, without TLS              cannot run, or asked for
//	            connections
//	carries     frames as they are              frames as they are         whole messages, framed anew
//	per session no goroutine, stack or buffer   two goroutines, 2 x 1 KiB  three goroutines, the library's buffers
//	idle, about 1.6 KiB                         10 to 15 KiB               30 KiB
//	files       loop_linux.go, wheel.go         stream.go                  terminate.go, on stream.go
//
// # The event loop
//
// There is one loop to each processor (GOMAXPROCS): one goroutine on one epoll
// instance with one read buffer of 64 KiB. A session belongs to the first loop that has room
// (loopFull), or to the one with the fewest, and nobody else touches it; what comes from outside (a
// new session, a drain) goes through the loop's mailbox, and an eventfd wakes it. A turn is
// one wait, edge-triggered, for any number of ready descriptors, and for each of them one read, one
// look of the policy, and one write to the peer at once. A message thus costs two reads and
// two writes, and a share of a wait. What a peer does not take is kept, and the
// other side is not read until it has gone: that is all the buffering there is. Timers
// are one coarse wheel to each loop (wheel.go); they fire up to 50 ms late.
//
// The descriptors come from net/http and package net, and each is owned by
// exactly one of them at a time: the loop duplicates both, and only when it has
// everything that it needs closes the originals, which takes the sockets out of
// Go's poller with their deadlines (loop.add). Where it cannot, for lack of descriptors, the
// session runs on the stream engine instead.
//
// # The stream engine
//
// Two goroutines, each reading one side and writing to the other, over any
// net.Conn: TLS on either side, other systems. A blocked read holds a kilobyte;
// a side that sends more borrows 32 KiB while it does.
//
// # Terminating
//
// Both WebSocket connections end here, and koding/websocketproxy carries
// messages from one to the other, of which text must be UTF-8. See terminate.go for what of that library is let near a peer.
//
// # Resumption
//
// A session whose client may come back (resumption.go, storeforward.go, docs/resume.md) carries whole messages: each is kept until
// the other side has it, and neither side waits for the other. The loss of the client's connection detaches it, and a return
// gives it another one (return.go), which an engine puts in the place of the old. All other sessions have none of that.
//
// # How a session ends
//
// With a Close frame, at a frame boundary, wherever the protocol still allows one; and
// always: each side has a deadline from the moment at which the end began. See [Reason] for why,
// and closing.go for how.
package relay
