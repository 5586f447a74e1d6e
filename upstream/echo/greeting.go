package echo

import (
	"fmt"
	"io"
)

// Greeting is what a newcomer who runs the bundled backend has to know of the program in front of it.
type Greeting struct {
	Command   string // which runs the program
	Addr      string // host:port where clients connect
	TLS       bool
	AdminAddr string // host:port of the operator's listener; empty: none
	Auth      bool   // clients need a token
	Tokens    bool   // and it is the token endpoint's of this package, which answers at Addr
}

// Greet writes what the bundled backend is for and what to try, in lines that work as typed.
func (s *Server) Greet(out io.Writer, g Greeting) {
	ws, http := "ws", "http"
	if g.TLS {
		ws, http = "wss", "https"
	}
	var query string
	switch {
	case g.Tokens && s.defaultToken:
		query = "?token=token"
	case g.Auth:
		query = "?token=YOUR_TOKEN"
	}
	fmt.Fprintf(out, "\nNo UPSTREAM_URL is set, so the bundled echo backend answers, for trying things out.\n")
	fmt.Fprintf(out, "  WebSocket  %s://%s/%s\n", ws, g.Addr, query)
	if g.Tokens {
		fmt.Fprintf(out, "  tokens     %s://%s/token%s\n", http, g.Addr, query)
	}
	if g.AdminAddr != "" {
		fmt.Fprintf(out, "  metrics    http://%s/metrics\n", g.AdminAddr)
	}
	fmt.Fprintf(out, "Try, in another terminal:\n")
	fmt.Fprintf(out, "  %s probe '%s://%s/%s'\n", g.Command, ws, g.Addr, query)
	fmt.Fprintf(out, "  npx wscat -c '%s://%s/%s'\n\n", ws, g.Addr, query)
}
