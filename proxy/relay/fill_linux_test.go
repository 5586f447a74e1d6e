package relay

import "testing"

func TestChoose(t *testing.T) {
	for _, test := range []struct {
		name   string
		counts []int64
		want   int
	}{
		{"empty", []int64{0, 0, 0}, 0},
		{"the first has room", []int64{loopFull - 1, 0, 0}, 0},
		{"the first is full", []int64{loopFull, 0, 0}, 1},
		{"a place has become free", []int64{loopFull - 1, loopFull, 7}, 0},
		{"all are full", []int64{loopFull + 2, loopFull + 1, loopFull + 3}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			ls := new(loops)
			for _, n := range test.counts {
				l := new(loop)
				l.count.Store(n)
				ls.all = append(ls.all, l)
			}
			if got := ls.choose(); got != ls.all[test.want] {
				t.Errorf("not loop %d", test.want)
			}
		})
	}
}
