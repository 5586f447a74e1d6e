//go:build !linux

package relay

import (
	"errors"
	"net"
)

const haveLoops = false

// loops are for Linux alone: elsewhere every session is relayed on the stream engine.
type loops struct{}

func newLoops() *loops { return nil }

func (*loops) add(*loopSession, Handover) bool { return false }

type loopSession struct{ timer timer }

func newLoopSession(*Relay, Handover) *loopSession { return nil }

func (*loopSession) Close(Reason, Closing)        {}
func (*loopSession) cut()                         {}
func (*loopSession) home() (route, target string) { return "", "" }

func (*loopSession) prepare(net.Conn) (replace func([]byte), cancel func(), err error) {
	return nil, nil, errors.ErrUnsupported
}

// deliveryOf cannot tell here.
func deliveryOf(net.Conn) (d delivery, ok bool) { return d, false }

// hungUpOf cannot, either.
func hungUpOf(net.Conn) (fin, broken bool) { return false, false }
