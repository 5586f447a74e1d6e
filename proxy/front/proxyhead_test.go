package front

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// headV2 is a head of version 2: command and version, family and transport, and what follows the length.
func headV2(command, family byte, body string) string {
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family)
	return string(binary.BigEndian.AppendUint16(b, uint16(len(body)))) + body
}

// The addresses of heads of version 2, and a TLV (PP2_TYPE_AUTHORITY).
const (
	from4 = "\xcb\x00\x71\x09" + "\x0a\x00\x00\x01" + "\x1f\x90" + "\x01\xbb"                                                                                                 // 203.0.113.9:8080
	from6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09" + "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x1f\x90" + "\x01\xbb" // [2001:db8::9]:8080
	tlv   = "\x02\x00\x0bexample.org"
)

// goodHeads are heads, and the source that each names; "": its peer's own.
var goodHeads = map[string]string{
	"PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\r\n":               "203.0.113.9:8080",
	"PROXY TCP6 2001:db8::9 2001:db8::1 8080 443\r\n":            "[2001:db8::9]:8080",
	"PROXY TCP6 ::ffff:203.0.113.9 ::ffff:10.0.0.1 8080 443\r\n": "203.0.113.9:8080",
	"PROXY UNKNOWN\r\n": "",
	"PROXY UNKNOWN 203.0.113.9 10.0.0.1 8080 443\r\n":                      "",
	headV2(0x21, 0x11, from4):                                              "203.0.113.9:8080",
	headV2(0x21, 0x21, from6):                                              "[2001:db8::9]:8080",
	headV2(0x21, 0x11, from4+tlv+tlv):                                      "203.0.113.9:8080",
	headV2(0x21, 0x11, from4+"\x04\x0f\x80"+strings.Repeat("\x00", 0xf80)): "203.0.113.9:8080", // PP2_TYPE_NOOP
	headV2(0x20, 0x00, ""):                                                 "",
	headV2(0x20, 0x00, tlv):                                                "",
	headV2(0x20, 0x11, from4):                                              "", // LOCAL, whatever it names
	headV2(0x20, 0x11, ""):                                                 "",
}

var badHeads = map[string]string{
	"a request":                "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"a request that begins so": "POST / HTTP/1.1\r\nHost: a\r\n\r\n",
	"TLS":                      "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
	"an empty line":            "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
	"cut, version 1":           "PROXY TCP4 203.0.113.9 10.0",
	"cut, version 1 at its CR": "PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\r",
	"no CR":                    "PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\n",
	"too long":                 "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n",
	"without an end":           "PROXY TCP4 " + strings.Repeat("1", 4096),
	"small letters":            "proxy tcp4 203.0.113.9 10.0.0.1 8080 443\r\n",
	"of UDP":                   "PROXY UDP4 203.0.113.9 10.0.0.1 8080 443\r\n",
	"no address":               "PROXY TCP4\r\n",
	"a name":                   "PROXY TCP4 client.example 10.0.0.1 8080 443\r\n",
	"another family":           "PROXY TCP4 2001:db8::9 2001:db8::1 8080 443\r\n",
	"no port":                  "PROXY TCP4 203.0.113.9 10.0.0.1 http 443\r\n",
	"a port that is too large": "PROXY TCP4 203.0.113.9 10.0.0.1 65536 443\r\n",
	"more than five":           "PROXY TCP4 203.0.113.9 10.0.0.1 8080 443 x\r\n",
	"two blanks":               "PROXY  TCP4 203.0.113.9 10.0.0.1 8080 443\r\n",
	"every address":            "PROXY TCP4 0.0.0.0 10.0.0.1 8080 443\r\n",
	"cut in its signature":     headV2(0x21, 0x11, from4)[:9],
	"cut before its length":    headV2(0x21, 0x11, from4)[:14],
	"cut in its addresses":     headV2(0x21, 0x11, from4)[:20],
	"cut in its TLVs":          headV2(0x21, 0x11, from4+tlv)[:30],
	"too short for addresses":  headV2(0x21, 0x11, from4[:8]),
	"too long, version 2":      headV2(0x21, 0x11, from4+strings.Repeat("\x00", 4096)),
	"too long, LOCAL":          headV2(0x20, 0x00, strings.Repeat("\x00", 4097)),
	"another version":          headV2(0x31, 0x11, from4),
	"another command":          headV2(0x22, 0x11, from4),
	"of datagrams":             headV2(0x21, 0x12, from4),
	"of a unix socket":         headV2(0x21, 0x31, strings.Repeat("/", 216)),
	"of nothing":               headV2(0x21, 0x00, ""),
	"of an unknown transport":  headV2(0x21, 0x13, from4),
}

func TestHeads(t *testing.T) {
	const rest = "GET / HTTP/1.1\r\n"
	for raw, want := range goodHeads {
		for name, r := range map[string]io.Reader{"at once": strings.NewReader(raw + rest), "by the byte": iotest.OneByteReader(strings.NewReader(raw + rest))} {
			reader := bufio.NewReaderSize(r, 256)
			source, err := parseHead(reader)
			if got := source.String(); err != nil || source.IsValid() && got != want || !source.IsValid() && want != "" {
				t.Errorf("%q %s: got %s, %v; want %q", raw, name, got, err, want)
			}
			if left, _ := io.ReadAll(reader); string(left) != rest {
				t.Errorf("%q %s: behind it %q is left", raw, name, left)
			}
		}
	}
	for name, raw := range badHeads {
		if source, err := parseHead(bufio.NewReaderSize(strings.NewReader(raw), 256)); err == nil || err == errSilent || source.IsValid() {
			t.Errorf("%s: got %s, %v", name, source, err)
		}
	}
	if _, err := parseHead(bufio.NewReaderSize(strings.NewReader(""), 256)); err != errSilent {
		t.Errorf("nothing: %v", err)
	}
}

// Whatever comes, a head is read within its bounds, and what names a source does so for TCP.
func FuzzHead(f *testing.F) {
	for raw := range goodHeads {
		f.Add([]byte(raw + "rest"))
	}
	for _, raw := range badHeads {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		reader := bufio.NewReaderSize(in, 256)
		source, err := parseHead(reader)
		read := len(raw) - in.Len() - reader.Buffered()
		if most := 16 + 4096; read > most {
			t.Errorf("%d bytes were read of it, want %d at most", read, most)
		}
		switch {
		case err == nil && !bytes.HasPrefix(raw, []byte("PROXY ")) && !bytes.HasPrefix(raw, []byte("\r\n\r\n\x00\r\nQUIT\n")):
			t.Errorf("this is no head, and %s its source", source)
		case err == nil && source.IsValid() && (source.Addr().Is4In6() || source.Addr().IsUnspecified() || source.Addr().Zone() != ""):
			t.Errorf("the source is %s", source)
		case err != nil && source.IsValid():
			t.Errorf("%v, and the source is %s", err, source)
		case len(raw) > 0 && errors.Is(err, errSilent):
			t.Error("it is not silent")
		}
	})
}
