package api

import (
	"bytes"
	"net/http"

	"portcullis/proxy/gate"
	"portcullis/proxy/refusal"
)

// serveToken answers /token. A token can be tried there as in an upgrade, so it costs as much: the address's rate, the global
// one, and for a wrong token the address's failure budget.
func (a *API) serveToken(r *gate.Request) {
	r.Answer = http.Header{"Access-Control-Allow-Origin": {"*"}} // as the endpoint's own answers have it
	no := a.gate.CheckRates(r)
	if no == nil {
		answer := &response{header: make(http.Header), status: http.StatusOK}
		no = a.gate.Try(r, func() (refused bool) {
			a.token.ServeHTTP(answer, r.HTTP)
			return answer.status == http.StatusBadRequest
		})
		if no == nil {
			if answer.status == http.StatusBadRequest {
				a.gate.Report(r, &refusal.Refusal{Reason: refusal.TokenRefused, Status: answer.status})
			}
			r.Respond(answer.status, answer.header, answer.body.Bytes())
			return
		}
	}
	a.gate.Refuse(r, no)
}

// response is an answer in memory: which connection it goes to, the endpoint need not know.
type response struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *response) Header() http.Header         { return r.header }
func (r *response) WriteHeader(status int)      { r.status = status }
func (r *response) Write(b []byte) (int, error) { return r.body.Write(b) }
