// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/loader"
)

// Options say where the selftest runs.
type Options struct {
	// Cgroup is a directory of the cgroup2 hierarchy, in which this process is alone: the hooks are attached to it.
	Cgroup string
	// BPFFS is where a BPF file system of the process's own is mounted. Default: /sys/fs/bpf.
	BPFFS string
	// Logger for what is done; nil: none.
	Logger *slog.Logger
}

// Run runs every case under both modes. It is to be called in a network namespace that no application uses, by a program
// whose main function calls [ChildMain] first, and by one goroutine at a time: it adds addresses to lo and listens on them.
//
// That a case did not go as it has to is in the report (see [Report.Verdict]) and not an error. Run
// removes what it attached and pinned, also when it fails or ctx ends. Errors wrap [loader.ErrNotSupported] if the
// kernel cannot run the selftest at all, [loader.ErrInvalid] without a cgroup, or the other errors of [loader.Load].
func Run(ctx context.Context, opts Options) (*Report, error) {
	if opts.Cgroup == "" {
		return nil, fmt.Errorf("no cgroup: %w", loader.ErrInvalid) // the loader would take the root
	}
	if opts.BPFFS == "" {
		opts.BPFFS = "/sys/fs/bpf"
	}
	// Linux before 5.11 counts maps as locked memory.
	if err := probe.AllowMaps(); err != nil {
		return nil, fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	kernel, err := kernelRelease()
	if err != nil {
		return nil, err
	}
	network, err := startNetwork(ctx)
	if err != nil {
		return nil, fmt.Errorf("starting backends: %w", err)
	}
	defer network.close()

	cases := testCases()
	report := &Report{Kernel: kernel}
	for i, t := range cases {
		report.Cases = append(report.Cases, Case{
			ID: i + 1, Name: t.name, Protocol: t.protocol, Family: t.family, Type: t.kind,
		})
	}
	for _, small := range []bool{false, true} {
		if err := runCases(ctx, opts, network, small, cases, report.Cases); err != nil {
			return nil, err
		}
	}
	return report, nil
}

func kernelRelease() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

// runCases runs the cases for a small hash, or all others, on a datapath made for them: first in mode
// legacy, then in mode storage.
func runCases(ctx context.Context, opts Options, network *network, small bool, cases []testCase, results []Case) (err error) {
	dp, err := startDatapath(ctx, opts, small)
	if errors.Is(err, inspect.ErrNotSupported) {
		return fmt.Errorf("%w: %w", loader.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dp.remove()) }()

	for _, mode := range []loader.Mode{loader.ModeLegacy, loader.ModeStorage} {
		if err := dp.setMode(ctx, mode); err != nil {
			return err
		}
		var played []*scene
		for i, t := range cases {
			if (t.live > 0) != small || results[i].NotSupported != "" {
				continue
			}
			s := &scene{
				datapath: dp, network: network, flavor: t.flavor,
				want: t.want(dp.column()), result: &results[i],
			}
			ok, err := s.play(ctx, t)
			if err != nil {
				return err
			}
			if ok {
				played = append(played, s)
			}
		}
		if mode != loader.ModeLegacy {
			continue
		}
		// What has leaked is still there: nobody else removes it.
		for _, s := range played {
			after, err := dp.count(ctx, s.services)
			if err != nil {
				return err
			}
			s.cell().setAfter(after)
		}
	}
	return nil
}
