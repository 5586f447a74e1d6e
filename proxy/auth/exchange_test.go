package auth

import (
	"errors"
	"net/http/httptest"
	"testing"
)

func TestBearer(t *testing.T) {
	for _, test := range []struct {
		name   string
		values []string
		want   string
		err    error // as errors.Is finds it; errBytes for any *MalformedError
	}{
		{"one", []string{"Bearer good"}, "good", nil},
		{"the same twice", []string{"Bearer good", "bearer  good"}, "good", nil},
		{"none", nil, "", ErrMissing},
		{"empty", []string{"Bearer "}, "", ErrMissing},
		{"another scheme", []string{"Basic Z29vZA=="}, "", ErrMissing},
		{"two", []string{"Bearer good", "Bearer bad"}, "", ErrConflict},
		{"two in one", []string{"Bearer good bad"}, "", errBytes},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/?token=other", nil)
			r.Header["Authorization"] = test.values
			got, err := Bearer(r)
			_, malformed := errors.AsType[*MalformedError](err)
			if !errors.Is(err, test.err) && !(malformed && test.err == errBytes) {
				t.Fatalf("got %v, want %v", err, test.err)
			}
			if err == nil && got.Token != test.want {
				t.Error("got another token")
			}
		})
	}
}

func TestParam(t *testing.T) {
	for _, test := range []struct {
		query, want, rest string
		err               error
	}{
		{"a=1&ticket=x&b=2", "x", "a=1&b=2", nil},
		{"%74icket=%78", "x", "", nil},
		{"ticket=x&ticket=x", "x", "", nil},
		{"ticket=&a=%zz", "", "a=%zz", nil},
		{"Ticket=x", "", "Ticket=x", nil},
		{"ticket=x&%74icket=y", "", "", ErrConflict},
		{"ticket=%zz", "", "", errEscapes},
	} {
		t.Run(test.query, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/?"+test.query, nil)
			got, err := FindParam(r, "ticket")
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("found %q, %v; want %q, %v", got, err, test.want, test.err)
			}
			if rest := StripParam(test.query, "ticket"); rest != test.rest {
				t.Errorf("left %q, want %q", rest, test.rest)
			}
		})
	}
}
