package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"portcullis/proxy/gate"
	"portcullis/proxy/refusal"
	"portcullis/proxy/session"
	"portcullis/ratelimit"
)

// routed gives a gate a table of routes: NAME=[host]/path target, each of which edit may change.
func routed(edit func(*Config, map[string]*Route), table ...string) func(*Config) {
	return func(c *Config) {
		named := make(map[string]*Route)
		c.Routes = make([]Route, len(table))
		for i, text := range table {
			words := strings.Fields(text)
			name, place, _ := strings.Cut(words[0], "=")
			host, _, _ := strings.Cut(place, "/")
			r := &c.Routes[i]
			*r = Route{Name: name, Setting: "ROUTE_" + name, Host: host, Paths: []string{strings.TrimPrefix(place, host)}, Upstream: c.Upstream, Relay: c.Relay, Limits: c.Limits}
			r.Upstream.URL = strings.Join(words[1:], " ")
			named[name] = r
		}
		if edit != nil {
			edit(c, named)
			for i, r := range c.Routes {
				c.Routes[i].Relay.Resume, c.Routes[i].Relay.ResumeBuffer = c.Relay.Resume, r.Relay.ResumeBuffer
			}
		}
	}
}

func open(c *Config, routes map[string]*Route) { routes["PUBLIC"].Open = true }

// A request goes to the targets of its route, by its rules, and the log and the metrics name it.
func TestRoutes(t *testing.T) {
	chat, public, host := newBackend(t, nil), newBackend(t, nil), newBackend(t, nil)
	g := newGate(t, "", routed(open, "CHAT=/chat/* "+chat.url, "PUBLIC=/public/* "+public.url, "HOST=b.example/* "+host.url))
	for _, tt := range []struct {
		request string
		backend *backend
		route   string
	}{
		{handshake("/chat/1?token=good"), chat, "CHAT"},
		{handshake("/public/1"), public, "PUBLIC"},
		{handshake("/public/1?token=made-up"), public, "PUBLIC"},
		{strings.Replace(handshake("/chat/1?token=good"), "Host: gate.example", "Host: B.example:3000", 1), host, "HOST"},
	} {
		conn := g.dial(t)
		conn.Write([]byte(tt.request))
		if a := readAnswer(t, conn); a.StatusCode != 101 {
			t.Fatalf("%q: got %d %s", tt.request, a.StatusCode, a.body)
		}
		r := tt.backend.next(t)
		if strings.Contains(r.RequestURI, "token") {
			t.Errorf("the backend got %s", r.RequestURI)
		}
		conn.Close()
		if line := g.journal.next(t, "session ended"); line["route"] != tt.route {
			t.Errorf("%q: logged as of route %v", tt.request, line["route"])
		}
	}
	for target, want := range map[string]int{"/chat/1": 401, "/other": 404, "/publi%63/1": 404, "/chat/%2e%2e/public/1": 400} {
		if a := g.send(t, handshake(target)); a.StatusCode != want {
			t.Errorf("%s: got %d, want %d", target, a.StatusCode, want)
		}
	}
	if got := g.routeUpgrades(t, "CHAT", "refused"); got != 1 {
		t.Errorf("%v refused upgrades to CHAT, want 1", got)
	}
	if got := g.routeUpgrades(t, "PUBLIC", "accepted"); got != 2 {
		t.Errorf("%v upgrades to PUBLIC, want 2", got)
	}
}

// routeUpgrades is the metric of a route.
func (g *testGate) routeUpgrades(t *testing.T, route, result string) float64 {
	t.Helper()
	families, err := g.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if labels := m.GetLabel(); f.GetName() == "portcullis_route_upgrades_total" && labels[0].GetValue() == result && labels[1].GetValue() == route {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no series of route %s", route)
	return 0
}

// What a server may take for a path of a route with credentials does not go by one without.
func TestOpenRouteIsNoWayAround(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, "", routed(open, "ADMIN=/admin/* "+b.url, "PUBLIC=/* "+b.url+"/"))
	for _, target := range []string{"/%61dmin/x", "/ADMIN/x", "/admin;a/x"} {
		if a := g.send(t, handshake(target)); a.StatusCode != 400 {
			t.Errorf("%s: got %d, want 400", target, a.StatusCode)
		}
	}
	b.untouched(t)
}

// Limits, relay mode and the largest message are those of the route.
func TestRouteRules(t *testing.T) {
	url := newEcho(t)
	g := newGate(t, "", routed(func(c *Config, routes map[string]*Route) {
		routes["SMALL"].Relay.MessageMaxBytes = 10
		routes["SLOW"].Limits.Messages, routes["SLOW"].Limits.MessagesBurst = ratelimit.Rate{N: 1, Per: 1e12}, 2
		routes["WHOLE"].Relay.Mode = "terminate"
	}, "SMALL=/small "+url, "SLOW=/slow "+url, "WHOLE=/whole "+url, "REST=/* "+url))
	long := strings.Repeat("x", 11)

	conn := g.connect(t, "/small?token=good", nil)
	conn.WriteMessage(websocket.TextMessage, []byte(long))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseMessageTooBig) {
		t.Errorf("a message beyond the route's: %v", err)
	}

	conn = g.connect(t, "/slow?token=good", nil)
	echoes(t, conn, "one")
	echoes(t, conn, "two")
	conn.WriteMessage(websocket.TextMessage, []byte("three"))
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) {
		t.Errorf("a message beyond the route's rate: %v", err)
	}

	d := websocket.Dialer{EnableCompression: true, HandshakeTimeout: patience}
	for path, compressed := range map[string]bool{"/whole": false, "/rest": true} {
		conn, resp, err := d.Dial("ws://"+g.addr+path+"?token=good", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("Sec-WebSocket-Extensions") != ""; got && !compressed {
			t.Errorf("%s: extensions %v", path, got)
		}
		for range 5 {
			echoes(t, conn, long)
		}
		conn.Close()
	}
}

// A ticket opens the route of the path that it was asked for, and no other.
func TestTicketOfARoute(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, "", routed(func(c *Config, routes map[string]*Route) { ticketing(c); open(c, routes) },
		"CHAT=/chat/* "+b.url, "NEWS=/news "+b.url+"/n", "PUBLIC=/public "+b.url+"/p"))
	for query, want := range map[string]int{
		"": 400, "?path=": 404, "?path=/chat/x": 200, "?path=/news": 200, "?path=/chat": 404, "?path=/public": 400, "?path=/chat/x&path=/news": 400,
		"?path=%2Fchat%2Fx": 200, "?path=/chat/../news": 404, "?path=%zz": 400, "?path=/token": 404,
	} {
		if a := g.send(t, post("/.portcullis/ticket"+query, "wonder")); a.StatusCode != want {
			t.Errorf("%q: got %d %s, want %d", query, a.StatusCode, a.body, want)
		}
	}
	issue := func(path string) string { return g.ticketFor(t, "/.portcullis/ticket?path="+path, "wonder") }
	if a := g.send(t, handshake("/news?ticket="+issue("/chat/x"))); a.StatusCode != 401 {
		t.Errorf("another route's ticket: got %d, want 401", a.StatusCode)
	}
	if a := g.send(t, handshake("/chat/other?ticket="+issue("/chat/x"))); a.StatusCode != 101 {
		t.Errorf("another path of the route: got %d %s, want 101", a.StatusCode, a.body)
	}
	if got := g.refused(t, refusal.TicketPath); got == 0 {
		t.Error("no ticket was counted as refused for its path")
	}
}

// With one route nobody has to say which path a ticket is for; who does has to name one that is served.
func TestTicketOfTheOnlyRoute(t *testing.T) {
	b := newBackend(t, nil)
	g := newGate(t, b.url, func(c *Config) { ticketing(c); c.Gate.Paths = []string{"/chat"} })
	for query, want := range map[string]int{"": 200, "?path=/chat": 200, "?path=/other": 404} {
		if a := g.send(t, post("/.portcullis/ticket"+query, "wonder")); a.StatusCode != want {
			t.Errorf("%q: got %d %s, want %d", query, a.StatusCode, a.body, want)
		}
	}
}

// The token of a session leads back to it alone, by the path of its route.
func TestResumeOnItsRoute(t *testing.T) {
	url := newEcho(t)
	g := newGate(t, "", routed(func(c *Config, routes map[string]*Route) {
		resuming()(c)
		open(c, routes)
		for _, r := range routes {
			r.Relay = c.Relay
		}
		routes["CHAT"].Limits.Messages = ratelimit.Rate{N: 1000, Per: 1e9}
	}, "CHAT=/chat/* "+url, "PUBLIC=/public/* "+url))
	c := newResumer(t, g, "/chat/1?token=good")
	c.open()
	if c.welcome.Limits.Messages != 1000 {
		t.Errorf("the client is told of %+v, want its route's 1000", c.welcome.Limits)
	}
	c.cut()
	c.mustBack()
	c.send("x")
	c.want("x")
	c.cut()
	for _, elsewhere := range []string{"/public/1", "/chat/2"} {
		stranger := *c
		stranger.target = elsewhere
		if err := stranger.back(); err == nil {
			t.Errorf("the session was returned to at %s", elsewhere)
		}
	}
	p := newResumer(t, g, "/public/1")
	p.open()
	if p.welcome.Limits.Messages != 0 {
		t.Errorf("a client of another route is told of %+v", p.welcome.Limits)
	}
}

// A session of a route without credentials is nobody's, so nobody can renew it; one of another route is renewed as ever.
func TestRenewalOnItsRoute(t *testing.T) {
	url := newEcho(t)
	g := newGate(t, "", routed(func(c *Config, routes map[string]*Route) {
		open(c, routes)
		c.Session.Renewal = true
	}, "CHAT=/chat/* "+url, "PUBLIC=/public/* "+url))
	_, resp, err := g.tryConnect("/public/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if id := resp.Header.Get(session.Header); id != "" {
		t.Errorf("the client of an open route was given the id %q to renew by", id)
	}
	_, id := g.open(t, "/chat/1?token=wonder")
	if a := g.send(t, renewal("wonder", id)); a.StatusCode != http.StatusOK {
		t.Errorf("renewal: got %d %s", a.StatusCode, a.body)
	}
}

// A server that two routes share has one count of sessions and one health.
func TestRoutesShareServers(t *testing.T) {
	shared, other := newBackend(t, nil), newBackend(t, nil)
	g := newGate(t, "", routed(nil, "A=/a "+shared.url, "B=/b "+shared.url+" "+other.url))
	for range 3 {
		g.connect(t, "/a?token=good", nil)
	}
	for range 3 {
		conn, resp, err := g.tryConnect("/b?token=good", nil)
		if err != nil {
			t.Fatal(err, resp)
		}
		defer conn.Close()
	}
	if got := len(other.requests); got != 3 {
		t.Errorf("%d of 3 sessions of B are where A has none, want all", got)
	}
	live := 0
	for _, target := range g.current.Load().targets() {
		live += target.Live
	}
	if live != 6 {
		t.Errorf("%d sessions are counted, want 6", live)
	}
}

// Plain requests pass where their route says so, and what a server may take for a path that needs a credential passes nowhere without.
func TestPlainRequestsByRoute(t *testing.T) {
	app := newApplication(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) })
	g := newGate(t, "", routed(func(c *Config, routes map[string]*Route) {
		routes["API"].HTTP, routes["PAGES"].HTTP = gate.HTTPAuth, gate.HTTPOpen
	}, "API=/api/* "+app, "PAGES=/* "+app+"/", "CHAT=/chat/* "+app+"/?chat"))
	conn := g.keep(t)
	for _, tt := range []struct {
		target string
		want   int
	}{
		{"/index.html", 200}, {"/api/x", 401}, {"/api/x?token=good", 200}, {"/%61pi/x", 400}, {"/API/x", 400}, {"/api;v=1/x", 400}, {"/apis", 200},
	} {
		resp, _ := conn.ask(t, request("GET "+tt.target+" HTTP/1.1", "Host: gate.example"))
		if resp.StatusCode != tt.want {
			t.Errorf("%s: got %d, want %d", tt.target, resp.StatusCode, tt.want)
		}
	}
	if a := g.send(t, request("GET /chat/x HTTP/1.1", "Host: gate.example")); a.StatusCode != 426 {
		t.Errorf("a route without plain requests: got %d, want 426", a.StatusCode)
	}
	if a := g.send(t, handshake("/index.html")); a.StatusCode != 401 {
		t.Errorf("an upgrade where plain requests are open: got %d, want 401", a.StatusCode)
	}
}
