package upstream

import "portcullis/proxy/header"

// isHeader reports whether every name and value may be sent. Of what net/textproto has parsed it refuses a name with a
// space before its colon, which some read as the name without it (RFC 9112 section 5.1).
func isHeader(h map[string][]string) bool {
	for name, values := range h {
		if !header.IsToken(name) {
			return false
		}
		for _, v := range values {
			if !header.IsValue(v) {
				return false
			}
		}
	}
	return true
}
