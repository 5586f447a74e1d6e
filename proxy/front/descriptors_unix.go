//go:build unix

package front

import (
	"math"

	"golang.org/x/sys/unix"
)

// Descriptors is how many this process may have open; 0: nobody knows. Go raises the limit to the hard one as it starts.
func Descriptors() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int(min(uint64(limit.Cur), math.MaxInt32))
}
