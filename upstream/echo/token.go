package echo

import (
	"crypto/sha256"
	"crypto/subtle"
	"io"
	"net/http"
	"net/url"
)

const maxToken = 8192 // bytes, as everywhere in Portcullis

// wellFormed reports whether a token can be sent at all: 1 to 8192 bytes of visible ASCII.
func wellFormed(token string) bool {
	for i := range len(token) {
		if token[i] <= ' ' || token[i] >= 0x7f {
			return false
		}
	}
	return token != "" && len(token) <= maxToken
}

// mask hides a secret, and shows only whether there is one.
func mask(secret string) string {
	if secret == "" {
		return ""
	}
	return "***"
}

// newTokenHandler answers GET ?token=... with 1 and 200 if it is the token, else with 0 and 400. Script of any origin may
// ask, so CORS allows it, the preflight of a request with header fields of its own included.
func newTokenHandler(token string) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		switch r.Method {
		case http.MethodGet:
		case http.MethodOptions:
			h.Set("Access-Control-Allow-Methods", "GET")
			h.Set("Access-Control-Allow-Headers", "*")
			w.WriteHeader(http.StatusNoContent)
			return
		default:
			h.Set("Allow", "GET, OPTIONS")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store") // the URL of the answer holds the token
		// All hashes have one length, so the time of the comparison reveals nothing about the token, not even its length.
		got := sha256.Sum256([]byte(tokenOf(r.URL.RawQuery)))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, "0")
			return
		}
		io.WriteString(w, "1")
	})
}

// tokenOf returns the token parameter of a query. It returns "", which is never a token, if there is none, if there are two that
// differ, or if the query cannot be parsed.
func tokenOf(rawQuery string) string {
	values, err := url.ParseQuery(rawQuery)
	if err != nil || len(values["token"]) == 0 {
		return ""
	}
	token := values["token"][0]
	for _, other := range values["token"][1:] {
		if other != token {
			return ""
		}
	}
	return token
}
