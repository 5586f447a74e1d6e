package check

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"syscall"
)

// names are the settings by which something is reached.
type names struct {
	server      string // where it is
	timeout     string
	authorities string // that sign its certificate
	client      string // the certificate that it is shown
	serverName  string // that its certificate has; empty: there is no such setting
	plain       string // schemes without TLS
	otherwise   string // what is wanted where nothing more is known
}

// remedy says what to do about an error.
func remedy(err error, n names) string {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		operation *net.OpError
		timeout   net.Error
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "a name in " + n.server + " that can be looked up from here"
	case errors.As(err, &dns):
		return "a DNS server that answers from here, or an address in " + n.server
	case errors.As(err, &authority):
		return n.authorities + " with the authority that signed its certificate"
	case errors.As(err, &host):
		if n.serverName != "" {
			return n.server + " with a name that its certificate has, or that in " + n.serverName
		}
		return n.server + " with a name that its certificate has"
	case errors.As(err, &invalid):
		return "its certificate renewed, or issued for servers"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "more descriptors for this process (ulimit -n)"
	case errors.As(err, &record):
		return n.server + " with " + n.plain + ", for it speaks no TLS there, or another port"
	case errors.As(err, &operation) && operation.Op == "remote error":
		return n.client + " with a certificate that it accepts"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "it started, or " + n.server + " with the address where it listens"
	case errors.Is(err, fs.ErrNotExist):
		return n.server + " with the path of a socket that is there"
	case errors.Is(err, fs.ErrPermission):
		return "a way that is allowed: the mode of a socket, or the rules of a firewall"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return n.server + " with an address that can be reached from here"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "an address in " + n.server + " that answers from here, or a longer " + n.timeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "a server in " + n.server + " that answers, in the protocol of that URL"
	}
	return n.otherwise
}
