package gate

import (
	"crypto/tls"
	"testing"

	"portcullis/proxy/auth"
)

func TestForwardedHeaders(t *testing.T) {
	const trusted, stranger = "10.0.0.1:1", "192.0.2.1:1"
	for _, tt := range []struct {
		name  string
		peer  string
		tls   bool
		lines []string
		want  map[string]string
	}{
		{"from a stranger", stranger, false, nil, map[string]string{
			"X-Forwarded-For": "192.0.2.1", "X-Real-Ip": "192.0.2.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "gate.example",
		}},
		{"over TLS", stranger, true, nil, map[string]string{"X-Forwarded-Proto": "https"}},
		{"a stranger's words", stranger, false,
			[]string{"X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Prefix: /evil"},
			map[string]string{
				"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "gate.example", "X-Forwarded-Prefix": "",
			}},
		{"a stranger's words for its address", stranger, false,
			[]string{"CF-Connecting-IP: 6.6.6.6", "True-Client-IP: 6.6.6.6", "X-Client-IP: 6.6.6.6", "X-Forwarded: for=6.6.6.6"},
			map[string]string{"Cf-Connecting-Ip": "", "True-Client-Ip": "", "X-Client-Ip": "", "X-Forwarded": ""}},
		{"a stranger's words for its scheme", stranger, false, []string{"Front-End-Https: on", "X-Scheme: https", "X-Forwarded-Ssl: on"},
			map[string]string{"Front-End-Https": "", "X-Scheme": "", "X-Forwarded-Ssl": ""}},
		{"a trusted proxy's other words for the scheme", trusted, false,
			[]string{"X-Forwarded-Proto: https", "Front-End-Https: On", "X-Scheme: http", `CF-Visitor: {"scheme":"https"}`, "X_Url_Scheme: https", "X-Forwarded-Ssl: on"},
			map[string]string{"Front-End-Https": "On", "X-Scheme": "", "Cf-Visitor": `{"scheme":"https"}`, "X_url_scheme": "", "X-Forwarded-Ssl": "on"}},
		{"an address and its port", trusted, false,
			[]string{"X-Forwarded-For: 198.51.100.7", "CloudFront-Viewer-Address: 198.51.100.7:40000", "X-Azure-ClientIP: 198.51.100.8:40000"},
			map[string]string{"Cloudfront-Viewer-Address": "198.51.100.7:40000", "X-Azure-Clientip": ""}},
		{"those of a network in front", trusted, false,
			[]string{"X-Forwarded-For: 198.51.100.7", "CF-Connecting-IP: 198.51.100.7", "CF_Connecting_IP: 198.51.100.7", "True-Client-IP: 6.6.6.6"},
			map[string]string{"Cf-Connecting-Ip": "198.51.100.7", "Cf_connecting_ip": "", "True-Client-Ip": ""}},
		{"a trusted proxy's words", trusted, false,
			[]string{
				"X-Forwarded-For: 6.6.6.6, 198.51.100.7", "X-Forwarded-For: 10.0.0.2", "X-Forwarded-Proto: https", "X-Forwarded-Host: app.example:8443",
				"X-Forwarded-Prefix: /app", "X_Forwarded_Port: 1", "Forwarded: for=198.51.100.7", "X-Real-IP: 6.6.6.6",
			},
			map[string]string{
				"X-Forwarded-For": "198.51.100.7, 10.0.0.2, 10.0.0.1", "X-Real-Ip": "198.51.100.7", "X-Forwarded-Proto": "https",
				"X-Forwarded-Host": "app.example:8443", "X-Forwarded-Prefix": "/app", "X_forwarded_port": "", "Forwarded": "",
			}},
		{"wss", trusted, false, []string{"X-Forwarded-Proto: WSS"}, map[string]string{"X-Forwarded-Proto": "https"}},
		{"ws", trusted, true, []string{"X-Forwarded-Proto: ws"}, map[string]string{"X-Forwarded-Proto": "http"}},
		{"words that cannot be true", trusted, false, []string{"X-Forwarded-Proto: gopher", "X-Forwarded-Host: a,b"},
			map[string]string{"X-Forwarded-Proto": "http", "X-Forwarded-Host": "gate.example"}},
		{"two words", trusted, false, []string{"X-Forwarded-Proto: https", "X-Forwarded-Proto: http", "X-Forwarded-Host: a", "X-Forwarded-Host: b"},
			map[string]string{"X-Forwarded-Proto": "http", "X-Forwarded-Host": "gate.example"}},
		{"peer unknown", "@", false, []string{"X-Forwarded-For: 6.6.6.6", "X-Real-IP: 6.6.6.6"},
			map[string]string{"X-Forwarded-For": "", "X-Real-Ip": "", "X-Forwarded-Proto": "http"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGate(t)
			r := read(t, handshake("/?token=good", tt.lines...))
			r.RemoteAddr = tt.peer
			if tt.tls {
				r.TLS = new(tls.ConnectionState)
			}
			got := g.upstreamRequest(&upgrade{Request: g.NewRequest(nil, r), route: g.routes[0]}).Header
			for name, want := range tt.want {
				values := got[name]
				if want == "" && values == nil || len(values) == 1 && values[0] == want {
					continue
				}
				t.Errorf("%s: got %q, want %q", name, values, want)
			}
			if r.Header.Get("Upgrade") == "" {
				t.Error("the request itself was changed")
			}
		})
	}
}

func TestPseudonymIsNotSentUpstream(t *testing.T) {
	g := newGate(t)
	for _, tt := range []struct {
		decision auth.Decision
		want     string
	}{
		{auth.Decision{Subject: "Alice"}, "Alice"},
		{auth.Decision{Subject: "hmac-x", Pseudonym: true}, ""},
	} {
		r := g.NewRequest(nil, read(t, handshake("/", "X-Auth-Subject: root")))
		u := &upgrade{Request: r, route: g.routes[0], grant: auth.Grant{Decision: tt.decision}}
		if got := g.upstreamRequest(u).Header.Get("X-Auth-Subject"); got != tt.want {
			t.Errorf("%+v: got %q, want %q", tt.decision, got, tt.want)
		}
	}
}
