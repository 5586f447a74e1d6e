package admin

import "strconv"

// other stands for every label value that is not known.
const other = "other"

// resolve makes the child of each known label value once, and of "other", so that counting is one map look-up.
func resolve[T any](values []string, child func(value string) T) map[string]T {
	children := map[string]T{other: child(other)}
	for _, v := range values {
		children[v] = child(v)
	}
	return children
}

// childOf is the child of value, or that of "other".
func childOf[T any](children map[string]T, value string) T {
	if child, ok := children[value]; ok {
		return child
	}
	return children[other]
}

const codeNone = "none"

// codeLabels are the codes of IANA's WebSocket Close Code Number Registry that a session can end with: those that an endpoint
// may send, 1005 for a Close frame without one, and 1006 for the lack of a Close frame (RFC 6455 section 7.1.5).
var codeLabels = func() map[int]string {
	labels := make(map[int]string)
	for _, code := range []int{
		1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, // the protocol's own
		3000, 3003, 3008, // unauthorized, forbidden, timeout
	} {
		labels[code] = strconv.Itoa(code)
	}
	return labels
}()

// codeLabel bounds a close code, which either peer chooses freely, to a handful of label values.
func codeLabel(code int) string {
	label, registered := codeLabels[code]
	switch {
	case registered:
		return label
	case code == 0:
		return codeNone
	case code >= 3000 && code < 4000: // libraries and frameworks
		return "3xxx"
	case code >= 4000 && code < 5000: // private use
		return "4xxx"
	default:
		return other
	}
}
