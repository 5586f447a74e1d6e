package upstream

import "testing"

func TestChosenProtocol(t *testing.T) {
	tests := []struct {
		name          string
		answer, offer []string
		want          string
		ok            bool
	}{
		{"none offered, none chosen", nil, nil, "", true},
		{"none chosen", nil, []string{"a, b"}, "", true},
		{"first", []string{"a"}, []string{"a, b"}, "a", true},
		{"last of several lines", []string{"c"}, []string{"a,b", "\tc "}, "c", true},
		{"none offered", []string{"a"}, nil, "", false},
		{"not offered", []string{"c"}, []string{"a, b"}, "", false},
		{"part of an offer", []string{"a"}, []string{"ab"}, "", false},
		{"whole list", []string{"a, b"}, []string{"a, b"}, "", false},
		{"empty entry chosen", []string{""}, []string{"a,,b"}, "", false},
		{"no token", []string{"a b"}, []string{"a b"}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := chosenProtocol(tt.answer, tt.offer); got != tt.want || ok != tt.ok {
				t.Errorf("got %q, %v, want %q, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestAcceptedExtensions(t *testing.T) {
	const deflate = "permessage-deflate; client_max_window_bits"
	tests := []struct {
		name          string
		answer, offer []string
		want          string
		ok            bool
	}{
		{"none", nil, nil, "", true},
		{"declined", nil, []string{deflate}, "", true},
		{"as offered", []string{deflate}, []string{deflate}, deflate, true},
		{"other parameters", []string{"permessage-deflate; server_max_window_bits=10"}, []string{deflate}, "permessage-deflate; server_max_window_bits=10", true},
		{"quoted parameter", []string{`permessage-deflate; server_max_window_bits="10"`}, []string{deflate}, `permessage-deflate; server_max_window_bits="10"`, true},
		{"white space around =", []string{"a; x = 1"}, []string{"a; x= 2"}, "a; x = 1", true},
		{"one of two offers of a name", []string{"a; x=2"}, []string{"a; x=1, a; x=2"}, "a; x=2", true},
		{"both offers of a name", []string{"a; x=1, a; x=2"}, []string{"a; x=1, a; x=2"}, "", false},
		{"several lines", []string{"b", "a"}, []string{"a", "b,c"}, "b, a", true},
		{"none offered", []string{"a"}, nil, "", false},
		{"not offered", []string{"b"}, []string{"a"}, "", false},
		{"other case", []string{"A"}, []string{"a"}, "", false},
		{"empty", []string{""}, []string{"a,,"}, "", false},
		{"empty element", []string{"a,"}, []string{"a,"}, "", false},
		{"parameter without a name", []string{"a; =1"}, []string{"a"}, "", false},
		{"parameter with an empty value", []string{"a; b="}, []string{"a"}, "", false},
		{"empty parameter", []string{"a;"}, []string{"a"}, "", false},
		{"lone quote", []string{`a; b="`}, []string{"a"}, "", false},
		{"offer hidden in a quoted value", []string{"b"}, []string{`a; x="1, b"`}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := acceptedExtensions(tt.answer, tt.offer); got != tt.want || ok != tt.ok {
				t.Errorf("got %q, %v, want %q, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}
