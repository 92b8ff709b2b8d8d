// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/revsk/revsk/tests/vm/plan"
	"golang.org/x/sys/unix"
)

func work() error {
	if err := mountBase(); err != nil {
		return err
	}
	results, err := openResults("/dev/ttyS1")
	if err != nil {
		return err
	}
	emit := func(e plan.Event) {
		line, err := json.Marshal(e)
		if err == nil {
			_, err = results.Write(append(line, '\n'))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "init: answering:", err)
		}
	}
	// Power off only after the last byte has left the serial port.
	defer unix.IoctlSetInt(int(results.Fd()), unix.TCSBRK, 1)

	if err := runPlan(emit); err != nil {
		text := err.Error()
		emit(plan.Event{Fatal: &text})
		return err
	}
	return nil
}

func runPlan(emit func(plan.Event)) error {
	raw, err := os.ReadFile(plan.Path)
	if err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	var p plan.Plan
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	if err := setUp(p); err != nil {
		return err
	}
	boot, err := describe()
	if err != nil {
		return err
	}
	emit(plan.Event{Boot: boot})
	for _, step := range p.Steps {
		step.Run(context.Background(), emit, dumpBlockedTasks)
	}
	taint, err := taint()
	if err != nil {
		return err
	}
	emit(plan.Event{Done: &plan.Done{Taint: taint}})
	return nil
}

// openResults opens a serial port raw: the terminal driver would turn newlines into CR LF.
func openResults(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the port for results: %w", err)
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("reading the settings of %s: %w", path, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("setting %s raw: %w", path, err)
	}
	return f, nil
}

func describe() (*plan.Boot, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return nil, fmt.Errorf("reading the uptime: %w", err)
	}
	first, _, _ := strings.Cut(string(uptime), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return nil, fmt.Errorf("reading the uptime: %w", err)
	}
	taint, err := taint()
	if err != nil {
		return nil, err
	}
	release := unix.ByteSliceToString(name.Release[:])
	return &plan.Boot{Release: release, Uptime: seconds, Taint: taint}, nil
}

func taint() (uint64, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/tainted")
	if err != nil {
		return 0, fmt.Errorf("reading the kernel's taint: %w", err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
}

// dumpBlockedTasks has the kernel say on the console what hangs where.
func dumpBlockedTasks() {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "init: asking for blocked tasks:", err)
	}
}
