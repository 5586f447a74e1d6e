package header

import "strings"

// ExtensionName returns the name in one element of Sec-WebSocket-Extensions, or "" if the element is malformed. RFC 6455
// section 9.1 has
//
//	extension = token *( ";" token [ "=" ( token / quoted-string ) ] )
//
// with white space between any two of these, around = too: it takes the grammar of RFC 2616 and its "implied *LWS", where
// RFC 9110 section 5.6.6 would have none there. A quoted value must be a token once it is unquoted, so no comma or semicolon
// hides in one. A value with a backslash is refused, because as it stands it is not a token.
func ExtensionName(element string) string {
	name, params, more := strings.Cut(element, ";")
	for more {
		var param string
		param, params, more = strings.Cut(params, ";")
		key, value, valued := strings.Cut(param, "=")
		value = Trim(value)
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = value[1 : n-1]
		}
		if !IsToken(Trim(key)) || valued && !IsToken(value) {
			return ""
		}
	}
	if name = Trim(name); !IsToken(name) {
		return ""
	}
	return name
}
