// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// command is a run of the command line over all sockets.
type command struct {
	Name    string `json:"name"`
	Sockets int    `json:"sockets"`
	// CPU is processor time, of the process and of the kernel for it, in seconds: the median of several runs
	// where nothing is changed by it. Memory is the most that the process had in memory.
	CPU    float64 `json:"cpu_seconds"`
	Memory int64   `json:"memory_bytes"`
	// Ratio is that of CPU to an iterator over the sockets that does nothing, in the same run.
	Ratio float64 `json:"to_iterator"`
}

// commandRepeats is how often a command runs that changes nothing.
const commandRepeats = 5

// commandCounts are how many sockets there are: nine of ten are connected, the others have sent.
var commandCounts = []int{100000, 400000}

// manyBackends is how many backends a command is given that is to be as fast with many of them.
const manyBackends = 5000

// benchCommands measures the command line as an operator runs it.
func benchCommands(ctx context.Context, b *bench) error {
	dir, err := os.MkdirTemp("", "revsk-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "revsk")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/revsk")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the command: %w: %s", err, out)
	}
	v, err := b.load("commands", loader.ModeStorage, lossEntries)
	if err != nil {
		return err
	}
	legacy, err := b.load("commands, legacy", loader.ModeLegacy, migratedEntries)
	if err != nil {
		return err
	}
	for _, n := range commandCounts {
		if n > *most {
			break
		}
		if err := b.commands(ctx, binary, v, legacy, n); err != nil {
			return fmt.Errorf("%d sockets: %w", n, err)
		}
	}
	return nil
}

func (b *bench) commands(ctx context.Context, binary string, v, legacy *variant, n int) error {
	one := []string{"terminate", "--dry-run", ipv4.backend(1).String() + "/udp"}
	many := slices.Clone(one)
	for i := 1; i < manyBackends; i++ {
		// Of no socket.
		many = append(many, netip.AddrPortFrom(sandbox.Numbered(ipv4.plain, i), serverPort).String()+"/udp")
	}
	hs := new(holders)
	if err := hs.open(v, n, errand{Mixed: true}); err != nil {
		return errors.Join(err, hs.kill())
	}
	floor, err := bareIterator(ctx, v)
	if err != nil {
		return errors.Join(err, hs.kill())
	}
	b.addCommand("iterator that does nothing", n, []float64{floor}, 0, floor)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"version", []string{"version"}},
		{"list", []string{"list"}},
		{"list -o json", []string{"list", "-o", "json"}},
		{"list -o jsonl", []string{"list", "-o", "jsonl"}},
		{"list --count-by service", []string{"list", "--count-by", "service"}},
		{"list of one service of 1,000", []string{"list", "--service", ipv4.service(1).String()}},
		{"terminate --dry-run, 1 backend", one},
		{"terminate --dry-run, 5,000 backends", many},
	} {
		if err := b.command(ctx, binary, v, c.name, n, floor, commandRepeats, c.args...); err != nil {
			return errors.Join(err, hs.kill())
		}
	}
	if err := hs.kill(); err != nil {
		return err
	}

	if err := legacy.dp.SetMode(ctx, loader.ModeLegacy, true); err != nil {
		return err
	}
	hs = new(holders)
	defer hs.kill()
	if err := hs.open(legacy, n, errand{Mixed: true}); err != nil {
		return err
	}
	for _, c := range []struct {
		name    string
		repeats int
		args    []string
	}{
		{"migrate --dry-run", commandRepeats, []string{"migrate", "--dry-run"}},
		{"migrate", 1, []string{"migrate", "-o", "json"}},
		{"rollback", 1, []string{"rollback", "-o", "json"}},
	} {
		if err := b.command(ctx, binary, legacy, c.name, n, floor, c.repeats, c.args...); err != nil {
			return err
		}
	}
	know, err := hs.remember()
	return errors.Join(err, counted(know, n*9/10))
}

// bareIterator is the processor time of an iterator over the sockets that does nothing.
func bareIterator(ctx context.Context, v *variant) (float64, error) {
	prog, err := iterator("bpf_sk_storage_map", asm.Instructions{})
	if err != nil {
		return 0, err
	}
	defer prog.Close()
	var times []float64
	for range commandRepeats {
		before := processorTime()
		for _, name := range []string{"revsk_conn", "revsk_peers"} {
			if _, err := bpfiter.RunProgram(ctx, prog, v.dp.Map(name)); err != nil {
				return 0, err
			}
		}
		times = append(times, (processorTime() - before).Seconds())
	}
	return newStat(times).Median, nil
}

// processorTime is that of this process until now.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it never fails
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// command runs a command line of revsk on a variant, some times.
func (b *bench) command(ctx context.Context, binary string, v *variant, name string, n int, floor float64, repeats int, args ...string) error {
	var times []float64
	var memory int64
	args = append(args, "--quiet", "--cgroup", v.cgroup, "--maps", v.opts.MapsDir, "--pins", v.opts.PinsDir)
	for range repeats {
		out := filepath.Join(filepath.Dir(binary), "output")
		u, err := runMeasured(ctx, measured{Output: out, Command: append([]string{binary}, args...)})
		if err := errors.Join(err, keepOutput(name, out)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		times = append(times, u.CPU)
		memory = max(memory, u.Memory)
	}
	b.addCommand(name, n, times, memory, floor)
	return nil
}

// measured is a command that is run by another process of this program: the kernel counts what memory a process
// has had when it was forked as that of the command, so that has to be little.
type measured struct {
	Output  string // a file
	Command []string
}

type usage struct {
	CPU    float64
	Memory int64
}

const measuredEnv = "REVSK_BENCH_MEASURED"

func runMeasured(ctx context.Context, m measured) (u usage, err error) {
	role, err := json.Marshal(m)
	if err != nil {
		return u, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), measuredEnv+"=1")
	cmd.Stdin = bytes.NewReader(role)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return u, err
	}
	return u, json.Unmarshal(out, &u)
}

// measure is the other process.
func measure() error {
	var m measured
	if err := json.NewDecoder(os.Stdin).Decode(&m); err != nil {
		return err
	}
	out, err := os.Create(m.Output)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(m.Command[0], m.Command[1:]...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(usage{
		CPU:    (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(),
		Memory: cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10,
	})
}

// keepOutput removes the output of a command, or prints what a command says of its own steps.
func keepOutput(name, path string) error {
	if slices.Contains([]string{"migrate", "rollback"}, name) && *verbose {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s\n", name, text)
	}
	return os.Remove(path)
}

func (b *bench) addCommand(name string, n int, times []float64, memory int64, floor float64) {
	cpu := newStat(times).Median
	b.report.Commands = append(b.report.Commands, command{Name: name, Sockets: n, CPU: cpu, Memory: memory, Ratio: cpu / floor})
}
