//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// runningTarget is a target that has been started.
type runningTarget struct {
	target
	measured
	process *process // nil: no proxy
}

func (e *runningTarget) stop() {
	if e.process != nil {
		e.process.stop()
	}
}

// round measures everything once: each measure on all targets in turn, so that whatever else the machine does affects them
// alike. Each round begins with another target, so that a different one comes first each time.
func (b *bench) round(ctx context.Context, round int) error {
	first := round % len(b.targets)
	order := slices.Concat(b.targets[first:], b.targets[:first])

	var shared, fresh []measure
	for _, m := range b.measures {
		switch {
		case round >= m.rounds:
		case m.fresh:
			fresh = append(fresh, m)
		default:
			shared = append(shared, m)
		}
	}
	if err := b.measureShared(ctx, round, order, shared); err != nil {
		return err
	}
	return b.measureFresh(ctx, round, order, fresh)
}

// measureShared starts all targets at once, for measures that idle other targets do not affect.
func (b *bench) measureShared(ctx context.Context, round int, order []target, measures []measure) error {
	var running []*runningTarget
	defer func() {
		for _, e := range running {
			e.stop()
		}
	}()
	for _, c := range order {
		if !slices.ContainsFunc(measures, c.takes) {
			continue
		}
		e, err := b.startTarget(ctx, c)
		if err := b.handleError(ctx, c, err); err != nil {
			return err
		}
		if e != nil {
			running = append(running, e)
		}
	}
	for _, m := range measures {
		for _, e := range running {
			if !e.takes(m) {
				continue
			}
			if err := b.handleError(ctx, e.target, b.run(ctx, round, e, m)); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureFresh starts one target after the other, anew for each measure.
func (b *bench) measureFresh(ctx context.Context, round int, order []target, measures []measure) error {
	for _, m := range measures {
		for _, c := range order {
			if !c.takes(m) {
				continue
			}
			e, err := b.startTarget(ctx, c)
			if e != nil {
				err = b.run(ctx, round, e, m)
				e.stop()
			}
			if err := b.handleError(ctx, c, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c target) takes(m measure) bool {
	return slices.Contains(strings.Fields(c.only), m.name) || c.only == "" && m.name != "push"
}

// startTarget starts a target and passes one session through it. It returns nil for a target that is known to be absent.
func (b *bench) startTarget(ctx context.Context, c target) (*runningTarget, error) {
	if b.absent[c.name] {
		return nil, nil
	}
	if c.command == nil {
		return &runningTarget{target: c, measured: measured{addr: b.echo}}, nil
	}
	folder, err := os.MkdirTemp(b.folder, c.name+"-")
	if err != nil {
		return nil, err
	}
	listen, err := freeAddr()
	if err != nil {
		return nil, err
	}
	admin, err := freeAddr()
	if err != nil {
		return nil, err
	}
	where := environment{folder: folder, listen: listen, admin: admin, echo: b.echo, program: cmp.Or(c.program, b.program), self: b.self}
	command, err := c.command(where)
	if err != nil {
		return nil, err
	}
	process, err := start(ctx, command)
	if err != nil {
		return nil, err
	}
	e := &runningTarget{target: c, measured: measured{addr: listen}, process: process}
	if c.push != nil {
		e.measured.push = func() (*http.Request, error) { return c.push(where) }
	}
	if err := e.checkReady(ctx); err != nil {
		e.stop()
		return nil, fmt.Errorf("first session: %w", err)
	}
	if e.used, err = atRest(ctx, process.pid()); err != nil {
		e.stop()
		return nil, fmt.Errorf("find its processes: %w", err)
	}
	return e, nil
}

func (b *bench) run(ctx context.Context, round int, e *runningTarget, m measure) error {
	figures, err := m.run(ctx, e.measured)
	if err != nil {
		return fmt.Errorf("%s: %w", m.rows[0], err)
	}
	for i, row := range m.rows {
		b.results.add(row, e.name, round, figures[i])
		fmt.Fprintf(b.progress, "round %d of %d: %s: %s %s\n", round+1, b.scale.rounds, row, e.name, figure(figures[i], ""))
	}
	return nil
}

// badSettings is Portcullis's exit code for bad settings, such as an engine or a feature that this build lacks.
const badSettings = 2

// handleError leaves out a target that this machine or this build does not have, and counts any other error. The error
// that it returns ends the run.
func (b *bench) handleError(ctx context.Context, c target, err error) error {
	var exit *exitError
	switch {
	case err == nil, ctx.Err() != nil:
	case errors.Is(err, errAbsent), c.isPortcullis() && errors.As(err, &exit) && exit.code == badSettings:
		fmt.Fprintf(b.progress, "%s is left out: %v\n", c.title, err)
		b.absent[c.name] = true
	default:
		fmt.Fprintf(b.progress, "%s failed: %v\n", c.title, err)
		b.failed++
	}
	return ctx.Err()
}

// freeAddr returns a loopback address that nobody listens on, for programs that cannot report the port they listen on.
func freeAddr() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer l.Close()
	return netip.ParseAddrPort(l.Addr().String())
}
