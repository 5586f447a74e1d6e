package relay

import (
	"crypto/tls"
	"net"
	"testing"
)

// The socket below TLS is asked whatever it is wrapped in, as the front's are: else the heartbeat takes a slow client with TLS for a dead one.
func TestDeliveryBelowTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wrapped := struct{ *net.TCPConn }{conn.(*net.TCPConn)}
	for name, c := range map[string]net.Conn{
		"plain": conn, "TLS": tls.Client(conn, &tls.Config{}), "TLS over a wrapper": tls.Client(wrapped, &tls.Config{}),
	} {
		if _, ok := deliveryOf(c); !ok {
			t.Errorf("%s: nobody knows", name)
		}
	}
}
