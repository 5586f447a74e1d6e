package settings

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// celsius is a type of one's own.
type celsius struct{ Degrees int }

func (c *celsius) UnmarshalText(text []byte) error {
	if _, err := fmt.Sscanf(string(text), "%dC", &c.Degrees); err != nil {
		return fmt.Errorf("%q is no temperature; want degrees, such as 20C", text)
	}
	return nil
}

type oven struct {
	Name    string        `env:"NAME" envDefault:"oven"`
	Heat    celsius       `env:"HEAT" envDefault:"200C" empty:"cold"`
	Burn    celsius       `env:"BURN"`
	Time    time.Duration `env:"TIME" envDefault:"30m" below:"TIME_MAX"`
	TimeMax time.Duration `env:"TIME_MAX"`
	Level   slog.Level    `env:"LEVEL" envDefault:"info"`
	Racks   int           `env:"RACKS" envDefault:"2"`
	Bytes   int64         `env:"BYTES"`
	Light   bool          `env:"LIGHT" envDefault:"false"`
	Watts   int           `env:"WATTS" envDefault:"25" needs:"LIGHT"`
	Recipes []string      `env:"RECIPES" envDefault:"bread,cake"`
	Sauce   string        `env:"SAUCE" needs:"RECIPES|BURN|RACKS"`
	Logger  *slog.Logger  `env:"-"`
	Door    struct {
		Lock string `env:"LOCK"`
		Code string `env:"CODE" envDefault:"0000" secret:"true"`
	} `guard:"true"`
}

func environOf(pairs ...string) map[string]string {
	environ := map[string]string{}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		environ[name] = value
	}
	return environ
}

func TestRead(t *testing.T) {
	defaults := func() (o oven) {
		o.Name, o.Heat.Degrees, o.Time, o.Racks, o.Watts, o.Recipes = "oven", 200, 30*time.Minute, 2, 25, []string{"bread", "cake"}
		o.Door.Code = "0000"
		return o
	}
	for _, tt := range []struct {
		name    string
		environ []string
		want    func(*oven)
	}{
		{"nothing set", nil, func(*oven) {}},
		{"empty is the default", []string{"NAME=", "TIME=", "RACKS=", "LIGHT=", "RECIPES=", "CODE=", "CODE_FILE=", "LEVEL="}, func(*oven) {}},
		{"empty is a value", []string{"HEAT="}, func(o *oven) { o.Heat.Degrees = 0 }},
		{"every kind", []string{"NAME=o'ven", "HEAT=1C", "TIME=1h30m", "LEVEL=warn", "RACKS=3", "BYTES=9223372036854775807", "LIGHT=true", "WATTS=40", "LOCK=a", "CODE=b"},
			func(o *oven) {
				o.Name, o.Heat.Degrees, o.Time, o.Level, o.Racks, o.Bytes, o.Light, o.Watts = "o'ven", 1, 90*time.Minute, slog.LevelWarn, 3, 1<<63-1, true, 40
				o.Door.Lock, o.Door.Code = "a", "b"
			}},
		{"a list", []string{"RECIPES= pie ,\tstew"}, func(o *oven) { o.Recipes = []string{"pie", "stew"} }},
		{"zero where zero means off", []string{"TIME=0", "WATTS=0"}, func(o *oven) { o.Time, o.Watts = 0, 0 }},
		{"below", []string{"TIME=1m", "TIME_MAX=1m"}, func(o *oven) { o.Time, o.TimeMax = time.Minute, time.Minute }},
		{"above by default only", []string{"TIME_MAX=1m"}, func(o *oven) { o.TimeMax = time.Minute }},
		{"the default needs nothing", []string{"WATTS=25"}, func(*oven) {}},
		{"one of several that are needed", []string{"SAUCE=red", "RACKS=0"}, func(o *oven) { o.Sauce, o.Racks = "red", 0 }},
		{"a secret may be in quotes", []string{`CODE="b"`}, func(o *oven) { o.Door.Code = `"b"` }},
		{"other variables", []string{"Name=x", "LOGGER=x", "DOOR=x"}, func(*oven) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := defaults()
			tt.want(&want)
			var got oven
			if _, err := Read(&got, environOf(tt.environ...)); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v (%v)\nwant %+v", got, err, want)
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		environ []string
		want    string
	}{
		{[]string{"HEAT=hot"}, `HEAT: "hot" is no temperature; want degrees, such as 20C`},
		{[]string{"TIME=30"}, `TIME: "30" is no duration; want a number with its unit, such as 500ms, 30s or 5m`},
		{[]string{"LEVEL=loud"}, `LEVEL: "loud" is no log level; want debug, info, warn or error`},
		{[]string{"RACKS=two"}, `RACKS: "two" is no whole number; want digits alone, such as 1000`},
		{[]string{"RACKS=2147483648"}, `RACKS: "2147483648" is too large; want a number that fits into 32 bits`},
		{[]string{"BYTES=9223372036854775808"}, `BYTES: "9223372036854775808" is too large; want a number that fits into 64 bits`},
		{[]string{"BYTES=1.5"}, `BYTES: "1.5" is no whole number; want digits alone, such as 1000`},
		{[]string{"LIGHT=on"}, `LIGHT: "on" is neither true nor false; want true or false`},
		{[]string{"RECIPES=pie,,stew"}, `RECIPES: "pie,,stew" has an empty entry; want entries separated by one comma each`},
		{[]string{"NAME='oven'"}, `NAME: "'oven'" has quotes, which are part of it where no shell takes them away; want it without`},
		{[]string{"TIME=2h", "TIME_MAX=1h"}, `TIME: "2h" is never reached with TIME_MAX=1h; want it below that, or unset`},
		{[]string{"WATTS=40"}, `WATTS: "40" has no effect without LIGHT; want it unset, or LIGHT=true`},
		{[]string{"SAUCE=red", "RACKS=0", "RECIPES=,"}, `RECIPES: "," has an empty entry; want entries separated by one comma each`}, // and its default holds
		{[]string{"WATTS=many", "LIGHT=on"}, "LIGHT: \"on\" is neither true nor false; want true or false\nWATTS: \"many\" is no whole number; want digits alone, such as 1000"},
		{[]string{"CODE=hunter2", "CODE_FILE=/code"}, `CODE_FILE: "/code" is set beside CODE; want one of the two`},
		{[]string{"CODE_FILE=/nowhere/code"}, `CODE_FILE: "/nowhere/code" cannot be used: no such file or directory; want the path of a file that holds the secret`},
		{[]string{"CODE_FILE=" + empty}, `CODE_FILE: "` + empty + `" cannot be used: the file is empty; want the path of a file that holds the secret`},
	} {
		var got, defaults oven
		_, err := Read(&got, environOf(tt.environ...))
		if fmt.Sprint(err) != tt.want {
			t.Errorf("%q: got\n%v, want\n%s", tt.environ, err, tt.want)
		}
		Read(&defaults, nil)
		if name, _, _ := strings.Cut(tt.want, ":"); name == "HEAT" && got.Heat != defaults.Heat || name == "RECIPES" && len(got.Recipes) != 2 {
			t.Errorf("%q: a variable with a mistake does not hold its default: %+v", tt.environ, got)
		}
	}
}

// What is needed is named by how it is written.
func TestNeeds(t *testing.T) {
	var c struct {
		Flag  bool          `env:"FLAG"`
		Count int           `env:"COUNT"`
		Time  time.Duration `env:"TIME"`
		Text  string        `env:"TEXT"`
		Own   celsius       `env:"OWN"`
		Any   string        `env:"ANY" needs:"FLAG|COUNT|TIME|TEXT|OWN"`
	}
	want := `ANY: "a" has no effect without FLAG or COUNT or TIME or TEXT or OWN; want it unset, or FLAG=true or COUNT above 0 or TIME above 0 or TEXT set or OWN set`
	if _, err := Read(&c, environOf("ANY=a")); fmt.Sprint(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
	for _, met := range []string{"FLAG=true", "COUNT=1", "TIME=1s", "TEXT=a", "OWN=1C"} {
		if _, err := Read(&c, environOf("ANY=a", met)); err != nil {
			t.Errorf("with %s: %v", met, err)
		}
	}
}

func TestSecretFromFile(t *testing.T) {
	for text, want := range map[string]string{"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", " hunter2 \n": " hunter2 ", "a\nb\n": "a\nb"} {
		file := filepath.Join(t.TempDir(), "code")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var got oven
		if _, err := Read(&got, environOf("CODE_FILE="+file)); err != nil || got.Door.Code != want {
			t.Errorf("%q: got %q (%v), want %q", text, got.Door.Code, err, want)
		}
	}
}

func TestList(t *testing.T) {
	list, err := Read(new(oven), environOf("NAME=range", "CODE=hunter2", "HEAT=", "TIME=30m", "TIME_MAX=0s", "RACKS=many"))
	if err == nil {
		t.Error("no mistake")
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprintf("%s=%s default=%s changed=%t secret=%t guard=%t", s.Name, s.Value, s.Default, s.Changed, s.Secret, s.Guard))
	}
	want := strings.Split(`NAME=range default=oven changed=true secret=false guard=false
HEAT= default=200C changed=false secret=false guard=false
BURN= default= changed=false secret=false guard=false
TIME=30m default=30m changed=false secret=false guard=false
TIME_MAX=0s default= changed=false secret=false guard=false
LEVEL=info default=info changed=false secret=false guard=false
RACKS=2 default=2 changed=false secret=false guard=false
BYTES= default= changed=false secret=false guard=false
LIGHT=false default=false changed=false secret=false guard=false
WATTS=25 default=25 changed=false secret=false guard=false
RECIPES=bread,cake default=bread,cake changed=false secret=false guard=false
SAUCE= default= changed=false secret=false guard=false
LOCK= default= changed=false secret=false guard=true
CODE=*** default=0000 changed=true secret=true guard=true
CODE_FILE= default= changed=false secret=false guard=true`, "\n")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := list.Get("NAME").Value; got != "range" {
		t.Errorf("Get: %q, want range", got)
	}
}

func TestTagsWithoutSense(t *testing.T) {
	for name, target := range map[string]any{
		"a secret of another type": &struct {
			Code int `env:"CODE" secret:"true"`
		}{},
		"it needs what is not there": &struct {
			A string `env:"A" needs:"B"`
		}{},
		"it is below what is not there": &struct {
			A int `env:"A" below:"B"`
		}{},
		"it is below a text": &struct {
			A int    `env:"A" below:"B"`
			B string `env:"B"`
		}{},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			Read(target, nil)
		})
	}
}

func TestSizes(t *testing.T) {
	for value, want := range map[string]int64{
		"": 1 << 10, "0": 0, "5": 5, "1000000": 1_000_000, "2KiB": 2 << 10, "256KiB": 256 << 10, "1MiB": 1 << 20, "8589934591GiB": 8589934591 << 30,
	} {
		var c struct {
			Flour int64 `env:"FLOUR" envDefault:"1KiB" size:"true"`
		}
		if _, err := Read(&c, map[string]string{"FLOUR": value}); err != nil || c.Flour != want {
			t.Errorf("%q: got %d, %v, want %d", value, c.Flour, err, want)
		}
	}
	const noSize = "; want a number of bytes such as 1000000, 256KiB or 1MiB"
	for value, want := range map[string]string{
		"1kB": `"1kB" is no size` + noSize, "KiB": `"KiB" is no size` + noSize, "1.5MiB": `"1.5MiB" is no size` + noSize, "1 MiB": `"1 MiB" is no size` + noSize,
		"8589934592GiB":       `"8589934592GiB" is too large; want a number that fits into 64 bits`,
		"9223372036854775808": `"9223372036854775808" is too large; want a number that fits into 64 bits`,
	} {
		var c struct {
			Flour int64 `env:"FLOUR" envDefault:"1KiB" size:"true"`
		}
		_, err := Read(&c, map[string]string{"FLOUR": value})
		if err == nil || err.Error() != "FLOUR: "+want || c.Flour != 1<<10 {
			t.Errorf("%q: got %v and %d, want FLOUR: %s", value, err, c.Flour, want)
		}
	}
}

// What cannot change keeps its value, in the struct too, and is named.
func TestKeep(t *testing.T) {
	type config struct {
		Free  string `env:"FREE"`
		Fixed struct {
			Name   string   `env:"NAME"`
			List   []string `env:"LIST"`
			Secret string   `env:"KEY" secret:"true"`
		} `fixed:"true"`
		Alone int `env:"ALONE" envDefault:"1" fixed:"true"`
	}
	var before, after config
	old, err := Read(&before, map[string]string{"FREE": "a", "NAME": "b", "LIST": "c,d", "KEY": "secret"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := Read(&after, map[string]string{"FREE": "x", "NAME": "y", "LIST": "c, d", "KEY": "other", "ALONE": "2"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := list.Changed(old), []string{"FREE", "NAME", "KEY", "ALONE"}; !slices.Equal(got, want) {
		t.Errorf("changed: %q, want %q", got, want)
	}
	if got, want := list.Keep(old), []string{"NAME", "KEY", "ALONE"}; !slices.Equal(got, want) {
		t.Errorf("kept: %q, want %q", got, want)
	}
	if after.Free != "x" || after.Fixed.Name != "b" || after.Fixed.Secret != "secret" || after.Alone != 1 {
		t.Errorf("got %+v", after)
	}
	if got, want := list.Changed(old), []string{"FREE"}; !slices.Equal(got, want) {
		t.Errorf("changed after all: %q, want %q", got, want)
	}
}
