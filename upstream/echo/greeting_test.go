package echo

import (
	"context"
	"strings"
	"testing"
)

func TestGreet(t *testing.T) {
	for _, tt := range []struct {
		name, token string
		greeting    Greeting
		want        []string // lines that it has, without the white space around them
		not         []string // what it has not
	}{
		{"as it comes", "token", Greeting{Command: "go run .", Addr: "localhost:3000", AdminAddr: "127.0.0.1:9090", Auth: true, Tokens: true}, []string{
			"WebSocket  ws://localhost:3000/?token=token", "tokens     http://localhost:3000/token?token=token", "metrics    http://127.0.0.1:9090/metrics",
			"go run . probe 'ws://localhost:3000/?token=token'", "npx wscat -c 'ws://localhost:3000/?token=token'",
		}, nil},
		{"TLS", "token", Greeting{Addr: "localhost:3000", TLS: true, Auth: true, Tokens: true},
			[]string{"WebSocket  wss://localhost:3000/?token=token", "tokens     https://localhost:3000/token?token=token"}, []string{"metrics"}},
		{"a token that is a secret", "hunter2", Greeting{Addr: "localhost:3000", Auth: true, Tokens: true},
			[]string{"WebSocket  ws://localhost:3000/?token=YOUR_TOKEN"}, []string{"hunter2"}},
		{"another token endpoint", "token", Greeting{Addr: "localhost:3000", Auth: true},
			[]string{"WebSocket  ws://localhost:3000/?token=YOUR_TOKEN"}, []string{"tokens", "token=token"}},
		{"no authentication", "token", Greeting{Addr: "localhost:3000"}, []string{"WebSocket  ws://localhost:3000/"}, []string{"token"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Start(Config{Token: tt.token})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(context.Background())
			var out strings.Builder
			s.Greet(&out, tt.greeting)
			for _, want := range tt.want {
				if !strings.Contains(out.String(), " "+want+"\n") {
					t.Errorf("no line %s in:%s", want, out.String())
				}
			}
			for _, not := range tt.not {
				if strings.Contains(out.String(), not) {
					t.Errorf("%s in:%s", not, out.String())
				}
			}
		})
	}
}
