package proxy

import (
	"net/http"
	"portcullis/proxy/refusal"
)

// tokenPath is where Config.TokenEndpoint answers.
const tokenPath = "/token"

// isTokenRequest reports whether a request is for the token endpoint rather than for an upgrade.
func (p *Proxy) isTokenRequest(u *upgrade) bool {
	return p.token != nil && u.path == tokenPath && !p.paths.serves(tokenPath)
}

// serveToken answers /token. A token can be tried there as in an upgrade, so it costs as much: the address's rate, the global
// one, and for a wrong token the address's failure budget.
func (p *Proxy) serveToken(u *upgrade) {
	for _, step := range [...]func(*Proxy, *upgrade) *refusal.Refusal{
		(*Proxy).findClient,
		(*Proxy).checkRates,
		(*Proxy).tryToken,
	} {
		if no := step(p, u); no != nil {
			u.w.Header().Set("Access-Control-Allow-Origin", "*") // as the endpoint's own answers have it
			p.refuse(u, no)
			return
		}
	}
}

func (p *Proxy) tryToken(u *upgrade) *refusal.Refusal {
	attempt, no := p.attempt(u)
	if no != nil {
		return no
	}
	defer attempt.Release()
	answer := &statusWriter{ResponseWriter: u.w}
	p.token.ServeHTTP(answer, u.r)
	if answer.status == http.StatusBadRequest {
		attempt.Charge()
		p.record(u, &refusal.Refusal{Reason: refusal.TokenRefused, Status: answer.status})
	}
	return nil
}

// statusWriter remembers the status it writes.
type statusWriter struct {
	http.ResponseWriter
	status int // 0: none yet
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}
