package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// askReady asks the operator's listener.
func askReady(ctx context.Context, c Config) error {
	addr, err := DialAddr(c.AdminAddr)
	if err != nil {
		return err
	}
	scheme := "http"
	if c.AdminTLS != nil {
		scheme = "https"
	}
	page := (&url.URL{Scheme: scheme, Host: addr, Path: "/readyz"}).String()
	fmt.Fprintf(c.Out, "GET %s\n", shorten(page))

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return fmt.Errorf("ADMIN_ADDR: %q is no address to ask", shorten(c.AdminAddr))
	}
	// A transport of its own: without the environment's proxy, and with nothing left open afterwards.
	transport := &http.Transport{TLSClientConfig: c.AdminTLS, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHead}
	start := time.Now()
	resp, err := transport.RoundTrip(req) // not a Client, which follows redirects
	if err != nil {
		return fmt.Errorf("no answer: %w", explain(ctx, err))
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody)) // a broken body does not change the status
	fmt.Fprintf(c.Out, "%s after %v: %s\n", status(resp.StatusCode), since(start), shorten(firstLine(string(body))))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", status(resp.StatusCode))
	}
	return nil
}

// DialAddr returns the address at which to reach a server that listens at addr.
func DialAddr(addr string) (string, error) {
	if addr == "" {
		return "", errors.New("ADMIN_ADDR is empty, so there is no operator's listener to ask; want its host:port, or for a probe the URL of a WebSocket")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("ADMIN_ADDR: %q is no address to ask; want host:port", shorten(addr))
	}
	switch ip, _ := netip.ParseAddr(host); {
	case host == "", ip == netip.IPv4Unspecified():
		host = "127.0.0.1"
	case ip == netip.IPv6Unspecified():
		host = "::1"
	}
	return net.JoinHostPort(host, port), nil
}
