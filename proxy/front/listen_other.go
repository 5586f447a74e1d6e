//go:build !unix

package front

import (
	"os"
	"syscall"
)

const socketMode = 0o660

func keepPrivate(_, _ string, _ syscall.RawConn) error { return nil }

func accepts(*os.File) bool { return true }
