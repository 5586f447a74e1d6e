package relay

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Memory is given back after a wave of session starts, not amid it, and no more than once in trimInterval:
// clients that come one by one had a collection of the whole heap forced after each.
func TestTrim(t *testing.T) {
	every := func(pause, until time.Duration) (starts []time.Duration) {
		for at := time.Duration(0); at < until; at += pause {
			starts = append(starts, at)
		}
		return starts
	}
	for _, tt := range []struct {
		name   string
		starts []time.Duration // ascending
		gain   bool            // whether there is something to give back
		want   []time.Duration // when it is looked for
	}{
		{"nothing", nil, true, nil},
		{"one session", []time.Duration{0}, true, []time.Duration{trimDelay}},
		{"a wave", every(trimDelay/2, 10*trimDelay), true, []time.Duration{10*trimDelay - trimDelay/2 + trimDelay}},
		{"one by one", every(2*trimDelay, 2*trimInterval), true, []time.Duration{trimDelay, trimDelay + trimInterval, trimDelay + 2*trimInterval}},
		{"one by one, and nothing to gain", every(2*trimDelay, 6*trimDelay), false, []time.Duration{trimDelay, 3 * trimDelay, 5 * trimDelay}},
		{"two waves", []time.Duration{0, 10 * trimDelay}, true, []time.Duration{trimDelay, trimDelay + trimInterval}},
		{"a wave when it is due again", []time.Duration{0, 10 * trimDelay, trimInterval + trimDelay/2, trimInterval + trimDelay}, true,
			[]time.Duration{trimDelay, trimInterval + 2*trimDelay}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var got []time.Duration
				trim := newTrimmer(func() bool {
					got = append(got, time.Since(began))
					return tt.gain
				})
				for _, at := range tt.starts {
					time.Sleep(at - time.Since(began))
					trim.started()
				}
				time.Sleep(10 * trimInterval)
				trim.timer.Stop()
				synctest.Wait()
				if !slices.Equal(got, tt.want) {
					t.Errorf("at %v, want at %v", got, tt.want)
				}
			})
		})
	}
}
