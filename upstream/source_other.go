//go:build !linux

package upstream

import "syscall"

// bindLate is for Linux alone.
func bindLate(string, string, syscall.RawConn) error { return nil }
