package front

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Addr is one entry of LISTEN_ADDR.
type Addr struct {
	// Network is tcp, unix, or fd for sockets that systemd has opened.
	Network string
	// Host and Port are those of tcp. Without a host it is every address.
	Host, Port string
	// Path is that of a unix socket, and Name that of sockets from systemd.
	Path, Name string
}

// maxUnixPath is how many bytes the path of a unix socket may have: 108 in struct sockaddr_un of Linux, with a zero at the end.
const maxUnixPath = 107

// maxSocketName is how many bytes a name in LISTEN_FDNAMES may have, by sd_listen_fds(3).
const maxSocketName = 255

// ParseAddr reads an entry of LISTEN_ADDR: host:port, unix:/PATH or fd:NAME. The error is one line, and names LISTEN_ADDR and the entry.
func ParseAddr(entry string) (Addr, error) {
	wrong := func(what string) (Addr, error) { return Addr{}, fmt.Errorf("LISTEN_ADDR: %q %s", entry, what) }
	if path, ok := strings.CutPrefix(entry, "unix:"); ok {
		switch {
		case !strings.HasPrefix(path, "/"), strings.HasSuffix(path, "/"):
			return wrong("is not the path of a socket from the root on; want one, as unix:/run/portcullis/front.sock")
		case len(path) > maxUnixPath:
			return wrong(fmt.Sprintf("has a path of %d bytes; want %d at most", len(path), maxUnixPath))
		}
		return Addr{Network: "unix", Path: path}, nil
	}
	if name, ok := strings.CutPrefix(entry, "fd:"); ok {
		if name == "" || len(name) > maxSocketName || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' || c == ':' }) {
			return wrong("has no name of a socket; want that of FileDescriptorName= in the socket unit of systemd, as fd:web")
		}
		return Addr{Network: "fd", Name: name}, nil
	}
	host, port, err := net.SplitHostPort(entry)
	if err != nil || !isPort(port) || strings.ContainsAny(host, "/ ") {
		return wrong("is no address; want host:port or :port, with a port up to 65535, or unix:/PATH, or fd:NAME")
	}
	return Addr{Network: "tcp", Host: host, Port: port}, nil
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// Clashes reports whether both cannot be listened at.
func (a Addr) Clashes(b Addr) bool {
	if a.Network != "tcp" || b.Network != "tcp" {
		return a == b
	}
	return a.Port == b.Port && a.Port != "0" && (a.Host == b.Host || covers(a.Host, b.Host) || covers(b.Host, a.Host))
}

// covers reports whether listening on host includes listening on other.
func covers(host, other string) bool {
	return host == "" || host == "::" || host == "0.0.0.0" && !strings.Contains(other, ":")
}

// Listening says what [Listen] is to open.
type Listening struct {
	// Addrs are entries as [ParseAddr] takes them.
	Addrs []string
	// Passed are the sockets that systemd has passed, each with its name. Listen closes them: it has copies.
	Passed []*os.File
	// KeepAlive has TCP look for dead clients. Sockets from systemd have it in any case.
	KeepAlive bool
	// Logger is told of passed sockets that Addrs do not name. Nil: nobody is told.
	Logger *slog.Logger
}

// Listen opens a listener for each address; one of fd:NAME is as many as have that name. A unix socket has mode 0660, takes the place of
// one that nobody listens at any more, and is removed when its listener closes. The error says what to do; then none is open.
func Listen(c Listening) (all []net.Listener, err error) {
	defer func() {
		for _, f := range c.Passed {
			f.Close()
		}
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			all = nil
		}
	}()
	named := make(map[string]bool)
	for _, entry := range c.Addrs {
		a, err := ParseAddr(entry)
		if err != nil {
			return all, err
		}
		var opened []net.Listener
		if a.Network == "fd" {
			opened, err = takePassed(c.Passed, a.Name)
			named[a.Name] = true
		} else {
			var l net.Listener
			if l, err = a.listen(c.KeepAlive); err == nil {
				opened = []net.Listener{l}
			}
		}
		all = append(all, opened...)
		if err != nil {
			return all, fmt.Errorf("LISTEN_ADDR: %q: %w; %s", entry, err, a.remedy(err))
		}
	}
	for _, f := range c.Passed {
		if !named[f.Name()] {
			cmp.Or(c.Logger, slog.New(slog.DiscardHandler)).Warn("a socket was passed that LISTEN_ADDR does not name: clients that connect there wait for nobody", "want", "fd:"+f.Name())
		}
	}
	return all, nil
}

// listen opens a listener of TCP or at a unix socket.
func (a Addr) listen(keepAlive bool) (net.Listener, error) {
	var c net.ListenConfig
	if a.Network == "unix" {
		return listenUnix(a.Path)
	}
	c.SetMultipathTCP(false) // whose sockets do not report TCP_INFO, which the heartbeat needs
	if !keepAlive {
		// The heartbeat finds a dead client sooner than TCP's keep-alive would, and without four system calls per connection.
		c.KeepAlive = -1
	}
	return c.Listen(context.Background(), "tcp", net.JoinHostPort(a.Host, a.Port))
}

// errNoSocket says that a path is taken by something else than a socket.
var errNoSocket = errors.New("there is something that is no socket")

// listenUnix opens a unix socket that the group of this process may connect to, and nobody else.
func listenUnix(path string) (net.Listener, error) {
	c := net.ListenConfig{Control: keepPrivate}
	l, err := c.Listen(context.Background(), "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(path, err); err != nil {
			return nil, err
		}
		l, err = c.Listen(context.Background(), "unix", path)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// removeStale removes the socket of a process that is gone, which refuses every connection. It returns inUse for one of a process that
// lives.
func removeStale(path string, inUse error) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errNoSocket
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return inUse
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return inUse // a full queue has somebody behind it, too
	}
	return os.Remove(path)
}

// errNotPassed says that systemd has passed no socket of a name.
type errNotPassed struct{ names []string }

func (e *errNotPassed) Error() string {
	if len(e.names) == 0 {
		return "no socket was passed to this process"
	}
	return fmt.Sprintf("the sockets that were passed are named %q", e.names)
}

// errNoListener says that what was passed accepts no connections.
var errNoListener = errors.New("the socket that was passed accepts no connections")

// takePassed returns a listener for each passed socket of a name.
func takePassed(passed []*os.File, name string) (all []net.Listener, err error) {
	missing := &errNotPassed{}
	for _, f := range passed {
		if f.Name() != name {
			missing.names = append(missing.names, f.Name())
			continue
		}
		l, err := net.FileListener(f)
		if err == nil && !accepts(f) {
			l.Close()
			err = errNoListener
		}
		if err != nil {
			return all, err
		}
		all = append(all, l)
	}
	if len(all) == 0 {
		slices.Sort(missing.names)
		return nil, missing
	}
	return all, nil
}

// remedy says what to do about an address that cannot be listened at.
func (a Addr) remedy(err error) string {
	if a.Network == "fd" {
		return "want a socket unit of systemd with FileDescriptorName=" + a.Name + ", ListenStream= and Accept=no"
	}
	if a.Network == "tcp" {
		return Remedy(err)
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "another process listens there, perhaps an earlier one of this program; want another path"
	case errors.Is(err, fs.ErrNotExist):
		return "want a directory that is there"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return "want a directory in which this user may make files"
	}
	return "want a path at which nothing is yet"
}

// Remedy says what to do about a host:port that cannot be listened at.
func Remedy(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "another process listens there, perhaps an earlier one of this program; want a port that is free"
	case errors.Is(err, syscall.EACCES):
		return "ports below 1024 are privileged; want a higher one, or the capability CAP_NET_BIND_SERVICE"
	}
	return "want an address of this machine"
}

// AddrOf names what a listener listens at, as LISTEN_ADDR would; a socket from systemd by its address.
func AddrOf(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return l.Addr().String()
}
