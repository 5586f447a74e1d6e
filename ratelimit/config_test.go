package ratelimit

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
)

func TestDefaults(t *testing.T) {
	got, err := env.ParseAsWithOptions[Config](env.Options{Environment: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		UpgradesPerIP:     Rate{20, time.Second},
		RequestsPerIP:     Rate{200, time.Second},
		AuthFailuresPerIP: Rate{10, time.Minute},
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := New(got); err != nil {
		t.Errorf("defaults refused: %v", err)
	}
}

func TestEveryVariableIsRead(t *testing.T) {
	environment := make(map[string]string)
	fields := reflect.TypeFor[Config]()
	for f := range fields.NumField() {
		environment[fields.Field(f).Tag.Get("env")] = map[bool]string{true: "7/h", false: "5"}[fields.Field(f).Type == reflect.TypeFor[Rate]()]
	}
	got, err := env.ParseAsWithOptions[Config](env.Options{Environment: environment})
	if err != nil {
		t.Fatal(err)
	}
	r := Rate{7, time.Hour}
	if want := (Config{r, 5, r, 5, r, 5, r, 5, r, 5, 5, 5, 5, r, 5, r}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestMistakes(t *testing.T) {
	second := Rate{20, time.Second}
	for _, test := range []struct {
		name string
		c    Config
		want []string // how each line begins; none: no mistake
	}{
		{"zero", Config{}, nil},
		{"burst", Config{Upgrades: second, UpgradesBurst: 1}, nil},
		{"largest burst", Config{UpgradesPerIP: Rate{1, time.Hour}, UpgradesPerIPBurst: maxCount}, nil},
		{"burst without rate", Config{UpgradesPerSubjectBurst: 5}, []string{`RATE_UPGRADES_PER_SUBJECT_BURST: "5" has no rate`}},
		{"message burst without rate", Config{MessagesBurst: 5}, []string{`MESSAGE_BURST: "5" has no rate`}},
		{"negative burst", Config{Upgrades: second, UpgradesBurst: -1}, []string{`RATE_UPGRADES_BURST: "-1" is out of range`}},
		{"too large a burst", Config{Upgrades: second, UpgradesBurst: maxCount + 1}, []string{`RATE_UPGRADES_BURST: "1000000001" is out of range`}},
		{"rate of no unit", Config{UpgradesPerIP: Rate{5, 0}}, []string{`RATE_UPGRADES_PER_IP: "5/0s" is not a rate`}},
		{"rate of another unit", Config{UpgradesPerIP: Rate{5, 7 * time.Second}}, []string{`RATE_UPGRADES_PER_IP: "5/7s" is not a rate`}},
		{"negative rate", Config{AuthFailuresPerIP: Rate{-5, time.Second}}, []string{`RATE_AUTH_FAILURES_PER_IP: "-5/s" is not a rate`}},
		{"negative cap", Config{SessionsPerIP: -1}, []string{`LIMIT_SESSIONS_PER_IP: "-1" is negative`}},
		{
			"all together",
			Config{Upgrades: Rate{1, 1}, UpgradesBurst: -1, AuthFailuresPerIPBurst: -2, Sessions: -3, SessionsPerSubject: -4},
			[]string{"RATE_UPGRADES: ", "RATE_UPGRADES_BURST: ", "RATE_AUTH_FAILURES_PER_IP_BURST: ", "LIMIT_SESSIONS: ", "LIMIT_SESSIONS_PER_SUBJECT: "},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(test.c)
			var got []string
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(test.want) {
				t.Fatalf("got %d mistakes %q, want %d", len(got), got, len(test.want))
			}
			for i, line := range got {
				if !strings.HasPrefix(line, test.want[i]) || !strings.Contains(line, "; want ") {
					t.Errorf("got %q, want %q... and what is allowed", line, test.want[i])
				}
			}
		})
	}
}

func TestPerSession(t *testing.T) {
	for _, test := range []struct {
		name string
		c    Config
		want PerSession
	}{
		{"no limits", Config{}, PerSession{}},
		{"a rate is its own burst", Config{Messages: Rate{120, time.Minute}}, PerSession{Messages: 2, Burst: 120}},
		{"a burst", Config{Messages: Rate{5, time.Second}, MessagesBurst: 50}, PerSession{Messages: 5, Burst: 50}},
		{"bytes", Config{MessageBytes: Rate{1_000_000, time.Second}}, PerSession{Bytes: 1e6}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.c.PerSession(); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	second := func(n int) Rate { return Rate{N: n, Per: time.Second} }
	for _, tt := range []struct {
		name string
		c    Config
		want []string
	}{
		{"nothing set", Config{}, nil},
		{"no rate of all", Config{UpgradesPerIP: second(20), UpgradesPerSubject: second(20)}, nil},
		{"below", Config{Upgrades: second(10), UpgradesPerIP: second(9)}, nil},
		{"the same in another unit", Config{Upgrades: second(1), UpgradesPerIP: Rate{60, time.Minute}, UpgradesPerSubject: Rate{3600, time.Hour}}, nil},
		{"above", Config{Upgrades: second(10), UpgradesPerIP: second(11), UpgradesPerSubject: second(10)}, []string{"RATE_UPGRADES_PER_IP"}},
		{"both", Config{Upgrades: Rate{10, time.Hour}, UpgradesPerIP: second(11), UpgradesPerSubject: Rate{11, time.Hour}},
			[]string{"RATE_UPGRADES_PER_IP", "RATE_UPGRADES_PER_SUBJECT"}},
		{"a smaller burst is reached", Config{Upgrades: second(10), UpgradesBurst: 100, UpgradesPerIP: second(50)}, nil},
		{"its own smaller burst is reached", Config{Upgrades: second(10), UpgradesPerIP: second(50), UpgradesPerIPBurst: 9}, nil},
		{"as many at once", Config{Upgrades: second(10), UpgradesBurst: 50, UpgradesPerIP: second(50)}, []string{"RATE_UPGRADES_PER_IP"}},
		{"the largest", Config{Upgrades: second(maxCount), UpgradesPerIP: second(maxCount)}, nil},
	} {
		if got := tt.c.Unreachable(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
