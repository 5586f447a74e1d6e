package refusal

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Counter counts refusals by their reason.
type Counter interface{ Refused(reason string) }

// Reporter is the one place where refusals are counted and logged. Of those in one second 100 have a line of their own in the
// log, lest refusing an attack fills the disk, and of those by an overload one, since a second tells nothing new; another line tells
// how many had none. It is safe for concurrent use.
type Reporter struct {
	log        *slog.Logger
	counter    Counter
	lines      *rate.Limiter
	overload   *rate.Limiter
	suppressed atomic.Int64
}

// NewReporter returns a Reporter that writes to log.
func NewReporter(log *slog.Logger, counter Counter) *Reporter {
	return &Reporter{log: log, counter: counter, lines: rate.NewLimiter(100, 100), overload: rate.NewLimiter(1, 1)}
}

// Report counts a refusal and logs it in one line, with attrs between its reason and what else is known of it.
func (p *Reporter) Report(r *Refusal, attrs ...slog.Attr) {
	p.counter.Refused(string(r.Reason))
	p.Log(r, attrs...)
}

// Log is Report without the counting, for what is counted elsewhere.
func (p *Reporter) Log(r *Refusal, attrs ...slog.Attr) {
	if !p.allows(r.Reason, time.Now()) {
		if p.suppressed.Add(1) == 1 {
			time.AfterFunc(time.Second, p.Flush) // even if no refusal comes after this one
		}
		return
	}
	attrs = slices.Insert(attrs, 0, slog.String("reason", string(r.Reason)))
	if r.Detail != "" {
		attrs = append(attrs, slog.String("detail", r.Detail))
	}
	if r.Err != nil {
		attrs = append(attrs, slog.Any("error", r.Err))
	}
	p.log.LogAttrs(context.Background(), r.Reason.Level(), "refused", attrs...)
}

// allows reports whether there may be a line for a refusal at now.
func (p *Reporter) allows(why Reason, now time.Time) bool {
	return (why != Overload || p.overload.AllowN(now, 1)) && p.lines.AllowN(now, 1)
}

// Flush logs how many refusals have had no line since it was last called.
func (p *Reporter) Flush() {
	if n := p.suppressed.Swap(0); n > 0 {
		p.log.Info("refusals not logged", "count", n)
	}
}
