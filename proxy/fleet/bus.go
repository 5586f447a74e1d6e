package fleet

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"
)

// Command is what all instances are to do: send something, or end sessions. Its parts are JSON; what they say is its handler's business.
type Command struct {
	To   json.RawMessage `json:"to"` // which sessions
	Kick json.RawMessage `json:"kick,omitempty"`
	Send json.RawMessage `json:"send,omitempty"`
}

// message is what is on the bus, version 1: docs/bus.md has it for those who publish there themselves.
type message struct {
	Version int    `json:"v"`
	From    string `json:"from"` // its publisher, which is new at each start
	Number  int64  `json:"n"`    // of the publisher's messages; the first is 1
	Command
	Until   int64  `json:"until,omitempty"`    // in ms of the clock of Redis, after which it is not obeyed; 0: it is at any time
	ID      string `json:"id,omitempty"`       // by which answers name it
	ReplyTo string `json:"reply_to,omitempty"` // the instance that waits for answers; empty: nobody does
}

const (
	busVersion = 1
	// answerTime is how long answers are waited for.
	answerTime = time.Second
	// publishTime is how long a command counts that its engine has not taken. engineTime is how long the engine may take to say that it
	// has: what it says later than publishTime is still true.
	publishTime = time.Second
	engineTime  = 3 * time.Second
	maxName     = 128 // bytes of a publisher's
)

// ErrBusAway says that nobody has got a command.
var ErrBusAway = errors.New("the bus of the fleet is away")

// ErrUnknown says that nobody knows whether others have got a command.
var ErrUnknown = errors.New("it is not known whether the bus has taken it")

// ErrTooLarge says that the bus does not take a message of that size, and nobody has got it.
var ErrTooLarge = errors.New("the bus of the fleet does not take a message that large")

// Handler is what this instance does with what comes from the bus.
type Handler interface {
	// Obey does what a command says; the answer is encoded as JSON. id is that of the command in the history; empty: it is in none. The
	// error says that it is no command.
	Obey(c Command, id string) (answer any, err error)
	// Restore takes a command into the history that was obeyed before this instance was there, so long ago.
	Restore(c Command, id string, age time.Duration)
	// Forgotten says that the history of before this id is not known.
	Forgotten(id string)
	// Answer answers a question of another instance, or of this one. It is called by several goroutines.
	Answer(question []byte) (answer any)
	// KeepOut keeps subjects out for that long, as this instance should have been told.
	KeepOut(subjects map[string]time.Duration)
	// KeptOut are the subjects that this instance keeps out, each with how long.
	KeptOut() map[string]time.Duration
}

// Bus is this instance on the bus. It is safe for concurrent use.
type Bus struct {
	fleet     *Fleet
	handler   Handler
	publisher string
	turn      chan struct{} // of who publishes, so that messages are in the order of their numbers
	number    int64         // of the last one; guarded by turn
	received  numbers
	log       struct{ missed, dropped rate.Sometimes } // of the lines in the log

	ready  struct{ bus, answers, history atomic.Bool } // what is published is received
	joined atomic.Bool                                 // it was

	mu      sync.Mutex
	waiting map[string]chan answer // by the id of what is to be answered; guarded by mu
}

// answer is that of one instance.
type answer struct {
	ID   string          `json:"id"`
	From string          `json:"from"`
	Body json.RawMessage `json:"body"`
}

// Join has every command of the bus obeyed, in their order, until the fleet is closed. It is called once.
func (f *Fleet) Join(h Handler) *Bus {
	b := &Bus{
		fleet: f, handler: h, publisher: f.instance + "-" + strings.ToLower(rand.Text()[:8]), turn: make(chan struct{}, 1),
		received: newNumbers(), waiting: make(map[string]chan answer),
	}
	b.log.missed.Interval, b.log.dropped.Interval = time.Minute, 10*time.Second
	f.bus.Store(b)
	f.members.unread.Store(true)
	if f.members.now() != 0 { // Redis is there
		f.refresh(f.ctx) // before anybody is let in
	}
	work := make(chan func(), 1024) // in the order of the bus
	f.running.Go(func() {
		for {
			select {
			case do := <-work:
				do()
			case <-f.ctx.Done():
				return
			}
		}
	})
	queue := func(do func()) {
		select {
		case work <- do:
		case <-f.ctx.Done():
		}
	}
	f.running.Go(func() {
		f.keep("the bus", &b.ready.bus, func(ctx context.Context, up func()) error {
			return f.engine.listen(ctx, func() { up(); f.refreshSoon(false) }, func(text []byte) { b.receive(text, queue) })
		})
	})
	f.running.Go(func() { f.keep("the channel of answers", &b.ready.answers, b.listen) })
	b.ready.history.Store(true)
	if f.history.pushes > 0 {
		var at reading
		b.ready.history.Store(f.members.now() != 0 && b.load(&at))
		f.running.Go(func() {
			f.keep("the history", &b.ready.history, func(ctx context.Context, up func()) error { return b.follow(ctx, &at, up, queue) })
		})
	}
	return b
}

const maxBackOff = 5 * time.Second

// keep has connect connect, again and again, with growing pauses between failures, until the fleet is closed. up is what it says of that.
func (f *Fleet) keep(what string, is *atomic.Bool, connect func(ctx context.Context, up func()) error) {
	told := false
	for failures := 0; ; failures++ {
		err := connect(f.ctx, func() {
			failures = -1
			is.Store(true)
			if b := f.bus.Load(); b.Connected() {
				b.joined.Store(true)
			}
			if told {
				told = false
				f.log.Info(what + " of the fleet is back")
			}
		})
		is.Store(false)
		if f.ctx.Err() != nil {
			return
		}
		if !told {
			told = true
			f.log.Warn(what+" of the fleet is away", "error", err)
		}
		wait := min(maxBackOff, 100*time.Millisecond<<min(max(failures, 0), 10))
		select {
		case <-time.After(mathrand.N(wait)):
		case <-f.ctx.Done():
			return
		}
	}
}

// Connected reports whether what is published reaches this instance.
func (b *Bus) Connected() bool {
	return b.ready.bus.Load() && b.ready.answers.Load() && b.ready.history.Load()
}

// receive takes a message from the bus, and has it obeyed in its turn. One that is none is counted and dropped.
func (b *Bus) receive(text []byte, queue func(func())) {
	m, wrong := b.fleet.parse(text)
	if wrong == "" {
		missed, repeated := b.received.take(m.From, m.Number)
		if missed > 0 {
			b.fleet.metrics.BusMissed(missed)
			b.log.missed.Do(func() {
				b.fleet.log.Warn("messages on the bus were missed", "publisher", m.From, "messages", missed)
			})
		}
		if now := b.fleet.members.now(); repeated {
			wrong = dropRepeated
		} else if m.Until > 0 && now > m.Until {
			wrong = dropLate
		}
	}
	if wrong != "" {
		b.dropped(wrong)
		b.log.dropped.Do(func() {
			b.fleet.log.Warn("a message on the bus is dropped", "reason", wrong, "publisher", m.From, "number", m.Number)
		})
		return
	}
	queue(func() {
		switch now := b.fleet.members.now(); {
		case m.Until > 0 && now > m.Until:
			b.dropped(dropLate)
		case b.fleet.history.pushes > 0:
			// All instances do, and one has it kept; then it is obeyed when it comes from there.
			if b.fleet.circuit.State() == gobreaker.StateOpen {
				b.dropped(dropAway)
			} else if err := b.record(&m, text, m.Until, patience); err != nil && err != ErrBusAway {
				b.fleet.circuit.Execute(func() (any, error) { return nil, err }) // those behind it need not wait
			}
		default:
			b.obey(&m, "")
		}
	})
}

// dropped counts a message that is not obeyed. A late one may have said who is to be kept out.
func (b *Bus) dropped(why string) {
	b.fleet.metrics.BusDropped(why)
	if why == dropLate {
		b.fleet.refreshSoon(false)
	}
}

// obey does what a message says, and tells who waits for that.
func (b *Bus) obey(m *message, id string) {
	done, err := b.handler.Obey(m.Command, id)
	if err != nil {
		b.fleet.metrics.BusDropped(dropMalformed)
		b.log.dropped.Do(func() {
			b.fleet.log.Warn("a message on the bus is dropped", "reason", dropMalformed, "publisher", m.From, "number", m.Number, "error", err)
		})
		return
	}
	if m.ReplyTo != "" {
		b.reply(m.ReplyTo, m.ID, done)
	}
}

// Why a message of the bus is dropped.
const (
	dropMalformed = "malformed"
	dropVersion   = "version"
	dropTooLarge  = "too_large"
	dropLate      = "late"
	dropRepeated  = "repeated"
	dropAway      = "away" // it was to be kept in the history, and Redis did not answer
)

// Drops are all reasons for which a message of the bus is dropped.
func Drops() []string {
	return []string{dropMalformed, dropVersion, dropTooLarge, dropLate, dropRepeated, dropAway}
}

// parse reads a message, or says why it is dropped.
func (f *Fleet) parse(text []byte) (m message, wrong string) {
	if len(text) > f.maxMessage {
		return m, dropTooLarge
	}
	if Strict(text, &m) == nil && m.Version == busVersion && isName(m.From) && m.Number > 0 && m.To != nil && (m.Kick == nil) != (m.Send == nil) &&
		m.Until >= 0 && (m.ReplyTo == "" || isName(m.ReplyTo)) && len(m.ID) <= maxName {
		return m, ""
	}
	var version struct {
		V int `json:"v"`
	}
	if json.Unmarshal(text, &version) == nil && version.V > busVersion {
		return m, dropVersion
	}
	return m, dropMalformed
}

// Strict reads JSON that has no field which v does not know, and nothing behind it.
func Strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("there is something behind the end")
	}
	return nil
}

func isName(s string) bool {
	return s != "" && len(s) <= maxName && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// numbers are those of the last message of each publisher.
type numbers struct {
	mu   sync.Mutex
	last map[string]*lastNumber // guarded by mu
}

type lastNumber struct {
	number int64
	at     time.Time
}

const maxPublishers = 1024

func newNumbers() numbers { return numbers{last: make(map[string]*lastNumber)} }

// take notes a message, and says how many of its publisher are missing before it, or that it was there already.
func (n *numbers) take(from string, number int64) (missed int64, repeated bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.last[from]
	switch {
	case l == nil:
		n.makeRoom()
		n.last[from] = &lastNumber{number, time.Now()}
		return 0, false // what was before it was, nobody knows
	case number <= l.number:
		return 0, true
	}
	missed = number - l.number - 1
	l.number, l.at = number, time.Now()
	return missed, false
}

// makeRoom forgets the publisher that has been silent for longest, where there are too many. The caller holds mu.
func (n *numbers) makeRoom() {
	if len(n.last) < maxPublishers {
		return
	}
	oldest := ""
	for from, l := range n.last {
		if oldest == "" || l.at.Before(n.last[oldest].at) {
			oldest = from
		}
	}
	delete(n.last, oldest)
}

// Command has all instances obey, and returns their answers. Those that live and did not answer in time are named. The error is
// ErrBusAway or ErrTooLarge: nobody was told; or ErrUnknown: nobody has answered, and nobody will obey later.
func (b *Bus) Command(ctx context.Context, c Command) (answers [][]byte, silent []string, err error) {
	if !b.Connected() {
		return nil, nil, ErrBusAway
	}
	live, err := b.fleet.alive(ctx)
	if err != nil {
		return nil, nil, ErrBusAway
	}
	w := b.await()
	defer b.forget(w)
	err = b.give(ctx, c, w.id)
	if err != nil && err != ErrUnknown {
		return nil, nil, err
	}
	if answers, silent = w.collect(live, nil); len(answers) > 0 {
		return answers, silent, nil
	}
	return nil, silent, err
}

// give publishes a command. It waits for its turn, and for the engine, no longer than engineTime, and nobody obeys one that was not
// published in publishTime.
func (b *Bus) give(ctx context.Context, c Command, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineTime)
	defer cancel()
	m := message{Version: busVersion, From: b.publisher, Command: c, ID: id, ReplyTo: b.fleet.instance}
	kept := b.fleet.history.pushes > 0 // kicks, too, which are to stay behind what was sent before
	until := func() int64 { return b.fleet.members.now() + publishTime.Milliseconds() }
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return ErrBusAway
	}
	given := make(chan error, 1)
	begun := b.fleet.begin(func() { // which may outlast its time
		defer func() { <-b.turn }()
		b.number++
		if m.Number = b.number; !kept {
			m.Until = until()
		}
		text, err := json.Marshal(&m)
		switch {
		case err != nil:
		case len(text) > b.fleet.maxMessage:
			err = ErrTooLarge
		case kept:
			err = b.record(&m, text, until(), engineTime)
		default:
			err = b.fleet.engine.publish(ctx, text)
		}
		err = outcome(err)
		if err == ErrBusAway || err == ErrTooLarge {
			b.number-- // nobody has seen it
		}
		given <- err
	})
	if !begun {
		return ErrBusAway
	}
	select {
	case err := <-given:
		return err
	case <-ctx.Done():
		return ErrUnknown
	}
}

// outcome is what an error of an engine, or of Redis, says of a message.
func outcome(err error) error {
	dial, _ := errors.AsType[*net.OpError](err)
	switch {
	case err == nil, errors.Is(err, ErrTooLarge), errors.Is(err, ErrBusAway):
		return err
	case dial != nil && dial.Op == "dial":
		return ErrBusAway // nothing was sent
	}
	return ErrUnknown
}

// alive names the instances that live, and those that may.
func (f *Fleet) alive(ctx context.Context) ([]string, error) {
	answer, err := f.tell(ctx, alive, []string{f.key("live"), f.key("left")}, stale)
	if err != nil {
		return nil, err
	}
	var names [2][]string
	parts, _ := answer.([]any)
	for i := range min(len(parts), len(names)) {
		list, _ := parts[i].([]any)
		for _, part := range list {
			if name, ok := part.(string); ok {
				names[i] = append(names[i], name)
			}
		}
	}
	return f.members.seen.note(append(names[0], f.instance), names[1]), nil
}
