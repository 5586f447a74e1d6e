package proxy

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// beyond are the imports that a package may have besides the standard library. What is not listed here may have none: a leaf
// knows its own field, and neither its neighbours nor whoever uses it. The rooms between this package and the leaves stand first, each
// above those that it may import; only programs, this package, which puts the parts together, and config, which has the settings of all,
// may import everything.
var beyond = map[string][]string{
	"portcullis/proxy/api": {
		"portcullis/proxy/gate", "portcullis/proxy/session", "portcullis/proxy/refusal", "portcullis/proxy/auth", "portcullis/proxy/ticket",
		"portcullis/proxy/relay", "portcullis/proxy/frame", "portcullis/proxy/fleet", "portcullis/ratelimit", "golang.org/x/time/rate",
	},
	"portcullis/proxy/gate": {
		"portcullis/proxy/session", "portcullis/proxy/refusal", "portcullis/proxy/relay", "portcullis/proxy/admin", "portcullis/proxy/auth",
		"portcullis/proxy/clientip", "portcullis/proxy/frame", "portcullis/proxy/header", "portcullis/proxy/origin", "portcullis/proxy/ticket",
		"portcullis/ratelimit", "portcullis/upstream", "golang.org/x/time/rate", "portcullis/proxy/fleet",
	},
	"portcullis/proxy/fleet": {
		"portcullis/ratelimit", "portcullis/proxy/admin", "github.com/redis/go-redis/v9", "github.com/sony/gobreaker/v2",
		"github.com/rabbitmq/amqp091-go", "github.com/twmb/franz-go/pkg/", "golang.org/x/time/rate",
	},
	"portcullis/proxy/session": {
		"portcullis/proxy/relay", "portcullis/proxy/lease", "portcullis/proxy/admin", "portcullis/proxy/auth", "portcullis/proxy/frame",
		"portcullis/ratelimit", "golang.org/x/time/rate",
	},
	"portcullis/proxy/check": {
		"portcullis/proxy", "portcullis/proxy/config", "portcullis/proxy/settings", "portcullis/proxy/auth", "portcullis/proxy/certificate",
		"portcullis/proxy/fleet", "portcullis/upstream",
	},
	"portcullis/proxy/admin": {"portcullis/proxy/certificate", "github.com/prometheus/client_golang/"},
	"portcullis/proxy/front": {"portcullis/proxy/certificate", "github.com/pires/go-proxyproto", "golang.org/x/sys/unix", "golang.org/x/time/rate"},

	"portcullis/proxy/auth": {
		"github.com/golang-jwt/jwt/v5", "github.com/MicahParks/", "github.com/hashicorp/golang-lru/v2", "github.com/sony/gobreaker/v2",
		"golang.org/x/sync/singleflight", "golang.org/x/time/rate", "portcullis/proxy/header",
	},
	"portcullis/proxy/clientip":   {"portcullis/proxy/header"},
	"portcullis/proxy/dnstest":    {"github.com/miekg/dns"},
	"portcullis/proxy/lease":      {"golang.org/x/time/rate"},
	"portcullis/proxy/origin":     {"golang.org/x/net/publicsuffix"},
	"portcullis/proxy/probe":      {"github.com/gorilla/websocket"},
	"portcullis/proxy/refusal":    {"portcullis/proxy/frame", "golang.org/x/time/rate"},
	"portcullis/proxy/relay":      {"portcullis/proxy/frame", "github.com/koding/websocketproxy", "github.com/gorilla/websocket", "golang.org/x/sys/unix"},
	"portcullis/proxy/rabbittest": {"github.com/rabbitmq/amqp091-go"},
	"portcullis/proxy/settings":   {"github.com/caarlos0/env/v11"},
	"portcullis/ratelimit":        {"golang.org/x/time/rate"},
	"portcullis/upstream":         {"portcullis/proxy/header", "github.com/cespare/xxhash/v2", "golang.org/x/sys/unix"},
	"portcullis/upstream/echo":    {"github.com/gorilla/websocket"},
}

func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.Name}} {{.ImportPath}} {{join .Imports " "}}`, "portcullis/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name, path, imports := fields[0], fields[1], fields[2:]
		packages++
		if name == "main" || path == "portcullis/proxy" || path == "portcullis/proxy/config" {
			continue
		}
		for _, imported := range imports {
			first, _, _ := strings.Cut(imported, "/")
			standard := !strings.Contains(first, ".") && first != "portcullis"
			allowed := slices.ContainsFunc(beyond[path], func(prefix string) bool {
				return imported == prefix || strings.HasSuffix(prefix, "/") && strings.HasPrefix(imported, prefix)
			})
			if !standard && !allowed {
				t.Errorf("%s imports %s", path, imported)
			}
		}
	}
	if packages < len(beyond) {
		t.Errorf("go list gave %d packages", packages)
	}
}
