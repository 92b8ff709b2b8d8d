// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// pass is work on all sockets.
type pass struct {
	Name    string `json:"name"`
	Sockets int    `json:"sockets"`
	// Seconds is how long it took; the median of several where nothing is changed by it.
	Seconds float64 `json:"seconds"`
	// PerSecond is sockets per second.
	PerSecond float64 `json:"sockets_per_second"`
}

var passCounts = []int{10000, 100000, 400000}

// passRepeats is how often a pass runs that changes nothing.
const passRepeats = 5

// benchPasses measures what is done to all sockets at once, beside iterators that do nothing.
func benchPasses(ctx context.Context, b *bench) error {
	v, err := b.load("passes", loader.ModeStorage, lossEntries)
	if err != nil {
		return err
	}
	legacy, err := b.load("migration", loader.ModeLegacy, migratedEntries)
	if err != nil {
		return err
	}
	for _, n := range passCounts {
		if n > *most {
			break
		}
		if err := b.passes(ctx, v, n); err != nil {
			return fmt.Errorf("%d sockets: %w", n, err)
		}
		for _, engine := range []migrate.Engine{migrate.EngineIter, migrate.EnginePidfd} {
			if err := b.migration(ctx, legacy, engine, n); err != nil {
				return fmt.Errorf("%d sockets, engine %s: %w", n, engine, err)
			}
		}
	}
	return nil
}

// migratedEntries is the size of a hash that forgets none of the sockets.
const migratedEntries = 1 << 20

// migration moves what sockets have in the hash into storage, and back.
func (b *bench) migration(ctx context.Context, v *variant, engine migrate.Engine, n int) (err error) {
	if err := v.dp.SetMode(ctx, loader.ModeLegacy, true); err != nil {
		return err
	}
	hs, err := v.hold(n, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hs.kill()) }()
	opts := migrate.Options{Loader: v.opts, Engine: engine}
	opts.Loader.Mode, opts.Loader.Force = nil, false
	err = b.pass(ctx, fmt.Sprintf("audit, engine %s", engine), n, 1, func() error {
		plan, err := migrate.MakePlan(ctx, migrate.PlanOptions{Loader: opts.Loader, Engine: engine})
		if err != nil {
			return err
		}
		return counted(plan.MovedConn, n)
	})
	if err != nil {
		return err
	}
	err = b.pass(ctx, fmt.Sprintf("migrate, engine %s", engine), n, 1, func() error {
		report, err := migrate.Run(ctx, opts)
		if err != nil {
			return err
		}
		for _, s := range report.Steps {
			b.addPass(fmt.Sprintf("migrate, engine %s: %s", engine, s.Name), n, []float64{s.Duration.Seconds()})
		}
		return counted(report.Deleted, n)
	})
	if err != nil {
		return err
	}
	err = b.pass(ctx, fmt.Sprintf("roll back, after engine %s", engine), n, 1, func() error {
		_, err := migrate.Rollback(ctx, migrate.RollbackOptions{Loader: opts.Loader})
		return err
	})
	if err != nil {
		return err
	}
	know, err := hs.remember()
	return errors.Join(err, counted(know, n))
}

func (b *bench) passes(ctx context.Context, v *variant, n int) (err error) {
	hs, err := v.hold(n, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hs.kill()) }()

	conn := v.dp.Map("revsk_conn")
	for _, it := range []struct {
		name, target string
		m            *ebpf.Map
	}{
		{"iter/bpf_sk_storage_map, empty program", "bpf_sk_storage_map", conn},
		{"iter/udp, empty program", "udp", nil},
		{"iter/task_file, empty program", "task_file", nil},
	} {
		prog, err := iterator(it.target, asm.Instructions{})
		if err != nil {
			return err
		}
		err = b.pass(ctx, it.name, n, passRepeats, func() error {
			_, err := bpfiter.RunProgram(ctx, prog, it.m)
			return err
		})
		prog.Close()
		if err != nil {
			return err
		}
	}
	if err := b.creatingPass(ctx, conn.ValueSize(), n); err != nil {
		return err
	}

	maps := v.dp.InspectMaps()
	err = b.pass(ctx, "list", n, passRepeats, func() error {
		sockets, err := inspect.Sockets(ctx, maps, inspect.Options{SkipOwners: true})
		return errors.Join(err, counted(len(sockets), n))
	})
	if err != nil {
		return err
	}
	var all []inspect.Backend
	for i := range serviceCount {
		all = append(all, inspect.Backend{AddrPort: ipv4.backend(i), Protocol: lbmap.Protocol(unix.IPPROTO_UDP)})
	}
	return b.pass(ctx, "terminate", n, 1, func() error {
		report, err := inspect.Terminate(ctx, maps, inspect.TerminateOptions{Backends: all})
		return errors.Join(err, counted(report.Count(inspect.OutcomeDestroyed), n))
	})
}

func counted(got, want int) error {
	if got != want {
		return fmt.Errorf("%d sockets instead of %d", got, want)
	}
	return nil
}

// creatingPass is an iterator that creates storage of the size of revsk_conn's on each socket: what a
// migration cannot do without.
func (b *bench) creatingPass(ctx context.Context, valueSize uint32, n int) error {
	var times []float64
	for range passRepeats {
		if err := ctx.Err(); err != nil {
			return err
		}
		took, err := createStorage(ctx, valueSize)
		if err != nil {
			return err
		}
		times = append(times, took.Seconds())
	}
	b.addPass("iter/udp, creating storage", n, times)
	return nil
}

// createStorage creates it in a map of its own, which takes it away again.
func createStorage(ctx context.Context, valueSize uint32) (time.Duration, error) {
	u8, u32 := &btf.Int{Name: "u8", Size: 1}, &btf.Int{Name: "u32", Size: 4}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.SkStorage, KeySize: 4, ValueSize: valueSize, Flags: unix.BPF_F_NO_PREALLOC,
		Key: u32, Value: &btf.Array{Index: u32, Type: u8, Nelems: valueSize},
	})
	if err != nil {
		return 0, err
	}
	defer m.Close()
	prog, err := iterator("udp", asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 8, asm.DWord), // struct bpf_iter__udp: meta, udp_sk
		asm.JEq.Imm(asm.R2, 0, "out"),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 1), // BPF_SK_STORAGE_GET_F_CREATE
		asm.FnSkStorageGet.Call(),
	})
	if err != nil {
		return 0, err
	}
	defer prog.Close()
	start := time.Now()
	_, err = bpfiter.RunProgram(ctx, prog, nil)
	return time.Since(start), err
}

// iterator is a program that runs the instructions and returns 0.
func iterator(target string, insns asm.Instructions) (*ebpf.Program, error) {
	insns = append(insns, asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return())
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: target,
		License: "Dual BSD/GPL", Instructions: insns,
	})
	if err != nil {
		return nil, fmt.Errorf("loading iter/%s: %w", target, err)
	}
	return prog, nil
}

func (b *bench) pass(ctx context.Context, name string, n, repeats int, f func() error) error {
	var times []float64
	for range repeats {
		if err := ctx.Err(); err != nil {
			return err
		}
		start := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		times = append(times, time.Since(start).Seconds())
	}
	b.addPass(name, n, times)
	return nil
}

func (b *bench) addPass(name string, n int, times []float64) {
	s := newStat(times).Median
	b.report.Passes = append(b.report.Passes, pass{Name: name, Sockets: n, Seconds: s, PerSecond: float64(n) / s})
}
