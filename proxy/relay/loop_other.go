//go:build !linux

package relay

import "net"

const haveLoops = false

// loops are for Linux alone: elsewhere every session is relayed on the stream engine.
type loops struct{}

func newLoops() *loops { return nil }

func (*loops) add(*loopSession, Handover) bool { return false }

type loopSession struct{ timer timer }

func newLoopSession(*Relay, Handover) *loopSession { return nil }

func (*loopSession) Close(Reason, Closing) {}
func (*loopSession) cut()                  {}

// deliveryOf cannot tell here.
func deliveryOf(net.Conn) (d delivery, ok bool) { return d, false }

// hungUpOf cannot, either.
func hungUpOf(net.Conn) (fin, broken bool) { return false, false }
