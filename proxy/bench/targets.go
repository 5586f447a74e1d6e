//go:build linux

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/template"

	"github.com/koding/websocketproxy"
)

// target is a proxy to be measured.
type target struct {
	name  string // for -only, and short
	title string // in the tables
	// auth says that the upgrade is authenticated. The other targets cannot do that, and are measured without.
	auth bool
	// only names the measures that it takes part in, with blanks between them; empty: all but pushes.
	only string
	// program is the build of Portcullis to be measured; empty: this module's.
	program string
	// push makes the request that has it send to all its sessions; nil: it only relays.
	push func(e environment) (*http.Request, error)
	// command makes its configuration in an empty folder. An error that wraps errAbsent leaves the target out.
	command func(s environment) (command, error)
}

// environment is what a target is started with.
type environment struct {
	folder  string         // its own, empty
	listen  netip.AddrPort // where it is to take connections
	admin   netip.AddrPort // where it is to take orders, if not there
	echo    netip.AddrPort // the backend and token endpoint
	program string         // this module's, built
	self    string         // a copy of this program: processes of the same file would share its memory
}

// errAbsent: the program is not on this machine.
var errAbsent = errors.New("not found")

// targets are in the order of the table's columns. direct is no proxy: its figures are those of the client and the backend.
var targets = append([]target{
	{name: "loop", title: "Portcullis, loop", auth: true, command: portcullis("RELAY_ENGINE=loop")},
	{name: "stream", title: "Portcullis, stream", auth: true, command: portcullis("RELAY_ENGINE=stream")},
	{name: "cached", title: "Portcullis, loop, answers cached", auth: true, only: "upgrade",
		command: portcullis("RELAY_ENGINE=loop", "AUTH_CACHE_TTL=60s")},
	{name: "nginx", title: "nginx", auth: true, command: nginx},
	{name: "haproxy", title: "HAProxy", command: haproxy},
	{name: "reverseproxy", title: "httputil.ReverseProxy", command: library("reverseproxy")},
	{name: "koding", title: "koding/websocketproxy", command: library("koding")},
	{name: "direct", title: "no proxy", only: "latency"},
}, pushTargets...)

// withBuild adds, after each target of this module, the same target of another build.
func withBuild(all []target, program string) (both []target) {
	for _, c := range all {
		both = append(both, c)
		if c.isPortcullis() {
			c.name, c.title, c.program = c.name+"-before", c.title+", before", program
			both = append(both, c)
		}
	}
	return both
}

func (c target) isPortcullis() bool { return strings.HasPrefix(c.title, "Portcullis") }

// portcullis runs with its defaults, except for the limits on upgrades by address: here all upgrades come from one address.
func portcullis(settings ...string) func(environment) (command, error) {
	return func(s environment) (command, error) {
		return command{path: s.program, addr: s.listen, env: append([]string{
			"LISTEN_ADDR=" + s.listen.String(),
			"ADMIN_ADDR=",
			"UPSTREAM_URL=ws://" + s.echo.String(),
			"AUTH_URL=http://" + s.echo.String() + "/token",
			"RATE_UPGRADES_PER_IP=0",
			"RATE_AUTH_FAILURES_PER_IP=0",
			"DRAIN_TIMEOUT=1s",
		}, settings...)}, nil
	}
}

var (
	//go:embed nginx.conf
	nginxConf string
	//go:embed haproxy.cfg
	haproxyConf string
)

func nginx(s environment) (command, error) {
	path, err := find("nginx")
	if err != nil {
		return command{}, err
	}
	conf := filepath.Join(s.folder, "nginx.conf")
	return command{
		path: path, addr: s.listen,
		args: []string{"-e", "stderr", "-p", s.folder, "-c", conf},
	}, s.configure(conf, nginxConf)
}

func haproxy(s environment) (command, error) {
	path, err := find("haproxy")
	if err != nil {
		return command{}, err
	}
	conf := filepath.Join(s.folder, "haproxy.cfg")
	return command{path: path, addr: s.listen, args: []string{"-db", "-f", conf}}, s.configure(conf, haproxyConf)
}

// find looks in PATH, and where Debian's packages put servers, which is not in everybody's PATH.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	if path, err := exec.LookPath("/usr/sbin/" + program); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s: %w", program, errAbsent)
}

// configure writes a configuration from its template.
func (s environment) configure(name, text string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return template.Must(template.New("").Parse(text)).Execute(f, map[string]any{
		"Folder":      s.folder,
		"Listen":      s.listen,
		"Echo":        s.echo,
		"Token":       token,
		"Cores":       runtime.NumCPU(),
		"Root":        os.Geteuid() == 0,
		"Descriptors": descriptorLimit(),
		// HAProxy wants two descriptors per connection and some of its own.
		"Sessions": (descriptorLimit() - 500) / 2,
	})
}

// libraries are the Go libraries, each used as its documentation shows.
var libraries = map[string]func(echo netip.AddrPort) http.Handler{
	"reverseproxy": func(echo netip.AddrPort) http.Handler {
		target := &url.URL{Scheme: "http", Host: echo.String()}
		return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	},
	"koding": func(echo netip.AddrPort) http.Handler {
		return websocketproxy.NewProxy(&url.URL{Scheme: "ws", Host: echo.String()})
	},
}

// library is this program started again to serve one of libraries.
func library(name string) func(environment) (command, error) {
	return func(s environment) (command, error) {
		return command{path: s.self, addr: s.listen, args: []string{name, s.listen.String(), s.echo.String()}}, nil
	}
}

// serveLibrary takes the addresses to listen on and of the backend.
func serveLibrary(name string, args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	return http.Serve(l, libraries[name](netip.MustParseAddrPort(args[1])))
}
