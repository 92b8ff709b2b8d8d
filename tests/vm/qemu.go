// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/revsk/revsk/internal/childproc"
	"github.com/revsk/revsk/tests/vm/plan"
)

// A guest is a virtual machine to boot.
type guest struct {
	tree    kernelTree
	variant variant
	dir     string // for its files: initramfs, console, answers
}

// cmdline is the kernel's. Everything down to informational messages goes to the console, because
// "quiet" would keep warnings off it. An oops is made a panic, and a panic ends QEMU at once (with
// -no-reboot). An emulated processor is tens of times slower than a real one, and shares a machine:
// the detectors of stalls get more patience than their 20 seconds.
const cmdline = "console=ttyS0 loglevel=7 panic=-1 oops=panic " +
	"rcupdate.rcu_cpu_stall_timeout=60 watchdog_thresh=30 no_timer_check"

// boot runs a virtual machine to its end.
func (g *guest) boot(ctx context.Context, opts *options, b *build, base []byte, c *collector) error {
	own, err := b.machineArchive(ctx, opts, g.tree, g.variant)
	if err != nil {
		return err
	}
	initrd := filepath.Join(g.dir, "initrd.gz")
	if err := os.WriteFile(initrd, slices.Concat(base, own), 0o644); err != nil {
		return fmt.Errorf("writing the initramfs: %w", err)
	}
	console := g.console()

	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", g.arguments(opts, initrd, console)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = 5 * time.Second
	answers, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("starting QEMU: %w", err)
	}
	if err := childproc.Start(cmd); err != nil {
		return fmt.Errorf("starting QEMU: %w", err)
	}
	readErr := c.read(ctx, answers)
	runErr := cmd.Wait()

	why := "the machine went down"
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		why = fmt.Sprintf("not done after %v", opts.timeout)
	case ctx.Err() != nil:
		return ctx.Err()
	case runErr != nil:
		why = fmt.Sprintf("QEMU: %v: %s", runErr, strings.TrimSpace(stderr.String()))
	}
	text, err := os.ReadFile(console)
	if err != nil {
		return fmt.Errorf("reading the console: %w (QEMU: %s)", err, strings.TrimSpace(stderr.String()))
	}
	endErr := c.end(ctx, why, lastLines(string(text), 20))
	if runErr != nil && c.done != nil {
		c.problem("the machine did not power off", why, "")
	}
	alarms, scanErr := scanConsole(bytes.NewReader(text))
	for _, alarm := range alarms {
		c.problem("kernel alarm", "", alarm)
	}
	return errors.Join(readErr, endErr, scanErr)
}

func (g *guest) console() string { return filepath.Join(g.dir, "console.log") }

func (g *guest) arguments(opts *options, initrd, console string) []string {
	line := []string{cmdline, g.variant.Cmdline, opts.append}
	return []string{
		"-accel", opts.accel, "-cpu", "max",
		"-m", strconv.Itoa(opts.memory), "-smp", strconv.Itoa(opts.cpus),
		"-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none",
		"-kernel", g.tree.Image, "-initrd", initrd,
		"-append", strings.TrimSpace(strings.Join(line, " ")),
		// Two ports, so that the kernel's messages never tear a line of results.
		"-serial", "file:" + console,
		"-serial", "file:/dev/stdout",
	}
}

// read takes in a machine's answers until it is gone.
func (c *collector) read(ctx context.Context, r io.Reader) error {
	in := bufio.NewReader(r)
	var first error
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			// Half a line means that the machine died while it wrote; c.end says so.
			return first
		}
		var e plan.Event
		err = json.Unmarshal(line, &e)
		if err == nil {
			err = c.event(ctx, e)
		}
		if err != nil && first == nil {
			first = fmt.Errorf("reading the machine's answers: %w: %.200q", err, line)
		}
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(text, "\r", "")), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
