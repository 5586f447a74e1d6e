package gate

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// traefik#10589, traefik#10601: the deadlines that net/http leaves on a connection would end the session at some later time.
func TestDeadlinesEndWithTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		here.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			io.CopyN(io.Discard, there, 3)
			time.Sleep(24 * time.Hour)
			io.WriteString(there, "late")
			io.Copy(io.Discard, there)
		}()
		if no := (&socket{conn: here}).write([]byte("101")); no != nil {
			t.Fatal(no.Err)
		}
		if n, err := io.ReadFull(here, make([]byte, 4)); err != nil {
			t.Errorf("read after a day: got %d bytes, %v", n, err)
		}
		if _, err := here.Write([]byte("later")); err != nil {
			t.Errorf("write after a day: got %v", err)
		}
	})
}
